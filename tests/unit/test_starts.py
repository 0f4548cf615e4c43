"""The table of where a partition begins, cell by cell; and the group that has logs change under its partitions."""

from __future__ import annotations

from typing import Any

import pytest
from support.partitions import TP, Partitions

from karafka_lite.core.group import Group
from karafka_lite.core.options import Options
from karafka_lite.core.ownership import State
from karafka_lite.core.starts import Note, NowhereError, Place, Start, Stray, begin, note_of
from karafka_lite.errors import ConfigurationError

OLD, NEW = "old-topic", "new-topic"
LOG = Place(start=60, end=100, latest=100, topic_id=NEW, partitions=3)
RESETS = ["earliest", "latest", "none"]


# -- the table


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("offset", [60, 61, 99, 100])
@pytest.mark.parametrize("note", [Note(NEW, 3), Note()], ids=["of this topic", "of nobody knows which"])
def test_a_commit_inside_the_log_is_where_it_begins(reset: str, offset: int, note: Note) -> None:
    assert begin(LOG._replace(committed=offset, note=note), 0, reset, 3) == Start(offset, "committed")


@pytest.mark.parametrize("reset", ["earliest", "latest"])
def test_a_commit_that_retention_has_overtaken_begins_at_the_logs_start(reset: str) -> None:
    assert begin(LOG._replace(committed=20), 0, reset, 3) == Start(60, "deleted", 20, 40)


def test_a_commit_that_retention_has_overtaken_is_refused_with_none() -> None:
    with pytest.raises(NowhereError) as refused:
        begin(LOG._replace(committed=20), 0, "none", 3)
    assert refused.value.position == 20


@pytest.mark.parametrize("reset", RESETS)
def test_a_commit_past_the_end_begins_at_the_end(reset: str) -> None:
    assert begin(LOG._replace(committed=130), 0, reset, 3) == Start(100, "truncated", 130, 30)


def test_an_open_transaction_does_not_make_a_commit_one_past_the_end() -> None:
    assert begin(LOG._replace(committed=95, latest=80), 0, "latest", 3) == Start(95, "committed")


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("offset", [5, 80, 130])
def test_a_commit_of_a_topic_that_was_made_anew_begins_at_the_start_of_the_new_one(reset: str, offset: int) -> None:
    assert begin(LOG._replace(committed=offset, note=Note(OLD, 3)), 0, reset, 3) == Start(60, "recreated", offset)


@pytest.mark.parametrize(
    ("reset", "partition", "start"),
    [
        ("earliest", 0, Start(60, "earliest")),
        ("latest", 0, Start(90, "latest")),
        ("latest", 2, Start(90, "latest")),
        ("latest", 3, Start(60, "new")),
    ],
)
def test_without_a_commit_auto_offset_reset_decides_but_not_about_what_is_younger_than_the_group(
    reset: str, partition: int, start: Start
) -> None:
    assert begin(LOG._replace(latest=90), partition, reset, 3) == start


def test_without_a_commit_none_is_refused() -> None:
    with pytest.raises(NowhereError):
        begin(LOG, 0, "none", 3)


# -- what the group had started with


@pytest.mark.parametrize(
    ("place", "known", "partitions"),
    [
        (LOG, None, 3),  # its first start
        (LOG, Note("", 0), 0),  # it was waited for
        (LOG, Note(NEW, 1), 1),  # it had one partition when this member began with it
        (LOG, Note(OLD, 3), 0),  # made anew since
        (LOG._replace(siblings=[Note(NEW, 2)]), None, 2),  # another member wrote down how many there were
        (LOG._replace(siblings=[Note(NEW, 2), Note(NEW, 0)]), None, 0),
        (LOG._replace(siblings=[Note(OLD, 3)]), None, 0),
        (LOG._replace(siblings=[Note()]), None, 0),  # committed by another client: nothing is skipped where in doubt
        (LOG._replace(committed=70, note=Note(NEW, 2)), None, 2),
        (LOG._replace(siblings=[Note(NEW, 2)]), Note(NEW, 3), 3),
    ],
)
def test_how_many_partitions_a_topic_had_when_the_group_started_with_it(
    place: Place, known: Note | None, partitions: int
) -> None:
    assert note_of(place, known, "latest") == Note(NEW, partitions)


def test_where_nothing_is_skipped_nothing_may_be_skipped_later() -> None:
    assert note_of(LOG, None, "earliest") == Note(NEW, 0)


def test_without_topic_ids_every_topic_is_the_same() -> None:
    place = LOG._replace(topic_id="", committed=70, note=Note(OLD, 2))
    assert begin(place, 0, "latest", 3) == Start(70, "committed")
    assert note_of(place, Note(OLD, 2), "latest") == Note(OLD, 2)


# -- a group, at the start


def group_of(reset: str, count: int = 1, **options: Any) -> Partitions:
    group = Group({"topic": Options(**options)}, reset=reset, name="store")
    return Partitions(count, started=False, group=group)


@pytest.mark.parametrize(
    ("reset", "place", "committed"),
    [
        ("latest", LOG, 100),
        ("latest", LOG._replace(committed=20), 60),
        ("earliest", LOG._replace(committed=20), 60),
        ("earliest", LOG._replace(committed=130), 100),
        ("none", LOG._replace(committed=130), 100),
        ("earliest", LOG._replace(committed=80, note=Note(OLD)), 60),
    ],
)
def test_a_start_that_nobody_has_committed_is_committed_before_anything_is_handed_over(
    reset: str, place: Place, committed: int
) -> None:
    scene = group_of(reset)
    scene.place({scene[0]: place})
    scene.plan()
    scene.fetch(0, committed)
    assert scene.group.take_ready() == []
    assert scene.commit() == {TP: committed}
    assert scene.group.take_ready() == [scene[0]]


@pytest.mark.parametrize("place", [LOG, LOG._replace(committed=80)])
def test_with_earliest_the_start_of_the_log_and_a_commit_need_no_commit(place: Place) -> None:
    scene = group_of("earliest")
    scene.place({scene[0]: place})
    assert not scene[0].marks.pending


def test_none_names_all_partitions_that_have_nowhere_to_begin() -> None:
    scene = group_of("none", 4)
    places = [LOG, LOG._replace(committed=20), LOG._replace(committed=70), LOG._replace(committed=130)]
    with pytest.raises(
        ConfigurationError, match=r"group store .*\(topic-0, topic-1@20\), and auto_offset_reset='none'"
    ):
        scene.place({scene[number]: place for number, place in enumerate(places)})


def test_commits_say_of_which_topic_they_are_and_how_many_partitions_it_had() -> None:
    scene = group_of("latest")
    scene.place({scene[0]: LOG})
    assert [commit.ownership.note for commit in scene.group.commit_batch(0.0)] == [Note(NEW, 3)]


def test_a_topic_that_is_waited_for_begins_at_its_start_and_so_does_a_partition_that_was_added() -> None:
    scene = group_of("latest")
    scene.group.missing(["topic"])
    assert scene.place({scene[0]: LOG}) == {TP: Start(60, "new")}
    other = group_of("latest", 5)
    assert other.place({other[2]: LOG}) == {("topic", 2): Start(100, "latest")}
    assert other.place({other[4]: LOG._replace(partitions=5)}) == {("topic", 4): Start(60, "new")}


# -- a group, while it runs


def running(*offsets: int, manual: bool = False) -> Partitions:
    """One that began at a commit of 20, and has processed ``offsets``."""
    scene = group_of("earliest", manual_offsets=manual, max_messages=1)
    scene.place({scene[0]: Place(0, 40, 40, 20, Note(OLD), OLD)})
    scene.plan()
    for offset in offsets:
        scene.fetch(0, offset)
        scene.process()
    return scene


def stray(scene: Partitions, position: int, place: Place, end: int | None = None) -> Start | None:
    scene.group.stray({TP: Stray(position, end)}, scene.now)
    assert scene.group.poll_plan(scene.now).pause == [scene[0]], "nothing is fetched meanwhile"
    scene.plan()
    assert scene.group.unplaced() == [scene[0]]
    return scene.place({scene[0]: place}).get(TP)


def test_retention_overtakes_a_reader_and_what_it_has_in_hand_is_processed() -> None:
    scene = running(20)
    scene.fetch(0, 21, 22)
    start = stray(scene, 23, Place(60, 100, 100, 21, Note(OLD), OLD))
    assert start == Start(60, "deleted", 23, 37, begins=False)
    assert scene.plan() == {0: 60}
    scene.fetch(0, 60)
    assert [scene.process(), scene.process(), scene.process()] == [[21], [22], [60]]


def test_with_none_retention_that_overtakes_a_reader_is_refused() -> None:
    group = Group({"topic": Options()}, reset="none", name="store")
    scene = Partitions(started=False, group=group)
    scene.place({scene[0]: Place(0, 40, 40, 20)})
    scene.plan()
    with pytest.raises(ConfigurationError, match="topic-0@20"):
        stray(scene, 20, Place(60, 100, 100, 20))


@pytest.mark.parametrize(("target", "begins", "reason"), [(10, 60, "deleted"), (1000, 100, "truncated")])
def test_no_place_that_user_code_may_want_is_refused(target: int, begins: int, reason: str) -> None:
    group = Group({"topic": Options()}, reset="none", name="store")
    scene = Partitions(started=False, group=group)
    scene.place({scene[0]: LOG._replace(committed=70)})
    scene.plan()
    scene.group.redirect(scene[0], target, 0.0)
    assert scene.plan() == {0: target}
    start = stray(scene, target, LOG._replace(committed=70))
    assert (start and start[:3]) == (begins, reason, target)
    assert scene.plan() == {0: begins}
    assert scene[0].state is State.ASSIGNED


def test_a_log_that_was_cut_ends_the_ownership_so_that_no_mark_of_what_is_gone_counts() -> None:
    scene = running(20, 21, 22)
    scene.fetch(0, 23)
    run = scene.begin()  # it is handed 23, which is not there any more
    earlier = scene[0]
    start = stray(scene, 24, Place(0, 22, 22, 21, Note(OLD), OLD))
    assert start == Start(21, "truncated", 24, 2)
    assert scene[0] is not earlier
    assert earlier.marks.mark(24) is False
    scene.plan()
    scene.fetch(0, 21)
    assert scene.group.begin(scene[0], 0.0) is None, "it waits for the handler of the one before"
    scene.end(run)
    assert scene.process() == [21]


def test_a_log_that_was_cut_and_has_grown_again_is_read_from_where_it_was_cut() -> None:
    scene = running(20, 21, 22)
    start = stray(scene, 23, Place(0, 50, 50, 23, Note(OLD), OLD), end=21)
    assert start == Start(21, "truncated", 23, 2)
    assert scene[0].marks.pending, "the commit is past what is there"


@pytest.mark.parametrize("end", [10, 23, 500])
def test_a_topic_that_was_made_anew_begins_at_its_start_whatever_was_marked(end: int) -> None:
    scene = running(20, 21, 22)
    scene.group.request_commit()
    start = stray(scene, 23, Place(0, end, end, None, Note(), NEW))
    assert start == Start(0, "recreated", 23)
    assert [(one.offset, one.ownership.note.topic_id) for one in scene.group.commit_batch(9.0)] == [(0, NEW)]


def test_a_batch_that_fails_does_not_make_forget_that_the_topic_may_be_another_one() -> None:
    scene = running(20)
    scene.fetch(0, 21)
    run = scene.begin()
    scene.group.stray({TP: Stray(None)}, 0.0)
    scene.group.redirect(scene[0], 5, 0.0)
    scene.end(run, failed=True)
    assert scene.group.unplaced() == [scene[0]]
    assert scene.place({scene[0]: Place(0, 10, 10, None, Note(), NEW)}) == {TP: Start(0, "recreated", 5)}


def test_who_takes_the_place_of_a_paused_ownership_is_resumed() -> None:
    scene = running(20)
    stray(scene, 21, Place(0, 10, 10, None, Note(), NEW))
    plan = scene.group.poll_plan(scene.now)
    assert plan.resume == [scene[0]]
    assert scene[0].intake.paused
    scene.group.applied(plan, scene.now)
    assert not scene[0].intake.paused


def test_a_partition_that_is_to_be_given_away_does_not_begin_anew() -> None:
    scene = running(20)
    scene.fetch(0, 21)
    scene.begin()
    scene.group.stray({TP: Stray(22)}, 0.0)
    leaving = scene.group.revoke([TP], 0.0)
    assert scene.place({leaving[0]: Place(0, 10, 10, None, Note(), NEW)}) == {}
    assert scene.group.released(leaving)
    assert scene.group.owned == {}


def test_a_position_that_the_log_has_after_all_is_tried_again_after_a_while() -> None:
    scene = running(20)
    assert stray(scene, 21, Place(0, 40, 40, 20, Note(OLD), OLD)) is None
    assert scene.group.poll_plan(scene.now).resume == []
    scene.now = scene.group.wake_at(scene.now)
    scene.group.advance(scene.now)
    assert 0 < scene.now <= 1
    plan = scene.group.poll_plan(scene.now)
    assert (plan.seeks, plan.resume) == ({}, [scene[0]])


def test_an_answer_about_a_stray_position_counts_no_more_when_user_code_went_elsewhere() -> None:
    scene = running(20)
    scene.group.stray({TP: Stray(21)}, 0.0)
    scene.group.redirect(scene[0], 5, 0.0)
    assert scene.place({scene[0]: Place(0, 10, 10, 20, Note(OLD), OLD)}) == {}
    assert scene.plan() == {0: 5}
