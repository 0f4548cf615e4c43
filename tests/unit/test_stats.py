"""Where each partition is: its state, since when, its offsets and its lag."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from karafka_lite import App, PartitionStats, Stats, events
from karafka_lite.core.group import Group
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.core.ownership import Run
from karafka_lite.observers.metrics import Counts
from karafka_lite.observers.progress import Progress
from karafka_lite.observers.stats import reading, stats

TP = ("orders", 0)


class Scene:
    """One partition that became ours at 100, and begins at offset 5."""

    def __init__(self, *hooks: RegisteredHook, parts: int = 0) -> None:
        self.group = Group({"orders": Options(hooks=hooks, parts=parts)}, drain_timeout_ms=10_000)
        self.progress, self.counts = Progress(), Counts(lambda: self.now)
        self.member: Any = SimpleNamespace(group_id="shop", group=self.group, name_of=lambda _: "store")
        self.now = 100.0
        self.tell(events.Joined, (TP,))
        (self.ownership,) = self.group.assigned([TP], 100.0)

    def tell(self, kind: type[events.Event], *values: object) -> None:
        for observer in (self.progress, self.counts):
            observer.observe(kind("shop", *values))

    def begin(self) -> Scene:
        self.ownership.intake.begin_at(5)
        self.ownership.intake.sought(5)
        return self

    def fetch(self, *offsets: int) -> None:
        records: Any = [SimpleNamespace(offset=offset) for offset in offsets]
        self.group.fetched(TP, records, 10, 1, self.now)

    def run(self) -> Run:
        (ownership,) = self.group.take_ready()
        run = self.group.begin(ownership, self.now)
        assert run is not None
        return run

    def at(self, now: float) -> PartitionStats:
        (one,) = stats([self.member], self.progress, self.counts, 10.0, now).partitions
        return one


def test_a_partition_whose_start_is_looked_for_is_starting() -> None:
    assert Scene().at(101.5) == PartitionStats(
        "shop", *TP, "starting", None, None, None, None, since_ms=1500, until_ms=None, doing="", error=""
    )


def test_until_on_assigned_has_returned_it_is_starting_and_the_function_is_named() -> None:
    scene = Scene(RegisteredHook(Hook.ON_ASSIGNED, lambda ctx: None)).begin()
    scene.group._settle(scene.ownership, scene.now)
    scene.run()
    assert (scene.at(102.0).state, scene.at(102.0).doing, scene.at(102.0).since_ms) == ("starting", "store", 2000)


def test_of_a_batch_with_parts_is_said_in_how_many_it_is() -> None:
    scene = Scene(parts=3).begin()
    records: Any = [SimpleNamespace(offset=offset, key=b"%d" % (offset % 3)) for offset in range(5, 12)]
    scene.group.fetched(TP, records, 12, 1, scene.now)
    scene.run()
    assert scene.at(101.0).doing == "store 5..11 in 1 part"
    scene.run()
    assert (scene.at(101.0).doing, scene.at(101.0).state) == ("store 5..11 in 2 parts", "working")


def test_a_partition_waits_works_and_waits_again_from_the_end_of_its_call_on() -> None:
    scene = Scene().begin()
    assert (scene.at(103.0).state, scene.at(103.0).since_ms, scene.at(103.0).lag) == ("waiting", 3000, None)
    scene.now = 104.0
    scene.fetch(5, 6)
    run = scene.run()
    one = scene.at(104.25)
    assert (one.state, one.since_ms, one.doing, one.position, one.lag) == ("working", 250, "store 5..6", 5, 5)
    scene.now = 105.0
    outcome = scene.group.end(run, failed=False, now=105.0)[run]
    scene.tell(events.CallEnded, *TP, "store", None, 5, 6, 1, outcome.seconds, outcome.messages)
    one = scene.at(107.0)
    assert (one.state, one.since_ms, one.position, one.stored, one.committed, one.lag) == (
        "waiting",
        2000,
        7,
        7,
        None,
        3,
    )
    scene.group.committed(scene.group.commit_batch(200.0), {}, 200.0)
    assert scene.at(201.0).committed == 7


def test_a_failure_is_a_back_off_with_its_end_and_its_error() -> None:
    scene = Scene().begin()
    scene.fetch(5)
    run = scene.run()
    run.failed_with(ValueError("no"))
    scene.group.end(run, failed=True, now=100.0)
    scene.tell(events.CallEnded, *TP, "store", None, 5, 5, 1, 0.0, 0, run.error, 5, 1.0, run.reason)
    one = scene.at(100.4)
    assert (one.state, one.since_ms, one.until_ms, one.error) == ("back-off", 400, 600, "ValueError: no")


def test_what_cannot_be_read_is_a_back_off_too() -> None:
    scene = Scene().begin()
    scene.group.fetch_failed(TP, 100.0)
    assert (scene.at(100.5).state, scene.at(100.5).until_ms) == ("back-off", 500)


def test_a_pause_of_user_code_has_its_end() -> None:
    scene = Scene().begin()
    scene.group.pause(scene.ownership, 109.0, 100.0)
    assert (scene.at(101.0).state, scene.at(101.0).until_ms) == ("paused", 8000)
    assert scene.at(110.0).state == "waiting"


def test_a_drain_says_since_when_until_when_and_what_still_runs() -> None:
    scene = Scene().begin()
    scene.fetch(5)
    scene.run()
    scene.group.revoke([TP], 102.0)
    one = scene.at(104.0)
    assert (one.state, one.since_ms, one.until_ms, one.doing) == ("draining", 2000, 8000, "store 5..5")


def test_the_lag_is_known_from_the_first_fetch_on_also_where_it_brings_nothing() -> None:
    scene = Scene().begin()
    scene.group.polled({TP: 5}, {})
    assert scene.at(101.0).lag is None
    assert reading([scene.member], scene.counts).lags == {}
    scene.group.polled({TP: 5}, {TP: 5})
    assert scene.at(102.0).lag == 0
    assert reading([scene.member], scene.counts).lags == {("shop", *TP): 0}
    scene.group.polled({TP: 5}, {TP: 12})
    assert scene.at(103.0).lag == 7


def test_offsets_at_the_end_that_hold_no_message_are_no_lag() -> None:
    """The marker at the end of a transaction."""
    scene = Scene().begin()
    scene.fetch(8)
    scene.group.end(scene.run(), failed=False, now=101.0)
    assert scene.at(101.0).lag == 1
    scene.group.polled({TP: 10}, {TP: 10})
    assert scene.at(101.0).lag == 0


def test_the_totals_are_those_of_all_groups() -> None:
    scene = Scene()
    for group_id in ("shop", "billing"):
        call = events.CallEnded(group_id, *TP, "store", None, 5, 6, 1, 0.1, 2)
        dead = events.DeadLettered(group_id, *TP, 7, "store", 1, "no")
        committed = events.Committed(group_id, {TP: 7, ("clicks", 0): 1})
        refused = events.CommitFailed(group_id, {TP: 7}, OSError())
        for event in (call, dead, committed, refused):
            scene.counts.observe(event)
    scene.tell(events.CallEnded, *TP, "store", None, 7, 7, 1, 0.1, 0, ValueError())
    found = stats([], scene.progress, scene.counts, 10.0, 100.0)
    assert found == Stats(4, 2, 1, 2, commits=2, commit_failures=2, rebalances=1)


def test_an_app_that_was_not_started_has_done_nothing() -> None:
    assert App("shop").stats() == Stats()
