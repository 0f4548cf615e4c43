"""When a partition is at its end, and what is counted. No Kafka, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from karafka_lite.core.group import Group
from karafka_lite.core.options import Hook, Policy
from karafka_lite.core.ownership import Partition
from karafka_lite.observers.progress import Score, Standing

PLACE = ("topic", 0)


class Record(NamedTuple):
    offset: int


class Scene:
    """One partition of one group, from its assignment on."""

    def __init__(self, **policy: Any) -> None:
        self.group = Group({"topic": Policy(**policy)})
        self.score = Score(["topic"])
        self.now = 0.0
        self.group.assigned([PLACE], 0.0)
        self.group.started(PLACE, 0, committed=False, now=0.0)
        self.plan()

    @property
    def partition(self) -> Partition:
        return self.group.owned[PLACE]

    def plan(self) -> None:
        """What the poller does before a poll."""
        self.group.poll_plan(0.0)

    def polled(self, offsets: Iterable[int], position: int) -> None:
        """A poll has brought ``offsets`` and left the client at ``position``."""
        self.group.fetched(PLACE, [Record(offset) for offset in offsets], position, 0, 0.0)
        self.group.polled({PLACE: position})

    def run(self, error: BaseException | None = None, *, mark: int | None = None) -> None:
        self.now += 100.0  # any back-off is over
        run = self.group.begin(self.partition, self.now)
        assert run is not None
        if mark is not None:
            self.partition.mark(mark)
        self.group.end(run, failed=error is not None, now=self.now)
        self.score.ran(run, error, 0.5)

    @property
    def standing(self) -> Standing:
        return self.score.standing("group", self.group)

    @property
    def done(self) -> int | None:
        return self.standing.done.get(PLACE)


def test_what_was_fetched_is_done_only_when_its_handler_has_returned() -> None:
    scene = Scene()
    scene.polled([0, 1, 2], 3)
    assert scene.done == 0

    ready = scene.group.take_ready()[0]
    run = scene.group.begin(ready, 0.0)
    assert run is not None
    assert scene.done == 0
    assert scene.standing.running

    scene.group.end(run, failed=False, now=0.0)
    assert scene.done == 3
    assert not scene.standing.running


def test_offsets_that_nobody_will_ever_see_are_done_when_the_client_is_behind_them() -> None:
    scene = Scene()
    scene.polled([], 2)
    assert scene.done == 2


def test_a_failed_batch_is_not_done_before_it_succeeds() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run(OSError("no"))
    assert scene.done is None  # a seek is due
    scene.plan()
    assert scene.done == 0, "to be repeated"
    scene.polled([0, 1], 2)
    scene.run()
    assert scene.done == 2


def test_a_position_from_before_a_seek_does_not_count() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run()
    scene.partition.begin_next_at(0)
    assert scene.done is None
    scene.group.polled({PLACE: 2})  # of the poll that was under way
    scene.plan()
    assert scene.done == 0


def test_a_place_that_only_the_cluster_knows_is_not_the_end_until_it_is_found() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run()
    scene.partition.begin_next_at("earliest")
    assert scene.done is None
    scene.group.found(PLACE, "earliest", 0)
    scene.plan()
    assert scene.done == 0


def test_what_was_processed_stays_done_while_more_comes() -> None:
    scene = Scene(max_messages=2)
    scene.polled([0, 1, 2, 3], 4)
    scene.run()
    assert scene.done == 2
    run = scene.group.begin(scene.partition, 1000.0)
    assert run is not None
    assert scene.done == 2
    scene.group.end(run, failed=True, now=1000.0)
    assert scene.done is None, "a failed batch may begin further back"


def test_a_run_that_failed_behind_its_last_mark_leaves_nothing_to_do() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    run = scene.group.begin(scene.partition, 1000.0)
    assert run is not None
    scene.partition.mark(2)
    scene.group.end(run, failed=True, now=1000.0)
    assert scene.done is None
    scene.plan()
    assert scene.done == 2


def test_a_first_batch_that_waits_for_more_counts_as_work() -> None:
    scene = Scene(batch_timeout_ms=5000)
    assert not scene.standing.running
    scene.polled([0], 1)
    assert scene.standing.running


def test_hooks_that_raise_are_counted() -> None:
    scene = Scene(hooks=frozenset({Hook.ON_SHUTDOWN}))
    scene.polled([0], 1)
    scene.run()
    scene.group.stop(2000.0)
    run = scene.group.begin(scene.partition, 2000.0)
    assert run is not None
    scene.group.end(run, failed=True, now=2000.0)
    scene.score.ran(run, OSError("no"), 0.5)
    (tally,) = scene.standing.tallies.values()
    assert (tally.hook_failures, tally.failures, tally.seconds) == (1, 0, 0.5)


def test_what_is_committed_is_known_of_what_is_ours() -> None:
    scene = Scene()
    assert scene.standing.committed == {}
    scene.polled([0], 1)
    scene.run()
    scene.group.commit_succeeded(scene.group.commit_batch(10_000.0), 10_000.0)
    assert scene.standing.committed == {PLACE: 1}


def test_a_partition_that_drains_or_has_no_start_is_not_at_its_end() -> None:
    scene = Scene()
    scene.polled([], 5)
    scene.group.stop(0.0)
    assert scene.done is None

    other = Group({"topic": Policy()})
    other.assigned([PLACE], 0.0)
    other.polled({PLACE: 5})
    standing = Score(["topic"]).standing("group", other)
    assert PLACE not in standing.done
    assert PLACE not in standing.processed


def test_runs_messages_failures_and_seconds_are_counted_by_topic() -> None:
    scene = Scene(max_messages=2)
    scene.polled([0, 1, 2], 3)
    scene.run()
    scene.run(OSError("no"))
    (tally,) = scene.standing.tallies.values()
    assert (tally.messages, tally.batches, tally.failures, tally.seconds) == (2, 1, 1, 1.0)


def test_a_message_that_was_given_up_is_counted_and_is_no_trouble_any_more() -> None:
    scene = Scene(budget=1)
    scene.polled([0], 1)
    run = scene.group.begin(scene.partition, 1000.0)
    assert run is not None
    assert scene.partition.gives_up(run)
    scene.group.set_aside(run, 1000.0)
    scene.score.ran(run, OSError("no"), 0.5, set_aside=True)
    (tally,) = scene.standing.tallies.values()
    assert (tally.failures, tally.given_up, tally.messages) == (1, 1, 0)
    assert scene.standing.errors == {}
    assert scene.done == 1


@pytest.mark.parametrize(
    ("mark", "in_hand", "error", "messages"),
    [
        (None, None, None, 4),
        (None, 2, None, 2),
        (None, None, OSError("no"), 0),
        (3, None, OSError("no"), 3),
        (2, 2, OSError("no"), 2),
    ],
    ids=["done", "left by break", "failed", "failed behind a mark", "failed in a loop over each"],
)
def test_messages_are_counted_when_they_are_done(
    mark: int | None, in_hand: int | None, error: OSError | None, messages: int
) -> None:
    scene = Scene(manual_offsets=True)
    scene.polled([0, 1, 2, 3], 4)
    run = scene.group.begin(scene.partition, 1000.0)
    assert run is not None
    if mark is not None:
        scene.partition.mark(mark)
    run.in_hand = in_hand
    scene.group.end(run, failed=error is not None, now=1000.0)
    scene.score.ran(run, error, 0.5)
    (tally,) = scene.standing.tallies.values()
    assert tally.messages == messages


def test_the_last_error_is_told_until_a_run_succeeds() -> None:
    scene = Scene()
    scene.polled([0], 1)
    scene.run(OSError("the disk is full"))
    assert scene.standing.errors == {PLACE: "OSError: the disk is full"}
    scene.plan()
    scene.polled([0], 1)
    scene.run()
    assert scene.standing.errors == {}

    scene.score.unreadable(PLACE, OSError("topic-0@1 cannot be read"))
    assert scene.standing.errors == {PLACE: "topic-0@1 cannot be read"}


@pytest.mark.parametrize(
    ("manual", "mark", "unmarked"), [(False, None, 0), (True, None, 3), (True, 2, 1), (True, 3, 0), (True, 1, 2)]
)
def test_processed_messages_behind_the_last_mark_are_unmarked(manual: bool, mark: int | None, unmarked: int) -> None:
    scene = Scene(manual_offsets=manual)
    scene.polled([0, 1, 2], 3)
    scene.run(mark=mark)
    scene.score.ended([scene.partition])
    assert scene.standing.tallies["topic"].unmarked == unmarked


def test_a_snapshot_does_not_change() -> None:
    scene = Scene()
    before = scene.standing
    scene.polled([0], 1)
    scene.run()
    assert before.tallies["topic"].messages == 0
    assert before.done == {PLACE: 0}
