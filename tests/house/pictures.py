"""Draws the pictures of the README, light and dark, into ``.github/images/``.

    python tests/house/pictures.py

The terminal is the real output of the quickstart, the chart is drawn from the table in ``tests/benchmarks/README.md``.
The same input gives the same bytes: ``test_pictures.py`` draws them again and compares.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / ".github" / "images"
BENCHMARKS = ROOT / "tests" / "benchmarks" / "README.md"
QUICKSTART = "run examples.quickstart:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end"
RICH = f"<!-- rich {importlib.metadata.version('rich')} -->\n"  # another version may draw another terminal

SANS = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Colours(NamedTuple):
    """What GitHub's pages look like, and three colours with a meaning."""

    text: str
    dim: str
    line: str
    page: str
    done: str
    stored: str
    hand: str
    idle: str
    ink: str  # on a coloured ground


SCHEMES = {
    "light": Colours("#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#1a7f37", "#4ac26b", "#bf8700", "#eaeef2", "#ffffff"),
    "dark": Colours("#f0f6fc", "#9198a1", "#3d444d", "#0d1117", "#238636", "#2ea043", "#9e6a03", "#21262d", "#ffffff"),
}


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures():
        (IMAGES / name).write_text(picture, encoding="utf-8")


def pictures() -> Iterator[tuple[str, str]]:
    """Each file's name and content."""
    said = quickstart()
    for scheme, colours in SCHEMES.items():
        yield f"offsets-{scheme}.svg", offsets(colours)
        yield f"rebalance-{scheme}.svg", rebalance(colours)
        yield f"cost-{scheme}.svg", cost(colours)
        yield f"quickstart-{scheme}.svg", terminal(said, scheme)
        yield f"live-{scheme}.svg", live(scheme)


# -- drawing ----------------------------------------------------------------------------------------------------------


class Drawing:
    """An SVG of so many pixels."""

    def __init__(self, width: int, height: int, told: str, colours: Colours) -> None:
        self.colours = colours
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(told)}</title>",
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, rim: str = "none") -> None:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self._lines.append(f'<rect {place} rx="4" fill="{fill}" stroke="{rim}"/>')

    def line(self, *points: tuple[float, float], colour: str = "", dashed: bool = False, wide: float = 1.5) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = ' stroke-dasharray="2 4"' if dashed else ""
        style = f'fill="none" stroke="{colour or self.colours.dim}" stroke-width="{wide:g}"{dashes}'
        self._lines.append(f'<polyline points="{path}" {style}/>')

    def up(self, x: float, y: float, colour: str) -> None:
        """An arrow whose head is there."""
        self._lines.append(f'<path d="M{x:g} {y:g} l-5 9 h10 z" fill="{colour}"/>')

    def text(
        self, x: float, y: float, text: str, colour: str = "", anchor: str = "start", size: int = 13, code: bool = False
    ) -> None:
        font = f'font-family="{MONO if code else SANS}" font-size="{size}"'
        where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour or self.colours.text}"'
        self._lines.append(f"<text {where} {font}>{escape(text)}</text>")

    def end(self) -> str:
        return "\n".join([*self._lines, "</svg>"]) + "\n"


def offsets(colours: Colours) -> str:
    cell, left, top = 58, 12, 34
    told = "Offsets of a partition: 0 to 7 are done, 8 and 9 are in hand; 3 is committed, 6 is stored"
    drawing = Drawing(720, 186, told, colours)
    grounds = [colours.done] * 3 + [colours.stored] * 3 + [colours.page] * 2 + [colours.hand] * 2 + [colours.idle] * 2
    for offset, ground in enumerate(grounds):
        x, rim = left + offset * cell, colours.stored if ground == colours.page else "none"
        drawing.box(x + 2, top, cell - 4, 40, ground, rim)
        ink = colours.ink if ground in (colours.done, colours.stored, colours.hand) else colours.text
        drawing.text(x + cell / 2, top + 25, str(offset), ink, "middle", 15, code=True)
    for first, last, words in ((0, 5, "done and marked"), (6, 7, "done"), (8, 9, "in hand"), (10, 11, "not read yet")):
        middle = left + (first + last + 1) / 2 * cell
        drawing.text(middle, top - 12, words, colours.dim, "middle")
    below = top + 48
    for offset, name, *more in (
        (3, "committed = 3", "on the broker"),
        (6, "stored = 6", "in memory"),
        (8, "8", "the batch in hand"),
    ):
        x = left + offset * cell
        drawing.up(x, below, colours.text)
        drawing.text(x, below + 28, name, colours.text, "middle", 14, code=True)
        for number, words in enumerate(more):
            drawing.text(x, below + 46 + 16 * number, words, colours.dim, "middle")
    end = left + 12 * cell - 2
    drawing.line((left + 3 * cell, 150), (left + 3 * cell, 158), (end, 158), (end, 150), colour=colours.hand)
    middle = (left + 3 * cell + end) / 2
    drawing.text(
        middle, 177, "after a crash the next owner begins at 3: from here on messages come again", "", "middle"
    )
    return drawing.end()


def rebalance(colours: Colours) -> str:
    told = "A hand-over: the batch ends, before_revoke, commit, handed over, on_revoked; marks count until then"
    drawing = Drawing(760, 216, told, colours)
    begin, over, end = 172, 560, 748
    steps = (
        (begin, 320, "the batch ends", colours.hand, False),
        (320, 455, "before_revoke", colours.stored, True),
        (455, over, "commit", colours.done, False),
        (over + 12, end, "on_revoked", colours.idle, True),
    )
    drawing.text(begin, 16, "a rebalance wants the partition", size=13)
    drawing.line((begin, 25), (begin, 190), colour=colours.dim, dashed=True)
    drawing.text(over + 6, 16, "handed over: the next owner begins", anchor="middle")
    drawing.line((over + 6, 25), (over + 6, 190), colour=colours.dim, dashed=True)
    drawing.box(12, 36, begin - 14, 34, colours.hand)
    drawing.text((12 + begin) / 2, 58, "handler runs", colours.ink, "middle")
    for x, until, words, ground, code in steps:
        ink = colours.text if ground == colours.idle else colours.ink
        drawing.box(x + 2, 36, until - x - 4, 34, ground)
        drawing.text((x + until) / 2, 58, words, ink, "middle", 13, code=code)
    drawing.line((begin, 82), (begin, 88), (over, 88), (over, 82))
    drawing.text((begin + over) / 2, 104, "drain_timeout_ms (60 s) at most; heartbeats go on", colours.dim, "middle")
    rows = (
        ("ctx.stopping", ((12, begin, "False"), (begin, end, "True"))),
        ("ctx.revoked", ((12, over + 6, "False"), (over + 6, end, "True"))),
        ("ctx.mark_as_consumed", ((12, over + 6, "True"), (over + 6, end, "False"))),
    )
    for number, (name, spans) in enumerate(rows):
        y = 132 + 28 * number
        for at, until, words in spans:
            strong = words == "True"
            drawing.line((at + 3, y + 6), (until - 3, y + 6), colour=colours.done if strong else colours.line, wide=3)
            middle = (max(at, begin if number else 12) + until) / 2  # the name beside what it is first
            said = words if at != 12 else f"{name}: {words}"
            drawing.text(middle, y, said, colours.text, "middle", 12, code=True)
    return drawing.end()


# What the chart shows, by the beginning of its line in the table.
BARS = (
    ("`karafka-lite run`, speed: no-op", "karafka-lite[speed], whole batches"),
    ("`karafka-lite run`, speed: iterates |", "karafka-lite[speed], each message"),
    ("`karafka-lite run`, pure: no-op", "karafka-lite, whole batches"),
    ("`karafka-lite run`, pure: iterates |", "karafka-lite, each message"),
    ("confluent-kafka", "confluent-kafka (C)"),
    ("aiokafka", "aiokafka (Cython)"),
    ("FastStream 0.7.8 on aiokafka 0.14.0: batches of raw bytes", "FastStream, batches"),
    ("kstreams", "kstreams"),
    ("hand-written loop", "kafka-python, a loop by hand"),
    ("Quix", "Quix Streams"),
    ("Arroyo", "Arroyo"),
)


def cost(colours: Colours) -> str:
    table = BENCHMARKS.read_text(encoding="utf-8").partition("messages of 16 B**")[2].partition("**Throughput")[0]
    figures = [(label, figure(table, begin)) for begin, label in BARS]
    left, most = 250, max(cost for _, cost in figures)
    told = "CPU time of a message of 16 B, in microseconds: " + ", ".join(
        f"{label} {cost:g}" for label, cost in figures
    )
    drawing = Drawing(720, 28 * len(figures) + 34, told, colours)
    scale = (720 - left - 60) / most
    drawing.text(left, 16, "CPU time of a message of 16 B, in µs: less is better", colours.dim)
    for number, (label, cost) in enumerate(figures):
        y, ours = 28 + 28 * number, label.startswith("karafka-lite")
        drawing.text(left - 10, y + 15, label, colours.text if ours else colours.dim, "end")
        drawing.box(left, y, max(2.0, round(cost * scale, 1)), 20, colours.done if ours else colours.line)
        drawing.text(round(left + cost * scale + 8, 1), y + 15, f"{cost:.2f}", colours.text, code=True, size=12)
    return drawing.end()


def figure(table: str, begin: str) -> float:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {begin}")]
    return float(line.split("|")[2])


# -- the terminal -----------------------------------------------------------------------------------------------------


def quickstart() -> str:
    """What the quickstart writes to a terminal; what differs from run to run is set to that of one run."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "98", "TERM": "xterm-256color", "KARAFKA_LITE_DECODER": "pure"}
    environment |= {"PYTHONPATH": str(ROOT), "LINES": "40", "COLORTERM": ""}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "karafka_lite", *shlex.split(QUICKSTART)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **streams) as process:  # type: ignore[call-overload]
        os.close(follower)
        said = b"".join(_read(leader))
        os.close(leader)
    if process.returncode:
        raise SystemExit(said.decode(errors="replace"))
    return said.decode()


def _read(leader: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(leader, 1 << 16)
        except OSError:  # so Linux says that the other side is closed
            return
        if not chunk:
            return
        yield chunk


def shown(said: str) -> list[str]:
    """The lines that stay on the terminal, with their colours."""
    lines = [line.rpartition("\r")[2] for line in said.replace("\r\n", "\n").split("\n")]
    bare = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]
    kept = []
    for line, text in zip(lines, bare, strict=True):
        if text.startswith(("╭", "│", "╰", "produced", "group ", "earthquake-counter", "drained", "magnitude")):
            kept.append(line)
        elif text.startswith("1707 earthquakes"):
            kept += ["…", line]
    told = "\n".join(kept)
    told = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:9092 ", told)
    told = re.sub(r"in \d+\.\d s", "in 0.2 s", told)
    told = re.sub(r"(1707 +)\d( +0 +0 +)\d\.\d", r"\g<1>6\g<2>0.1", told)  # batches, seconds
    return told.split("\n")


def terminal(said: str, scheme: str) -> str:
    from rich.text import Text

    console = _console()
    first, feed, rest = QUICKSTART.partition(" --feed")
    console.print(Text.assemble(("$ ", "green"), f"karafka-lite {first} \\"))
    console.print(Text(f"     {feed}{rest}"))
    for line in shown(said):
        console.print(Text.from_ansi(line), soft_wrap=True)
    return _exported(console, "quickstart", scheme)


def live(scheme: str) -> str:
    """What ``run --live`` shows of a service whose rebalance is under way."""
    from rich.text import Text

    from karafka_lite import Health, PartitionStats, Stats
    from karafka_lite.observers.live import View

    def partition(
        topic: str, number: int, state: Any, at: int, lag: int, since_ms: int, **other: Any
    ) -> PartitionStats:
        values = {"stored": at, "committed": at - at % 500, "until_ms": None, "doing": "", "error": "", **other}
        return PartitionStats("event-store", topic, number, state, at, lag=lag, since_ms=since_ms, **values)

    def stats(seconds: int) -> Stats:
        done = 640 * seconds
        return Stats(18_400 + 3 * done, 96, 4, 1, 12, 0, 2, (
            partition("clicks", 0, "waiting", 8_120 + done, 0, 400),
            partition("orders", 0, "draining", 4_500 + done, 1_260, 700, doing="store 6420..6919", until_ms=59_300),
            partition("orders", 1, "back-off", 3_100, 912, 400, until_ms=3600, error="ValueError: no customer"),
            partition("orders", 2, "working", 5_000 + done, 71, 1300, doing="store 6920..6990"),
        ))  # fmt: skip

    console, view = _console(), View()
    waits = Health(live=True, ready=False, reasons=("group event-store: draining for a rebalance: orders-0",))
    view.draw(stats(0), waits, 0.0, 30)
    console.print(Text.assemble(("$ ", "green"), "karafka-lite run orders:app --live"))
    console.print(view.draw(stats(3), waits, 3.0, 30))
    return _exported(console, "live", scheme)


def _console() -> Console:
    from rich.console import Console

    return Console(record=True, width=98, file=io.StringIO(), force_terminal=True, color_system="truecolor")


def _exported(console: Console, name: str, scheme: str) -> str:
    from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme

    light = TerminalTheme(
        (255, 255, 255), (31, 35, 40),
        [(36, 41, 47), (207, 34, 46), (17, 99, 41), (77, 45, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131),
         (110, 119, 129)],
    )  # fmt: skip
    theme = light if scheme == "light" else SVG_EXPORT_THEME
    drawn = console.export_svg(title="", theme=theme, unique_id=f"{name}-{scheme}")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # from elsewhere: no page may load it
    drawn = drawn.replace("font-family: Fira Code, monospace", f"font-family: {MONO}")
    return RICH + "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


if __name__ == "__main__":
    main()
