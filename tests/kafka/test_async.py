"""Async handlers: the promises of plain ones, on an event loop; and what only an event loop can break."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.harness import QUICK, Process, evict, make_app, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App, AsyncContext, Batch, ConfigurationError, ProduceError, events

PATIENCE_S = 20


async def until(fact: Callable[[], Any], message: str = "") -> None:
    """``wait_until`` that lets the loop go on."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"not in time: {message}"
        await asyncio.sleep(0.01)


def within(seconds: float, main: Callable[[], Awaitable[Any]]) -> Any:
    """``main()`` on a loop of its own; a hang fails."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main(), seconds)

    return asyncio.run(bounded())


def heard(app: App) -> list[events.Event]:
    """The events of ``app``."""
    found: list[events.Event] = []
    app.observe(lambda event: found.append(event))
    return found


def of(found: list[events.Event], kind: type[events.Event]) -> list[Any]:
    return [event for event in list(found) if isinstance(event, kind)]


# -- where, and how many


def test_serve_runs_on_the_loop_of_the_caller_until_a_stop_and_returns_the_exit_code(kafka: Observer) -> None:
    topic, group, app = kafka.topic(4), kafka.group(), make_app(kafka, kafka.group())
    app = make_app(kafka, group, concurrency=2)
    loops, inside, most, said = set[Any](), defaultdict[int, int](int), list[int](), list[str]()
    for partition in range(4):
        kafka.produce(topic, range(4), partition)

    @app.topic(topic, max_messages=2)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        loops.add(asyncio.get_running_loop())
        inside[ctx.partition] += 1
        assert inside[ctx.partition] == 1, "a partition is never beside itself"
        most.append(sum(inside.values()))
        await asyncio.sleep(0.02)
        inside[ctx.partition] -= 1
        said.extend(f"{ctx.partition}:{message.offset}" for message in batch)
        if len(said) == 17:  # with "start"
            assert app.stop(), "it asks, and does not wait for itself"

    @app.on_shutdown(store)
    async def last(ctx: AsyncContext) -> None:
        await asyncio.sleep(0)
        said.append(f"last {ctx.partition}")

    @app.on_start
    async def connect() -> None:
        loops.add(asyncio.get_running_loop())
        said.append("start")

    @app.on_stop
    async def disconnect() -> None:
        said.append("stop")

    async def main() -> int:
        loops.add(asyncio.get_running_loop())
        threads = {thread.name for thread in threading.enumerate()}
        code = await app.serve()
        assert {thread.name for thread in threading.enumerate()} <= threads | {"karafka-awaited"}
        return code

    assert within(40, main) == 0
    assert len(loops) == 1
    assert max(most) == 2
    assert said[0] == "start"
    assert said[-1] == "stop"
    assert sorted(said[-5:-1]) == [f"last {partition}" for partition in range(4)]
    assert [kafka.committed(group, topic, partition) for partition in range(4)] == [4] * 4


def test_a_cancelled_serve_stops_in_good_order_before_it_raises(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, done = make_app(kafka, group), list[int]()
    kafka.produce(topic, [1])

    @app.topic(topic)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        while not ctx.stopping:
            await asyncio.sleep(0.01)
        done.append(batch.last_offset)

    async def main() -> None:
        task = asyncio.create_task(app.serve())
        await until(lambda: app.members and app.stats().partitions and app.stats().partitions[0].doing, "it runs")
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    within(40, main)
    assert done == [0]
    assert kafka.committed(group, topic) == 1
    assert kafka.members(group) == []


def test_without_a_loop_of_the_caller_all_coroutines_of_a_process_are_on_one_of_ours(kafka: Observer) -> None:
    topic, loops, threads = kafka.topic(2), set[Any](), set[str]()
    apps = [make_app(kafka) for _ in range(2)]
    kafka.produce(topic, [1])

    def register(app: App) -> None:
        @app.topic(topic)
        async def store(batch: Batch, ctx: AsyncContext) -> None:
            loops.add((asyncio.get_running_loop(), app))
            threads.add(threading.current_thread().name)

    for app in apps:
        register(app)
    with apps[0], apps[1]:
        wait_until(lambda: len(loops) == 2, message="both have run")
    assert len({loop for loop, _ in loops}) == 1
    assert threads == {"karafka-loop"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("karafka-")]


def test_two_apps_on_the_loop_of_the_caller_start_and_stop_one_after_the_other(kafka: Observer) -> None:
    topic, seen = kafka.topic(), list[str]()
    kafka.produce(topic, [1])
    apps = {"a": make_app(kafka), "b": make_app(kafka)}

    def register(name: str, app: App) -> None:
        @app.topic(topic)
        async def store(batch: Batch, ctx: AsyncContext) -> None:
            seen.extend(name for _ in batch)

    for name, app in apps.items():
        register(name, app)

    async def main() -> None:
        async with apps["b"]:
            async with apps["a"]:
                await until(lambda: sorted(seen) == ["a", "b"], "both")
            await asyncio.to_thread(kafka.produce, topic, [2])
            await until(lambda: sorted(seen) == ["a", "b", "b"], "the one that goes on")
            assert apps["b"].stop(), "on the loop it only asks"

    within(60, main)


# -- marks, sends, retries: as for plain handlers


def test_marks_sends_dead_letters_and_retries_are_those_of_plain_handlers(kafka: Observer) -> None:
    topic, out, dead, group = kafka.topic(), kafka.name("new"), kafka.topic(), kafka.group()
    app, tries, said = make_app(kafka, group), list[tuple[int, int]](), list[Any]()
    kafka.produce(topic, range(6))

    @app.topic(topic, manual_offsets=True, dead_letter=dead, max_retries=1, backoff_ms=10)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        for message in ctx.each(batch):
            tries.append((message.offset, ctx.attempt))
            await asyncio.sleep(0)
            sent = ctx.produce(out, message.payload, headers=[("n", b"1")])
            assert isinstance(sent, asyncio.Future)
            if message.offset == 2:
                raise ValueError("no")
            if message.offset == 3:
                await ctx.dead_letter(message, "by hand")
            if message.offset == 4:
                said.append((await sent, await ctx.mark_as_consumed(message, sync=True)))
                said.append(await asyncio.to_thread(kafka.committed, group, topic))
        said.append(await ctx.commit_offsets(sync=True))

    with app:
        wait_until(lambda: len(said) == 3, message="all are done")
        assert kafka.committed(group, topic) == 6
    # A new topic has a message of each try, in their order.
    assert [int(record.value() or b"") for record in kafka.records(out)] == [0, 1, 2, 2, 3, 4, 5]
    assert said == [((0, 5), True), 5, True]
    assert [offset for offset, _ in tries] == [0, 1, 2, 2, 3, 4, 5]
    letters = {dict(record.headers() or ())["source-offset"]: record.headers() for record in kafka.records(dead)}
    assert list(letters) == [b"2", b"3"]


def test_a_send_that_is_refused_fails_the_run_although_nobody_awaits_it(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(**{"max.message.bytes": 2000}), kafka.group()
    app, attempts, errors = make_app(kafka, group), list[int](), list[BaseException]()
    kafka.produce(topic, [1])

    @app.topic(topic, backoff_ms=10)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            ctx.produce(out, b"x" * 10_000)
        if ctx.attempt == 2:
            ctx.produce(out, b"y", partition=7)  # which only the broker knows not to exist
        if ctx.attempt == 3:
            with pytest.raises(ProduceError, match="too large"):
                await ctx.produce(out, b"x" * 10_000)
            raise KeyError
        for wrong, kind in ((object(), TypeError), ("x", ValueError)):
            with pytest.raises(kind):
                ctx.produce(out, wrong) if kind is TypeError else ctx.produce("no topic", wrong)

    found = heard(app)
    with app:
        wait_until(lambda: len(attempts) == 4, message="four tries")
        wait_until(lambda: len(of(found, events.CallEnded)) == 4, message="four ends")
    errors = [each.error for each in of(found, events.CallEnded)]
    assert [type(error) for error in errors] == [ProduceError, ProduceError, KeyError, type(None)]
    assert kafka.committed(group, topic) == 1


def test_hooks_every_seek_pause_and_state_work(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, said = make_app(kafka, group), list[Any]()
    kafka.produce(topic, range(3))

    @app.topic(topic, max_messages=1)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        said.append(batch.first_offset)
        ctx.state["last"] = batch.last
        if len(said) == 2:
            assert ctx.seek(2)
        if batch.first_offset == 2:
            ctx.pause(10, offset=0 if said.count(2) == 1 else 3)

    @app.on_assigned(store)
    async def assigned(ctx: AsyncContext) -> None:
        await asyncio.sleep(0)
        said.append("assigned")

    @app.every(store, ms=50)
    async def flush(ctx: AsyncContext) -> None:
        if "last" in ctx.state and ctx.state["last"].offset == 2:
            await ctx.mark_as_consumed(ctx.state["last"], sync=True)
            said.append("flushed")

    with app:
        wait_until(lambda: said.count(2) == 2 and said[-1] == "flushed", message=f"{said}")
        assert kafka.committed(group, topic) == 3
    assert [each for each in said if each != "flushed"] == ["assigned", 0, 2, 0, 1, 2]


def test_each_call_has_a_copy_of_the_context_of_the_start(kafka: Observer) -> None:
    topic, app = kafka.topic(2), make_app(kafka)
    var, seen = contextvars.ContextVar("var", default="none"), list[str]()
    for partition in range(2):
        kafka.produce(topic, range(3), partition)

    @app.topic(topic, max_messages=1)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        seen.append(var.get())
        var.set(f"{batch.first_offset}")
        await asyncio.sleep(0)
        assert var.get() == f"{batch.first_offset}"

    async def main() -> None:
        var.set("mine")
        async with app:
            await until(lambda: len(seen) == 6)

    within(40, main)
    assert seen == ["mine"] * 6


# -- the ends


@pytest.mark.parametrize("end", ["stop", "rebalance"])
def test_past_the_bound_a_coroutine_is_cancelled_once_and_what_it_marked_is_committed(
    kafka: Observer, end: str
) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, said = make_app(kafka, group, drain_timeout_ms=400), list[Any]()
    kafka.produce(topic, range(3))

    @app.topic(topic, manual_offsets=True)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        if said:
            return
        ctx.mark_as_consumed(batch.first)
        try:
            said.append("begun")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            said.append((ctx.revoked, ctx.mark_as_consumed(batch.last)))
            raise

    with app:
        wait_until(lambda: said, message="it runs")
        if end == "rebalance":
            app.members[0]._client.rejoin()  # type: ignore[attr-defined]
            wait_until(lambda: len(said) == 2, message="it was cancelled")
        assert app.stop(), "it has ended when it was cancelled: nothing is stuck"
    assert said == ["begun", (True, False)]
    assert kafka.committed(group, topic) == 1


def test_one_that_swallows_the_cancellation_is_stuck_and_named_with_where_it_awaits(kafka: Observer) -> None:
    topic, group = kafka.topic(2), kafka.group()
    app, cancelled = make_app(kafka, group, drain_timeout_ms=300), list[int]()
    for partition in range(2):
        kafka.produce(topic, [1], partition)
    release: list[bool] = []

    async def deep_inside(partition: int) -> None:
        while not release:
            try:
                if partition:
                    await asyncio.wait_for(asyncio.sleep(60), 60)  # may swallow one in Python 3.10 and 3.11
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(partition)

    @app.topic(topic)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        cancelled.append(-1)
        await deep_inside(ctx.partition)

    found = heard(app)

    async def main() -> None:
        before = asyncio.all_tasks()
        async with app:
            await until(lambda: len(cancelled) == 2, "they run")
            places = str(app.whereabouts())
            assert "event loop, a coroutine" in places
            assert "await asyncio.sleep(60)" in places
        assert sorted(cancelled) == [-1, -1, 0, 1], "each once"
        release.append(True)
        for task in asyncio.all_tasks() - before:
            task.cancel()
            await asyncio.wait([task])

    within(40, main)
    stuck = of(found, events.Stuck)
    assert sorted(event.partition for event in stuck) == [0, 1]
    for event in stuck:
        assert "await deep_inside(ctx.partition)" in event.stack
        assert "asyncio.sleep(60)" in event.stack


def test_at_a_loss_nothing_is_cancelled(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, said = make_app(kafka, group, drain_timeout_ms=500), list[Any]()
    kafka.produce(topic, [1])

    @app.topic(topic, manual_offsets=True)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        if said:
            return
        said.append("begun")
        while not ctx.revoked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.6)  # longer than the bound of a drain
        said.append(ctx.mark_as_consumed(batch.last))

    with app:
        wait_until(lambda: said, message="it runs")
        evict(kafka, group)
        wait_until(lambda: len(said) == 2, message="it comes to its end")
    assert said == ["begun", False]


@pytest.mark.parametrize(
    "raised", [asyncio.CancelledError, GeneratorExit, lambda: BaseException("odd")], ids=["cancelled", "exit", "base"]
)
def test_any_exception_of_a_coroutine_is_a_failure_as_any_other(kafka: Observer, raised: Any) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, attempts = make_app(kafka, group), list[int]()
    kafka.produce(topic, [1])

    @app.topic(topic, backoff_ms=10)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        attempts.append(ctx.attempt)
        await asyncio.sleep(0)
        if ctx.attempt == 1:
            if raised is asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # as a library may
                await asyncio.sleep(1)
            raise raised()

    with app:
        wait_until(lambda: len(attempts) == 2, message="it is tried again")
    assert attempts == [1, 2]
    assert kafka.committed(group, topic) == 1


def test_a_call_that_is_cancelled_before_it_began_begins_again(kafka: Observer) -> None:
    topic, app, done, cancelled = kafka.topic(), make_app(kafka), list[int](), list[object]()
    kafka.produce(topic, [1])

    @app.topic(topic)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        done.append(ctx.attempt)

    def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
        task = asyncio.Task(coroutine, loop=loop, **more)
        if coroutine.__name__ == "_work" and len(cancelled) < 2:
            cancelled.append(task.cancel())
        return task

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with app:
            await until(lambda: done)

    within(40, main)
    assert (done, len(cancelled)) == ([1], 2)


@pytest.mark.parametrize("where", ["handler", "task"])
def test_a_critical_exception_stops_the_app_with_exit_1(kafka: Observer, where: str) -> None:
    topic, group, ends = kafka.topic(), kafka.group(), list[Any]()
    app = make_app(kafka, group)
    kafka.produce(topic, [1])

    @app.topic(topic)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        async def leave() -> None:
            raise SystemExit(3)

        if where == "task":
            task = asyncio.create_task(leave())
            task.add_done_callback(lambda task: task.exception())
            await asyncio.wait([task])
            await asyncio.sleep(60)
        raise SystemExit(3)

    app.config = app.config.__class__(**{**vars(app.config), "drain_timeout_ms": 500})
    thread = threading.Thread(target=lambda: ends.append(app.serve_here(main_thread=False)))
    thread.start()
    thread.join(30)
    assert ends == [1]
    assert kafka.committed(group, topic) is None


def test_a_coroutine_that_blocks_the_loop_is_said_with_where_it_is_and_keeps_its_partition(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, done = make_app(kafka, group, auto_commit_interval_ms=100), list[int]()
    kafka.produce(topic, range(2))
    said = threading.Event()
    found = heard(app)
    app.observe(lambda event: said.set() if isinstance(event, events.LoopBlocked) else None)

    @app.topic(topic, max_messages=1)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        if batch.first_offset == 0:
            ctx.mark_as_consumed(batch.first)
            assert said.wait(PATIENCE_S)
            wait_until(lambda: kafka.committed(group, topic) == 1, message="commits go on")
        done.append(batch.first_offset)

    with app:
        wait_until(lambda: done == [0, 1], message="both")
    (blocked,) = of(found, events.LoopBlocked)
    assert blocked.call == f"{topic}-0@0"
    assert 1 <= blocked.seconds < 5
    assert "said.wait(PATIENCE_S)" in blocked.stack
    assert not of(found, events.Lost)


def test_a_loop_that_is_closed_under_a_running_app_ends_the_app_with_a_sentence(kafka: Observer) -> None:
    topic, group = kafka.topic(2), kafka.group()
    app, said = make_app(kafka, group, drain_timeout_ms=10_000), list[Any]()
    kafka.produce(topic, [1], 0)

    @app.topic(topic, backoff_ms=10)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        said.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            said.append("ended")

    @app.on_shutdown(store)
    async def last(ctx: AsyncContext) -> None:
        said.append("never")

    found = heard(app)
    loop = asyncio.new_event_loop()

    async def start() -> None:
        await app.__aenter__()
        await until(lambda: said, "it runs")

    loop.run_until_complete(start())
    loop.close()
    kafka.produce(topic, [1], 1)
    began = time.monotonic()
    wait_until(lambda: of(found, events.Stopping), message="it is seen")
    assert isinstance(of(found, events.Stopping)[0].error, ConfigurationError)
    assert "the event loop of this app was closed" in str(of(found, events.Stopping)[0].error)
    wait_until(lambda: app._runner is not None and app._runner.ended.is_set(), message="it ends")
    assert time.monotonic() - began < 8, "and not by the bound of the drain"
    assert said == ["begun", "ended"]
    assert kafka.committed(group, topic) is None
    app.stop()


def test_an_asyncio_run_that_ends_around_a_running_app_leaves_nothing_behind(kafka: Observer) -> None:
    topic, app, said = kafka.topic(), make_app(kafka), list[Any]()
    kafka.produce(topic, [1])

    @app.topic(topic, backoff_ms=10)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        said.append("begun")
        await asyncio.sleep(60)

    async def main() -> None:
        await app.__aenter__()
        await until(lambda: said, "it runs")

    asyncio.run(main())  # cancels all tasks, those of handlers, too
    wait_until(lambda: app._runner is not None and app._runner.ended.is_set(), message="it ends")
    app.stop()


def test_a_stop_from_another_thread_waits_and_a_broker_that_is_not_there_is_raised(kafka: Observer) -> None:
    topic, app = kafka.topic(), make_app(kafka)
    nowhere = App("group", bootstrap_servers="localhost:1", bootstrap_timeout_ms=300)
    kafka.produce(topic, [1])
    seen: list[int] = []

    async def store(batch: Batch, ctx: AsyncContext) -> None:
        seen.append(1)
        while not ctx.stopping:
            await asyncio.sleep(0.01)

    app.topic(topic)(store)
    nowhere.topic(topic)(store)

    async def main() -> None:
        assert await nowhere.serve() == 3
        with pytest.raises(Exception, match="localhost:1"):
            async with nowhere:
                pass
        async with app:
            await until(lambda: seen)
            assert await asyncio.to_thread(app.stop)
            assert not app.health().live
        with pytest.raises(ConfigurationError, match="no topic"):
            await App("group").serve()

    within(40, main)


def test_a_fork_in_a_coroutine_ends_where_it_awaits_or_returns(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, ends, said = make_app(kafka, group), list[int](), list[int]()
    kafka.produce(topic, range(3))

    @app.topic(topic, max_messages=1)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        await asyncio.sleep(0)
        if (child := os.fork()) == 0:
            os.close(2)
            if batch.first_offset == 1:
                await asyncio.sleep(0)
            if batch.first_offset == 2:
                raise SystemExit(7)
            return
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
        said.append(batch.first_offset)

    with app:
        wait_until(lambda: len(said) == 3, message="all")
    assert ends == [0, 1, 7]
    assert kafka.committed(group, topic) == 3


def test_the_command_line_runs_async_handlers_as_plain_ones(kafka: Observer, tmp_path: Any) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    text = f"""
        import asyncio
        from karafka_lite import App
        app = App({group!r}, bootstrap_servers=BROKERS, **{QUICK!r})
        @app.topic({topic!r})
        async def store(batch, ctx):
            await asyncio.sleep(0)
            say(done=len(batch))
        if __name__ == "__main__":
            from karafka_lite.cli.main import main
            sys.path.insert(0, {str(tmp_path)!r})
            sys.exit(main(["run", "program:app", "--until-end"]))
    """
    with Process(kafka, text, tmp_path) as process:
        assert process.wait(40) == 0, process.errors()
    assert kafka.committed(group, topic) == 3


def test_a_hanging_stop_is_seen_from_outside(kafka: Observer) -> None:
    """The answer of a thread that waits for the stop comes after the coroutine has ended."""
    topic, app, said = kafka.topic(), make_app(kafka), list[str]()
    kafka.produce(topic, [1])

    @app.topic(topic)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        said.append("begun")
        while not ctx.stopping:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        said.append("ended")

    app.start()
    wait_until(lambda: said, message="it runs")
    with stopped_aside(app) as answer:
        assert answer()
    assert said == ["begun", "ended"]


def test_parts_of_a_batch_in_the_order_of_their_keys_are_coroutines_side_by_side(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, inside, most, seen = make_app(kafka, group), list[int](), list[int](), defaultdict[bytes, list[int]](list)
    kafka.produce(topic, range(24), keys=[f"k{n % 8}" for n in range(24)])

    @app.topic(topic, order="key", concurrency=4)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        inside.append(1)
        most.append(len(inside))
        for message in batch:
            await asyncio.sleep(0.01)
            seen[message.key or b""].append(message.offset)
        inside.pop()

    with app:
        wait_until(lambda: sum(map(len, seen.values())) == 24, message=f"{dict(seen)}")
    assert max(most) == 4
    assert all(offsets == sorted(offsets) for offsets in seen.values())
    assert kafka.committed(group, topic) == 24
