"""Routes and hooks: what is accepted, and what every refusal says."""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.util import ensure_valid_topic_name
from support.refusal import refusal

from karafka_lite.app import App
from karafka_lite.core.backoff import Backoff
from karafka_lite.core.options import Hook, Options
from karafka_lite.errors import ConfigurationError, DeserializationError
from karafka_lite.functions import name_of
from karafka_lite.messages import Batch, Message, PlainRecord
from karafka_lite.routing import Router
from karafka_lite.settings import Config

SECRET = "hunter2"
INT32_MAX = 2**31 - 1


def store(batch: Any, ctx: Any) -> None: ...


def archive(batch: Any, ctx: Any) -> None: ...


def flush(ctx: Any) -> None: ...


@pytest.fixture
def router() -> Router:
    return App("event-store")


# -- routes


def test_a_topic_becomes_a_route_with_the_documented_defaults(router: Router) -> None:
    router.topic("user_events")(store)
    route = router.groups["event-store"]["user_events"]
    assert (route.topics, route.handler, route.group_id) == (("user_events",), store, "event-store")
    assert route.options == Options(False, 500, 0, Backoff(1000, 30_000))
    assert route.deserialize is json.loads
    assert route.hooks == []


def test_a_route_has_what_its_decorator_was_given(router: Router) -> None:
    router.topic(
        *("a", "b"),
        manual_offsets=True,
        group_id="audit",
        max_messages=1,
        batch_timeout_ms=250,
        deserializer=bytes.decode,
        backoff_ms=10,
        backoff_max_ms=10,
    )(store)
    route = router.groups["audit"]["a"]
    assert route is router.groups["audit"]["b"]
    assert route.topics == ("a", "b")
    assert route.deserialize == bytes.decode
    assert route.options == Options(True, 1, 250, Backoff(10, 10))


def test_the_decorator_returns_the_function_itself(router: Router) -> None:
    assert router.topic("user_events")(store) is store


def test_two_topic_decorators_stack_on_one_function_in_two_groups(router: Router) -> None:
    @router.topic("orders", group_id="audit")
    @router.topic("orders")
    def both(batch: Any, ctx: Any) -> None: ...

    assert [(group, list(topics)) for group, topics in router.groups.items()] == [
        ("event-store", ["orders"]),
        ("audit", ["orders"]),
    ]
    assert router.groups["audit"]["orders"].handler is router.groups["event-store"]["orders"].handler is both


def test_groups_and_topics_keep_the_order_of_registration(router: Router) -> None:
    router.topic("z", group_id="second-name")(store)
    router.topic("m", "a")(store)
    router.topic("b", group_id="second-name")(archive)
    assert list(router.groups) == ["second-name", "event-store"]
    assert list(router.groups["second-name"]) == ["z", "b"]
    assert list(router.groups["event-store"]) == ["m", "a"]


def test_changing_the_answer_of_groups_registers_nothing(router: Router) -> None:
    router.topic("orders")(store)
    router.groups["event-store"].clear()
    router.groups.clear()
    assert list(router.groups["event-store"]) == ["orders"]


def test_a_refused_decorator_registers_nothing(router: Router) -> None:
    router.topic("orders")(store)
    refusal(lambda: router.topic("payments", "orders")(archive))
    assert list(router.groups["event-store"]) == ["orders"]


def test_two_routes_with_the_same_fields_are_not_equal() -> None:
    first, second = App("group"), App("group")
    first.topic("orders")(store)
    second.topic("orders")(store)
    route, other = first.groups["group"]["orders"], second.groups["group"]["orders"]
    assert route != other
    assert len({route, other}) == 2


def test_the_options_of_a_route_have_the_hooks_that_are_registered_so_far(router: Router) -> None:
    router.topic("orders")(store)
    assert hooks_of(router) == []
    router.hook(Hook.ON_REVOKED, store)(flush)
    assert hooks_of(router) == [(Hook.ON_REVOKED, flush)]


class Callable_:
    def __call__(self, batch: Any, ctx: Any) -> None: ...

    def method(self, batch: Any, ctx: Any) -> None: ...

    def __repr__(self) -> str:
        return "<a callable>"


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (store, "store"),
        (Callable_().method, "Callable_.method"),
        (functools.partial(functools.partial(lambda secret, batch, ctx: None), SECRET), "<lambda>"),
        (Callable_(), "<a callable>"),
    ],
)
def test_a_route_is_named_after_its_function_or_else_its_repr(router: Router, handler: Any, name: str) -> None:
    router.topic("orders")(handler)
    assert router.groups["event-store"]["orders"].name == name


# -- group ids


@pytest.mark.parametrize("group_id", ["", "  ", None, 7, b"group"])
def test_a_group_id_is_a_non_empty_str(group_id: Any) -> None:
    expected = 'group_id must be a non-empty string, for example "event-store"'
    assert refusal(lambda: App(group_id)) == expected
    assert refusal(lambda: Config.validated(group_id)) == expected
    if group_id is not None:  # None is "the app's own" here
        assert refusal(lambda: App("group").topic("orders", group_id=group_id)) == expected


# -- topics


def test_a_decorator_without_a_topic_is_refused(router: Router) -> None:
    assert 'needs a topic: use @app.topic("name")' in refusal(lambda: router.topic())


def test_a_decorator_without_parentheses_says_how_to_write_it(router: Router) -> None:
    text = refusal(lambda: router.topic(store))  # type: ignore[arg-type]
    assert "needs parentheses" in text
    assert '@app.topic("name") above store' in text


@pytest.mark.parametrize("topic", [b"orders", 5, None, ["a", "b"]])
def test_a_topic_that_is_not_a_str_is_refused(router: Router, topic: Any) -> None:
    text = refusal(lambda: router.topic("fine", topic))
    assert "a topic must be a string" in text
    assert 'use @app.topic("first", "second")' in text


@pytest.mark.parametrize("topic", ["", ".", "..", "user events", "a/b", "größe", "a\n", "a" * 250])
def test_a_topic_that_kafka_cannot_have_is_refused(router: Router, topic: str) -> None:
    text = refusal(lambda: router.topic(topic))
    assert f"{topic!r} is not a valid topic name" in text
    assert "use 1 to 249 of a-z A-Z 0-9 . _ -" in text


@given(st.text(alphabet="aZ9._- /é", max_size=4) | st.integers(247, 251).map("a".__mul__))
def test_topic_names_are_judged_as_the_client_judges_them(topic: str) -> None:
    try:
        ensure_valid_topic_name(topic)
    except ValueError:
        refusal(lambda: App("group").topic(topic))
    else:
        App("group").topic(topic)(store)


def test_a_topic_twice_in_one_decorator_is_refused(router: Router) -> None:
    text = refusal(lambda: router.topic("orders", "payments", "orders"))
    assert text == "topic 'orders' is given twice in one @app.topic"


def test_a_topic_twice_in_one_group_names_both_handlers(router: Router) -> None:
    router.topic("orders", "payments")(store)
    text = refusal(lambda: router.topic("refunds", "payments")(archive))
    assert "'payments' already has the handler store in group 'event-store'" in text
    assert "remove it from archive" in text
    assert "use @app.topic('payments', group_id=\"another-group\")" in text
    assert "refunds" not in text


# -- options of a topic


@pytest.mark.parametrize(
    ("option", "least"), [("max_messages", 1), ("batch_timeout_ms", 0), ("backoff_ms", 1), ("backoff_max_ms", 1000)]
)
@pytest.mark.parametrize(
    ("wrong", "given"),
    [("too small", None), (True, "True"), (2.0, "2.0"), ("9000", "a str"), (None, "None"), (INT32_MAX + 1, None)],
)
def test_an_option_that_is_no_int_in_its_range_is_refused(
    router: Router, option: str, least: int, wrong: Any, given: str | None
) -> None:
    value = least - 1 if wrong == "too small" else wrong
    text = refusal(lambda: router.topic("orders", **{option: value}))
    bound = f"≤ {INT32_MAX}" if value == INT32_MAX + 1 else f"≥ {least}"
    assert text.startswith(f"{option} must be an integer {bound}")
    assert text.endswith(f", got {given or value}")


@pytest.mark.parametrize(
    "options",
    [{"max_messages": 1}, {"batch_timeout_ms": 0}, {"backoff_ms": 1, "backoff_max_ms": 1}, {"max_messages": INT32_MAX}],
)
def test_an_option_at_its_bound_is_accepted(router: Router, options: dict[str, int]) -> None:
    assert router.topic("orders", **options)(store) is store  # type: ignore[arg-type]


def test_a_longest_wait_below_the_first_one_is_refused(router: Router) -> None:
    text = refusal(lambda: router.topic("orders", backoff_ms=60_000))
    assert text == "backoff_max_ms must be an integer ≥ 60000 (backoff_ms), got 30000"


@pytest.mark.parametrize("deserializer", ["json", 5, SimpleNamespace(), SimpleNamespace(loads="json")])
def test_a_deserializer_that_cannot_be_called_is_refused(router: Router, deserializer: Any) -> None:
    text = refusal(lambda: router.topic("orders", deserializer=deserializer))
    assert text.startswith("deserializer must be a function of bytes, a module with loads (such as json) or None, got ")


async def later(value: bytes) -> bytes:
    return value


def one_by_one(value: bytes) -> Iterator[int]:
    yield from value


class Model:
    """As pydantic's are."""

    def __init__(self, *, identity: int) -> None: ...

    model_validate_json = len


@pytest.mark.parametrize(
    ("deserializer", "why"),
    [
        (str, "str makes the text \"b'7'\" of the bytes b'7': for text use deserializer=bytes.decode"),
        (later, "later is an async or generator function"),
        (one_by_one, "one_by_one is an async or generator function"),
        (SimpleNamespace(loads=later), "later is an async or generator function"),
        (functools.partial(later), "later is an async or generator function"),
        (lambda: 1, "() must accept one positional argument, the bytes of a value"),
        (lambda value, ctx: 1, "(value, ctx) must accept one positional argument"),
        (lambda *, value: 1, "(*, value) must accept one positional argument"),
        (
            Model,
            "Model(*, identity: 'int') -> 'None' must accept one positional argument: use Model.model_validate_json",
        ),
    ],
)
def test_a_deserializer_that_would_fail_at_each_message_is_refused(router: Router, deserializer: Any, why: str) -> None:
    text = refusal(lambda: router.topic("orders", deserializer=deserializer))
    assert text.startswith("deserializer must be a function of bytes, a module with loads (such as json) or None; ")
    assert why in text


@pytest.mark.parametrize("deserializer", [int, bytes.decode, pickle, lambda value, ctx=None: 1, lambda *values: 1])
def test_a_deserializer_of_one_argument_is_taken(router: Router, deserializer: Any) -> None:
    router.topic("orders", deserializer=deserializer)(store)


@pytest.mark.parametrize(
    ("deserializer", "expected"), [(None, None), (len, len), (json, json.loads), (SimpleNamespace(loads=len), len)]
)
def test_a_deserializer_is_a_function_or_has_loads_or_is_none(
    router: Router, deserializer: Any, expected: object
) -> None:
    router.topic("orders", deserializer=deserializer)(store)
    assert router.groups["event-store"]["orders"].deserialize is expected


def test_all_mistakes_of_one_decorator_are_reported_at_once(router: Router) -> None:
    text = refusal(lambda: router.topic("a b", group_id="", max_messages=0, batch_timeout_ms=-1, backoff_ms=0))
    for word in ("'a b'", "group_id", "max_messages", "batch_timeout_ms", "backoff_ms"):
        assert word in text


@pytest.mark.parametrize("name", ["manual_offsets", "exactly_once"])
def test_a_text_is_neither_true_nor_false(router: Router, name: str) -> None:
    """ "no", from an environment variable, is true in Python."""
    options: dict[str, Any] = {name: "no"}
    text = refusal(lambda: router.topic("orders", **options))
    assert text.splitlines()[0] == f"{name} must be True or False, got a str"


# -- the order


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "keys"}, "order must be 'partition' or 'key', got 'keys'; did you mean 'key'?"),
        ({"order": "partitions"}, "did you mean 'partition'?"),
        ({"order": None}, "order must be 'partition' or 'key', got None"),
        ({"order": "key", "manual_offsets": True}, "order='key' cannot have manual_offsets=True: what one part"),
    ],
)
def test_an_order_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        App("group").topic("orders", **options)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "parts"), [({}, 0), ({"order": "key"}, 3), ({"order": "key", "concurrency": 8}, 8)]
)
def test_there_are_as_many_parts_as_calls_at_the_same_time(options: dict[str, Any], parts: int) -> None:
    app = App("group")
    app.topic("orders", **options)(store)
    assert app.groups["group"]["orders"].options_for(3).parts == parts


# -- giving up


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_retries": 3}, "max_retries requires dead_letter=: name a topic, or pass False to log and skip"),
        ({"max_retries": -1, "dead_letter": "dead"}, "max_retries must be an integer ≥ 0, got -1"),
        ({"max_retries": True, "dead_letter": False}, "max_retries must be an integer ≥ 0, got True"),
        ({"no_retry": ValueError}, "no_retry requires dead_letter=: name a topic, or pass False to log and skip"),
        ({"no_retry": "ValueError", "dead_letter": False}, "no_retry must be an exception class or a tuple of them"),
        ({"no_retry": (ValueError, 7), "dead_letter": False}, "got 7"),
        ({"dead_letter": True}, "dead_letter must be the name of a topic, False or None, got True"),
        ({"dead_letter": 7}, "got 7"),
        ({"dead_letter": "no topic"}, "'no topic' is not a valid topic name"),
        ({"dead_letter": ""}, "'' is not a valid topic name"),
        ({"dead_letter": "orders"}, "dead_letter='orders' is a topic of this handler"),
    ],
)
def test_options_for_giving_up_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        App("group").topic("orders", **options)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({}, None),
        ({"dead_letter": "dead"}, 4),
        ({"dead_letter": False}, 4),
        ({"dead_letter": "dead", "max_retries": 0}, 1),
    ],
)
def test_the_budget_of_a_route_counts_the_first_try_too(options: dict[str, Any], budget: int | None) -> None:
    router = App("group")

    @router.topic("orders", **options)
    def store(batch: Any, ctx: Any) -> None: ...

    assert router.groups["group"]["orders"].options.budget == budget


@pytest.mark.parametrize(
    ("given", "kinds"),
    [(None, (DeserializationError,)), (KeyError, (KeyError,)), ((), ()), ((KeyError, OSError), (KeyError, OSError))],
)
def test_after_which_exceptions_a_retry_is_pointless(given: Any, kinds: tuple[type[BaseException], ...]) -> None:
    router = App("group")

    @router.topic("orders", dead_letter=False, no_retry=given)
    def store(batch: Any, ctx: Any) -> None: ...

    assert router.groups["group"]["orders"].no_retry == kinds


# -- functions: handlers take (batch, ctx), hooks take (ctx)


async def coroutine(*args: Any) -> None: ...


def generator(*args: Any) -> Iterator[None]:
    yield


async def async_generator(*args: Any) -> AsyncIterator[None]:
    yield


class Lazy:
    async def __call__(self, *args: Any) -> None: ...

    async def method(self, *args: Any) -> None: ...

    @classmethod
    async def of_class(cls, *args: Any) -> None: ...

    @staticmethod
    async def static(*args: Any) -> None: ...


class LazyGenerator:
    def __call__(self, *args: Any) -> Iterator[None]:
        yield


COROUTINES = [
    *(coroutine, functools.partial(coroutine)),
    *(Lazy(), Lazy().method, Lazy.of_class, Lazy.static, Lazy.__dict__["static"]),
    *(functools.partial(Lazy()), functools.partial(Lazy().method)),
]
GENERATORS = [generator, async_generator, functools.partial(functools.partial(generator)), LazyGenerator()]


def in_short(function: object) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", repr(function))


def register_handler(function: Any) -> Any:
    return App("group").topic("orders")(function)


def register_hook(function: Any) -> Any:
    router = App("group")
    router.topic("orders")(store)
    return router.hook(Hook.ON_SHUTDOWN, store)(function)


@pytest.mark.parametrize("function", COROUTINES, ids=in_short)
def test_a_coroutine_function_is_an_async_handler_whatever_is_around_it(function: Any) -> None:
    app = App("group")
    assert app.topic("orders")(function) is function
    assert app.groups["group"]["orders"].is_async


@pytest.mark.parametrize(("handler", "hook"), [(store, coroutine), (coroutine, store), (coroutine, print)])
def test_hooks_are_async_where_their_handler_is_and_plain_where_it_is_not(handler: Any, hook: Any) -> None:
    router: Any = App("group")
    router.topic("orders")(handler)
    its = "async def" if handler is coroutine else "def"
    hook = functools.partial(hook, None) if hook is store else hook
    for register in (router.on_assigned(handler), router.every(handler, ms=1), router.on_revoked(handler)):
        assert f" must be {its}, as its handler {name_of(handler)} is" in refusal(
            lambda register=register: register(hook)
        )
    assert not router.groups["group"]["orders"].hooks


@pytest.mark.parametrize("function", GENERATORS, ids=in_short)
@pytest.mark.parametrize(
    ("register", "wanted"),
    [(register_handler, "handlers have no yield"), (register_hook, "hooks have no yield")],
    ids=["handler", "hook"],
)
def test_a_function_whose_call_would_run_nothing_is_refused(
    register: Callable[[Any], Any], wanted: str, function: Any
) -> None:
    text = refusal(lambda: register(function))
    assert "is a generator function, of which a call runs nothing; " in text
    assert text.endswith(wanted)


@pytest.mark.parametrize(("function", "given"), [(None, "None"), ("store", "a str"), (5, "5")])
def test_what_cannot_be_called_is_no_handler_and_no_hook(function: Any, given: str) -> None:
    text = refusal(lambda: register_handler(function))
    assert text == f"@app.topic must decorate a function of (batch, ctx), got {given}"
    text = refusal(lambda: register_hook(function))
    assert text == f"@app.on_shutdown must decorate a function of (ctx), got {given}"


def only_batch(batch): ...


def three(batch, ctx, extra): ...


def keyword(batch, *, ctx): ...


@pytest.mark.parametrize(
    ("handler", "signature"),
    [
        (only_batch, "only_batch(batch)"),
        (three, "three(batch, ctx, extra)"),
        (keyword, "keyword(batch, *, ctx)"),
        (lambda batch: None, "<lambda>(batch)"),
    ],
)
def test_a_handler_that_cannot_take_batch_and_ctx_shows_its_signature_and_the_right_one(
    handler: Any, signature: str
) -> None:
    text = refusal(lambda: register_handler(handler))
    assert text.startswith("@app.topic: ")
    assert text.endswith(f"{signature} must accept two positional arguments (batch, ctx)")


def test_a_hook_that_cannot_take_ctx_shows_its_signature_and_the_right_one() -> None:
    text = refusal(lambda: register_hook(three))
    assert text == "@app.on_shutdown: three(batch, ctx, extra) must accept one positional argument (ctx)"


@pytest.mark.parametrize(
    "handler",
    [
        lambda *args: None,
        lambda batch, ctx, retries=3, **more: None,
        functools.partial(three, extra=1),
        functools.partial(three, 1),
        Callable_(),
        Callable_().method,
        print,
        dict.update,
        max,  # a builtin without a signature
    ],
)
def test_every_callable_that_takes_batch_and_ctx_is_accepted(handler: Any) -> None:
    assert register_handler(handler) is handler


def test_a_builtin_without_a_signature_is_also_accepted_as_a_hook() -> None:
    assert register_hook(max) is max


def test_a_wrapper_counts_with_its_own_signature_and_not_with_the_one_it_copies() -> None:
    @functools.wraps(three)
    def with_session(batch: Any, ctx: Any) -> None:
        three(batch, ctx, "session")

    @functools.wraps(three, assigned=["__qualname__"])
    def narrow(batch): ...

    assert register_handler(with_session) is with_session
    assert "three(batch) must accept two positional arguments" in refusal(lambda: register_handler(narrow))


# -- hooks


def hooks_of(router: Router, topic: str = "orders", group: str = "event-store") -> list[tuple[Hook, Any]]:
    return [(hook.kind, hook.function) for hook in router.groups[group][topic].options.hooks]


def test_hooks_return_their_function_so_that_they_stack(router: Router) -> None:
    router.topic("orders")(store)

    @router.hook(Hook.ON_SHUTDOWN, store)
    @router.hook(Hook.BEFORE_REVOKE, store)
    def close(ctx: Any) -> None: ...

    assert hooks_of(router) == [(Hook.BEFORE_REVOKE, close), (Hook.ON_SHUTDOWN, close)]
    assert router.hook(Hook.ON_REVOKED, store)(flush) is flush


@pytest.mark.parametrize("kind", [kind for kind in Hook if kind is not Hook.EVERY])
def test_each_kind_of_hook_has_a_decorator_of_its_name(router: Router, kind: Hook) -> None:
    router.topic("orders")(store)
    assert getattr(router, kind.value)(store)(flush) is flush
    assert hooks_of(router) == [(kind, flush)]


def test_every_is_registered_with_its_time_and_stacks(router: Router) -> None:
    router.topic("orders")(store)

    @router.every(store, ms=500)
    @router.every(store, ms=20)
    def tick(ctx: Any) -> None: ...

    router.topic("late")(store)
    for topic in ("orders", "late"):
        every = router.groups["event-store"][topic].options.hooks_of(Hook.EVERY)
        assert [(hook.function, hook.every_ms) for hook in every] == [(tick, 20), (tick, 500)]


@pytest.mark.parametrize("ms", [0, -1, 1.5, True, None, "5"])
def test_every_needs_milliseconds_from_one(router: Router, ms: Any) -> None:
    router.topic("orders")(store)
    assert "ms" in refusal(lambda: router.every(store, ms=ms))
    assert hooks_of(router) == []


def test_every_of_what_is_no_handler_is_refused(router: Router) -> None:
    assert "@app.every: store is not the handler of a topic" in refusal(lambda: router.every(store, ms=5))


def test_hooks_of_one_kind_keep_the_order_of_registration(router: Router) -> None:
    router.topic("orders")(store)
    functions: list[Any] = [flush, print, len]
    for function in functions:
        router.hook(Hook.ON_SHUTDOWN, store)(function)
    assert hooks_of(router) == [(Hook.ON_SHUTDOWN, function) for function in functions]


def test_a_hook_belongs_to_every_route_of_its_handler_and_to_no_other(router: Router) -> None:
    router.topic("orders")(store)
    router.topic("orders", group_id="audit")(store)
    router.topic("payments")(archive)
    router.hook(Hook.ON_SHUTDOWN, store)(flush)
    router.topic("late")(store)
    for group, topic in (("event-store", "orders"), ("audit", "orders"), ("event-store", "late")):
        assert hooks_of(router, topic, group) == [(Hook.ON_SHUTDOWN, flush)]
    assert hooks_of(router, "payments") == []


def test_a_bound_method_is_found_again_although_each_access_makes_a_new_one(router: Router) -> None:
    shop = Callable_()
    router.topic("orders")(shop.method)
    assert router.hook(Hook.ON_SHUTDOWN, shop.method)(flush) is flush


@pytest.mark.parametrize("kind", Hook)
def test_a_hook_of_an_unknown_handler_lists_the_known_ones_and_says_where_it_belongs(
    router: Router, kind: Hook
) -> None:
    router.topic("orders")(store)
    router.topic("payments")(store)
    router.topic("refunds")(archive)
    text = refusal(lambda: router.hook(kind, keyword))
    assert text.startswith(f"@app.{kind.value}: keyword is not the handler of a topic")
    assert "(registered handlers: store, archive)" in text
    assert f"Register the hook after the handler, as @app.{kind.value}(handler)" in text


def test_a_hook_before_any_handler_says_that_there_is_none(router: Router) -> None:
    assert "(registered handlers: none)" in refusal(lambda: router.hook(Hook.ON_SHUTDOWN, store))


# -- deserializers that get the message


def of_message(message: Any) -> tuple[Any, ...]:
    return message.topic, message.key, message.header("schema"), message.value


def decoded(deserializer: Any, value: bytes | None = b"7") -> Any:
    app = App("group")
    app.topic("orders", deserializer=deserializer)(store)
    record = PlainRecord(5, -1, b"k", value, [("schema", b"1")])
    (payload,) = Batch.of_records(("orders", 0), [record], 9, app.groups["group"]["orders"].deserialize).payloads
    return payload


def with_schemas(message: Any, schemas: Any) -> Any:
    return (*of_message(message), schemas)


class Codec:
    def decode(self, message: Any) -> Any:
        return of_message(message)


@pytest.mark.parametrize(
    ("deserializer", "more"),
    [
        (of_message, ()),
        (Codec().decode, ()),
        (SimpleNamespace(loads=of_message), ()),
        (functools.partial(with_schemas, schemas={}), ({},)),
        (lambda message, schemas=7: with_schemas(message, schemas), (7,)),
    ],
)
def test_a_deserializer_whose_only_parameter_is_named_message_gets_the_message(deserializer: Any, more: Any) -> None:
    assert decoded(deserializer) == ("orders", b"k", b"1", b"7", *more)
    assert decoded(deserializer, None) is None, "a tombstone is never given to it"


def test_a_deserializer_that_gets_the_message_never_gets_its_value() -> None:
    assert isinstance(decoded(lambda message: message), Message)


def of_bytes(value: bytes) -> bytes:
    return value


@pytest.mark.parametrize("deserializer", [of_bytes, lambda value: value, lambda value, message=None: value])
def test_any_other_deserializer_gets_the_value(deserializer: Any) -> None:
    assert decoded(deserializer) == b"7"


async def later_of_message(message: Any) -> Any: ...
def message_of_bytes(message: bytes) -> Any: ...
def data_of_message(data: Message) -> Any: ...
def data_of_typed_message(data: "Message[Any]") -> Any: ...  # noqa: UP037 - quoted twice


@pytest.mark.parametrize(
    ("deserializer", "why"),
    [
        (later_of_message, "later_of_message is an async or generator function"),
        (lambda message, schemas: 1, "(message, schemas) must accept one positional argument"),
        (message_of_bytes, "message_of_bytes is named message, so it gets the Message; for bytes rename it"),
        (data_of_message, "data_of_message gets bytes; to get the Message, name its only parameter message"),
        (data_of_typed_message, "gets bytes; to get the Message, name its only parameter message"),
    ],
)
def test_a_deserializer_that_would_get_something_else_than_it_says_is_refused(deserializer: Any, why: str) -> None:
    assert why in refusal(lambda: App("group").topic("orders", deserializer=deserializer))


# -- routers of several modules


def places(app: Router) -> dict[str, list[str]]:
    return {group: list(topics) for group, topics in app.groups.items()}


def test_a_router_has_what_an_app_has_but_for_the_group_which_is_that_of_the_app_that_includes_it() -> None:
    orders, app = Router(), App("shop")
    orders.topic("orders")(store)
    orders.topic("audit", group_id="audit")(store)
    orders.on_shutdown(store)(flush)
    app.include(orders)
    assert places(app) == {"shop": ["orders"], "audit": ["audit"]}
    assert hooks_of(app, "orders", "shop") == hooks_of(app, "audit", "audit") == [(Hook.ON_SHUTDOWN, flush)]


def test_what_a_router_gets_after_it_was_included_counts_too() -> None:
    orders, app = Router(), App("shop")
    app.include(orders)
    decorate = orders.topic("orders")
    decorate(store)
    orders.every(store, ms=5)(flush)
    assert places(app) == {"shop": ["orders"]}
    assert hooks_of(app, "orders", "shop") == [(Hook.EVERY, flush)]


def test_a_decorator_that_was_made_before_the_include_counts_where_it_is_used_after_it() -> None:
    orders, app = Router(), App("shop")
    orders.topic("orders")(store)
    app.topic("more")(store)
    topic, hook = orders.topic("late"), orders.on_revoked(store)
    app.include(orders)
    topic(archive)
    hook(flush)
    assert places(app) == {"shop": ["more", "orders", "late"]}
    for name in ("more", "orders"):
        assert hooks_of(app, name, "shop") == [(Hook.ON_REVOKED, flush)]


def test_parts_keep_the_order_of_registration() -> None:
    orders, app = Router(), App("shop")
    app.topic("a")(store)
    app.include(orders)
    app.topic("c")(store)
    orders.topic("b")(store)
    assert places(app) == {"shop": ["a", "b", "c"]}


def test_routers_may_include_routers() -> None:
    inner, outer, app = Router(), Router(), App("shop")
    inner.topic("inner")(store)
    outer.include(inner)
    assert places(outer) == {"": ["inner"]}
    app.include(outer)
    inner.topic("late")(archive)
    assert places(app) == {"shop": ["inner", "late"]}


def test_a_handler_that_two_routers_have_shares_its_hooks_and_its_threads() -> None:
    orders, app = Router(), App("shop")
    app.topic("a")(store)
    app.before_revoke(store)(flush)
    orders.topic("b")(store)
    orders.topic("c")(store)
    orders.on_shutdown(store)(flush)
    app.include(orders)
    routes = app.groups["shop"]
    assert len({id(route.hooks) for route in routes.values()}) == 1, "the runner's workers are by this list"
    assert [hook.kind for hook in routes["a"].hooks] == [Hook.BEFORE_REVOKE, Hook.ON_SHUTDOWN]
    orders.on_revoked(store)(flush)
    assert hooks_of(app, "a", "shop")[-1] == (Hook.ON_REVOKED, flush)


def test_hooks_of_a_handler_are_found_in_what_is_included_and_not_above() -> None:
    orders, app = Router(), App("shop")
    orders.topic("orders")(store)
    app.topic("other")(archive)
    app.include(orders)
    assert app.on_shutdown(store)(flush) is flush
    assert "archive is not the handler of a topic (registered handlers: store)" in refusal(
        lambda: orders.on_shutdown(archive)
    )


def test_a_router_is_included_once() -> None:
    orders, app = Router(), App("shop")
    app.include(orders)
    said = "this Router is included already: include it once, and make another Router for another App"
    assert refusal(lambda: app.include(orders)) == said
    assert refusal(lambda: App("other").include(orders)) == said
    assert refusal(lambda: Router().include(orders)) == said


def test_what_cannot_be_included_is_refused() -> None:
    outer, inner = Router(), Router()
    outer.include(inner)
    assert "part of itself" in refusal(lambda: outer.include(outer))
    assert "part of itself" in refusal(lambda: inner.include(outer))
    assert "and not an App" in refusal(lambda: App("shop").include(App("other")))
    wrong: Any = "orders"
    assert refusal(lambda: outer.include(wrong)) == "include takes a Router, got a str"


def test_a_topic_that_the_group_has_already_is_refused_and_nothing_is_taken() -> None:
    orders, app = Router(), App("shop")
    app.topic("orders")(store)
    orders.topic("fine")(archive)
    orders.topic("orders")(archive)
    orders.topic("orders", group_id="shop")(archive)
    text = refusal(lambda: app.include(orders))
    assert text.count("topic 'orders' already has the handler store in group 'shop'") == 2
    assert places(app) == {"shop": ["orders"]}
    assert places(orders) == {"": ["fine", "orders"], "shop": ["orders"]}, "it may be mended, and included"


def test_a_topic_that_a_router_has_in_the_group_twice_is_refused_when_the_group_is_known() -> None:
    orders = Router()
    orders.topic("orders")(store)
    orders.topic("orders", group_id="shop")(archive)
    assert "already has the handler store in group 'shop'" in refusal(lambda: App("shop").include(orders))
    assert "already has the handler store in the App's group" in refusal(lambda: orders.topic("orders")(archive))
    App("other").include(orders)


def test_a_topic_that_another_router_of_the_app_has_is_refused_at_its_decorator() -> None:
    orders, refunds, app = Router(), Router(), App("shop")
    app.include(orders)
    app.include(refunds)
    orders.topic("orders")(store)
    assert "already has the handler store" in refusal(lambda: refunds.topic("orders")(archive))


def test_a_handler_has_one_concurrency_in_all_routers() -> None:
    orders, app = Router(), App("shop")
    app.topic("a")(store)
    orders.topic("b", concurrency=2)(store)
    assert "store has concurrency=None for a" in refusal(lambda: app.include(orders))


def test_process_hooks_are_those_of_all_routers_in_their_order() -> None:
    orders, app = Router(), App("shop")
    app.on_start(print)
    app.include(orders)
    app.on_stop(print)
    orders.on_start(breakpoint)
    kinds = [(hook.kind, hook.function) for hook in app.process_hooks]
    assert kinds == [("on_start", print), ("on_start", breakpoint), ("on_stop", print)]


@pytest.mark.parametrize("kind", ["on_start", "on_stop"])
def test_a_process_hook_takes_nothing(kind: str) -> None:
    app: Any = App("shop")
    assert f"@app.{kind}: flush(ctx: 'Any') -> 'None' must accept no arguments: ()" in refusal(
        lambda: getattr(app, kind)(flush)
    )
    assert "is a generator function, of which a call runs nothing; hooks have no yield" in refusal(
        lambda: getattr(app, kind)(generator)
    )
    assert f"@app.{kind} must decorate a function of (), got None" in refusal(lambda: getattr(app, kind)(None))
    assert not app.process_hooks
