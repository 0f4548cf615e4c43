"""App: what a user's module begins with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from karafka_lite import exits, forks
from karafka_lite.addressing import none_sent, outgoing, outgoing_many
from karafka_lite.checks import check_function, isolation_mistakes
from karafka_lite.draining import Drain, Drained
from karafka_lite.errors import ConfigurationError, Exit
from karafka_lite.functions import is_again
from karafka_lite.observers.banner import Banner, Row, on_terminal, show
from karafka_lite.observers.delivery import Observer
from karafka_lite.observers.observed import Observed
from karafka_lite.observers.whereabouts import Whereabouts, beside, say
from karafka_lite.runner import Runner, System
from karafka_lite.sender import Sender
from karafka_lite.serializer import Serializer, to_json
from karafka_lite.settings import ARGUMENTS, Config, Settings, int_mistakes, refuse, resolve_bootstrap_servers
from karafka_lite.signals import Signals
from karafka_lite.twins import some, warn_of_twins
from karafka_lite.watching import Watching

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from karafka_lite.client.connection import Emit
    from karafka_lite.client.outbox import Outbox

ObserverT = TypeVar("ObserverT", bound=Observer)

log = logging.getLogger("karafka_lite")

FLUSH_S = 5.0  # how long what was sent may take after a stop that was forced


class App(Watching):
    """The consumers of one process, as decorated functions. The decorators are Router's.

    Args:
        group_id: consumer group of the app's topics, unless a topic names another.
        bootstrap_servers: ``"host:port,…"`` or a list. ``--broker`` of the command line wins over the environment's
            ``KARAFKA_LITE_BOOTSTRAP_SERVERS``, which wins over this.
        concurrency: how many calls of one handler may run at the same time, each for another partition. With 1 a
            function never runs beside itself. Each handler has threads of its own, or tasks on the event loop where it
            is ``async def``; ``@app.topic(concurrency=N)`` wins.
        auto_commit_interval_ms: how often what is stored is committed.
        drain_timeout_ms: how long running handlers may take when the app stops or a partition is taken away; must be
            below ``max_poll_interval_ms``.
        serializer: what makes bytes of a produced value that is neither bytes nor None, ``Callable[[Any], bytes]``. The
            default, ``to_json``, also knows dataclasses, enums, dates, UUID, Decimal and pydantic models.
        settings: any KafkaConsumer setting of kafka-python under its own name. Other defaults than kafka-python's:
            ``auto_offset_reset="earliest"``, ``allow_auto_create_topics=False``, ``fetch_max_bytes`` of 8 MiB.

    Raises:
        ConfigurationError: something in here cannot work. The network is not touched before ``run`` or ``start``.

    Example::

        app = App("event-store", bootstrap_servers="localhost:9092")

        @app.topic("user_events", manual_offsets=True)
        def store(batch, ctx):
            for message in batch:
                save(message.payload)
                if not ctx.mark_as_consumed(message):
                    return
    """

    def __init__(
        self,
        group_id: str,
        *,
        bootstrap_servers: str | Sequence[str] = "localhost:9092",
        concurrency: int = 1,
        auto_commit_interval_ms: int = 5000,
        drain_timeout_ms: int = 60_000,
        serializer: Serializer = to_json,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__()
        self._own_group = group_id
        self.config: Config = Config.validated(
            group_id,
            bootstrap_servers=bootstrap_servers,
            concurrency=concurrency,
            auto_commit_interval_ms=auto_commit_interval_ms,
            drain_timeout_ms=drain_timeout_ms,
            settings=dict(settings),
            serializer=serializer,
        )
        self._broker_option: str | None = None
        self._claiming = System.lock()
        self._sender = Sender(System(), self._new_outbox)
        self._observers: list[Observer] = []
        self._say_where: Callable[[Whereabouts], None] = say  # at SIGUSR1
        forks.in_child(self, App._was_forked)

    def observe(self, function: ObserverT) -> ObserverT:
        """Call ``function(event)`` for each event of ``karafka_lite.events``; it is returned unchanged.

        It is called on a thread of its own, in the order of the events, and may take its time. An exception is logged,
        and never matters. Up to 10,000 events wait for it; what comes on top is dropped, and counted in the log.

        Raises:
            ConfigurationError: it is not a plain function of ``(event)``.

        Example::

            @app.observe
            def count(event):
                if isinstance(event, DeadLettered):
                    statsd.increment("dead_letters", tags=[event.topic])

        ``examples/`` has more: e19 makes spans and metrics of OpenTelemetry, e20 reports errors as for Sentry, e21
        sends counters and timings in the format of statsd.
        """
        check_function("@app.observe", function, ("event",))
        self._observers[:] = [known for known in self._observers if not is_again(function, known)]
        self._observers.append(function)
        return function

    # -- sending

    def produce(
        self,
        topic: str,
        value: Any,
        *,
        key: bytes | str | None = None,
        headers: Iterable[tuple[str, bytes]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Future[tuple[int, int]]:
        """Send a message that is tied to no offset: from anywhere, in any thread, also while the app does not run.

        Inside a handler use ``ctx.produce``, which the offset of what it consumed waits for. This one connects at the
        first call, and is flushed at the end of ``run``, ``drain``, ``stop`` and ``with app:``, and when the program
        exits, each time for up to ``drain_timeout_ms``.

        The arguments are those of ``ctx.produce``. It may block: for ``bootstrap_timeout_ms`` while no broker can be
        reached, for 15 s until an unknown topic is there, and while 32 MB are unanswered; in a coroutine use
        ``await asyncio.wrap_future(await asyncio.to_thread(app.produce, ...))``.

        Returns:
            A future of (partition, offset), once all in-sync replicas have it; else of a ProduceError: no broker could
            be reached, or one refused the message. Only the future says so: look at it where the message matters. A
            message whose answer got lost may be written twice.

        Raises:
            TypeError, ValueError: no message: no bytes of the value, a bad header, a partition that does not exist.
            ConfigurationError: this process is a fork of one in which the app runs, or has sent something.

        Example::

            partition, offset = app.produce("orders", {"id": 7}, key="7").result(timeout=10)
        """
        self._check_process()
        serializer = self.config.serializer
        return self._sender.send(outgoing(topic, value, key, headers, partition, timestamp_ms, serializer))

    def produce_many(self, topic: str, messages: Iterable[Any]) -> Future[list[tuple[int, int]]]:
        """Send many messages that are tied to no offset: all, or none where one cannot be a message.

        What ``produce`` promises holds for each. ``messages`` are values, and ``Outgoing`` for what has a key, headers,
        a partition or a timestamp, too.

        Returns:
            A future of all (partition, offset), in the order of ``messages``; else of the first ProduceError, when all
            have an answer: others may have arrived.

        Raises:
            TypeError, ValueError, ConfigurationError: as ``produce``, with the index of the message. If one cannot be
                sent, none is.

        Example::

            app.produce_many("orders", [Outgoing(order, key=order["id"]) for order in orders]).result(timeout=60)
        """
        self._check_process()
        many = outgoing_many(topic, messages, self.config.serializer)
        return self._sender.send_many(many) if many else none_sent()

    def _new_outbox(self, emit: Emit) -> Outbox:
        from karafka_lite.client.outbox import Outbox

        exits.end_before_exit(self)
        # Not idempotent: one message that is refused would have others fail, for which nobody tries again here.
        return Outbox(self.brokers(), self.config.settings, emit, idempotent=False)

    # -- running

    def run(self) -> int:
        """Run until SIGINT, SIGTERM, SIGHUP or ``stop``, as ``karafka-lite run module:app``. For the main thread.

        On a terminal it begins with what is about to run: groups, topics, functions, brokers. SIGUSR1 has it print on
        standard error where every thread and every handler stands, unless the program has a use of its own for it.

        Returns:
            0 clean; 1 a critical exception in a handler, a function of ``on_start`` that raised, or a setting,
            credentials or a right that were refused; 2 a handler did not return, or an offset could not be committed,
            within ``drain_timeout_ms``; 3 no broker could be reached within ``bootstrap_timeout_ms``. A further SIGINT
            or SIGTERM ends the process at once with 2, but within a second it is the same one: wrappers and terminals
            send two.

        Raises:
            ConfigurationError: no topic is registered, it runs already, ``KARAFKA_LITE_DECODER`` asks for what cannot
                be had, or this is not the main thread.
        """
        if not log.hasHandlers():
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._announce("Ctrl-C or SIGTERM")
        return self.serve_here()

    async def serve(self) -> int:
        """Run on the event loop of the caller until ``stop``, or until this task is cancelled. No signal handlers.

        The coroutines of ``async def`` handlers and hooks run on this loop; Kafka and plain handlers have threads of
        their own. Where the task is cancelled the app stops in good order first: handlers end, offsets are committed.

        Returns:
            The exit code, as ``run``.

        Raises:
            CancelledError: the task was cancelled, and the app has stopped.
            ConfigurationError: no topic is registered, or it runs already.

        Example::

            async def main():
                async with asyncpg.create_pool() as pool:
                    await app.serve()
        """
        import asyncio

        from karafka_lite.awaiting import beside

        runner = self._claim(asyncio.get_running_loop())
        return await beside(System(), partial(self._run_to_its_end, runner, say=True), runner.ask_to_stop)

    async def __aenter__(self) -> Self:
        """As ``start``, with the coroutines of handlers on the loop of the caller, which goes on meanwhile.

        Example::

            @asynccontextmanager
            async def lifespan(api):
                async with app:
                    yield
        """
        import asyncio

        from karafka_lite.awaiting import beside

        self._announce("app.stop()")
        runner = self._claim(asyncio.get_running_loop())
        await beside(System(), runner.start_in_background, runner.ask_to_stop, self.stop)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """As ``stop``, while the loop of the caller goes on."""
        from karafka_lite.awaiting import beside

        await beside(System(), self.stop, lambda: None)

    def start(self) -> None:
        """Run in threads of their own and return as soon as every group has reached a broker. No signal handlers.

        ``with app:`` starts it, and stops it at the end of the block. An app that was started and not stopped is
        stopped when the program exits, in good order and with a warning. On a terminal it says what runs, as ``run``.

        Raises:
            Exception: whatever a function of ``on_start`` raises.
            BrokerUnavailableError: none could be reached within ``bootstrap_timeout_ms``.
            AccessError: a broker refuses us: credentials, or TLS.
            ConfigurationError: no topic is registered, it runs already (perhaps in the process that this one is a fork
                of), ``KARAFKA_LITE_DECODER`` asks for what cannot be had, or the client refused a setting.

        Example::

            with app:
                serve_requests()
        """
        self._announce("app.stop()")
        self._claim().start_in_background()

    def stop(self, *, wait: bool = True) -> bool:
        """Stop as SIGTERM does, and wait for it: handlers end, ``on_shutdown`` hooks run, offsets are committed.

        Then what ``app.produce`` has sent is flushed, and no thread of the app is left.

        Args:
            wait: False only asks for the stop and returns True at once. It is for what the app itself waits for: a
                thread that a handler joins, a callback of a future. A call in a handler or a hook never waits, nor does
                one on the event loop of ``serve`` and ``async with``.

        Returns:
            True: everything ended inside ``drain_timeout_ms``, or nothing ran. False: stuck handlers were left running
            (named in the log).

        Raises:
            ConfigurationError: it runs in the process that this one is a fork of.
        """
        self._check_process()
        runner = self._runner
        if not wait:
            if runner is not None:
                runner.ask_to_stop()
            return True
        end = Exit.CLEAN if runner is None else runner.stop()
        if not self._is_running:
            self._close_sender(end)
        return end is not Exit.FORCED

    def __enter__(self) -> Self:
        """As ``start``."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """As ``stop``."""
        self.stop()

    def end_at_exit(self) -> None:
        """What is left to do when the interpreter exits."""
        if self._foreign:
            return
        if self._is_running:
            log.warning("%r still runs at the end of the program, and is stopped: use `with app:`, or app.stop()", self)
        self.stop()

    def _close_sender(self, end: Exit) -> None:
        """Flush what was sent beside handlers; after a forced stop nobody waits as long once more."""
        self._sender.close(FLUSH_S if end is Exit.FORCED else self.config.drain_timeout_ms / 1000)

    def drain(self, *, idle_timeout_ms: int = 60_000) -> Drained:
        """Process what is in the topics now, to the end of every partition, and stop. For scripts and schedulers.

        It may be called on any thread; on the main one SIGINT and SIGTERM stop it in good order. Messages that come
        meanwhile are processed while it runs, and do not delay its end.

        Args:
            idle_timeout_ms: how long it waits without any progress while no handler runs.

        Returns:
            What was done, in all and by topic.

        Raises:
            DrainError: it did not come to the end; its ``errors`` say why, by partition.
            BrokerUnavailableError: none could be reached within ``bootstrap_timeout_ms``.
            ConfigurationError: a topic does not exist, no topic is registered, or the app runs already.

        Example::

            drained = app.drain(idle_timeout_ms=30_000)
            print(drained.messages, drained.topics["orders"].dead_letters)
        """
        refuse(*int_mistakes("idle_timeout_ms", idle_timeout_ms))
        self._check_that_it_can_run()  # before the cluster is asked
        with closing(Drain(self, partial(self.serve_here, main_thread=False), idle_timeout_ms / 1000)) as drain:
            drain.prepare()
            drain.run()
        if mistakes := [member.error for member in self.members if member.error is not None]:
            raise mistakes[0]
        return drain.result()

    def __repr__(self) -> str:
        names = [f"{group}: {some(list(topics))}" for group, topics in self.groups.items()] or [self.config.group_id]
        return f"<App {some(names, '; ')} ({'running' if self._is_running else 'not running'})>"

    # -- what the command line asks

    def serve_here(self, *, main_thread: bool = True) -> int:
        """``run`` without a word. ``main_thread`` False: on any thread, with signal handlers where that can be."""
        with Signals(required=main_thread) as signals:
            signals.at_dump(lambda: beside(lambda: self._say_where(self.whereabouts())))
            runner = self._claim()
            signals.ask_to_stop(runner)
            return self._run_to_its_end(runner, say=main_thread)

    @staticmethod
    def _run_to_its_end(runner: Runner, *, say: bool) -> int:
        """``say``: a function of ``on_start`` that raises is an exit code, for it has been said; else it is raised."""
        try:
            runner.start()
            return runner.serve().value
        except BaseException:
            if not runner.ended.is_set():  # a signal handler of the program's own has raised
                runner.ask_to_stop()
                runner.serve()
            elif say:
                return Exit.ERROR.value
            raise
        finally:
            runner.ended.set()  # nobody serves it any more, whatever it was interrupted by

    def banner(self, *, broker: str = "", stop: str, more: str) -> Banner:
        """What there is to say before a run."""
        from karafka_lite.client.reader import reader_in_words

        routes = [(group, topic, route) for group, topics in self.groups.items() for topic, route in topics.items()]
        rows = [
            Row(group, topic, "manual" if route.options.manual_offsets else "automatic", route.name)
            for group, topic, route in routes
        ]
        most = max((route.concurrency or self.config.concurrency for _, _, route in routes), default=1)
        return Banner(rows, self.brokers(), reader_in_words(), most, broker, stop, more)

    def brokers(self) -> list[str]:
        """The bootstrap servers that count now; raises ConfigurationError where they are not ``host[:port]``."""
        return resolve_bootstrap_servers(self._broker_option, os.environ, self.config.bootstrap_servers)

    def override(
        self,
        *,
        bootstrap_servers: str | None = None,
        concurrency: int | None = None,
        group_id: str | None = None,
        settings: Mapping[str, Any] | None = None,
        say_where: Callable[[Whereabouts], None] | None = None,
    ) -> None:
        """What the command line says wins; None leaves it. ``settings``: those of a file; ``say_where``: at SIGUSR1.

        Raises ConfigurationError.
        """
        self._say_where = say_where or self._say_where
        if bootstrap_servers is not None:
            self._broker_option = bootstrap_servers
            self.brokers()
        if settings:
            given = {name: value for name, value in settings.items() if name in ARGUMENTS}
            merged = {**self.config.settings, **{name: settings[name] for name in settings.keys() - given.keys()}}
            self.config = Config.validated(**{**vars(self.config), **given, "settings": merged})
        if group_id is not None:
            self.config = Config.validated(**{**vars(self.config), "group_id": group_id})
            self._rename_group(group_id)
        if concurrency is not None:
            self.config = Config.validated(**{**vars(self.config), "concurrency": concurrency})

    @property
    def _is_running(self) -> bool:
        return self._runner is not None and not self._runner.ended.is_set()

    def _check_replaceable(self, name: str) -> None:
        if self._is_running:
            raise ConfigurationError(f"{name} is at work: app.stop() first, then define it again, then app.start()")

    def _check_that_it_can_run(self) -> None:
        self._check_process()
        if not self.groups:
            raise ConfigurationError('no topic is registered: decorate a function with @app.topic("name")')
        if self._is_running:
            raise ConfigurationError("this app runs already; stop() it first")
        refuse(*isolation_mistakes(self.config.settings, self.groups))
        from karafka_lite.client.reader import choose_reader

        choose_reader()  # raises here, before anything is started

    def _claim(self, loop: Any = None) -> Runner:
        """A new runner, which is this app's from now on: of two threads that start it at once one is refused."""
        self._check_process()
        if not self._claiming.acquire(blocking=False):
            raise ConfigurationError("another thread is starting this app; start it once")
        try:
            self._check_that_it_can_run()
            leftovers = {member.group_id: list(member.group.leftovers.values()) for member in self.members}
            others = [each for each in exits.known() if isinstance(each, App) and each is not self]
            warn_of_twins(self.groups, [other.groups for other in others if other._is_running])
            about = self.config, self.brokers(), self, Observed(self._observers), leftovers
            runner = Runner(*about, self._close_sender, loop)
            self._runner = runner
            exits.end_before_exit(self)
            return runner
        finally:
            self._claiming.release()

    def _was_forked(self) -> None:
        self._foreign = self._is_running or self._sender.is_open
        self._claiming = System.lock()  # a thread of the parent may have it, and that of the sender
        if not self._foreign:
            self._sender = Sender(System(), self._new_outbox)

    def _announce(self, stop: str) -> None:
        self._check_that_it_can_run()
        if on_terminal():
            show(self.banner(stop=stop, more="concurrency=N"))
