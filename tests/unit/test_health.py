"""When an app is live, when it is ready, and what is said where it is not: the rule, with a clock."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from karafka_lite import App, Health, events
from karafka_lite.core.group import Group
from karafka_lite.core.options import Options
from karafka_lite.observers.health import STEP_S, Bounds, Conditions, health, together

TP, OTHER = ("orders", 0), ("orders", 1)
BOUNDS = Bounds(drain=10.0, connect=20.0)
GOOD = Health(live=True, ready=True)


class Scene:
    """One group whose member has joined, with two partitions of which the first holds a message."""

    def __init__(self, keys: Sequence[bytes | None] = (None,), **options: Any) -> None:
        self.group = Group({"orders": Options(**options)}, drain_timeout_ms=10_000)
        self.conditions = Conditions()
        self.member: Any = SimpleNamespace(
            group_id="shop",
            group=self.group,
            topics=["orders"],
            subscribed={"orders"},
            due={},
            name_of=lambda _: "store",
        )
        self.tell(events.Joined, (TP, OTHER))
        first, _ = self.group.assigned([TP, OTHER], 0.0)
        first.intake.begin_at(0)
        first.intake.sought(0)
        records: Any = [SimpleNamespace(offset=offset, key=key) for offset, key in enumerate(keys)]
        self.group.fetched(TP, records, 1, 1, 0.0)

    def tell(self, kind: type[events.Event], *values: object) -> None:
        self.conditions.observe(kind("shop", *values))

    def at(self, now: float) -> Health:
        return health([self.member], self.conditions, BOUNDS, now)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_who_has_joined_and_works_is_live_and_ready(scene: Scene) -> None:
    scene.member.due = {"poller": 100.0, "committer": 700.0}  # it rests until then
    assert scene.at(100.2) == GOOD


@pytest.mark.parametrize("thread", ["poller", "committer"])
def test_a_thread_whose_next_step_is_overdue_for_30_s_is_not_live_and_named(scene: Scene, thread: str) -> None:
    scene.member.due = {"poller": 200.0, "committer": 200.0, thread: 100.0}
    assert scene.at(100.0 + STEP_S) == GOOD
    why = f"group shop: the {thread} has made no progress for 31 s"
    assert scene.at(101.0 + STEP_S) == Health(live=False, ready=False, reasons=(why,))


def test_who_has_not_joined_may_be_connecting_for_so_long(scene: Scene) -> None:
    scene.tell(events.ClientFailed, OSError())
    scene.member.due = {"poller": 100.0}
    assert scene.at(100.0 + STEP_S + BOUNDS.connect).live
    assert not scene.at(101.0 + STEP_S + BOUNDS.connect).live


def test_a_handler_beyond_drain_timeout_is_not_live_and_named_also_after_its_partition_has_gone(scene: Scene) -> None:
    (ownership,) = scene.group.take_ready()
    run = scene.group.begin(ownership, 1.0)
    assert run is not None
    assert scene.at(11.0) == GOOD
    named = "orders-0@0: store has been running for 11 s, longer than drain_timeout_ms=10000"
    assert scene.at(12.0) == Health(live=False, ready=False, reasons=(named,))
    scene.group.lose(13.0, rejoin=True)
    assert scene.at(14.0).reasons[0] == named.replace("11 s", "13 s")
    scene.group.end(run, failed=False, now=15.0)
    assert scene.at(16.0) == GOOD


def test_who_waits_for_brokers_after_its_handler_has_returned_is_live(scene: Scene) -> None:
    (ownership,) = scene.group.take_ready()
    run = scene.group.begin(ownership, 1.0)
    assert run is not None
    run.returned = True
    assert scene.at(99.0) == GOOD


def test_a_stop_is_live_and_not_ready(scene: Scene) -> None:
    scene.group.stop(1.0)
    assert scene.at(2.0) == Health(live=True, ready=False, reasons=("group shop: draining: the app stops",))


def test_a_rebalance_that_drains_is_live_and_not_ready_until_the_next_join(scene: Scene) -> None:
    (ownership,) = scene.group.take_ready()
    run = scene.group.begin(ownership, 1.0)
    assert run is not None
    scene.group.revoke([TP, OTHER], 2.0)
    assert scene.at(3.0).reasons == ("group shop: draining for a rebalance: orders-0",), "the other one is idle"
    scene.group.end(run, failed=False, now=3.0)
    scene.group.advance(60.0)
    scene.tell(events.Revoked, {TP: None, OTHER: None}, 1.0)
    assert scene.at(60.0) == Health(live=True, ready=False, reasons=("group shop: has not joined",))
    scene.tell(events.Joined, ())
    assert scene.at(61.0) == GOOD, "joined without partitions is ready"


def test_a_missing_topic_is_live_and_not_ready_until_it_is_subscribed(scene: Scene) -> None:
    scene.member.subscribed = set()
    assert scene.at(1.0) == GOOD, "it has not looked yet"
    scene.tell(events.Waiting, ("orders",))
    assert scene.at(1.0) == Health(live=True, ready=False, reasons=("group shop: waiting for missing topics: orders",))
    scene.member.subscribed = {"orders"}
    assert scene.at(2.0) == GOOD


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            (events.Stalled, "for messages of orders-0", 5.0, "no broker"),
            "has been waiting for messages of orders-0 for 5 s",
        ),
    ],
)
def test_without_a_broker_it_is_live_and_not_ready_until_it_works_again(scene: Scene, event: Any, said: str) -> None:
    scene.tell(*event)
    looked = scene.at(1.0)
    assert (looked.live, looked.ready) == (True, False)
    assert said in looked.reasons[0]
    scene.tell(events.Resumed)
    assert scene.at(2.0) == GOOD


def test_one_broker_of_several_that_is_gone_is_not_the_members_trouble_but_before_the_join_it_is(scene: Scene) -> None:
    scene.tell(events.Unreachable, "kafka-2 refuses")
    assert scene.at(1.0) == GOOD
    scene.tell(events.Lost, (TP,))
    scene.tell(events.Unreachable, "kafka-2 refuses")
    assert scene.at(2.0).reasons == ("group shop: cannot reach a broker: kafka-2 refuses",)
    scene.tell(events.Joined, ())
    assert scene.at(3.0) == GOOD


@pytest.mark.parametrize("event", [(events.Lost, (TP,)), (events.ClientFailed, OSError()), (events.Left, {})])
def test_who_is_out_of_the_group_is_not_ready(scene: Scene, event: Any) -> None:
    scene.tell(*event)
    assert scene.at(1.0).reasons == ("group shop: has not joined",)


def test_several_processes_are_as_good_as_each_of_them_and_say_first_which_of_them_hang() -> None:
    waits = Health(live=True, ready=False, reasons=("group shop: has not joined",))
    hangs = Health(live=False, ready=False, reasons=("it hangs", "group shop: has not joined"))
    assert together({1: GOOD, 2: GOOD}) == GOOD
    assert together({1: GOOD, 2: waits}) == Health(True, False, ("[2] group shop: has not joined",))
    reasons = ("[3] it hangs", "[3] group shop: has not joined", "[1] group shop: has not joined")
    assert together({1: waits, 2: GOOD, 3: hangs}) == Health(False, False, reasons)


def test_an_app_that_was_not_started_is_live_and_not_ready() -> None:
    assert App("shop").health() == Health(live=True, ready=False, reasons=("not started",))


def test_of_parts_of_a_batch_each_that_hangs_is_named() -> None:
    scene = Scene([b"a", b"b", b"a", b"c"], parts=3)
    begun = 1.0
    while ready := scene.group.take_ready():
        assert scene.group.begin(ready[0], begun)
        begun += 4.0
    assert [reason.partition(", longer")[0] for reason in scene.at(15.4).reasons] == [
        "orders-0@0..2: store has been running for 14 s",
        "orders-0@1: store has been running for 10 s",
    ]
