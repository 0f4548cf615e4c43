"""Where user code runs: threads for the calls of one handler, made when they are needed."""

from __future__ import annotations

from contextlib import suppress
from inspect import iscoroutine
from typing import Any, Protocol

from karafka_lite.core.ownership import Run
from karafka_lite.coroutines import go_on

THREAD_END_S, STUCK_END_S = 5.0, 0.1  # for a thread of ours that has nothing to do any more, and for a stuck one


class Caller(Protocol):
    """Who knows what is due: a member of a group."""

    async def run(self, ownership: Any, place: Any, inside: dict[Any, Run], /) -> None:
        """Call what is due for ``ownership``; entered into ``inside`` while it runs, by its thread or as a ``Call``."""

    def crash(self, thread: str, bug: BaseException) -> None:
        """A thread has met a bug of ours."""


class Workers:
    """Threads for the user code of one handler, made when needed. ``_idle``: those without a job, less waiting jobs.

    ``system``: has locks and threads, as the runner's.
    """

    posts = None  # what a plain function sends, it may wait for

    def __init__(self, system: Any, name: str, concurrency: int, inside: dict[Any, Run]) -> None:
        self._system, self._name, self._concurrency, self.inside = system, name, concurrency, inside
        self.jobs, self.threads, self._lock, self._idle = system.queue(), list[Any](), system.lock(), 0

    def put(self, member: Caller, job: Any) -> None:
        """There is something to run: what is due for an ownership, or a coroutine of the member that goes on."""
        with self._lock:
            self.jobs.put((member, job))
            self._idle -= 1
            if self._idle < 0 and len(self.threads) < self._concurrency:
                thread = self._system.thread(f"karafka-worker-{self._name}-{len(self.threads)}", self._work)
                with suppress(RuntimeError):  # at its end Python starts none any more: the others do it all
                    thread.start()
                    self.threads.append(thread)
                    self._idle += 1

    def stop(self) -> None:
        """End the threads and wait for them, but not for those that are stuck in user code."""
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join(STUCK_END_S if thread.ident in self.inside else THREAD_END_S)

    def _work(self) -> None:
        while (put := self.jobs.get()) is not None:
            member, job = put
            try:
                self._call(member, job)
            except BaseException as bug:  # noqa: BLE001 - user code is caught further in, so this is a bug of ours
                member.crash("worker", bug)  # the app stops; it still needs this thread for what is due before its end
            with self._lock:
                self._idle += 1

    def _call(self, member: Caller, job: Any) -> None:
        thread = self._system.thread_id()
        coroutine = job if iscoroutine(job) else member.run(job, thread, self.inside)
        if (rest := go_on(coroutine)) is not None:  # no user code runs any more, and so this thread is free
            self.inside.pop(thread, None)
            rest.keep(coroutine)
