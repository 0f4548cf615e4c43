"""The view of ``run --live``: what each partition does, as a table that fits a terminal.

Nothing is interpreted as rich markup: topics, groups and errors are wrapped in ``Text``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from karafka_lite.messages import where
from karafka_lite.observers.health import Health
from karafka_lite.observers.stats import PartitionStats, Stats

RATE_S = 5.0  # messages a second are those of the last seconds
LINES = 9  # of the view beside the partitions, and for log lines above it
STYLES = {"working": "green", "back-off": "red", "paused": "yellow", "draining": "magenta", "starting": "cyan"}
Key = tuple[str, str, int]


class View:
    """Draws one picture after the other; it remembers the last seconds for the messages per second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, dict[Key, int]]] = deque()  # when, messages, positions

    def draw(self, stats: Stats, health: Health | None, now: float, height: int) -> RenderableType:
        """What a terminal of ``height`` lines shows at the moment ``now``. ``health``: None at the end."""
        positions = {_key(one): one.position for one in stats.partitions if one.position is not None}
        self._samples.append((now, stats.messages, positions))
        while now - self._samples[0][0] > RATE_S:
            self._samples.popleft()
        before, messages, old = self._samples[0]
        seconds = max(now - before, 1e-9)
        totals = _totals(stats, (stats.messages - messages) / seconds)
        if health is None:
            return totals
        rates = {key: max(0, at - old[key]) / seconds for key, at in positions.items() if key in old}
        shown, left_out = _fitting(stats.partitions, max(3, height - LINES))
        parts: list[RenderableType] = [Text(), _table(shown, rates)]
        if left_out:
            parts.append(Text(_summary(left_out), "dim"))
        return Group(*parts, totals, _how(health, stats))


def _key(one: PartitionStats) -> Key:
    return one.group_id, one.topic, one.partition


def _fitting(partitions: Sequence[PartitionStats], room: int) -> tuple[list[PartitionStats], list[PartitionStats]]:
    """Those that are shown, in their order, and the others: the first that go are those that wait for messages."""
    lines = {_key(one): 2 if one.error else 1 for one in partitions}
    if sum(lines.values()) + _headings(partitions) <= room:
        return list(partitions), []
    kept: set[Key] = set()
    for one in sorted(partitions, key=lambda one: (one.state == "waiting", not one.error, -(one.lag or 0))):
        if (room := room - lines[_key(one)]) < _headings(partitions):
            break
        kept.add(_key(one))
    return [one for one in partitions if _key(one) in kept], [one for one in partitions if _key(one) not in kept]


def _headings(partitions: Sequence[PartitionStats]) -> int:
    groups = {one.group_id for one in partitions}
    return len(groups) if len(groups) > 1 else 0


def _summary(left_out: Sequence[PartitionStats]) -> str:
    states: dict[str, int] = {}
    for one in left_out:
        states[one.state] = states.get(one.state, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"… and {len(left_out)} more: {told}, lag {sum(one.lag or 0 for one in left_out):,}"


def _table(partitions: Sequence[PartitionStats], rates: dict[Key, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("partition", no_wrap=True, min_width=9)
    table.add_column("state", no_wrap=True, ratio=1)
    for name in ("messages/s", "stored", "committed", "lag"):
        table.add_column(name, no_wrap=True, justify="right")
    headings, group = _headings(partitions), ""
    for one in partitions:
        if headings and one.group_id != group:
            table.add_row(Text(group := one.group_id, "bold"))
        rate = rates.get(_key(one))
        table.add_row(
            Text(where(one.topic, one.partition)),
            _state(one),
            Text("" if rate is None else f"{rate:,.0f}"),
            *(Text("-" if value is None else f"{value:,}") for value in (one.stored, one.committed, one.lag)),
        )
        if one.error:
            table.add_row(Text(), Text(one.error, "red", overflow="ellipsis"))
    return table


def _state(one: PartitionStats) -> Text:
    text = Text(one.state, STYLES.get(one.state, "dim"), overflow="ellipsis")
    if one.until_ms is not None and one.state != "draining":
        text.append(f" for another {_time(one.until_ms)}")
    else:
        text.append(f" {_time(one.since_ms)}", "" if one.state != "waiting" else "dim")
    if one.doing:
        text.append(f"  {one.doing}", "default")
    return text


def _time(ms: int) -> str:
    seconds = ms / 1000
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _totals(stats: Stats, rate: float) -> Text:
    lags = [one.lag for one in stats.partitions if one.lag is not None]
    told = [
        f"{stats.messages:,} messages ({rate:,.0f}/s)",
        f"{stats.batches:,} batches",
        f"{stats.failures:,} failures",
    ]
    told.append(f"{stats.dead_letters:,} dead letters")
    failed = f" ({stats.commit_failures:,} failed)" if stats.commit_failures else ""
    told += [f"{stats.commits:,} commits{failed}", f"lag {sum(lags):,}" if lags else "lag unknown"]
    return Text(", ".join(told), "bold")


def _how(health: Health, stats: Stats) -> Text:
    """Whether it works; a rebalance shows here while it is under way."""
    count = len(stats.partitions)
    partitions = f"{count} partition{'s' * (count != 1)}, {stats.rebalances} rebalance{'s' * (stats.rebalances != 1)}"
    if health.ready:
        return Text.assemble(("ready", "green"), f", {partitions}")
    word, colour = ("not ready", "yellow") if health.live else ("not live", "bold red")
    return Text.assemble((word, colour), f", {partitions}: {'; '.join(health.reasons)}", overflow="fold")
