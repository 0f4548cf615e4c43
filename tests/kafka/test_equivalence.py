"""TestClient and Kafka do the same: the same runs, marks, hooks, dead letters and commits, for any program.

And so do plain and async handlers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st
from support.harness import evict, make_app
from support.observer import Observer, wait_until

from karafka_lite import App, Batch, Context
from karafka_lite.coroutines import drive
from karafka_lite.testing import TestClient

PARTITIONS = 2
AT_ONCE = 20  # programs that run beside each other: most of their time is waiting
EXAMPLES, MANY_EXAMPLES = 2, 20  # of so many programs; many with --long
INTERVAL_MS = 100
Place = tuple[int, int, int]  # partition, offset, and how often the handler has come to it


class Program(NamedTuple):
    """What a handler does when it comes to a message, and what happens between its batches."""

    manual: bool  # in the order of the partition
    each: bool
    max_messages: int
    max_retries: int | None  # with a topic for dead letters; None: it never gives up
    hooks_mark: bool
    acts: dict[Place, str]
    steps: list[tuple[Any, ...]]
    order: Literal["partition", "key"] = "partition"
    asynchronous: bool = False  # on Kafka; TestClient runs both
    sends: Literal["nothing", "plain", "exactly once"] = "nothing"  # one message for each that the handler comes to


KEYS = ["a", "b", "a", "c", None]  # of messages, again and again
PARTS = 2
# What some parts of a batch do whatever others have come to; there "mark older" changes nothing, "sync" is refused.
ACTS_OF_PARTS = {"fail", "mark", "mark and fail", "mark older", "leave", "pause", "sync"}
ACTS = ["fail", "mark", "mark and fail", "mark older", "leave", "back", "earliest", "pause", "pause there", "sync"]
SENDS = st.tuples(st.just("send"), st.integers(0, PARTITIONS - 1), st.integers(1, 5))
PROGRAMS = st.builds(
    Program,
    manual=st.booleans(),
    each=st.booleans(),
    max_messages=st.sampled_from([1, 2, 3, 5]),
    max_retries=st.sampled_from([None, None, 0, 1]),
    hooks_mark=st.booleans(),
    acts=st.dictionaries(
        st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 7), st.integers(1, 3)),
        st.sampled_from(ACTS),
        max_size=12,
    ),
    steps=st.lists(st.one_of(SENDS, SENDS, st.just(("revoke",)), st.just(("lose",))), min_size=1, max_size=5).map(
        lambda steps: [("send", 0, 3), *steps]
    ),
    order=st.sampled_from(["partition", "key"]),
    asynchronous=st.booleans(),
    sends=st.sampled_from(["nothing", "plain", "exactly once", "exactly once"]),
)


def is_manual(program: Program) -> bool:
    return program.manual and program.order == "partition"


class Told:
    """What the user code of one program has seen, by partition, and where it is at the end."""

    def __init__(self) -> None:
        self.events: dict[int, list[object]] = defaultdict(list)
        self.dead: Counter[tuple[str, str]] = Counter()
        self.out: Counter[str] = Counter()  # what a reader with ``read_committed`` sees
        self.committed: dict[int, int | None] = {}


class Topics(NamedTuple):
    """What is read, what is sent, and the dead letters."""

    read: str
    out: str
    dead: str


def register(program: Program, app: App, topics: Topics, told: Told) -> None:
    """The program as user code."""
    visits: Counter[tuple[int, int]] = Counter()
    options: dict[str, Any] = {}
    if program.max_retries is not None:
        options = {"dead_letter": topics.dead, "max_retries": program.max_retries}

    if program.order == "key":
        options |= {"order": "key", "concurrency": PARTS}
    if program.sends == "exactly once":
        options["exactly_once"] = True

    async def work(batch: Batch, ctx: Context) -> None:
        if program.order == "partition":
            await process(batch, ctx, told.events[ctx.partition].append)
            return
        said: list[object] = []  # parts run side by side: of each what it said
        try:
            await process(batch, ctx, said.append)
        finally:
            told.events[ctx.partition].append(tuple(map(str, said)))

    async def process(batch: Batch, ctx: Context, say: Callable[[object], None]) -> None:
        state = sorted(ctx.state) if program.order == "partition" else []
        say(("run", [message.offset for message in batch], ctx.attempt, state))
        if program.order == "partition":
            ctx.state["last"] = batch.last
        try:
            for message in ctx.each(batch) if program.each else batch:
                visits[ctx.partition, message.offset] += 1
                act = program.acts.get((ctx.partition, message.offset, visits[ctx.partition, message.offset]))
                if program.sends != "nothing":
                    ctx.produce(topics.out, f"{message.partition}@{message.offset}".encode())
                if program.order == "key" and act not in ACTS_OF_PARTS:
                    continue
                if program.asynchronous:
                    await asyncio.sleep(0)
                if act and await perform(act, ctx, batch, message, say):
                    break
            else:
                if is_manual(program) and not program.each and batch.last_offset % 2:
                    say(("mark last", ctx.mark_as_consumed(batch.last)))
        except RuntimeError:
            say("failed")
            raise
        say("ended")

    handle = as_handler(program, work)
    app.topic(
        topics.read, manual_offsets=is_manual(program), max_messages=program.max_messages, batch_timeout_ms=300,
        backoff_ms=10, backoff_max_ms=20, **options,
    )(handle)  # fmt: skip

    def hook(name: str) -> Any:
        async def run(ctx: Context) -> None:
            said: list[object] = [name, ctx.revoked]
            if program.hooks_mark and "last" in ctx.state:
                said.append(ctx.mark_as_consumed(ctx.state["last"]))
            told.events[ctx.partition].append(tuple(said))

        return as_handler(program, run)

    app.on_shutdown(handle)(hook("on_shutdown"))
    app.before_revoke(handle)(hook("before_revoke"))
    app.on_revoked(handle)(hook("on_revoked"))


def as_handler(program: Program, work: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """What is written once, as a plain function or as a coroutine function."""
    return work if program.asynchronous else lambda *arguments: drive(work(*arguments))


async def perform(act: str, ctx: Context, batch: Batch, message: Any, say: Callable[[object], None]) -> bool:
    """Do it; True where the handler returns."""
    if act in ("mark", "mark and fail"):
        say((act, message.offset, ctx.mark_as_consumed(message)))
    if act in ("fail", "mark and fail"):
        raise RuntimeError(act)
    if act == "mark older":
        say((act, batch.first_offset, ctx.mark_as_consumed(batch.first)))
    if act == "sync":
        ours: Any = ctx.mark_as_consumed(message, sync=True)
        say((act, message.offset, ours if isinstance(ours, bool) else await ours))
    if act == "back":
        say((act, ctx.seek(max(0, message.offset - 1))))
    if act == "earliest":
        say((act, ctx.seek("earliest")))
    if act == "pause":
        say((act, ctx.pause(30)))
    if act == "pause there":
        say((act, ctx.pause(30, offset=message.offset)))
    return act == "leave"


def by_test_client(program: Program, topics: Topics) -> Told:
    told, app, topic = Told(), App("group", auto_commit_interval_ms=INTERVAL_MS), topics.read
    register(program, app, topics, told)
    client = TestClient(app, partitions=PARTITIONS)

    def come_to_rest() -> None:
        member = client._members[0]
        for _ in range(1000):
            client.run()
            if all(member.newest[tp].done == len(client._cluster.logs[tp]) for tp in member.group.owned):
                return
            client.advance(ms=10)
        raise AssertionError("no rest")

    with client:
        for step in program.steps:
            if step[0] == "send":
                for number in range(step[2]):
                    client.send(topic, number, key=KEYS[number % len(KEYS)], partition=step[1])
            else:
                for partition in range(PARTITIONS):
                    if step[0] == "revoke":
                        client.revoke(topic, partition)
                if step[0] == "lose":
                    client.lose(topic, 0)
                    client.assign(topic, 0)
                else:
                    for partition in range(PARTITIONS):
                        client.assign(topic, partition)
            come_to_rest()
            client.advance(ms=INTERVAL_MS)
    for partition in range(PARTITIONS):
        told.committed[partition] = client.committed(topic, partition)
    if program.max_retries is not None:
        told.dead.update(sources(dict(message.headers) for message in client.dead_letters(topics.dead)))
    told.out.update((message.value or b"").decode() for message in client.produced(topics.out))
    return told


def by_kafka(program: Program, topics: Topics, kafka: Observer) -> Told:
    told, group, topic = Told(), kafka.group(), topics.read
    app = make_app(kafka, group, auto_commit_interval_ms=INTERVAL_MS, concurrency=2)
    register(program, app, topics, told)
    sent = [0] * PARTITIONS
    app.start()
    try:
        (member,) = app.members

        def owned() -> list[Any]:
            return [member.group.owned.get((topic, partition)) for partition in range(PARTITIONS)]

        def at_rest() -> bool:
            done = app.snapshots()[0].done
            return [done.get((topic, partition)) for partition in range(PARTITIONS)] == sent

        wait_until(at_rest, 30, "the first assignment")
        for step in program.steps:
            before = owned()
            if step[0] == "send":
                kafka.produce(topic, range(step[2]), step[1], keys=[KEYS[n % len(KEYS)] for n in range(step[2])])
                sent[step[1]] += step[2]
            elif step[0] == "revoke":
                member._client.rejoin()
            else:
                evict(kafka, group)
            if step[0] != "send":
                wait_until(lambda before=before: all(o and o not in before for o in owned()), 30, f"anew after {step}")
            wait_until(at_rest, 30, f"rest after {step}")
            wait_until(lambda: not any(o.marks.pending for o in owned()), 30, f"the interval after {step}")
    except AssertionError as late:
        raise AssertionError(f"{late} for {program}: {dict(told.events)}, {sent}, {app.snapshots()}") from None
    finally:
        app.stop()
    for partition in range(PARTITIONS):
        told.committed[partition] = kafka.committed(group, topic, partition)
    if program.max_retries is not None:
        told.dead.update(sources(dict(found.headers()) for found in kafka.records(topics.dead)))
    told.out.update((found.value() or b"").decode() for found in kafka.records(topics.out))
    return told


def sources(letters: Iterator[dict[str, bytes]]) -> Iterator[tuple[str, str]]:
    for headers in letters:
        yield headers["source-partition"].decode(), headers["source-offset"].decode()


def compare(program: Program, kafka: Observer) -> None:
    topics = Topics(kafka.topic(PARTITIONS), kafka.topic(), kafka.topic())
    expected = by_kafka(program, topics, kafka)
    for asynchronous in (False, True):
        seen = by_test_client(program._replace(asynchronous=asynchronous), topics)
        if program.order == "key":
            for told in (expected, seen):
                for events in told.events.values():
                    events.sort(key=str)
        for name, theirs in vars(expected).items():
            ours, kind = getattr(seen, name), "async" if asynchronous else "plain"
            if ours != theirs:
                text = f"{name} of TestClient, {kind}: {dict(ours)}\nof Kafka: {dict(theirs)}\nfor {program}"
                raise AssertionError(text)


# What once differed, or did not come to rest.
KEPT = {
    "a mark of the last message, and then a failure": Program(
        False, False, 5, None, True, {(0, 2, 1): "mark and fail"}, [("send", 0, 3), ("lose",), ("revoke",)]
    ),
    "a loss behind a commit of the interval": Program(
        False, True, 2, 1, True, {(0, 2, 2): "sync"},
        [("send", 0, 3), ("lose",), ("revoke",), ("send", 0, 4), ("lose",)],
    ),
    "parts of batches that fail, leave and mark": Program(
        False, True, 5, 1, True, {(0, 1, 1): "mark and fail", (0, 2, 1): "leave", (0, 4, 1): "sync", (0, 4, 2): "fail"},
        [("send", 0, 3), ("send", 0, 4), ("revoke",), ("send", 1, 5), ("lose",)], "key",
    ),
    "a dead letter behind unmarked messages, and what is left early": Program(
        True, True, 3, 0, True, {(0, 1, 1): "leave", (0, 2, 1): "fail", (0, 4, 1): "mark older"},
        [("send", 0, 3), ("send", 0, 3), ("revoke",)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_test_client_and_kafka_do_the_same_for(kafka: Observer, caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level(logging.CRITICAL, "karafka_lite")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(compare, KEPT[name]._replace(asynchronous=kind), kafka) for kind in (False, True)]:
            done.result()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_test_client_and_kafka_do_the_same_for_any_program(
    kafka: Observer, caplog: pytest.LogCaptureFixture, pytestconfig: pytest.Config
) -> None:
    caplog.set_level(logging.CRITICAL, "karafka_lite")
    examples = MANY_EXAMPLES if pytestconfig.getoption("long") else EXAMPLES

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # to shrink twenty programs takes minutes
    quick = list(hypothesis.HealthCheck)

    @hypothesis.settings(max_examples=examples, deadline=None, phases=phases, suppress_health_check=quick)
    @hypothesis.given(st.lists(PROGRAMS, min_size=AT_ONCE, max_size=AT_ONCE))
    def same(programs: list[Program]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            errors = [done.exception() for done in [pool.submit(compare, program, kafka) for program in programs]]
        if failed := [error for error in errors if error is not None]:
            pytest.fail(f"{len(failed)} of {len(errors)} programs; the first: {failed[0]}")

    same()
