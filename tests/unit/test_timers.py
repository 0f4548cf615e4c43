"""When a group looks at an ownership next."""

from __future__ import annotations

import random

from support.partitions import TP

from karafka_lite.core.options import Options
from karafka_lite.core.ownership import Ownership
from karafka_lite.core.timers import MOST_STALE, NEVER, Timers


def test_each_is_due_once_at_its_earliest_moment_and_the_earliest_of_all_is_told() -> None:
    timers, (first, second) = Timers(), (Ownership(TP, Options()) for _ in range(2))
    assert (timers.next(), timers.due(99.0)) == (NEVER, None)
    assert timers.set(first, 5.0)
    assert not timers.set(second, 7.0)
    assert timers.set(second, 3.0)
    assert not timers.set(second, 4.0), "an earlier one stays"
    assert (timers.next(), timers.due(2.9), timers.due(3.0), timers.due(3.0)) == (3.0, None, second, None)
    assert (timers.due(9.0), timers.due(9.0), timers.next()) == (first, None, NEVER)


def test_at_random_it_agrees_with_a_dict_and_stays_small() -> None:
    rng, timers, model, now = random.Random(1), Timers(), dict[Ownership, float](), 0.0
    ownerships = [Ownership(TP, Options()) for _ in range(9)]
    for _ in range(3000):
        one, moment = rng.choice(ownerships), now + rng.uniform(0, 50)
        timers.set(one, moment)
        model[one] = min(moment, model.get(one, NEVER))
        if rng.random() < 0.3:
            now += rng.uniform(0, 9)
            due = [one for one, moment in model.items() if moment <= now]
            assert [timers.due(now) for _ in range(len(due) + 1)] == [*sorted(due, key=model.__getitem__), None]
            for one in due:
                del model[one]
        assert timers.next() == min(model.values(), default=NEVER)
        assert len(timers) <= MOST_STALE + 4 * len(ownerships) + 1
