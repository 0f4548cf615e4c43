"""What a command answers, on standard output: a table for people, or one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Row = Mapping[str, Any]


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print ``rows``, which have the same keys."""
    text = "".join(f"{as_line(row)}\n" for row in rows) if as_json else table(rows)
    write(text.encode(errors="backslashreplace"))


def table(rows: Sequence[Row]) -> str:
    """``rows`` below their keys, in columns; numbers to the right, "-" for None. Lines end without spaces."""
    if not rows:
        return ""
    numeric = {name for name in rows[0] if any(isinstance(row[name], int) for row in rows)}
    cells = [list(rows[0])] + [["-" if cell is None else str(cell) for cell in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        )
        for row in cells
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def as_line(value: object) -> str:
    """``value`` as JSON, in one line. What is no text in UTF-8 becomes so by ``backslashreplace``, and stays JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(data: bytes) -> None:
    """To standard output, at once. Raises BrokenPipeError: nobody reads it any more."""
    if sys.stdout is None:  # the parent process closed it
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End the block quietly when what reads our standard output has ended, as ``head`` does."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and would complain.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
