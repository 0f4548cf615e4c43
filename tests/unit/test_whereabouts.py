"""Where threads and handlers are, as text: also while something hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from support.harness import Gate, opened

from karafka_lite import Health, Stats
from karafka_lite.core.group import Group
from karafka_lite.core.options import Options
from karafka_lite.observers.stats import PartitionStats
from karafka_lite.observers.whereabouts import ThreadPlace, Whereabouts, beside, look, say

TP = ("orders", 0)
GOOD = Health(live=True, ready=True)


@contextmanager
def thread(name: str) -> Iterator[int]:
    """A thread that hangs; its id."""
    gate = Gate()
    hangs = threading.Thread(target=gate.wait, name=name)
    hangs.start()
    gate.reached()
    try:
        with opened(gate):
            assert hangs.ident is not None
            yield hangs.ident
    finally:
        hangs.join()


def member(**other: object) -> Any:
    group = Group({"orders": Options()})
    return SimpleNamespace(group_id="shop", group=group, due={}, name_of=lambda _: "store", **other)


def place_of(name: str, found: Whereabouts) -> ThreadPlace:
    (place,) = [place for place in found.threads if place.name == name]
    return place


def test_a_handler_is_named_with_its_messages_its_time_and_its_own_frames() -> None:
    shop = member()
    (ownership,) = shop.group.assigned([TP], 0.0)
    ownership.intake.begin_at(0)
    ownership.intake.sought(0)
    records: Any = [SimpleNamespace(offset=offset) for offset in (0, 1)]
    shop.group.fetched(TP, records, 2, 1, 0.0)
    run = shop.group.begin(ownership, 1.0)
    with thread("karafka-worker-store-0") as ident:
        found = look(GOOD, Stats(), [shop], {ident: run}, 13.5)
    place = place_of("karafka-worker-store-0", found)
    assert place.doing == "orders-0@0..1: in store for 12.5 s"
    assert "in wait" in place.stack
    assert found.threads[0] == place, "who does something comes first"
    assert "thread karafka-worker-store-0: orders-0@0..1: in store for 12.5 s\n  File " in str(found)


@pytest.mark.parametrize(
    ("due", "doing"), [(10.0, "in its step for 2.5 s"), (14.0, "rests for another 1.5 s")], ids=["works", "rests"]
)
def test_a_thread_of_ours_is_in_its_step_or_rests(due: float, doing: str) -> None:
    shop = member()
    shop.due["poller"] = due
    with thread("karafka-poller-shop"):
        found = look(GOOD, Stats(), [shop], {}, 12.5)
    assert place_of("karafka-poller-shop", found).doing == doing


def test_a_thread_of_somebody_else_has_its_stack_and_who_looks_is_left_out() -> None:
    with thread("a-pool"):
        found = look(GOOD, Stats(), [], {}, 0.0)
    assert place_of("a-pool", found).doing == ""
    assert "\nthread a-pool\n  File " in str(found)
    assert threading.current_thread().name not in {place.name for place in found.threads}


def test_each_partition_is_a_line_and_what_is_wrong_comes_first() -> None:
    waits = PartitionStats("shop", *TP, "waiting", 7, 7, None, 0, 1500, None, "", "")
    failed = PartitionStats("shop", "orders", 1, "back-off", 3, None, 3, 9, 500, 1500, "store 3..4", "ValueError: no")
    said = str(Whereabouts(Health(live=False, ready=False, reasons=("it hangs",)), (waits, failed), ()))
    first, second, third, fourth = said.splitlines()
    assert first.endswith(": not live, not ready")
    assert second == "  it hangs"
    assert third == "  group shop: orders-0: waiting for 1.5 s; position 7, stored 7, committed none, lag 0"
    assert fourth == (
        "  group shop: orders-1: back-off on store 3..4 for 0.5 s, for another 1.5 s; "
        "position 3, stored none, committed 3, lag 9, last error: ValueError: no"
    )


def test_it_is_said_on_standard_error_by_a_thread_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    said = threading.Event()

    def tell() -> None:
        assert threading.current_thread() is not threading.main_thread()
        say(Whereabouts(GOOD, (), ()))
        said.set()

    beside(tell)
    assert said.wait(10)
    assert capsys.readouterr().err.endswith(": live, ready\n")
