"""Routes and hooks, checked when their decorators run.

A mistake is a ConfigurationError at that line. It says what is wrong, why, and what is right, but never shows a value
that may be secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, overload

from karafka_lite import checks
from karafka_lite.checks import (
    dead_letter_mistakes,
    deserializer_mistakes,
    function_mistakes,
    hook_mistakes,
    topic_mistakes,
)
from karafka_lite.context import Context
from karafka_lite.core.backoff import Backoff
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.errors import ConfigurationError
from karafka_lite.functions import is_again, name_of
from karafka_lite.lifespan import ProcessHook
from karafka_lite.messages import Batch, Deserializer, Loads, MessageDeserializer, as_deserializer
from karafka_lite.route import NO_RETRY, DeadLetter, Handler, HookFunction, Order, Route
from karafka_lite.settings import bool_mistakes, group_id_mistakes, int_mistakes, refuse, safe_repr

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from karafka_lite.async_context import AsyncContext

T = TypeVar("T")
R = TypeVar("R")
HookT = TypeVar("HookT", bound=HookFunction)
ProcessHookT = TypeVar("ProcessHookT", bound=Callable[[], object])
AnyHookT = TypeVar("AnyHookT", RegisteredHook, ProcessHook)
PartT = TypeVar("PartT")
DEFAULT_MAX_RETRIES = 3  # with a dead_letter


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
    order: Order
    exactly_once: bool


class Registers(Protocol[T]):
    """A decorator of handlers of ``Batch[T]``."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # of those that are both, the first counts
        self, handler: Callable[[Batch[T], AsyncContext], Coroutine[Any, Any, R]], /
    ) -> Callable[[Batch[T], AsyncContext], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, handler: Callable[[Batch[T], Context], R], /) -> Callable[[Batch[T], Context], R]: ...


class Router:
    """Topics and hooks for an App, in a module of their own.

    Topics that name no group are of the group of the App that includes it.

    Example::

        orders = Router()                    # in shop/orders.py

        @orders.topic("orders")
        def charge(batch, ctx): ...

        app = App("shop")                    # in shop/main.py
        app.include(orders)
    """

    def __init__(self) -> None:
        self._own_group = ""  # an App has one
        self._parent: Router | None = None  # who includes it
        self._parts: list[Route | ProcessHook | Router] = []  # in the order of registration

    @property
    def groups(self) -> dict[str, dict[str, Route]]:
        """Group id -> topic -> Route, in the order of registration; a new dict on each access.

        As long as no App includes this router, the group of topics that name none is ``""``.
        """
        groups: dict[str, dict[str, Route]] = {}
        for route in self._all(Route):
            groups.setdefault(route.group_id, {}).update(dict.fromkeys(route.topics, route))
        return groups

    @property
    def process_hooks(self) -> Sequence[ProcessHook]:
        """Those of ``on_start`` and ``on_stop``, in the order of registration."""
        return list(self._all(ProcessHook))

    def include(self, router: Router) -> None:
        """Take all that ``router`` has, and what it will get.

        Its topics that name no group are of this App's group. It can be included once: a second App needs another
        Router, because a handler never runs beside itself.

        Raises:
            ConfigurationError: it is no Router, an App, or included already; a group has one of its topics already; or
                a handler that both have has another ``concurrency`` there.
        """
        refuse(*self._include_mistakes(router))
        taken, mistakes = dict(self._root._routes_by_place()), list[str]()
        for route in router._all(Route):
            group = route.group_id or self._group
            mistakes += _taken_mistakes(taken, group, route.topics, route.handler)
            mistakes += _concurrency_mistakes(self._root._route_of(route.handler), route.handler, route.concurrency)
            for topic in route.topics:
                taken.setdefault((group, topic), route)
        refuse(*mistakes)
        for route in router._all(Route):
            route.group_id = route.group_id or self._group
            if (first := self._root._route_of(route.handler)) is not None:
                first.hooks += [hook for hook in route.hooks if hook not in first.hooks]
                route.hooks = first.hooks
        router._parent = self
        self._parts.append(router)

    def _include_mistakes(self, router: object) -> Iterator[str]:
        if not isinstance(router, Router):
            yield f"include takes a Router, got {safe_repr(router)}"
        elif router._own_group:
            yield "include takes a Router, and not an App: it has a group and settings of its own; use Router() there"
        elif router._parent is not None:
            yield "this Router is included already: include it once, and make another Router for another App"
        elif router is self._root:
            yield "a Router cannot be part of itself"

    @property
    def _root(self) -> Router:
        return self if self._parent is None else self._parent._root

    @property
    def _group(self) -> str:
        return self._root._own_group

    def _all(self, kind: type[PartT]) -> Iterator[PartT]:
        """Parts of this kind, those of what is included among them."""
        for part in self._parts:
            if isinstance(part, kind):
                yield part
            elif isinstance(part, Router):
                yield from part._all(kind)

    def _rename_group(self, name: str) -> None:
        """Give an App, and the topics of its own group, another one. Raises ConfigurationError."""
        taken = {place: route for place, route in self._routes_by_place() if place[0] != self._own_group}
        mine = [route for route in self._all(Route) if route.group_id == self._own_group]
        refuse(*(text for route in mine for text in _taken_mistakes(taken, name, route.topics, route.handler)))
        for route in mine:
            route.group_id = name
        self._own_group = name

    def _routes_by_place(self) -> Iterator[tuple[tuple[str, str], Route]]:
        return (((route.group_id, topic), route) for route in self._all(Route) for topic in route.topics)

    @overload
    def topic(
        self, *topics: str, deserializer: MessageDeserializer[T], **options: Unpack[TopicOptions]
    ) -> Registers[T]: ...
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
        deserializer: Deserializer | MessageDeserializer[Any] | Loads | None = json,
        backoff_ms: int = 1000,
        backoff_max_ms: int = 30_000,
        max_retries: int | None = None,
        dead_letter: DeadLetter = None,
        no_retry: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        order: Order = "partition",
        exactly_once: bool = False,
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
                partition, or part of a batch (``order``); None: as the App says (1).
            max_messages: maximum number of messages in a batch.
            batch_timeout_ms: how long to wait for ``max_messages``; 0 passes on what has arrived.
            deserializer: a function ``bytes -> payload``, or a module with ``loads``; None leaves the payload as bytes.
                A function whose only parameter is named ``message`` gets the Message, for what is in key and headers.
                It is never called for a tombstone.
            backoff_ms: wait between the first failure and the retry; doubled after each further failure.
            backoff_max_ms: the longest such wait.
            dead_letter: where to send a message that keeps failing: a topic (headers say where it came from and why);
                False: log and skip it; None: retry it forever.
            max_retries: how often a message is retried before that (default: 3).
            no_retry: exceptions after which a retry is pointless: the message is given up at once (default:
                ``DeserializationError``).
            order: ``"partition"``, or ``"key"`` for slow calls: each batch is split by key into up to ``concurrency``
                parts that run side by side, and the next one begins when all have ended. The handler is called once for
                each part, with a batch and a context of its own. Messages of one key stay in order, those without a key
                go anywhere. ``ctx.state`` is one dict, which all parts use at once. What is committed never passes a
                message that is not done. If a part raises, the others end, then what is not done comes again.
            exactly_once: commit what the handler sends and the offset of what it was made from together, or neither
                (``ctx.produce`` says how). **Who reads what is sent has to read with** ``read_committed``. With
                ``order="key"`` a batch is one unit: where a part raises, all of them come again.

        An ``async def`` handler gets an ``AsyncContext`` and runs on an event loop: the caller's in ``await
        app.serve()`` and ``async with app:``, else one in a thread of ours. All else is the same for it.

        In a notebook or a REPL a function takes the place of one of the same name, and of its hooks: a cell runs twice.

        Raises:
            ConfigurationError: a topic name or an option is invalid, the group already has one of the topics, or the
                handler does not accept ``(batch, ctx)`` or is a generator, or the deserializer does not accept one
                argument, or is no plain function; ``order="key"`` with ``manual_offsets``.
        """
        decode = as_deserializer(deserializer)
        refuse(
            *topic_mistakes(topics),
            *(() if group_id is None else group_id_mistakes(group_id)),
            *int_mistakes("max_messages", max_messages),
            *int_mistakes("batch_timeout_ms", batch_timeout_ms, least=0),
            *int_mistakes("backoff_ms", backoff_ms),
            *bool_mistakes("manual_offsets", manual_offsets),
            *bool_mistakes("exactly_once", exactly_once),
        )
        refuse(*int_mistakes("backoff_max_ms", backoff_max_ms, least=backoff_ms, why=" (backoff_ms)"))
        if decode is not None:
            refuse(*deserializer_mistakes(deserializer, decode))
        if concurrency is not None:
            refuse(*int_mistakes("concurrency", concurrency))
        refuse(*dead_letter_mistakes(dead_letter, max_retries, no_retry, topics))
        refuse(*checks.order_mistakes(order, manual_offsets))
        backoff = Backoff(backoff_ms, backoff_max_ms)
        budget = None if dead_letter is None else 1 + (DEFAULT_MAX_RETRIES if max_retries is None else max_retries)
        pointless = NO_RETRY if no_retry is None else no_retry if isinstance(no_retry, tuple) else (no_retry,)
        first = manual_offsets, max_messages, batch_timeout_ms, backoff
        options = Options(*first, (), budget, exactly_once=exactly_once)

        def register(handler: Any, /) -> Any:
            refuse(*function_mistakes("@app.topic", handler, ("batch", "ctx")))
            group = self._group if group_id is None else group_id
            taken = dict(self._root._routes_by_place())
            theirs = [route for topic in topics if (route := taken.get((group, topic)))]
            again = [route for route in theirs if is_again(handler, route.handler)]
            others = {place: route for place, route in taken.items() if route not in again}
            refuse(*_taken_mistakes(others, group, topics, handler))
            first = self._root._route_of(handler)
            refuse(*_concurrency_mistakes(first, handler, concurrency))
            # All routes of a handler share one list, so that a hook reaches also those registered after the hook.
            hooks = first.hooks if first else []
            if again:
                self._root._check_replaceable(name_of(handler))
                self._root._take_out(again)
            dead_letters = dead_letter, pointless
            self._parts.append(Route(topics, handler, group, options, decode, hooks, *dead_letters, concurrency, order))
            return handler

        return register

    def on_assigned(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when a partition is ours and its start is known, before its first batch.

        Called for every assigned partition, also for one without messages. Nothing has been handed over yet, so there
        is nothing to mark (ValueError); ``ctx.seek`` chooses where the first batch starts. Where it raises, its
        partition waits the back-off of a failed batch, and it is called again: no batch is handed over before it has
        returned. What it leaves in ``ctx.state`` stays there when a batch fails. What it opens, close in ``on_revoked``
        and ``on_shutdown``: they are called wherever a function of ``on_assigned`` has returned.

        Raises ConfigurationError for an unknown ``handler``.

        Example::

            @app.on_assigned(store)
            def open_file(ctx):
                ctx.state["file"] = open(f"{ctx.topic}-{ctx.partition}.csv", "a")
        """
        return self.hook(Hook.ON_ASSIGNED, handler)

    def on_shutdown(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when the app stops, after the partition's last batch; marks are stored.

        Called once per partition and ownership, for partitions that have had a batch or an ``on_assigned``, never
        beside a batch. The final commit follows, then the app leaves the group. Raises ConfigurationError for an
        unknown ``handler``.
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

        Called for partitions that have had a batch or an ``on_assigned``, after a handler that is still running has
        returned, and not after ``on_shutdown``. Raises ConfigurationError for an unknown ``handler``.
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
            ConfigurationError: ``handler`` has no topic (yet), or it is no function of ``(ctx)``; or it is not ``async
                def`` although ``handler`` is, or the other way round.
        """
        decorator = f"@app.{kind.value}"
        route = self._route_of(handler)
        if route is None:
            registered = ", ".join(dict.fromkeys(route.name for route in self._all(Route))) or "none"
            raise ConfigurationError(
                f"{decorator}: {name_of(handler)} is not the handler of a topic (registered handlers: {registered}). "
                f"Register the hook after the handler, as {decorator}(handler)"
            )
        if kind is Hook.EVERY:
            refuse(*int_mistakes("ms", ms))

        def register(function: HookT) -> HookT:
            refuse(*hook_mistakes(decorator, function, route.handler))
            known = [hook for hook in route.hooks if hook.kind is kind]
            again = self._root._replaceable(function, known)
            route.hooks[:] = [hook for hook in route.hooks if hook not in again]
            route.hooks.append(RegisteredHook(kind, function, ms))
            return function

        return register

    def on_start(self, function: ProcessHookT) -> ProcessHookT:
        """Call a function ``()`` when the app starts, before any group joins; it is returned unchanged.

        Once per process and run, on the thread that starts the app. Where it raises, the app does not start:
        ``app.start()`` and ``app.drain()`` raise the same, ``app.run()`` and the command line end with exit code 1.

        An ``async def`` function runs on the event loop of async handlers: open there what they use.

        Raises ConfigurationError: it is not a function without arguments.

        Example::

            @app.on_start
            def connect():
                pool.open()
        """
        return self._process_hook(ProcessHook("on_start", function), function)

    def on_stop(self, function: ProcessHookT) -> ProcessHookT:
        """Call a function ``()`` when the app has stopped, after all groups have left; it is returned unchanged.

        Once per process and run, in the reverse order of registration, as ``atexit``; also where the start failed after
        a function of ``on_start`` had returned. An exception is logged, and the others are called.

        Raises ConfigurationError: it is not a function without arguments.
        """
        return self._process_hook(ProcessHook("on_stop", function), function)

    def _process_hook(self, hook: ProcessHook, function: ProcessHookT) -> ProcessHookT:
        refuse(*function_mistakes(f"@app.{hook.kind}", function, ()))
        known = [each for each in self._root._all(ProcessHook) if each.kind == hook.kind]
        self._root._take_out(self._root._replaceable(function, known))
        self._parts.append(hook)
        return function

    def _replaceable(self, function: object, hooks: Iterable[AnyHookT]) -> list[AnyHookT]:
        """Those of which ``function`` takes the place. Raises ConfigurationError if they are in use."""
        again = [hook for hook in hooks if hook.function is not function and is_again(function, hook.function)]
        if again:
            self._check_replaceable(name_of(function))
        return again

    def _check_replaceable(self, name: str) -> None:
        """Raises ConfigurationError if the function of this name is in use."""

    def _take_out(self, parts: Sequence[Route | ProcessHook]) -> None:
        """Forget them, whichever router has them."""
        self._parts = [part for part in self._parts if part not in parts]
        for router in self._parts:
            if isinstance(router, Router):
                router._take_out(parts)

    def _route_of(self, handler: Handler) -> Route | None:
        return next((route for route in self._all(Route) if route.handler == handler), None)


def _taken_mistakes(
    taken: Mapping[tuple[str, str], Route], group: str, topics: Sequence[str], handler: Handler
) -> Iterator[str]:
    for topic in topics:
        if other := taken.get((group, topic)):
            whose = f"group {group!r}" if group else "the App's group"
            here = f"topic {topic!r} already has the handler {other.name} in {whose}"
            yield f'{here}; remove it from {name_of(handler)}, or use @app.topic({topic!r}, group_id="another-group")'


def _concurrency_mistakes(other: Route | None, handler: Handler, concurrency: int | None) -> Iterator[str]:
    if other is not None and other.concurrency != concurrency:
        yield (
            f"{name_of(handler)} has concurrency={other.concurrency} for {', '.join(other.topics)}: all topics of a "
            f"handler share its threads; give each @app.topic of it the same concurrency"
        )
