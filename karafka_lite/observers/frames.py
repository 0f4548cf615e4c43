"""Which stack frames are the user's, and which are this package's."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Collection, Mapping
from types import FrameType, TracebackType

from karafka_lite.core.ownership import Ownership, Run

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def is_ours(frame: traceback.FrameSummary) -> bool:
    """Whether a line of the package, or of a wait in it, is running in ``frame``."""
    return frame.filename.startswith(PACKAGE) or frame.filename == threading.__file__


def stacks(inside: Mapping[int, Run], ownerships: Collection[Ownership]) -> list[tuple[Run, str]]:
    """The user code of ``ownerships`` that runs now, each with its stack; ``inside``: by the id of its thread."""
    frames = sys._current_frames()
    runs = [(run, frames.get(thread)) for thread, run in list(inside.items()) if run.ownership in ownerships]
    return [(run, user_stack(frame) if frame else "") for run, frame in runs]


def user_stack(frame: FrameType) -> str:
    """The stack that ends in ``frame``, from the user's function on; empty where only the package is running."""
    users = list(itertools.dropwhile(is_ours, traceback.extract_stack(frame)))
    return "".join(traceback.StackSummary.from_list(users).format())


def users_traceback(error: BaseException) -> TracebackType | None:
    """The traceback of ``error`` from the user's function on; all of it where only the package is in it."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename.startswith(PACKAGE):
        step = step.tb_next
    return step or error.__traceback__


def line_that_called_us(error: BaseException) -> str | None:
    """``file:line`` of the user's code where it called what raised in here; None for an error of the user's own."""
    steps = traceback.extract_tb(error.__traceback__)
    if not steps or not is_ours(steps[-1]):
        return None
    users = [step for step in steps if not is_ours(step)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else None
