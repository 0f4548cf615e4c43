"""What the user typed: routes and hooks, checked when they are typed.

A mistake is a ConfigurationError at its line: what, why, what to type instead; never a value that may be secret.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from karafka_lite.context import Context
from karafka_lite.core.backoff import Backoff
from karafka_lite.core.options import Hook, Policy
from karafka_lite.core.ownership import Run
from karafka_lite.errors import ConfigurationError
from karafka_lite.messages import Batch, Deserializer, Loads, as_deserializer
from karafka_lite.settings import group_id_mistakes, int_mistakes, refuse, shown

Handler = Callable[[Batch, Context], object]
HookFunction = Callable[[Context], object]
DeadLetter = str | Literal[False] | None
HandlerT = TypeVar("HandlerT", bound=Handler)
HookT = TypeVar("HookT", bound=HookFunction)
DEFAULT_MAX_RETRIES = 3  # where there is a dead_letter


class Router:
    """The routes of one app; ``group_id``, a non-empty str, is the group of every topic that names no other."""

    def __init__(self, group_id: str) -> None:
        refuse(*group_id_mistakes(group_id))
        self._group_id = group_id
        self._routes: list[Route] = []

    @property
    def groups(self) -> dict[str, dict[str, Route]]:
        """Group id -> topic -> Route, both in the order of registration; a new dict at each access."""
        groups: dict[str, dict[str, Route]] = {}
        for route in self._routes:
            groups.setdefault(route.group_id, {}).update(dict.fromkeys(route.topics, route))
        return groups

    def topic(
        self,
        *topics: str,
        manual_offsets: bool = False,
        group_id: str | None = None,
        max_messages: int = 500,
        batch_timeout_ms: int = 0,
        deserializer: Deserializer | Loads | None = json,
        backoff_ms: int = 1000,
        backoff_max_ms: int = 30_000,
        max_retries: int | None = None,
        dead_letter: DeadLetter = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register a handler for ``topics``; the function itself is returned unchanged.

            @app.topic("user_events", batch_timeout_ms=1000)
            def store(batch, ctx):
                save(batch.payloads)

        Args:
            topics: one or more names. A topic may stand in several groups, once in each.
            manual_offsets: commit only what the handler marks, instead of each batch that it finished.
            group_id: consumer group of these topics; None: the app's own.
            max_messages: the most messages in one batch.
            batch_timeout_ms: how long to wait for ``max_messages``, in milliseconds; 0 hands over what is there.
            deserializer: ``bytes -> payload``, or a module with ``loads``; None leaves the payload as bytes.
            backoff_ms: milliseconds from a first failure to the next try; it doubles with each failure.
            backoff_max_ms: the longest of these waits, in milliseconds.
            dead_letter: where a message goes at which the handler fails again and again: a topic, with headers that
                say where it came from and why; False: nowhere, it is logged and skipped; None: it is never given up.
            max_retries: how often a batch, and then each of its messages by itself, is tried again before that (3).

        Raises:
            ConfigurationError: a topic name or an option that cannot work, a topic that its group already has, or a
                handler that cannot be called with ``(batch, ctx)`` or would not run (``async def``, generator).
        """
        group = self._group_id if group_id is None else group_id
        decode = as_deserializer(deserializer)
        refuse(
            *_topic_mistakes(topics),
            *group_id_mistakes(group),
            *int_mistakes("max_messages", max_messages),
            *int_mistakes("batch_timeout_ms", batch_timeout_ms, least=0),
            *int_mistakes("backoff_ms", backoff_ms),
        )
        refuse(*int_mistakes("backoff_max_ms", backoff_max_ms, least=backoff_ms, why=" (backoff_ms, the first wait)"))
        if decode is not None and not callable(decode):
            refuse(f"deserializer cannot be {shown(deserializer)}: type json, a function of bytes, or None for bytes")
        refuse(*_dead_letter_mistakes(dead_letter, max_retries, topics))
        backoff = Backoff(backoff_ms, backoff_max_ms)
        budget = None if dead_letter is None else 1 + (DEFAULT_MAX_RETRIES if max_retries is None else max_retries)
        options = Policy(manual_offsets, max_messages, batch_timeout_ms, backoff, budget=budget)

        def register(handler: HandlerT) -> HandlerT:
            refuse(*_function_mistakes("@app.topic", handler, ("batch", "ctx")))
            refuse(*_taken_mistakes(self.groups.get(group, {}), topics, handler))
            # One dict for all routes of a handler: a hook reaches each of them, also those registered after the hook.
            first = self._route_of(handler)
            hooks, every_ms = (first.hooks, first.every_ms) if first else ({kind: [] for kind in Hook}, [])
            self._routes.append(Route(topics, handler, group, options, decode, hooks, every_ms, dead_letter))
            return handler

        return register

    def on_shutdown(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when the app stops, after the partition's last batch; marks count.

        Once per partition and ownership, only for partitions that were handed a batch, never beside a batch of it; the
        final commit and the leaving of the group follow. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.ON_SHUTDOWN, handler)

    def before_revoke(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` before a rebalance takes a partition away in good order; marks count.

        After the running batch, before the commit and the hand-over, inside ``drain_timeout_ms`` (left out past it).
        Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.BEFORE_REVOKE, handler)

    def on_revoked(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when a partition is gone, handed over or lost: for clean-up; marks return False.

        Waits for a handler that still runs. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.ON_REVOKED, handler)

    def every(self, handler: Handler, *, ms: int) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` again and again, ``ms`` milliseconds behind its last end; marks count.

        For each partition of ours that was handed a batch, never beside a batch of it, also while no message comes or
        the partition waits; no more when it is to be given away. An exception is logged. With ``ctx.state`` it makes a
        buffer that is written by size or by time.

        Raises:
            ConfigurationError: an unknown ``handler``, or ``ms`` is no number from 1.

        Example::

            @app.every(store, ms=1000)
            def flush(ctx): ...
        """
        return self.hook(Hook.EVERY, handler, ms)

    def hook(self, kind: Hook, handler: Handler, ms: int = 0) -> Callable[[HookT], HookT]:
        """Register a function of ``(ctx)`` for all routes of ``handler``; it is returned unchanged, so hooks stack.

        Raises:
            ConfigurationError: ``handler`` has no topic (yet), or the function is not a plain one of ``(ctx)``.
        """
        decorator = f"@app.{kind.value}"
        route = self._route_of(handler)
        if route is None:
            registered = ", ".join(dict.fromkeys(route.name for route in self._routes)) or "none"
            raise ConfigurationError(
                f"{decorator}: {name_of(handler)} is not the handler of a topic (handlers so far: {registered}); "
                f"type {decorator}(handler), below the handler and its @app.topic"
            )
        if kind is Hook.EVERY:
            refuse(*int_mistakes("ms", ms))
        hooks, every_ms = route.hooks, route.every_ms

        def register(function: HookT) -> HookT:
            refuse(*_function_mistakes(decorator, function, ("ctx",)))
            hooks[kind].append(function)
            every_ms.extend([ms] if kind is Hook.EVERY else [])
            return function

        return register

    def _route_of(self, handler: Handler) -> Route | None:
        return next((route for route in self._routes if route.handler == handler), None)


@dataclass(eq=False)
class Route:
    """A handler with the topics and options of one ``@app.topic``; equal only to itself.

    Attributes:
        options: what the rules about offsets need of these; see ``policy``.
        deserialize: ``bytes -> payload``; None where payloads stay bytes.
        hooks: for each kind its functions in the order of registration, shared by all routes of the handler.
        every_ms: for each function of ``every`` how often, shared likewise.
    """

    topics: tuple[str, ...]
    handler: Handler
    group_id: str
    options: Policy
    deserialize: Deserializer | None
    hooks: dict[Hook, list[HookFunction]]
    every_ms: list[int]
    dead_letter: DeadLetter = None

    @property
    def name(self) -> str:
        """How texts name the handler: its qualified name without the module; of a partial, its function's."""
        return name_of(self.handler)

    @property
    def policy(self) -> Policy:
        """``options`` with the hooks that there are by now; ``hooks`` are the kinds that have a function."""
        kinds = frozenset(kind for kind, functions in self.hooks.items() if functions)
        return self.options._replace(hooks=kinds, every_ms=tuple(self.every_ms))

    def called(self, run: Run) -> str:
        """How texts name what a run calls."""
        return ", ".join(map(name_of, self.functions(run))) if run.hook else self.name

    def functions(self, run: Run) -> list[HookFunction]:
        """Those that a run of a hook calls."""
        functions = self.hooks[run.hook] if run.hook else []
        return functions[run.number : run.number + 1] if run.hook is Hook.EVERY else functions


def check_topic(topic: str) -> None:
    """Raises ConfigurationError where Kafka cannot have a topic of this name."""
    refuse(*_topic_mistakes((topic,)))


# Each check below yields its mistakes as text, so that one exception can tell all of them.


def _topic_mistakes(topics: tuple[object, ...]) -> Iterator[str]:
    if not topics:
        yield '@app.topic has no topic: type @app.topic("name")'
    for i, topic in enumerate(topics):
        if callable(topic):
            yield f'@app.topic needs parentheses and a topic: type @app.topic("name") above {name_of(topic)}'
        elif not isinstance(topic, str):
            yield f'a topic is a str, not {shown(topic)}: type @app.topic("first", "second")'
        elif not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic) or topic in (".", ".."):
            yield f"{topic!r} cannot be a topic of Kafka: type 1 to 249 of a-z A-Z 0-9 . _ - (but not just . or ..)"
        elif topic in topics[:i]:
            yield f"topic {topic!r} stands twice in one @app.topic: type it once"


def _dead_letter_mistakes(dead_letter: object, max_retries: object, topics: Sequence[str]) -> Iterator[str]:
    if dead_letter is None:
        if max_retries is not None:
            yield (
                "max_retries says when to give up, but nothing says what becomes of the message then: type "
                'dead_letter="name-of-a-topic", or dead_letter=False to log and skip it'
            )
        return
    if max_retries is not None:
        yield from int_mistakes("max_retries", max_retries, least=0)
    if dead_letter is False:
        return
    if not isinstance(dead_letter, str):
        yield f'dead_letter is the name of a topic, False, or None, not {shown(dead_letter)}: type "name-of-a-topic"'
    elif dead_letter in topics:
        yield f"dead_letter={dead_letter!r} is a topic of this handler, which would be handed it again: type another"
    else:
        yield from _topic_mistakes((dead_letter,))


def _taken_mistakes(taken: Mapping[str, Route], topics: Sequence[str], handler: Handler) -> Iterator[str]:
    for topic in topics:
        if other := taken.get(topic):
            here = f"topic {topic!r} is taken in group {other.group_id!r} by {other.name}"
            yield f'{here}: drop it from {name_of(handler)}, or type @app.topic({topic!r}, group_id="another-group")'


def _function_mistakes(decorator: str, function: object, parameters: tuple[str, ...]) -> Iterator[str]:
    name, arguments = name_of(function), ", ".join(parameters)
    plain = f"def {getattr(function, '__name__', 'function').replace('<lambda>', 'function')}({arguments}):"
    if not callable(function):
        yield f"{decorator} cannot register {shown(function)}, which is not callable: type `{plain}` below it"
    elif _is_lazy(function):
        yield f"{decorator}: {name} is async or yields: a call runs nothing, a silent loss; write a plain `{plain}`"
    else:
        try:
            # The wrapper is what is called: functools.wraps must not let the inner signature stand for it.
            signature = inspect.signature(function, follow_wrapped=False)
        except (TypeError, ValueError):
            return  # a builtin that does not tell its signature
        try:
            signature.bind(*(None for _ in parameters))
        except TypeError as mistake:
            yield f"{decorator}: {name}{signature} is called with ({arguments}), {mistake}: type `{plain}`"


def _is_lazy(function: Callable[..., object]) -> bool:
    inner = _unwrapped(function)
    tests = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(test(code) for test in tests for code in (getattr(inner, "__func__", inner), type(inner).__call__))


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: object) -> str:
    """How texts name a function: its qualified name; of a partial, its function's."""
    return getattr(_unwrapped(function), "__qualname__", None) or repr(_unwrapped(function))
