"""User code: how a worker calls it, and what it may ask meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol

from karafka_lite.context import Context
from karafka_lite.core.options import Target
from karafka_lite.core.ownership import Partition, Run, Send, State
from karafka_lite.errors import CommitError, ProduceError, describe
from karafka_lite.guard import LOOK_AGAIN_S, Guard
from karafka_lite.messages import Batch, Outgoing, where
from karafka_lite.observers.progress import Score
from karafka_lite.observers.report import CRITICAL, Failures
from karafka_lite.routing import Route, name_of
from karafka_lite.workers import Workers

log = logging.getLogger("karafka_lite")


class Outbox(Protocol):
    """Where messages leave; see ``producer.Outbox``."""

    def send(self, message: Outgoing) -> Future[tuple[int, int]]:
        """The future holds (partition, offset), or why not; TypeError, ValueError where this cannot be a message."""


class Calls:
    """The user code of one group. It is the ``Shell`` of the contexts; ``stop`` asks the app to end."""

    def __init__(
        self,
        guard: Guard,
        workers: Workers,
        routes: Mapping[str, Route],
        outbox: Outbox,
        failures: Failures,
        score: Score,
        stop: Callable[[], None],
    ) -> None:
        self._guard = guard
        self._workers = workers
        self._routes = routes
        self._outbox = outbox
        self._failures = failures
        self._score = score
        self._stop = stop

    # -- one call, on a worker

    def run(self, partition: Partition) -> None:
        """Run what is due for ``partition``: the call, the answers to what it sent, and what follows from a failure."""
        run = self._begin(partition)
        if run is None:
            return
        route = self._routes[partition.place[0]]
        context = Context(self, run, self._guard.group_id, route.dead_letter)
        error, unsent = self._call(run, route, context), self._answers(partition)
        if error is None and unsent is not None:
            error = unsent
            if run.hook:
                log.error("%s: %s; what it has marked behind that message is void", run, unsent)
        safe_in = None
        if error is not None and not isinstance(error, CRITICAL) and self._gives_up(run):
            error, safe_in = self._bring_to_safety(run, route, context, error)
        self._end(run, error, safe_in)

    def _begin(self, partition: Partition) -> Run | None:
        with self._guard.held() as now:  # asked for the membership right before a batch is handed over
            run = self._guard.group.begin(partition, now)
            if run is not None:
                self._workers.enter(run)
            return run

    def _call(self, run: Run, route: Route, context: Context) -> BaseException | None:
        """The user's function; what it raised."""
        if run.hook:
            failed: BaseException | None = None
            for function in route.functions(run):
                try:
                    function(context)
                except BaseException as error:
                    log.exception("%s: %s raised; all else goes on", run, name_of(function))
                    failed = error
            return failed
        batch = _batch(run, route)
        log.debug("%r: attempt %d", batch, run.attempt)
        try:
            route.handler(batch, context)
        except BaseException as error:
            return error
        return None

    def _answers(self, partition: Partition) -> BaseException | None:
        """Wait until everything that was sent is acknowledged or has failed; the first failure."""
        guard = self._guard
        with guard.lock:
            while partition.unanswered:
                guard.changed.wait(LOOK_AGAIN_S)
            return partition.failure

    def _gives_up(self, run: Run) -> bool:
        with self._guard.lock:
            return run.partition.gives_up(run)

    def _bring_to_safety(
        self, run: Run, route: Route, context: Context, error: BaseException
    ) -> tuple[BaseException, str | None]:
        """Send the message of ``run`` to the dead-letter topic. Returns why the run failed, and where it is now."""
        if not route.dead_letter:
            return error, "nowhere, as dead_letter=False says"
        tries = run.partition.tries(run.records[0].offset).all
        try:
            sent = context.send_dead_letter(_batch(run, route).first, describe(error), tries)
            self._answers(run.partition)
            return error, where(route.dead_letter, *sent.result(0))
        except Exception as refused:  # whatever it is: the run has to end
            return ProduceError(
                f"its dead letter was not sent ({refused}); the handler had raised {describe(error)}"
            ), None

    def _end(self, run: Run, error: BaseException | None, safe_in: str | None) -> None:
        group, partition = self._guard.group, run.partition
        with self._guard.held() as now:
            tries = partition.tries(run.records[0].offset).all if run.records else 0
            if safe_in is None:
                group.end(run, failed=error is not None, now=now)
            else:
                group.set_aside(run, now)
            self._score.ran(run, error, now - run.began, set_aside=safe_in is not None)
            wait = partition.not_before - now if partition.state is State.ASSIGNED else None
            self._workers.leave()
        if error is None or run.hook:
            return
        if safe_in is not None:
            self._failures.set_aside(run, error, tries, safe_in)
        elif self._failures.failed(run, error, wait):
            self._stop()

    # -- what contexts ask (Shell)

    def owns(self, partition: Partition) -> bool:
        if not partition.over and self._guard.client.lost(self._guard.now()):
            with self._guard.held():
                pass
        return not partition.over

    def mark(self, partition: Partition, offset: int) -> bool:
        guard = self._guard
        # Not ``with``: who waits gets the lock while another thread has the interpreter, which then waits in turn. Two
        # workers would hand over both at each mark, for 7 us instead of 0.4, and not stop before their batches end.
        while not guard.lock.acquire(False):
            time.sleep(0)
        try:
            if guard.client.lost(now := guard.now()):
                guard.check_membership(now)
                guard.carry_out()
            ours = partition.mark(offset)
            if ours and partition.failure is not None:
                raise partition.failure
            return ours
        finally:
            guard.lock.release()

    def request_commit(self, partition: Partition) -> bool:
        with self._guard.held():
            if not partition.over:
                self._guard.group.request_commit()
            return not partition.over

    def commit(self, partition: Partition, timeout_ms: int) -> bool:
        guard = self._guard
        deadline = guard.now() + timeout_ms / 1000
        with guard.lock:
            wanted = partition.version
            if partition.committed_version < wanted:
                guard.group.request_commit()
            while partition.committed_version < wanted:
                now = guard.now()
                guard.check_membership(now)
                guard.carry_out()
                if partition.state >= State.REVOKED:
                    return False
                if partition.failure is not None:
                    raise partition.failure
                if now >= deadline:
                    raise CommitError(_unacknowledged(partition, timeout_ms, guard.commit_error))
                guard.changed.wait(min(LOOK_AGAIN_S, deadline - now))
        return True

    def redirect(self, partition: Partition, target: Target) -> bool:
        with self._guard.held() as now:
            return self._guard.group.redirect(partition, target, now)

    def rest(self, partition: Partition, ms: float) -> bool:
        with self._guard.held() as now:
            return self._guard.group.rest(partition, now + ms / 1000, now)

    def send(self, run: Run, message: Outgoing) -> Future[tuple[int, int]]:
        ownership = run.partition
        with self._guard.lock:
            if ownership.run is not run:
                raise RuntimeError(f"{run} is over: send before the handler returns, so that its marks wait for it")
            if ownership.failure is not None:
                raise ownership.failure
            send = ownership.sending()
        try:
            future = self._outbox.send(message)
        except BaseException:  # it cannot be a message: nothing has left
            self._answered(ownership, send, None)
            raise
        future.add_done_callback(lambda done: self._answered(ownership, send, done.exception()))
        return future

    def _answered(self, partition: Partition, send: Send, failure: BaseException | None) -> None:
        with self._guard.held() as now:
            self._guard.group.answered(partition, send, failure, now)


def _batch(run: Run, route: Route) -> Batch:
    return Batch.of_records(run.partition.place, run.records, run.end_offset, route.deserialize)


def _unacknowledged(partition: Partition, timeout_ms: int, error: Exception | None) -> str:
    waits = "a message that was sent before it has no answer yet" if partition.unanswered else "no answer yet"
    return (
        f"{where(*partition.place, partition.stored)} was not acknowledged within {timeout_ms} ms ({error or waits}); "
        f"a timeout does not mean that it did not happen. The offset stays stored and is committed again; the "
        f"partition is still ours"
    )
