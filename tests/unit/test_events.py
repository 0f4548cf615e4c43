"""Events are values: what they say of themselves, and that nobody can change them."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest

from karafka_lite import events
from karafka_lite.events import Call, CallEnded, Event

KINDS = [getattr(events, name) for name in events.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_of_a_group_and_cannot_be_changed(kind: type[Event]) -> None:
    assert issubclass(kind, Event)
    assert dataclasses.fields(kind)[0].name == "group_id"
    event = object.__new__(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.group_id = "another"  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_the_types_of_its_fields_can_be_resolved_at_run_time(kind: type[Event]) -> None:
    """As pydantic and others do that turn values into JSON."""
    assert get_type_hints(kind)["group_id"] is str


def call(hook: str | None = None) -> Call:
    return Call("payments", "orders", 3, "shop.charge", hook, 17, 21, 1)


def test_a_call_with_a_batch_is_named_by_its_offsets() -> None:
    assert str(call()) == "orders-3@17..21"
    assert str(dataclasses.replace(call(), last_offset=17)) == "orders-3@17"


def test_a_call_of_a_hook_is_named_by_its_kind() -> None:
    assert str(call("every")) == "orders-3 every"


def test_a_call_is_of_one_partition() -> None:
    assert call().tp == ("orders", 3)


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), MemoryError()])
def test_an_error_that_stops_the_app_is_critical(error: BaseException) -> None:
    assert ended(error).critical


@pytest.mark.parametrize("error", [None, ValueError(), GeneratorExit()])
def test_no_other_is(error: BaseException | None) -> None:
    assert not ended(error).critical


def ended(error: BaseException | None) -> CallEnded:
    return CallEnded(*dataclasses.astuple(call()), seconds=0.1, error=error)
