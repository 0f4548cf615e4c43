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
from karafka_lite.coroutines import Call

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def is_ours(frame: traceback.FrameSummary) -> bool:
    """Whether a line of the package, or of a wait in it, is running in ``frame``."""
    return frame.filename.startswith(PACKAGE) or frame.filename == threading.__file__


Place = int | Call
"""Where user code runs: the id of its thread, or a call on an event loop."""


def stacks(inside: Mapping[Place, Run], ownerships: Collection[Ownership]) -> list[tuple[Run, str]]:
    """The user code of ``ownerships`` that runs now, each with its stack."""
    return [(run, stack_of(place)) for place, run in list(inside.items()) if run.ownership in ownerships]


def stack_of(place: Place) -> str:
    """The stack of the user code at ``place``, from the user's function on; empty where only the package is running."""
    if isinstance(place, Call):
        return "".join(traceback.StackSummary.extract(iter(place.frames)).format())
    frame = sys._current_frames().get(place)
    return user_stack(frame) if frame else ""


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
