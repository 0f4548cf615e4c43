"""Routes and hooks, checked when their decorators run.

A mistake is a ConfigurationError at that line. It says what is wrong, why, and what is right, but never shows a value
that may be secret.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, overload

from karafka_lite.context import Context
from karafka_lite.core.backoff import Backoff
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.core.ownership import Run
from karafka_lite.errors import ConfigurationError, DeserializationError
from karafka_lite.messages import TOPIC, Batch, Deserializer, Loads, as_deserializer
from karafka_lite.settings import group_id_mistakes, int_mistakes, refuse, safe_repr

if TYPE_CHECKING:
    from typing_extensions import Unpack

Handler = Callable[[Batch[Any], Context], object]
HookFunction = Callable[[Context], object]
DeadLetter = str | Literal[False] | None
T = TypeVar("T")
R = TypeVar("R")
HookT = TypeVar("HookT", bound=HookFunction)
DEFAULT_MAX_RETRIES = 3  # with a dead_letter
NO_RETRY: tuple[type[BaseException], ...] = (DeserializationError,)


class TopicOptions(TypedDict, total=False):
    """What ``@app.topic`` takes beside names and a deserializer; there they are explained."""

    manual_offsets: bool
    group_id: str | None
    concurrency: int | None
    max_messages: int
    batch_timeout_ms: int
    backoff_ms: int
    backoff_max_ms: int
    max_retries: int | None
    dead_letter: DeadLetter
    no_retry: type[BaseException] | tuple[type[BaseException], ...] | None


class Registers(Protocol[T]):
    """A decorator of handlers of ``Batch[T]``."""

    def __call__(self, handler: Callable[[Batch[T], Context], R], /) -> Callable[[Batch[T], Context], R]: ...


class Router:
    """The routes of one app. ``group_id``: the consumer group of every topic that names no other."""

    def __init__(self, group_id: str) -> None:
        refuse(*group_id_mistakes(group_id))
        self._group_id = group_id
        self._routes: list[Route] = []

    @property
    def groups(self) -> dict[str, dict[str, Route]]:
        """Group id -> topic -> Route, in the order of registration; a new dict on each access."""
        groups: dict[str, dict[str, Route]] = {}
        for route in self._routes:
            groups.setdefault(route.group_id, {}).update(dict.fromkeys(route.topics, route))
        return groups

    @overload
    def topic(
        self, *topics: str, deserializer: Callable[[bytes], T], **options: Unpack[TopicOptions]
    ) -> Registers[T]: ...
    @overload
    def topic(self, *topics: str, deserializer: None, **options: Unpack[TopicOptions]) -> Registers[bytes]: ...
    @overload
    def topic(self, *topics: str, deserializer: Loads = json, **options: Unpack[TopicOptions]) -> Registers[Any]: ...
    def topic(
        self,
        *topics: str,
        manual_offsets: bool = False,
        group_id: str | None = None,
        concurrency: int | None = None,
        max_messages: int = 500,
        batch_timeout_ms: int = 0,
        deserializer: Deserializer | Loads | None = json,
        backoff_ms: int = 1000,
        backoff_max_ms: int = 30_000,
        max_retries: int | None = None,
        dead_letter: DeadLetter = None,
        no_retry: type[BaseException] | tuple[type[BaseException], ...] | None = None,
    ) -> Registers[Any]:
        """Register a handler for ``topics``; returns the function unchanged.

            @app.topic("user_events", batch_timeout_ms=1000)
            def store(batch, ctx):
                save(batch.payloads)

        Args:
            topics: one or more names. A topic may be in several groups, once in each.
            manual_offsets: commit only what the handler marks, instead of each batch that it has finished.
            group_id: consumer group of these topics; None: the app's own.
            concurrency: how many calls of this handler and its hooks may run at the same time, each for another
                partition; None: as the App says (1).
            max_messages: maximum number of messages in a batch.
            batch_timeout_ms: how long to wait for ``max_messages``; 0 passes on what has arrived.
            deserializer: a function ``bytes -> payload``, or a module with ``loads``; None leaves the payload as bytes.
            backoff_ms: wait between the first failure and the retry; doubled after each further failure.
            backoff_max_ms: the longest such wait.
            dead_letter: where to send a message that keeps failing: a topic (headers say where it came from and why);
                False: log and skip it; None: retry it forever.
            max_retries: how often a message is retried before that (default: 3).
            no_retry: exceptions after which a retry is pointless: the message is given up at once (default:
                ``DeserializationError``).

        Raises:
            ConfigurationError: a topic name or an option is invalid, the group already has one of the topics, or the
                handler does not accept ``(batch, ctx)``, the deserializer does not accept one argument, or one of them
                is not a plain function (``async def``, generator).
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
        refuse(*int_mistakes("backoff_max_ms", backoff_max_ms, least=backoff_ms, why=" (backoff_ms)"))
        if decode is not None:
            refuse(*_deserializer_mistakes(deserializer, decode))
        if concurrency is not None:
            refuse(*int_mistakes("concurrency", concurrency))
        refuse(*_dead_letter_mistakes(dead_letter, max_retries, no_retry, topics))
        backoff = Backoff(backoff_ms, backoff_max_ms)
        budget = None if dead_letter is None else 1 + (DEFAULT_MAX_RETRIES if max_retries is None else max_retries)
        pointless = NO_RETRY if no_retry is None else no_retry if isinstance(no_retry, tuple) else (no_retry,)
        options = Options(manual_offsets, max_messages, batch_timeout_ms, backoff, budget=budget)

        def register(handler: Callable[[Batch[Any], Context], R], /) -> Callable[[Batch[Any], Context], R]:
            refuse(*_function_mistakes("@app.topic", handler, ("batch", "ctx")))
            refuse(*_taken_mistakes(self.groups.get(group, {}), topics, handler))
            # All routes of a handler share one list, so that a hook reaches also those registered after the hook.
            first = self._route_of(handler)
            if first and first.concurrency != concurrency:
                refuse(
                    f"{name_of(handler)} has concurrency={first.concurrency} for {', '.join(first.topics)}: all topics "
                    f"of a handler share its threads; give each @app.topic of it the same concurrency"
                )
            hooks = first.hooks if first else []
            dead_letters = dead_letter, pointless
            self._routes.append(Route(topics, handler, group, options, decode, hooks, *dead_letters, concurrency))
            return handler

        return register

    def on_shutdown(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when the app stops, after the partition's last batch; marks are stored.

        Called once per partition and ownership, only for partitions that have had a batch, and never at the same time
        as a batch. The final commit follows, then the app leaves the group. Raises ConfigurationError for an unknown
        ``handler``.
        """
        return self.hook(Hook.ON_SHUTDOWN, handler)

    def before_revoke(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` before a rebalance takes the partition away; marks are stored.

        Called after the running batch and before the commit, within ``drain_timeout_ms`` (afterwards it is skipped).
        Not called if the partition is lost without a rebalance. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.BEFORE_REVOKE, handler)

    def on_revoked(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` for clean-up when the partition is gone, revoked or lost; marks return False.

        Called after a handler that is still running has returned. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.ON_REVOKED, handler)

    def every(self, handler: Handler, *, ms: int) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` every ``ms`` milliseconds, counted from the end of the last call; marks are stored.

        Called for each assigned partition that has had a batch, never at the same time as a batch of it, also while no
        messages arrive or the partition is in back-off, but no longer once it is being revoked. An exception is logged.
        Together with ``ctx.state`` it makes a buffer that is written by size or by time.

        Raises:
            ConfigurationError: the ``handler`` is unknown, or ``ms`` is not an integer ≥ 1.

        Example::

            @app.every(store, ms=1000)
            def flush(ctx): ...
        """
        return self.hook(Hook.EVERY, handler, ms)

    def hook(self, kind: Hook, handler: Handler, ms: int = 0) -> Callable[[HookT], HookT]:
        """Register a function ``(ctx)`` for all routes of ``handler``; it is returned unchanged, so that hooks stack.

        Raises:
            ConfigurationError: ``handler`` has no topic (yet), or the function is not a plain function of ``(ctx)``.
        """
        decorator = f"@app.{kind.value}"
        route = self._route_of(handler)
        if route is None:
            registered = ", ".join(dict.fromkeys(route.name for route in self._routes)) or "none"
            raise ConfigurationError(
                f"{decorator}: {name_of(handler)} is not the handler of a topic (registered handlers: {registered}). "
                f"Register the hook after the handler, as {decorator}(handler)"
            )
        if kind is Hook.EVERY:
            refuse(*int_mistakes("ms", ms))
        hooks = route.hooks

        def register(function: HookT) -> HookT:
            refuse(*_function_mistakes(decorator, function, ("ctx",)))
            hooks.append(RegisteredHook(kind, function, ms))
            return function

        return register

    def _route_of(self, handler: Handler) -> Route | None:
        return next((route for route in self._routes if route.handler == handler), None)


@dataclass(eq=False)
class Route:
    """A handler with the topics and options of one ``@app.topic``; equal only to itself.

    Attributes:
        deserialize: ``bytes -> payload``; None: payloads stay bytes.
        hooks: in the order of registration, shared by all routes of the handler.
    """

    topics: tuple[str, ...]
    handler: Handler
    group_id: str
    options_without_hooks: Options
    deserialize: Deserializer | None
    hooks: list[RegisteredHook]
    dead_letter: DeadLetter = None
    no_retry: tuple[type[BaseException], ...] = NO_RETRY
    concurrency: int | None = None

    @functools.cached_property
    def name(self) -> str:
        """The handler's name in messages: its qualified name without the module."""
        return name_of(self.handler)

    def name_of_call(self, run: Run) -> str:
        """What ``run`` calls, in messages: the handler, or hooks."""
        return ", ".join([name_of(hook.function) for hook in run.hooks]) if run.hooks else self.name

    @property
    def options(self) -> Options:
        """What the rules about offsets need to know, with the hooks registered so far."""
        return self.options_without_hooks._replace(hooks=tuple(self.hooks))

    def batch_of(self, run: Run) -> Batch:
        """The messages of a call of the handler."""
        return Batch.of_records(run.ownership.tp, run.records, run.chunk.end_offset, self.deserialize)


Routes = Mapping[str, Mapping[str, Route]]
"""Group id -> topic -> route."""


def check_function(decorator: str, function: object, parameters: tuple[str, ...]) -> None:
    """Raises ConfigurationError if ``function`` is not a plain function of ``parameters``."""
    refuse(*_function_mistakes(decorator, function, parameters))


def check_topic(topic: str) -> None:
    """Raises ConfigurationError if this is not a valid name of a Kafka topic."""
    refuse(*_topic_mistakes((topic,)))


# Each check below yields its mistakes as text, so that one exception can report all of them.


def _topic_mistakes(topics: tuple[object, ...]) -> Iterator[str]:
    if not topics:
        yield '@app.topic needs a topic: use @app.topic("name")'
    for i, topic in enumerate(topics):
        if callable(topic):
            yield f'@app.topic needs parentheses and a topic: use @app.topic("name") above {name_of(topic)}'
        elif not isinstance(topic, str):
            yield f'a topic must be a string, got {safe_repr(topic)}; use @app.topic("first", "second")'
        elif not TOPIC.fullmatch(topic) or topic in (".", ".."):
            yield f"{topic!r} is not a valid topic name: use 1 to 249 of a-z A-Z 0-9 . _ - (but not . or .. alone)"
        elif topic in topics[:i]:
            yield f"topic {topic!r} is given twice in one @app.topic"


def _dead_letter_mistakes(
    dead_letter: object, max_retries: object, no_retry: object, topics: Sequence[str]
) -> Iterator[str]:
    if dead_letter is None:
        for name, value in (("max_retries", max_retries), ("no_retry", no_retry)):
            if value is not None:
                yield f"{name} requires dead_letter=: name a topic, or pass False to log and skip"
        return
    for kind in no_retry if isinstance(no_retry, tuple) else () if no_retry is None else (no_retry,):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            yield f"no_retry must be an exception class or a tuple of them, got {safe_repr(kind)}"
    if max_retries is not None:
        yield from int_mistakes("max_retries", max_retries, least=0)
    if dead_letter is False:
        return
    if not isinstance(dead_letter, str):
        yield f"dead_letter must be the name of a topic, False or None, got {safe_repr(dead_letter)}"
    elif dead_letter in topics:
        yield f"dead_letter={dead_letter!r} is a topic of this handler, which would get its dead letters; use another"
    else:
        yield from _topic_mistakes((dead_letter,))


def _taken_mistakes(taken: Mapping[str, Route], topics: Sequence[str], handler: Handler) -> Iterator[str]:
    for topic in topics:
        if other := taken.get(topic):
            here = f"topic {topic!r} already has the handler {other.name} in group {other.group_id!r}"
            yield f'{here}; remove it from {name_of(handler)}, or use @app.topic({topic!r}, group_id="another-group")'


def _function_mistakes(decorator: str, function: object, parameters: tuple[str, ...]) -> Iterator[str]:
    name, arguments = name_of(function), f"({', '.join(parameters)})"
    if not callable(function):
        yield f"{decorator} must decorate a function of {arguments}, got {safe_repr(function)}"
    elif _is_lazy(function):
        kind = {"batch": "handlers", "ctx": "hooks", "event": "observers"}[parameters[0]]
        yield f"{decorator}: {name} is an async or generator function; {kind} must be plain functions of {arguments}"
    elif (signature := _signature_without(function, len(parameters))) is not None:
        count = "two positional arguments" if len(parameters) == 2 else "one positional argument"
        yield f"{decorator}: {name}{signature} must accept {count} {arguments}"


def _deserializer_mistakes(given: object, decode: object) -> Iterator[str]:
    must = "deserializer must be a function of bytes, a module with loads (such as json) or None"
    name = name_of(decode)
    if not callable(decode):
        yield f"{must}, got {safe_repr(given)}"
    elif decode is str:
        yield f"{must}; str makes the text \"b'7'\" of the bytes b'7': for text use deserializer=bytes.decode"
    elif _is_lazy(decode):
        yield f"{must}; {name} is an async or generator function: a payload would be what it returns before it runs"
    elif (signature := _signature_without(decode, 1)) is not None:
        model = hasattr(decode, "model_validate_json")
        hint = f": use {name}.model_validate_json" if model else ", the bytes of a value"
        yield f"{must}; {name}{signature} must accept one positional argument{hint}"


def _signature_without(function: Callable[..., object], count: int) -> inspect.Signature | None:
    """The signature of a function that does not take ``count`` positional arguments; None: it takes them."""
    try:
        # The wrapper is called, so its own signature counts and not the one that functools.wraps has copied.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # a builtin without a signature
    try:
        signature.bind(*(None for _ in range(count)))
    except TypeError:
        return signature
    return None


def _is_lazy(function: Callable[..., object]) -> bool:
    inner = _unwrapped(function)
    tests = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(test(code) for test in tests for code in (getattr(inner, "__func__", inner), type(inner).__call__))


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: object) -> str:
    """A function's name in messages: its qualified name; for a partial, that of its function."""
    return getattr(_unwrapped(function), "__qualname__", None) or repr(_unwrapped(function))
