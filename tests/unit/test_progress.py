"""When a partition is at its end, and what is counted. No Kafka, no clock."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.observer import wait_until
from support.partitions import Partitions, hook

from karafka_lite import events
from karafka_lite.core.answers import Outcome
from karafka_lite.core.group import Group
from karafka_lite.core.options import Hook, Options
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.observers.news import News
from karafka_lite.observers.progress import Progress, Snapshot, Totals

TP = ("topic", 0)


class Scene(Partitions):
    """One partition of one group, whose events are counted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, **options)
        self.progress = Progress()
        self.news = News("group", lambda run: "store", self.progress.observe)

    @property
    def ownership(self) -> Ownership:
        return self[0]

    def polled(self, offsets: range | list[int], position: int) -> None:
        """A poll has brought ``offsets`` and left the client at ``position``."""
        self.fetch(0, *offsets)
        self.group.polled({TP: position}, {})

    def next_run(self) -> Run:
        self.now += 100.0  # any back-off is over
        return self.begin()

    def ended(self, run: Run, error: BaseException | None = None, outcome: Outcome | None = None) -> None:
        run.failed_with(error)  # as the runner does, and not under the lock
        outcome = outcome or self.group.end(run, failed=error is not None, now=self.now)[run]
        self.news.call_ended(run, outcome)
        self.news.emit()

    def run(self, error: BaseException | None = None, *, mark: int | None = None) -> None:
        run = self.next_run()
        if mark is not None:
            self.ownership.marks.mark(mark)
        self.now += 0.5
        self.ended(run, error)

    @property
    def snapshot(self) -> Snapshot:
        return self.progress.snapshot(self.group, "group", ["topic"])

    @property
    def totals(self) -> Totals:
        return self.snapshot.totals["topic"]

    @property
    def done(self) -> int | None:
        return self.snapshot.done.get(TP)


# -- when a partition is at its end


def test_what_was_fetched_is_done_when_its_handler_has_returned() -> None:
    scene = Scene()
    scene.polled([0, 1, 2], 3)
    assert scene.done == 0
    run = scene.next_run()
    assert scene.done == 0
    assert scene.snapshot.running
    scene.ended(run)
    assert scene.done == 3
    assert not scene.snapshot.running


def test_offsets_without_a_message_are_done_once_fetched() -> None:
    scene = Scene()
    scene.polled([], 2)
    assert scene.done == 2


def test_a_failed_batch_is_not_done_before_it_succeeds() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run(OSError("no"))
    assert scene.done == 0, "to be repeated, although the client is past it"
    scene.run()
    assert scene.done == 2


def test_nothing_is_done_while_a_seek_is_due() -> None:
    scene = Scene(manual_offsets=True, max_messages=1)
    scene.polled([0, 1], 2)
    scene.run()
    scene.run(OSError("no"))
    assert scene.done is None
    scene.plan()
    assert scene.done == 0


def test_a_position_from_before_a_seek_does_not_count() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run()
    scene.group.redirect(scene.ownership, 0, scene.now)
    assert scene.done is None
    scene.group.polled({TP: 2}, {})  # of the poll that was under way
    scene.plan()
    assert scene.done == 0


def test_a_target_is_not_the_end_until_its_offset_is_known() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run()
    scene.group.redirect(scene.ownership, "earliest", scene.now)
    assert scene.done is None
    scene.group.found(scene.ownership, "earliest", 0, scene.now)
    scene.plan()
    assert scene.done == 0


def test_what_was_processed_stays_done_while_more_comes() -> None:
    scene = Scene(max_messages=2)
    scene.polled([0, 1, 2, 3], 4)
    scene.run()
    assert scene.done == 2
    run = scene.next_run()
    assert scene.done == 2
    scene.ended(run, OSError("no"))
    assert scene.done == 2


def test_a_run_that_failed_after_marking_all_leaves_nothing() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run(OSError("no"), mark=2)
    assert scene.done == 2


def test_a_first_batch_that_waits_for_more_counts_as_work() -> None:
    scene = Scene(batch_timeout_ms=5000)
    assert not scene.snapshot.running
    scene.polled([0], 1)
    assert scene.snapshot.running


def test_what_drains_or_has_no_start_is_not_at_its_end() -> None:
    scene = Scene()
    scene.polled([], 5)
    scene.group.stop(0.0)
    assert scene.done is None
    other = Group({"topic": Options()})
    other.assigned([TP], 0.0)
    other.polled({TP: 5}, {})
    snapshot = Progress().snapshot(other, "group", ["topic"])
    assert TP not in snapshot.done
    assert TP not in snapshot.processed


# -- what is counted


def test_batches_messages_and_failures_are_counted_by_topic() -> None:
    scene = Scene(max_messages=2)
    scene.polled([0, 1, 2], 3)
    scene.run()
    scene.run(OSError("no"))
    assert scene.totals == Totals(messages=2, batches=1, failures=1, seconds=1.0)


@pytest.mark.parametrize(
    ("mark", "in_hand", "error", "messages"),
    [(None, None, None, 4), (None, 2, None, 2), (None, None, OSError("no"), 0), (3, None, OSError("no"), 3),
     (2, 2, OSError("no"), 2)],
    ids=["done", "left by break", "failed", "failed after a mark", "failed in a loop over each"],
)  # fmt: skip
def test_messages_are_counted_when_they_are_done(
    mark: int | None, in_hand: int | None, error: OSError | None, messages: int
) -> None:
    scene = Scene(manual_offsets=True)
    scene.polled([0, 1, 2, 3], 4)
    run = scene.next_run()
    if mark is not None:
        scene.ownership.marks.mark(mark)
    run.in_hand = in_hand
    scene.ended(run, error)
    assert scene.totals.messages == messages


def test_a_message_given_up_is_counted_and_is_no_trouble() -> None:
    scene = Scene(budget=1)
    scene.polled([0], 1)
    run = scene.next_run()
    assert scene.ownership.gives_up(run)
    scene.ended(run, OSError("no"), scene.group.give_up(run, now=scene.now)[run])
    assert (scene.totals.failures, scene.totals.given_up, scene.totals.messages) == (1, 1, 0)
    assert scene.snapshot.errors == {}
    assert scene.done == 1


def test_hooks_that_raise_are_counted_and_are_no_batches() -> None:
    scene = Scene(hooks=(hook(Hook.ON_SHUTDOWN),))
    scene.polled([0], 1)
    scene.run()
    before = scene.totals
    scene.group.stop(scene.now)
    run = scene.begin()
    scene.news.hook_ended(run, "flush", 0.5, OSError("no"))
    scene.news.hook_ended(run, "close", 0.5, None)
    scene.news.emit()
    assert scene.totals == Totals(messages=1, batches=1, seconds=before.seconds, hook_failures=1)


def test_the_last_error_stands_until_a_run_succeeds() -> None:
    scene = Scene()
    scene.polled([0], 1)
    scene.run(OSError("the disk is full"))
    assert scene.snapshot.errors == {TP: "OSError: the disk is full"}
    scene.run()
    assert scene.snapshot.errors == {}
    scene.news.emit_now(events.Unreadable, "topic", 0, OSError("topic-0@1 cannot be read"), 1.0)
    assert scene.snapshot.errors == {TP: "OSError: topic-0@1 cannot be read"}


def test_errors_of_what_is_not_ours_are_left_out() -> None:
    scene = Scene()
    scene.polled([0], 1)
    scene.run(OSError("no"))
    scene.group.lose(scene.now, rejoin=False)
    assert scene.snapshot.errors == {}


def test_what_is_committed_is_known_of_what_is_ours() -> None:
    scene = Scene()
    assert scene.snapshot.committed == {}
    scene.polled([0], 1)
    scene.run()
    scene.now = 10_000.0
    assert scene.commit() == {TP: 1}
    assert scene.snapshot.committed == {TP: 1}


@pytest.mark.parametrize(
    ("manual", "mark", "unmarked"), [(False, None, 0), (True, None, 3), (True, 2, 1), (True, 3, 0), (True, 1, 2)]
)
def test_processed_messages_past_the_last_mark_are_unmarked(manual: bool, mark: int | None, unmarked: int) -> None:
    scene = Scene(manual_offsets=manual)
    scene.polled([0, 1, 2], 3)
    scene.run(mark=mark)
    scene.news.emit_now(events.Left, {TP: scene.ownership.unmarked}, None)
    assert scene.totals.unmarked == unmarked


def test_groups_are_counted_by_themselves() -> None:
    scene = Scene()
    scene.polled([0], 1)
    scene.run()
    other = scene.progress.snapshot(Group({"topic": Options()}), "other", ["topic"])
    assert other.totals == {"topic": Totals()}


def test_a_snapshot_does_not_change() -> None:
    scene = Scene()
    before = scene.snapshot
    scene.polled([0], 1)
    scene.run()
    assert before.totals["topic"].messages == 0
    assert before.done == {TP: 0}


def test_an_error_whose_text_hangs_holds_nobody_else_up() -> None:
    """Snapshots are made under the lock of a group: what they wait for, heartbeats wait for."""
    inside, release = threading.Event(), threading.Event()

    class Slow(Exception):
        def __str__(self) -> str:
            inside.set()
            release.wait()
            return "slow"

    scene = Scene()
    scene.polled([0], 1)
    thread = threading.Thread(target=scene.run, args=(Slow(),))
    thread.start()
    try:
        assert inside.wait(5)
        snapshots: list[Snapshot] = []
        other = threading.Thread(target=lambda: snapshots.append(scene.snapshot))
        other.start()
        wait_until(lambda: snapshots, timeout=5, message="a snapshot beside it")
    finally:
        release.set()
        thread.join()
        other.join()
    assert scene.snapshot.errors == {TP: "Slow: slow"}


def test_on_assigned_that_raises_is_the_error_of_its_partition_until_it_has_returned() -> None:
    scene = Scene(hooks=(hook(Hook.ON_ASSIGNED),))
    scene.polled([], 0)
    assert scene.done is None, "it may not be at its end before it was called"
    scene.run(OSError("no database"))
    assert scene.snapshot.errors == {TP: "on_assigned: OSError: no database"}
    scene.run()
    assert scene.snapshot.errors == {}
    assert (scene.totals, scene.done) == (Totals(), 0)
