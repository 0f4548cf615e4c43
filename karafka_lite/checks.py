"""What decorators refuse: functions that could not be called, names that Kafka does not have.

A check yields its mistakes as text, so that one exception can report all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from karafka_lite.functions import is_coroutine, is_generator, is_lazy, name_of, only_parameter, signature_without
from karafka_lite.messages import TOPIC, FromMessage
from karafka_lite.settings import int_mistakes, refuse, safe_repr

ORDERS = "partition", "key"


def check_function(decorator: str, function: object, parameters: tuple[str, ...]) -> None:
    """Raises ConfigurationError if ``function`` is not a plain function of ``parameters``."""
    refuse(*function_mistakes(decorator, function, parameters))


def check_topic(topic: str) -> None:
    """Raises ConfigurationError if this is not a valid name of a Kafka topic."""
    refuse(*topic_mistakes((topic,)))


def topic_mistakes(topics: tuple[object, ...]) -> Iterator[str]:
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


def dead_letter_mistakes(
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
        yield from topic_mistakes((dead_letter,))


def order_mistakes(order: object, manual_offsets: bool) -> Iterator[str]:
    if order not in ORDERS:
        close = get_close_matches(order, ORDERS, 1, 0.4) if isinstance(order, str) else ()
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield f"order must be {' or '.join(map(repr, ORDERS))}, got {order!r}{hint}"
    elif order == "key" and manual_offsets:
        yield (
            "order='key' cannot have manual_offsets=True: what one part of a batch holds back would hold up all "
            "others; leave manual_offsets out, or use order='partition'"
        )


def isolation_mistakes(settings: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """``groups``: the routes, by group and topic."""
    names = [topic for routes in groups.values() for topic, route in routes.items() if route.options.exactly_once]
    if names and settings.get("isolation_level") == "read_uncommitted":
        yield (
            f"isolation_level='read_uncommitted' cannot be with exactly_once (of {', '.join(names)}): a new owner "
            f"would begin too early, and repeat messages; remove it, or give that topic a group of another App"
        )


def function_mistakes(decorator: str, function: object, parameters: tuple[str, ...]) -> Iterator[str]:
    name, arguments = name_of(function), f"({', '.join(parameters)})"
    if not callable(function):
        yield f"{decorator} must decorate a function of {arguments}, got {safe_repr(function)}"
    elif is_generator(function):
        kind = {"batch": "handlers", "event": "observers"}.get("".join(parameters[:1]), "hooks")
        yield f"{decorator}: {name} is a generator function, of which a call runs nothing; {kind} have no yield"
    elif is_coroutine(function) and parameters == ("event",):
        yield f"{decorator}: {name} is an async function; observers must be plain functions of {arguments}"
    elif (signature := signature_without(function, len(parameters))) is not None:
        count = ("no arguments: ", "one positional argument ", "two positional arguments ")[len(parameters)]
        yield f"{decorator}: {name}{signature} must accept {count}{arguments}"


def hook_mistakes(decorator: str, function: Callable[..., object], handler: Callable[..., object]) -> Iterator[str]:
    """A hook runs where its handler does: on a thread, or on the event loop."""
    yield from function_mistakes(decorator, function, ("ctx",))
    if callable(function) and is_coroutine(function) is not is_coroutine(handler):
        must = "async def" if is_coroutine(handler) else "def"
        yield f"{decorator}: {name_of(function)} must be {must}, as its handler {name_of(handler)} is"


def deserializer_mistakes(given: object, decode: object) -> Iterator[str]:
    must = "deserializer must be a function of bytes, a module with loads (such as json) or None"
    of_message = isinstance(decode, FromMessage)
    decode = decode.function if isinstance(decode, FromMessage) else decode
    name = name_of(decode)
    if not callable(decode):
        yield f"{must}, got {safe_repr(given)}"
    elif decode is str:
        yield f"{must}; str makes the text \"b'7'\" of the bytes b'7': for text use deserializer=bytes.decode"
    elif is_lazy(decode):
        yield f"{must}; {name} is an async or generator function: a payload would be what it returns before it runs"
    elif (signature := signature_without(decode, 1)) is not None:
        model = hasattr(decode, "model_validate_json")
        hint = f": use {name}.model_validate_json" if model else ", the bytes of a value"
        yield f"{must}; {name}{signature} must accept one positional argument{hint}"
    elif parameter := only_parameter(decode):
        wants = getattr(parameter.annotation, "__name__", str(parameter.annotation)).strip("'").partition("[")[0]
        if of_message and wants == "bytes":
            yield f"deserializer: the parameter of {name} is named message, so it gets the Message; for bytes rename it"
        elif not of_message and wants.rpartition(".")[2] == "Message":
            yield f"deserializer: {name} gets bytes; to get the Message, name its only parameter message"
