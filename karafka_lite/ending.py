"""Who asks for the end of a run, and with which exit code."""

from __future__ import annotations

from typing import Any, NamedTuple

from karafka_lite.errors import Exit


class ExitRequest(NamedTuple):
    """What a thread asks of the main thread: stop, with this exit code; ``left``: that member has ended.

    ``error``: why, where that has not been said.
    """

    exit: Exit = Exit.CLEAN
    left: Any = None
    crashed: bool = False  # by a bug of ours: no later request changes the exit code
    error: BaseException | None = None

    def after(self, earlier: ExitRequest) -> ExitRequest:
        """The one of the two whose exit code counts: a bug, else what was forced, else the first that went wrong."""
        counts = not earlier.crashed and (self.exit is Exit.FORCED or earlier.exit is Exit.CLEAN)
        return self if counts else earlier
