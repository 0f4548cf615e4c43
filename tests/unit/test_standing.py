"""When a partition is at its end, and what is counted. No Kafka, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from karafka_lite.group import Group
from karafka_lite.partition import Partition, Policy
from karafka_lite.standing import Score, Standing

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
        self.group.fetched(PLACE, [Record(offset) for offset in offsets], position, 0.0)
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
    assert scene.done is None

    ready = scene.group.take_ready()[0]
    run = scene.group.begin(ready, 0.0)
    assert run is not None
    assert scene.done is None
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
    assert scene.done is None  # to be repeated
    scene.polled([0, 1], 2)
    scene.run()
    assert scene.done == 2


def test_a_position_from_before_a_seek_does_not_count() -> None:
    scene = Scene()
    scene.polled([0, 1], 2)
    scene.run()
    scene.partition.seek_to = 0
    scene.group.polled({PLACE: 2})  # of the poll that was under way
    scene.plan()
    assert scene.done == 0


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
