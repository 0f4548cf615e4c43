"""When a handler that does not mark is named."""

from __future__ import annotations

import pytest
from support.partitions import Partitions

from karafka_lite.observers.unmarked import Unmarked


@pytest.fixture
def scene() -> Partitions:
    return Partitions(2, manual_offsets=True, max_messages=20_000)


def handled(scene: Partitions, unmarked: Unmarked, partition: int, first: int, count: int, mark: int = 0) -> int | None:
    """A batch of ``count`` messages of a partition is handled, and ``mark`` is marked; what is said then."""
    scene.fetch(partition, *range(first, first + count))
    scene.group.advance(scene.now)
    ownership = scene[partition]
    run = scene.group.begin(ownership, scene.now)
    assert run is not None
    if mark:
        ownership.marks.mark(mark)
    scene.group.end(run, failed=False, now=scene.now)
    return unmarked.batch_ended("store", ownership)


def test_it_is_said_once_for_all_partitions_together_and_after_a_mark_at_twice_as_many(scene: Partitions) -> None:
    unmarked = Unmarked()
    assert handled(scene, unmarked, 0, 0, 6000) is None
    assert handled(scene, unmarked, 1, 0, 3999) is None
    assert handled(scene, unmarked, 1, 3999, 1) == 10_000
    assert handled(scene, unmarked, 1, 4000, 15_000) is None, "it is said"
    assert handled(scene, unmarked, 1, 19_000, 1, mark=19_001) is None
    assert handled(scene, unmarked, 1, 19_001, 13_999) is None
    assert handled(scene, unmarked, 1, 33_000, 1) == 20_000


def test_what_hooks_have_marked_meanwhile_and_what_is_not_ours_any_more_is_left_out(scene: Partitions) -> None:
    unmarked = Unmarked()
    assert handled(scene, unmarked, 0, 0, 9000) is None
    scene[0].marks.mark(8000)
    assert handled(scene, unmarked, 1, 0, 8999) is None
    assert handled(scene, unmarked, 1, 8999, 1) == 10_000
    gone = scene[1]
    assert gone.unmarked == 9000
    scene.group.lose(scene.now, rejoin=False)
    scene.group.assigned(scene.tps, scene.now)
    scene.start()
    scene.plan()
    assert gone.over
    later = Unmarked()
    assert later.batch_ended("store", gone) is None
    assert handled(scene, later, 0, 0, 1000) is None
