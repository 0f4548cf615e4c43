"""The view of ``run --live``: what it shows, and that it fits."""

from __future__ import annotations

import io

from rich.console import Console

from karafka_lite import Health, PartitionStats, Stats
from karafka_lite.observers.live import View

GOOD = Health(live=True, ready=True)


def partition(
    number: int, state: str = "waiting", group: str = "shop", position: int = 0, lag: int | None = 0, **other: object
) -> PartitionStats:
    values = {"stored": position, "committed": None, "since_ms": 1200, "until_ms": None, "doing": "", "error": ""}
    return PartitionStats(group, "orders", number, state, position, lag=lag, **{**values, **other})  # type: ignore[arg-type]


def shown(
    stats: Stats, health: Health | None = GOOD, now: float = 0.0, height: int = 30, view: View | None = None
) -> str:
    console = Console(file=io.StringIO(), width=100, height=height, record=True)
    console.print((view or View()).draw(stats, health, now, height))
    return console.export_text()


def test_each_state_says_since_when_or_until_when_and_what_it_does() -> None:
    stats = Stats(partitions=(
        partition(0, "working", doing="store 10..509"),
        partition(1, "back-off", until_ms=2500, error="ValueError: no [red] id"),
        partition(2, "paused", until_ms=3_600_000 * 2),
        partition(3, "draining", until_ms=5000, doing="store 7..8", since_ms=400_000),
        partition(4, "starting"),
        partition(5, lag=None),
    ))  # fmt: skip
    lines = [line.split("   ")[0].rstrip() for line in shown(stats).splitlines() if "orders-" in line]
    text = shown(stats)
    assert "orders-0   working 1.2 s  store 10..509" in text
    assert "orders-1   back-off for another 2.5 s" in text
    assert "           ValueError: no [red] id\n" in "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert "orders-2   paused for another 2 h" in text
    assert "orders-3   draining 7 min  store 7..8" in text
    assert "orders-4   starting 1.2 s" in text
    assert len(lines) == 6
    assert text.splitlines()[-3].split()[-2:] == ["-", "-"], "neither a commit nor a lag is known"


def test_messages_a_second_are_those_of_the_last_seconds_and_a_retry_is_no_negative_speed() -> None:
    view = View()
    shown(Stats(partitions=(partition(0, position=100), partition(1, position=50))), view=view)
    text = shown(Stats(200, partitions=(partition(0, position=300), partition(1, position=40))), now=2.0, view=view)
    first, second = (line.split() for line in text.splitlines() if line.startswith("orders-"))
    assert first[4:] == ["100", "300", "-", "0"]
    assert second[4:] == ["0", "40", "-", "0"]
    assert "200 messages (100/s)" in text


def test_more_partitions_than_lines_are_summed_up_and_those_that_work_are_kept() -> None:
    many = tuple(partition(number, "working" if number == 77 else "waiting", lag=1) for number in range(100))
    text = shown(Stats(partitions=many), height=20)
    assert len(text.splitlines()) <= 20
    assert "orders-77" in text
    assert "… and 89 more: 89 waiting, lag 89" in text


def test_groups_have_a_heading_where_there_are_several() -> None:
    text = shown(Stats(partitions=(partition(0), partition(0, group="[bold]billing"))))
    assert [line.rstrip() for line in text.splitlines() if line.rstrip() in ("shop", "[bold]billing")] == [
        "shop", "[bold]billing"
    ]  # fmt: skip
    assert "shop" not in shown(Stats(partitions=(partition(0),)))


def test_a_rebalance_and_what_hangs_are_the_last_line() -> None:
    waits = Health(live=True, ready=False, reasons=("group shop: draining for a rebalance: orders-0",))
    stats = Stats(rebalances=2, partitions=(partition(0, "draining"),))
    assert shown(stats, waits).splitlines()[-1].startswith(
        "not ready, 1 partition, 2 rebalances: group shop: draining for a rebalance: orders-0"
    )  # fmt: skip
    assert shown(stats, Health(False, False, ("it hangs",))).splitlines()[-1].startswith("not live, 1 partition")
    assert shown(stats).splitlines()[-1].rstrip() == "ready, 1 partition, 2 rebalances"


def test_at_the_end_only_the_totals_stay() -> None:
    text = shown(Stats(1234, 5, 1, 2, 3, 1), None)
    assert text.rstrip() == (
        "1,234 messages (0/s), 5 batches, 1 failures, 2 dead letters, 3 commits (1 failed), lag unknown"
    )
