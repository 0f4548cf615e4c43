"""What an App can be asked while it runs: how it is, what it has done, where everything stands.

Nothing in here waits but ``snapshots``, which takes the locks of the groups: the rest is asked of a process that hangs.
"""

from __future__ import annotations

from collections.abc import Sequence

from karafka_lite import forks
from karafka_lite.errors import ConfigurationError
from karafka_lite.observers.health import Bounds, Health, health
from karafka_lite.observers.metrics import Reading
from karafka_lite.observers.progress import Progress, Snapshot
from karafka_lite.observers.stats import Stats, reading, stats
from karafka_lite.observers.whereabouts import Whereabouts, look
from karafka_lite.routing import Router
from karafka_lite.runner import Member, Runner, System
from karafka_lite.settings import Config

CONNECT_MS = 30_000  # kafka-python's bootstrap_timeout_ms


class Watching(Router):
    """The half of an App that answers. The other half sets ``config``, ``_runner`` and ``_foreign``."""

    config: Config
    _runner: Runner | None = None
    _foreign: bool = False  # this process is a fork of the one in which it runs or has sent something

    def health(self) -> Health:
        """Whether it works. It never waits, whatever hangs; before the first start it is live and not ready.

        Example::

            @web.get("/live")
            def live():
                health = app.health()
                return Response("\\n".join(health.reasons), 200 if health.live else 503)
        """
        self._check_process()
        if self._runner is None:
            return Health(live=True, ready=False, reasons=("not started",))
        if self._runner.ended.is_set():
            return Health(live=False, ready=False, reasons=("it has ended",))
        return health(self.members, self._runner.observed.conditions, self._bounds(), System.now())

    def stats(self) -> Stats:
        """What this run, or the last one, has done, and where each of its partitions is. It never waits."""
        self._check_process()
        if self._runner is None:
            return Stats()
        observed = self._runner.observed
        self._want_positions()
        return stats(self.members, observed.progress, observed.counts, self._bounds().drain, System.now())

    def reading(self) -> Reading:
        """The metrics of this run, or of the last one, as values that can be added up."""
        self._check_process()
        self._want_positions()
        return reading(self.members, self._runner.observed.counts) if self._runner else Reading()

    def whereabouts(self) -> Whereabouts:
        """Where every thread and every handler is now."""
        runner = self._runner
        return look(self.health(), self.stats(), self.members, runner.inside if runner else {}, System.now())

    @property
    def members(self) -> Sequence[Member]:
        """One per group, of this run or of the last one; none before the first."""
        return self._runner.members if self._runner else ()

    def snapshots(self) -> list[Snapshot]:
        """How far each group of this run, or of the last one, has come."""
        snapshots: list[Snapshot] = []
        progress = self._runner.observed.progress if self._runner else Progress()
        self._want_positions()
        for member in self.members:
            with member.lock:
                snapshots.append(progress.snapshot(member.group, member.group_id, member.topics))
        return snapshots

    def _want_positions(self) -> None:
        for member in self.members:
            member.positions_wanted = True

    def _bounds(self) -> Bounds:
        connect_ms = self.config.settings.get("bootstrap_timeout_ms", CONNECT_MS)
        return Bounds(self.config.drain_timeout_ms / 1000, connect_ms / 1000)

    def _check_process(self) -> None:
        if self._foreign:
            raise ConfigurationError(forks.FOREIGN)
