"""What a route asks of its partitions."""

from __future__ import annotations

from karafka_lite.core.options import Hook, Options, RegisteredHook


def hook(kind: Hook, every_ms: int = 0) -> RegisteredHook:
    return RegisteredHook(kind, lambda ctx: None, every_ms)


def test_hooks_of_one_kind_keep_the_order_of_their_registration() -> None:
    first, second = hook(Hook.EVERY, 500), hook(Hook.EVERY, 20)
    options = Options(hooks=(first, hook(Hook.ON_SHUTDOWN), second))
    assert options.hooks_of(Hook.EVERY) == (first, second)


def test_a_kind_without_a_hook_has_none() -> None:
    assert Options(hooks=(hook(Hook.ON_SHUTDOWN),)).hooks_of(Hook.ON_REVOKED) == ()


def test_the_same_function_registered_twice_is_two_hooks() -> None:
    registered = RegisteredHook(Hook.EVERY, print, 20)
    again = RegisteredHook(Hook.EVERY, print, 20)
    assert registered != again


def test_unless_a_budget_is_given_nothing_is_given_up() -> None:
    assert Options().budget is None
