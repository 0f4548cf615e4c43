"""Where user code runs: no thread that is stuck holds up the end, and one does the work of all where it has to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.observer import wait_until
from support.stage import PATIENCE_S, Stage

from karafka_lite import App, Batch, Context, workers
from karafka_lite.runner import System
from karafka_lite.workers import Workers


def test_workers_that_are_stuck_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in user code, one where it should not be: in what it passes on, say."""
    monkeypatch.setattr(workers, "THREAD_END_S", 0.05)
    release, inside = threading.Event(), threading.Barrier(3, timeout=PATIENCE_S)

    def store(batch: Batch, ctx: Context) -> None:
        inside.wait()
        release.wait()

    app = App("group", concurrency=2, drain_timeout_ms=2000)
    app.topic("t", "u")(store)
    stage = Stage(app, System(), concurrency=2)
    try:
        for topic in ("t", "u"):
            stage.cluster.send(topic)
        stage.lock = type("", (), {"is_mine": False})
        stage.poll(6)
        inside.wait()
        first = next(iter(stage.workers.inside))
        del stage.workers.inside[first]
        stopped = threading.Thread(target=stage.workers.stop)
        stopped.start()
        stopped.join(PATIENCE_S)
        assert not stopped.is_alive()
        assert all(thread.is_alive() for thread in stage.workers.threads)
    finally:
        stage.workers.inside.setdefault(first, None)  # type: ignore[arg-type]
        release.set()
        for thread in stage.workers.threads:
            thread.join(PATIENCE_S)


def test_where_python_starts_no_thread_any_more_those_that_there_are_do_all_the_work() -> None:
    class AtItsEnd(System):
        """Python 3.12 at the end of the program: one thread was there before."""

        threads = 0

        def thread(self, name: str, function: Callable[[], object]) -> Any:
            self.threads += 1
            thread = super().thread(name, function)
            if self.threads > 1:
                thread.start = lambda: (_ for _ in ()).throw(RuntimeError("can't create new thread"))
            return thread

    class Job:
        async def run(self, number: int, place: int, inside: dict[Any, Any]) -> None:
            gate.wait(PATIENCE_S)
            done.append(number)

    gate, done, system = threading.Event(), list[int](), AtItsEnd()
    late, job = Workers(system, "late", 3, {}), Job()
    for number in range(4):
        late.put(job, number)  # type: ignore[arg-type]
    assert (system.threads, len(late.threads)) == (4, 1)
    gate.set()
    wait_until(lambda: len(done) == 4, message="all is done")
    late.stop()
    assert done == [0, 1, 2, 3]
    assert not late.threads[0].is_alive()
