"""How long a failed batch waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from karafka_lite.core.backoff import Backoff


def test_the_default_waits_are_1_2_4_up_to_30_seconds() -> None:
    waits = [Backoff().delay_ms(attempt) for attempt in range(1, 9)]
    assert waits == [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]


def test_a_base_and_a_bound_of_ones_own() -> None:
    assert [Backoff(100, 450).delay_ms(attempt) for attempt in range(1, 5)] == [100, 200, 400, 450]


def test_equal_base_and_bound_are_a_constant_wait() -> None:
    assert {Backoff(700, 700).delay_ms(attempt) for attempt in range(1, 100)} == {700}


def test_a_base_above_the_bound_is_bounded_at_the_first_wait_already() -> None:
    assert Backoff(1000, 10).delay_ms(1) == 10


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, 10**9))
def test_every_wait_is_the_formula_of_the_contract(base: int, more: int, attempt: int) -> None:
    bound = base + more
    exact = bound if attempt > 64 else min(bound, base * 2 ** (attempt - 1))
    assert Backoff(base, bound).delay_ms(attempt) == exact


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 200))
def test_no_wait_is_shorter_than_the_one_before_or_longer_than_the_bound(base: int, bound: int, attempt: int) -> None:
    backoff = Backoff(base, bound)
    assert backoff.delay_ms(attempt) <= backoff.delay_ms(attempt + 1) <= bound
