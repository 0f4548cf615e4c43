"""What a function can be called with."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from karafka_lite.functions import name_of, only_parameter, signature_of


class Decoder:
    def decode(self, message: Any) -> Any: ...
    def __call__(self, message: Any, more: int = 0) -> Any: ...


def two(message: Any, schemas: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda message: 1, "message"),
        (lambda message, /: 1, "message"),
        (lambda message, schemas=None, *more, strict=False: 1, "message"),
        (Decoder().decode, "message"),
        (Decoder(), "message"),
        (functools.partial(two, schemas={}), "message"),
        (functools.partial(two, 1), "schemas"),
        (two, None),
        (lambda: 1, None),
        (lambda *message: 1, None),
        (lambda *, message: 1, None),
        (lambda message=None: 1, None),
        (int, None),
    ],
)
def test_the_only_parameter_is_the_one_that_has_to_be_given(function: Any, name: str | None) -> None:
    parameter = only_parameter(function)
    assert (parameter.name if parameter else None) == name


def test_a_builtin_does_not_say_how_it_is_called() -> None:
    assert signature_of(type) is None


def test_a_name_is_the_qualified_one_also_of_a_partial() -> None:
    assert name_of(functools.partial(two, 1)) == "two"
    assert name_of(Decoder.decode) == "Decoder.decode"
