"""The threads in which user code runs, and who is in there."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from types import FrameType

from karafka_lite.core.ownership import Partition, Run

log = logging.getLogger("karafka_lite")


class Workers:
    """``concurrency`` threads, shared by all groups of a process. They never touch a consumer."""

    def __init__(self, concurrency: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._inside: dict[int, Run] = {}  # thread id -> the user code that it runs
        self._threads = [
            threading.Thread(target=self._work, name=f"karafka-worker-{number}", daemon=True)
            for number in range(concurrency)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and wait for them, but for those that are stuck in user code."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread.ident not in self._inside:
                thread.join()

    def put(self, job: Callable[[], None]) -> None:
        """Have a worker call ``job``, which tells with ``enter`` and ``leave`` when it is in user code."""
        self._jobs.put(job)

    def enter(self, run: Run) -> None:
        self._inside[threading.get_ident()] = run

    def leave(self) -> None:
        del self._inside[threading.get_ident()]

    def am_i_inside(self) -> bool:
        """Whether the caller is user code."""
        return threading.get_ident() in self._inside

    def stacks(self, partitions: Collection[Partition]) -> list[tuple[Run, str]]:
        """The user code of ``partitions`` that runs now, each with its stack from the user's function on."""
        frames = sys._current_frames()
        return [
            (run, _users_part(frames[thread]))
            for thread, run in list(self._inside.items())
            if run.partition in partitions and thread in frames
        ]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # user code is caught further in
                log.exception("a worker has failed; please report this")


def _users_part(frame: FrameType) -> str:
    users = list(itertools.dropwhile(_is_ours, traceback.extract_stack(frame)))
    return "".join(traceback.StackSummary.from_list(users).format())


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename == threading.__file__ or os.path.dirname(frame.filename) == os.path.dirname(__file__)
