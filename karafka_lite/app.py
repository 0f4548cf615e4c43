"""App: what a user's module begins with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from karafka_lite import forks
from karafka_lite.checks import check_function
from karafka_lite.draining import Drain, Drained
from karafka_lite.errors import ConfigurationError, Exit
from karafka_lite.observers.delivery import Observer
from karafka_lite.observers.progress import Progress, Snapshot
from karafka_lite.routing import Router
from karafka_lite.runner import Member, Runner, System
from karafka_lite.serializer import Serializer, to_json
from karafka_lite.settings import Config, Settings, int_mistakes, refuse, resolve_bootstrap_servers
from karafka_lite.signals import Signals

if TYPE_CHECKING:
    from typing_extensions import Unpack

ObserverT = TypeVar("ObserverT", bound=Observer)

log = logging.getLogger("karafka_lite")


class App(Router):
    """The consumers of one process, as decorated functions. The decorators are Router's.

    Args:
        group_id: consumer group of the app's topics, unless a topic names another.
        bootstrap_servers: ``"host:port,…"`` or a list. ``--broker`` of the command line wins over the environment's
            ``KARAFKA_LITE_BOOTSTRAP_SERVERS``, which wins over this.
        concurrency: how many calls of one handler may run at the same time, each for another partition. With 1 a
            function never runs beside itself. Each handler has threads of its own; ``@app.topic(concurrency=N)`` wins.
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
        self._runner: Runner | None = None
        self._foreign = False  # this process is a fork of the one in which it runs
        self._claiming = System.lock()
        self._observers: list[Observer] = []

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
        """
        check_function("@app.observe", function, ("event",))
        self._observers.append(function)
        return function

    # -- running

    def run(self) -> int:
        """Run until SIGINT, SIGTERM, SIGHUP or ``stop``, as ``karafka-lite run module:app``. For the main thread.

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
        return self._serve()

    def _serve(self, *, main_thread: bool = True) -> int:
        """Run on this thread, with signal handlers; ``main_thread`` False: where there can be some."""
        with Signals(required=main_thread) as signals:
            runner = self._claim()
            signals.ask_to_stop(runner)
            try:
                runner.start()
            except BaseException:  # of a function of on_start, which has been said
                if main_thread:
                    return Exit.ERROR.value
                raise
            return runner.serve().value

    def start(self) -> None:
        """Run in threads of their own and return as soon as every group has reached a broker. No signal handlers.

        Raises:
            Exception: whatever a function of ``on_start`` raises.
            BrokerUnavailableError: none could be reached within ``bootstrap_timeout_ms``.
            AccessError: a broker refuses us: credentials, or TLS.
            ConfigurationError: no topic is registered, it runs already (perhaps in the process that this one is a fork
                of), ``KARAFKA_LITE_DECODER`` asks for what cannot be had, or the client refused a setting.
        """
        self._claim().start_in_background()

    def stop(self) -> bool:
        """Stop as SIGTERM does, and wait for it: handlers end, ``on_shutdown`` hooks run, offsets are committed.

        Returns:
            True: everything ended inside ``drain_timeout_ms``, or nothing ran. False: stuck handlers were left running
            (named in the log). Called from a handler or a hook it only asks for the stop and returns True at once.

        Raises:
            ConfigurationError: it runs in the process that this one is a fork of.
        """
        self._check_process()
        return self._runner is None or self._runner.stop() is not Exit.FORCED

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
        with closing(Drain(self, partial(self._serve, main_thread=False), idle_timeout_ms / 1000)) as drain:
            drain.prepare()
            drain.run()
        if mistakes := [member.error for member in self.members if member.error is not None]:
            raise mistakes[0]
        return drain.result()

    # -- what the command line asks

    def brokers(self) -> list[str]:
        """The bootstrap servers that count now; raises ConfigurationError where they are not ``host[:port]``."""
        return resolve_bootstrap_servers(self._broker_option, os.environ, self.config.bootstrap_servers)

    def override(
        self,
        *,
        bootstrap_servers: str | None = None,
        concurrency: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """What the command line says wins; None leaves it. ``settings``: those of a file. Raises ConfigurationError."""
        if bootstrap_servers is not None:
            self._broker_option = bootstrap_servers
            self.brokers()
        if concurrency is not None:
            self.config = Config.validated(**{**vars(self.config), "concurrency": concurrency})
        if settings:
            given = dict(settings)
            servers = given.pop("bootstrap_servers", self.config.bootstrap_servers)
            merged = {**self.config.settings, **given}
            self.config = Config.validated(**{**vars(self.config), "bootstrap_servers": servers, "settings": merged})

    @property
    def members(self) -> Sequence[Member]:
        """One per group, of this run or of the last one; none before the first."""
        return self._runner.members if self._runner else ()

    def snapshots(self) -> list[Snapshot]:
        """How far each group of this run, or of the last one, has come."""
        snapshots: list[Snapshot] = []
        progress = self._runner.progress if self._runner else Progress()
        for member in self.members:
            with member.lock:
                member.positions_wanted = True
                snapshots.append(progress.snapshot(member.group, member.group_id, member.topics))
        return snapshots

    def _check_that_it_can_run(self) -> None:
        self._check_process()
        if not self.groups:
            raise ConfigurationError('no topic is registered: decorate a function with @app.topic("name")')
        if self._runner is not None and not self._runner.ended.is_set():
            raise ConfigurationError("this app runs already; stop() it first")
        from karafka_lite.client.reader import choose_reader

        choose_reader()  # raises here, before anything is started

    def _claim(self) -> Runner:
        """A new runner, which is this app's from now on: of two threads that start it at once one is refused."""
        self._check_process()
        if not self._claiming.acquire(blocking=False):
            raise ConfigurationError("another thread is starting this app; start it once")
        try:
            self._check_that_it_can_run()
            leftovers = {member.group_id: list(member.group.leftovers.values()) for member in self.members}
            self._runner = Runner(self.config, self.brokers(), self, self._observers, leftovers)
            forks.in_child(self, App._was_forked)
            return self._runner
        finally:
            self._claiming.release()

    def _was_forked(self) -> None:
        self._foreign = self._runner is not None and not self._runner.ended.is_set()

    def _check_process(self) -> None:
        if self._foreign:
            raise ConfigurationError(forks.FOREIGN)
