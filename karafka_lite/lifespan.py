"""What is called once in a run of an app: before any group joins, and after all have left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from karafka_lite import forks
from karafka_lite.errors import describe
from karafka_lite.events import Event, ProcessHookFailed
from karafka_lite.functions import name_of


@dataclass(frozen=True)
class ProcessHook:
    """A function of ``on_start`` or ``on_stop``."""

    kind: Literal["on_start", "on_stop"]
    function: Callable[[], object]


class Lifespan:
    """The process hooks of one run. It is *open* once there may be something to close.

    ``call`` calls one, on the event loop where it is a coroutine's.

    Attributes:
        thread: the thread that is inside a function; None where none is.
    """

    def __init__(
        self,
        hooks: Sequence[ProcessHook],
        emit: Callable[[Event], None],
        thread_id: Callable[[], int],
        call: Callable[[Callable[[], object]], object] = forks.call,
    ) -> None:
        self._starts = [hook for hook in hooks if hook.kind == "on_start"]
        self._stops = [hook for hook in reversed(hooks) if hook.kind == "on_stop"]
        self._emit, self._thread_id, self._call_it = emit, thread_id, call
        self._open = False
        self.thread: int | None = None

    def start(self) -> None:
        """Raises what a function of ``on_start`` has raised, after those of ``on_stop`` if others had returned."""
        for hook in self._starts:
            try:
                self._call(hook)
            except BaseException:
                self.stop()
                raise
            self._open = True
        self._open = True

    def stop(self) -> None:
        """Call what closes, if there may be something to close; a second call does nothing."""
        stops, self._open = self._stops if self._open else [], False
        for hook in stops:
            try:
                self._call(hook)
            except BaseException:  # noqa: BLE001 - user code may raise anything; it has been said
                continue

    def _call(self, hook: ProcessHook) -> None:
        self.thread = self._thread_id()
        try:
            self._call_it(hook.function)
        except BaseException as error:
            self._emit(ProcessHookFailed("", hook.kind, name_of(hook.function), error, describe(error)))
            raise
        finally:
            self.thread = None
