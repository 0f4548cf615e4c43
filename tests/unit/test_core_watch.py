"""When a member says what it waits for."""

from __future__ import annotations

from karafka_lite.core.watch import AFTER_S, AGAIN_S, Health, Wait, Watch

JOINING = Health(joined=False, cause="FindCoordinator is answered with CoordinatorNotAvailableError (15)")
P0, P1 = ("t", 0), ("t", 1)


def test_who_works_says_nothing() -> None:
    watch = Watch()
    assert [watch.look(Health(), {}, now) for now in (0.0, 100.0)] == [None, None]


def test_a_join_that_takes_long_is_said_and_said_again() -> None:
    watch = Watch()
    moments = (0.0, AFTER_S - 1, AFTER_S, AFTER_S + 1, AFTER_S + AGAIN_S - 1, AFTER_S + AGAIN_S)
    said = [watch.look(JOINING, {}, 100 + moment) for moment in moments]
    assert said[:2] == [None, None]
    assert said[2] == Wait("to join the group", AFTER_S, JOINING.cause)
    assert said[3:5] == [None, None]
    assert said[5] == Wait("to join the group", AFTER_S + AGAIN_S, JOINING.cause)


def test_what_it_waits_for_may_change_and_the_clock_goes_on() -> None:
    """A member that joins, cannot learn its offsets, and has to join again, never works."""
    watch = Watch()
    for second in range(5):
        assert watch.look(JOINING if second % 2 else Health(), {P0: ""}, 1.0 + second) is None
    assert watch.look(Health(), {P1: "", P0: ""}, 1 + AFTER_S) == Wait(
        "for the starting offsets of t-0, t-1", AFTER_S, "nothing is known to be wrong"
    )


def test_who_has_worked_meanwhile_begins_to_count_anew() -> None:
    watch = Watch()
    watch.look(JOINING, {}, 1.0)
    watch.look(Health(), {}, 2.0)
    assert watch.look(JOINING, {}, 1.0 + AFTER_S) is None


def test_partitions_that_cannot_be_fetched_are_named_once_each_has_failed_for_long() -> None:
    watch = Watch()
    failing = Health(unfetched={P0: (50.0, "ReplicaNotAvailable (9)"), P1: (57.0, "NotLeader (6)")})
    assert watch.look(failing, {}, 50 + AFTER_S - 1) is None
    assert watch.look(failing, {}, 50 + AFTER_S) == Wait("for messages of t-0", AFTER_S, "ReplicaNotAvailable (9)")


def test_of_many_partitions_some_are_named() -> None:
    watch = Watch()
    many = {("t", number): "" for number in range(25)}
    watch.look(Health(), many, 1.0)
    wait = watch.look(Health(), many, 1.0 + AFTER_S)
    assert wait is not None
    assert wait.for_.endswith("t-9 and 15 more")


def test_what_keeps_a_partition_from_starting_is_said_before_the_last_error() -> None:
    watch, unstarted = Watch(), {P1: "no answer from its leader, broker 3"}
    watch.look(Health(cause="late"), unstarted, 0.0)
    wait = watch.look(Health(cause="late"), unstarted, AFTER_S)
    assert wait is not None
    assert wait.cause == "no answer from its leader, broker 3"


def test_heartbeats_without_an_answer_are_said_until_there_is_one() -> None:
    watch = Watch()
    silent = Health(silent=43.0, cause="kafka-1 refuses the connection", unfetched={P0: (42.0, "NotLeader (6)")})
    assert watch.look(silent, {}, 50.0) == Wait(
        "for its heartbeats to be answered", 7.0, "kafka-1 refuses the connection"
    )
    assert (watch.look(silent, {}, 51.0), watch.has_said) == (None, True)
    assert (watch.look(Health(), {}, 52.0), watch.has_said) == (None, False)
