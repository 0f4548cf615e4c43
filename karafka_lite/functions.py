"""What a function that a user passes is, and can be called with: asked when it is passed, not when it is called."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any


def name_of(function: object) -> str:
    """A function's name in messages: its qualified name; for a partial, that of its function."""
    return getattr(_unwrapped(function), "__qualname__", None) or repr(_unwrapped(function))


def signature_of(function: Callable[..., object]) -> inspect.Signature | None:
    """How it is called; None for a builtin that does not say."""
    try:
        # The wrapper is called, so its own signature counts and not the one that functools.wraps has copied.
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def signature_without(function: Callable[..., object], count: int) -> inspect.Signature | None:
    """The signature of a function that does not take ``count`` positional arguments; None: it takes them."""
    signature = signature_of(function)
    try:
        if signature is not None:
            signature.bind(*(None for _ in range(count)))
    except TypeError:
        return signature
    return None


def only_parameter(function: Callable[..., object]) -> inspect.Parameter | None:
    """The one positional parameter that has to be given; None where there is another number of them."""
    signature = signature_of(function)
    if signature is None:
        return None
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = [one for one in signature.parameters.values() if one.kind in positional and one.default is one.empty]
    return needed[0] if len(needed) == 1 else None


def is_coroutine(function: Callable[..., object]) -> bool:
    """Whether a call returns a coroutine: ``async def``."""
    return _is(function, inspect.iscoroutinefunction)


def is_generator(function: Callable[..., object]) -> bool:
    """Whether nothing of it runs before somebody asks for its values: it has a ``yield``, with ``async`` or without."""
    return _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction)


def is_lazy(function: Callable[..., object]) -> bool:
    """Whether a call returns before the function has run: an async function, a generator."""
    return is_coroutine(function) or is_generator(function)


def _is(function: Callable[..., object], test: Callable[[object], bool]) -> bool:
    inner = _unwrapped(function)
    return test(getattr(inner, "__func__", inner)) or test(type(inner).__call__)


def is_again(function: object, known: object) -> bool:
    """Whether ``function`` is ``known`` defined again: in a notebook or a REPL, whose lines run twice."""
    if hasattr(sys.modules.get("__main__"), "__file__"):
        return False
    here = all(getattr(_unwrapped(each), "__module__", "") == "__main__" for each in (function, known))
    return here and name_of(function) == name_of(known)


def place_of(function: object) -> str:
    """A function's name, with the file and the line where it is defined."""
    inner = inspect.unwrap(_unwrapped(function))
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return name_of(function) + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function
