"""One run of an app: its groups, its workers, and the order in which they end."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from karafka_lite.client.producer import Outbox
from karafka_lite.core.ownership import Partition
from karafka_lite.member import Event, Exit, Member
from karafka_lite.routing import Route
from karafka_lite.settings import Config
from karafka_lite.workers import Workers

log = logging.getLogger("karafka_lite")

SIGNALS_S = 0.5  # how late a signal may be seen that came at a bad moment


class Runner:
    """One run of an app. Constructed idle; ``start`` begins, ``serve`` waits for the end and knows the exit code."""

    def __init__(
        self,
        config: Config,
        bootstrap_servers: Sequence[str],
        routes: Mapping[str, Mapping[str, Route]],
        leftovers: Mapping[str, Iterable[Partition]],
    ) -> None:
        # SimpleQueue.put is reentrant: a signal handler may call it.
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._workers = Workers(config.concurrency)
        self._outbox = Outbox(bootstrap_servers, config.settings)
        self.members = [
            Member(
                self._workers, self.events, group_id, config, bootstrap_servers, topics,
                leftovers.get(group_id, ()), self._outbox,
            )
            for group_id, topics in routes.items()
        ]  # fmt: skip
        self._ended = threading.Event()
        self._exit = Exit.CLEAN

    @property
    def ended(self) -> bool:
        """Whether this run is over (stuck handlers may have been left behind)."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start all threads; the pollers connect."""
        self._workers.start()
        for member in self.members:
            member.start()

    def start_aside(self) -> None:
        """Start, serve in a thread of its own, and return when every group has reached a broker.

        Raises:
            BrokerUnavailableError, ConfigurationError: of the first group that could not.
        """
        self.start()
        threading.Thread(target=self.serve, name="karafka-main", daemon=True).start()
        for member in self.members:
            member.connected.wait()
        if errors := [member.error for member in self.members if member.error is not None]:
            self._ended.wait()
            raise errors[0]

    def serve(self) -> Exit:
        """Wait for a reason to stop, stop, and say how it ended."""
        left: set[Member] = set()
        while not all(member in left for member in self.members):
            event = self._next_event()
            if event.error is not None:
                log.critical("stopping: %s", event.error)
            if event.exit is Exit.FORCED or self._exit is Exit.CLEAN:
                self._exit = event.exit
            if event.left is not None:
                left.add(event.left)
            for member in self.members:
                member.begin_stop()
                if not member.connected.is_set():
                    left.add(member)  # nothing was joined: its thread ends by itself when the client gives up
        self._workers.stop()
        self._outbox.close()
        self._ended.set()
        return self._exit

    def _next_event(self) -> Event:
        # Never for good: a signal that comes right before a wait is handled behind it, and not at all without an end.
        while True:
            with suppress(queue.Empty):
                return self.events.get(timeout=SIGNALS_S)

    def ask_to_stop(self) -> None:
        """Stop soon; returns at once. May be called from a signal handler and from user code."""
        self.events.put(Event())

    def stop(self) -> Exit:
        """Stop and wait for the end; from inside user code, which the end would wait for, only ask."""
        self.ask_to_stop()
        if self._workers.am_i_inside():
            return Exit.CLEAN
        self._ended.wait()
        return self._exit

    def leftovers(self) -> dict[str, list[Partition]]:
        """Per group, the ownerships whose user code has not returned."""
        return {member.group_id: list(member.group.leftovers.values()) for member in self.members}
