"""What is about to run: a coloured box on a terminal, lines of text everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from karafka_lite.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

FOR_DEVELOPMENT = "for development and tests; its data is discarded on exit"


class Row(NamedTuple):
    """One topic of one group; ``offsets``: automatic or manual."""

    group: str
    topic: str
    offsets: str
    function: str


class Banner(NamedTuple):
    """What there is to say before a run.

    Attributes:
        most: calls of one handler at the same time.
        broker: the kind of the broker that was started for this run; "" if none was.
        stop: how to stop it.
        more: how to ask for more calls at the same time.
    """

    rows: Sequence[Row]
    brokers: Sequence[str]
    decoder: str
    most: int
    broker: str
    stop: str
    more: str

    @property
    def calls(self) -> str:
        """How many calls of a handler run at the same time."""
        if self.most == 1:
            return f"1 call of a handler at a time; {self.more} runs partitions side by side"
        return f"up to {self.most} calls of a handler at a time, each for another partition"

    @property
    def text(self) -> str:
        """All of it; every line is complete by itself, for a log collector separates them."""
        lines = [f"karafka-lite {__version__}, brokers: {', '.join(self.brokers)}"]
        lines += [f"group {row.group}: {row.topic} -> {row.function} ({row.offsets} offsets)" for row in self.rows]
        lines += [f"the {self.broker} broker is {FOR_DEVELOPMENT}"] if self.broker else []
        return "\n".join([*lines, f"record decoder: {self.decoder}", self.calls, f"stop with {self.stop}"])

    @property
    def fields(self) -> dict[str, object]:
        """What a program wants to know of it."""
        routes = [row._asdict() for row in self.rows]
        return {"version": __version__, "brokers": self.brokers, "broker": self.broker or None, "routes": routes}


def on_terminal() -> bool:
    """True when standard error is a terminal that can do more than print lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def show(banner: Banner) -> None:
    """Print the box on standard error."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in Row._fields:
        table.add_column(column, overflow="fold")
    for row in banner.rows:
        table.add_row(*map(Text, row))
    brokers = Text.assemble(("brokers ", "dim"), ", ".join(banner.brokers))
    decoder = Text.assemble(("record decoder ", "dim"), banner.decoder)
    kind = [Text(f"the {banner.broker} broker is {FOR_DEVELOPMENT}")] if banner.broker else []
    end = Text.assemble(("stop with ", "dim"), (banner.stop, "bold"))
    rich_panel(Group(table, Text(), brokers, decoder, *kind, Text(banner.calls, "dim"), end))


def rich_panel(content: RenderableType) -> None:
    """Print ``content`` in a box."""
    from rich.console import Console
    from rich.panel import Panel

    panel = Panel(content, title=f"karafka-lite {__version__}", border_style="cyan", expand=False)
    Console(stderr=True).print(panel)
