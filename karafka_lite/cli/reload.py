"""``run --reload``: the App is started again when a file of Python changes. The embedded broker stays as it is."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from karafka_lite.cli.children import Bell, Child, how_it_ended
from karafka_lite.errors import ConfigurationError, Exit

log = logging.getLogger("karafka_lite")

LOOK_S = 60.0  # a signal rings anyway
DEBOUNCE_MS, STEP_MS = 100, 20  # an editor that saves several files, or one in two steps, is one change


class Watcher:
    """Notes the files of Python that change below ``folders``, and ``files``, and rings then.

    Raises ConfigurationError: watchfiles is missing.
    """

    def __init__(self, folders: Sequence[str], files: Sequence[str], ring: Callable[[], None]) -> None:
        try:
            import watchfiles
        except ImportError:
            raise ConfigurationError("--reload requires: pip install 'karafka-lite[reload]'") from None
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        self._watchfiles, self._ring = watchfiles, ring
        self._folders, self._files = folders, {os.path.realpath(file) for file in files}
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="karafka-reload", daemon=True)
        self._thread.start()

    def changed(self) -> set[str]:
        """What has changed since it was asked last."""
        names: set[str] = set()
        with suppress(queue.Empty):
            while True:
                names.add(self._names.get_nowait())
        return names

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        python = self._watchfiles.PythonFilter()

        def counts(change: Any, path: str) -> bool:
            return python(change, path) or os.path.realpath(path) in self._files

        places = {*self._folders, *(os.path.dirname(file) for file in self._files)}
        for changes in self._watchfiles.watch(
            *places, watch_filter=counts, stop_event=self._over, debounce=DEBOUNCE_MS, step=STEP_MS
        ):
            for _, path in changes:
                self._names.put(os.path.relpath(path))
            self._ring()


class Reloader:
    """One process of the command; ``start(again, fed)`` starts it. ``step`` until it returns None."""

    def __init__(self, start: Callable[[bool, bool], Child], watcher: Watcher, bell: Bell) -> None:
        self.child: Child | None = None
        self.code = 0
        self._start, self._watcher, self._bell = start, watcher, bell
        self._starts = 0
        self._due = True
        self._fed = False
        self._stops = 0  # signals that were passed on

    def step(self) -> float | None:
        """Do what is due. Returns the seconds to rest; None: it has ended, with ``code``."""
        if self.child is not None and (code := self.child.ended()) is not None:
            self._fed |= self.child.fed
            self.child = None
            if self._stops:
                self.code = 0 if code < 0 else code
            elif code == Exit.NO_BROKER.value and self._starts == 1:
                self.code = code
                return None
            elif not self._due:
                log.info("the App %s; waiting for a change", how_it_ended(code))
        if self._stops < self._bell.stops:
            self._stops = self._bell.stops
            self._stop()
        if self._stops:
            return None if self.child is None else LOOK_S
        if names := self._watcher.changed():
            log.info("%s changed: starting again", ", ".join(sorted(names)))
            if not self._due:
                self._stop()
            self._due = True
        if self._due and self.child is None:
            self._due = False
            self.child = self._start(self._starts > 0, self._fed)
            self._starts += 1
        return LOOK_S

    def _stop(self) -> None:
        if self.child is not None:
            self.child.stop()


def reload(target: str, files: Sequence[str], argv: Sequence[str], orders: Mapping[str, Any]) -> int:
    """Run the command line ``argv`` until a signal, and again whenever a file changes; returns the exit code.

    ``files``: what is watched beside the Python files in the current directory and that of ``target``.

    Raises:
        ConfigurationError: watchfiles is missing.
    """
    folders = {os.getcwd()}
    location = target.partition(":")[0]
    if location.endswith(".py") or "/" in location:
        folders.add(str(Path(location).resolve().parent))
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # a .pyc counts as new for a second

    def start(again: bool, fed: bool) -> Child:
        once = {"banner": not again, **({"feed": []} if fed else {})}
        return Child(argv, {**orders, "number": "", **once}, environ)

    with Bell() as bell, closing(Watcher(sorted(folders), files, bell.ring)) as watcher:
        reloader = Reloader(start, watcher, bell)
        while (rest := reloader.step()) is not None:
            bell.wait([reloader.child] if reloader.child else [], rest)
        return reloader.code
