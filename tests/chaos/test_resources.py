"""A short run of what is tried by hand, so that it works on the day when a long one is wanted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from resources import TRIALS, Held, flat, tried
from support.kafka_server import kafka_source

HELD = Held(50.0, 60.0, 10, 8, 100, 1.0)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(1200)
def test_a_member_that_joins_and_reconnects_again_and_again_holds_what_it_held(pytestconfig: pytest.Config) -> None:
    if kafka_source().kind != "java":
        pytest.skip("proxies are put before brokers that are child processes")
    is_long = pytestconfig.getoption("long")
    assert not tried(list(TRIALS) if is_long else ["rebalances", "reconnects"], 1.0 if is_long else 0.03)


@pytest.mark.parametrize(
    ("late", "complaints"),
    [
        (HELD, []),
        (HELD._replace(mib=57.0), ["joins: more memory"]),
        (HELD._replace(threads=11), ["joins: more threads"]),
        (HELD._replace(files=11), ["joins: more files"]),
        (HELD._replace(lines=150), ["joins: more log lines"]),
    ],
)
def test_what_grows_is_a_complaint(late: Held, complaints: list[str]) -> None:
    helds = iter([HELD, late])
    member: Any = SimpleNamespace(held=lambda: next(helds))
    assert flat("joins", 10, member, lambda number: None) == complaints
