"""The runner's own code against a model of a broker, in any order of events.

KARAFKA_LITE_SIM_EVENTS=1000000 pytest -n 0 -s tests/simulation/test_simulation.py   the long form
KARAFKA_LITE_SIM_SEED=1234 pytest tests/simulation/test_simulation.py                begin with the one that failed
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from functools import partial

import pytest
from ledger import Violation
from simulation import ASYNC_SITUATIONS, EVENTS_PER_WORLD, EXACT_SITUATIONS, World, simulate

ENOUGH = 500_000  # to come upon every situation
EVENTS = int(os.environ.get("KARAFKA_LITE_SIM_EVENTS", ENOUGH))
SEED = int(os.environ.get("KARAFKA_LITE_SIM_SEED", 1))


@pytest.mark.timeout(120 + EVENTS // 2000)
def test_every_promise_holds_in_any_order_of_events() -> None:
    report = simulate(SEED, EVENTS)
    print(report)
    assert logging.getLogger("karafka_lite").level == logging.NOTSET, "other tests look for warnings"
    if EVENTS >= ENOUGH:
        assert not report.missed, f"the simulation never came upon: {report.missed}"


def test_every_promise_holds_with_coroutines(monkeypatch: pytest.MonkeyPatch) -> None:
    # A coroutine that is suspended when its process is killed, or its world is over, is closed when it is collected.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    report = simulate(SEED, EVENTS // 10, asynchronous=True, hanging=0.05)
    gc.collect()
    missed = [name for name in ASYNC_SITUATIONS if not report.reached[name]]
    assert not missed, f"the simulation never came upon: {missed}"


def test_what_is_visible_is_what_was_committed_in_any_order_of_events() -> None:
    events = EVENTS * 2 // 5
    report = simulate(SEED, events, exactly_once=0.9)
    missed = [name for name in EXACT_SITUATIONS if not report.reached[name]]
    assert events < ENOUGH * 2 // 5 or not missed, f"the simulation never came upon: {missed}"


def test_a_seed_always_makes_the_same_world() -> None:
    first, second = Counter[str](), Counter[str]()
    worlds = World(7, first), World(7, second)
    for world in worlds:
        world.run(EVENTS_PER_WORLD)
    assert first == second
    assert worlds[0].now == worlds[1].now


def test_a_violation_names_its_seed_and_tells_what_happened_before() -> None:
    def break_the_books(world: World) -> None:
        if world.events > 1000:
            for o in world.ledger.books.values():
                o.seq += 1

    def run_until_it_is_noticed() -> None:
        for seed in range(8, 30):  # not in each world somebody works then
            world = World(seed, Counter())
            world._rebalance = partial(break_the_books, world)  # type: ignore[method-assign]
            world.run(EVENTS_PER_WORLD)

    with pytest.raises(Violation, match=r"seed \d+, \d+ events(.|\n)*\n.* has fetched "):
        run_until_it_is_noticed()
