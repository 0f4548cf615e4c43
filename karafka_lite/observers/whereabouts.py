"""Where every thread and every handler is: what a person asks of a process that hangs, with SIGUSR1."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import FrameType

from karafka_lite import signals
from karafka_lite.core.ownership import Run
from karafka_lite.observers.frames import Place, stack_of
from karafka_lite.observers.health import Health, Watched
from karafka_lite.observers.stats import PartitionStats, Stats

FRAMES = 5  # of a thread that is not in user code
SIGNALS = signals.__file__  # whose frames are of the question, and not of what the main thread does


@dataclass(frozen=True)
class ThreadPlace:
    """One thread: what it does, "" where that is not known, and its stack, the innermost call last."""

    name: str
    doing: str
    stack: str


@dataclass(frozen=True)
class Whereabouts:
    """What a process does at one moment."""

    health: Health
    partitions: tuple[PartitionStats, ...]
    threads: tuple[ThreadPlace, ...]

    def __str__(self) -> str:
        live, ready = ("live" if self.health.live else "not live"), ("ready" if self.health.ready else "not ready")
        lines = [f"karafka-lite, process {os.getpid()}: {live}, {ready}"]
        lines += [f"  {reason}" for reason in self.health.reasons]
        lines += [_of_partition(one) for one in self.partitions]
        for thread in self.threads:
            lines.append(f"thread {thread.name}{': ' if thread.doing else ''}{thread.doing}")
            lines += thread.stack.rstrip("\n").split("\n")
        return "\n".join(lines)


def look(
    health: Health, stats: Stats, members: Collection[Watched], inside: Mapping[Place, Run], now: float
) -> Whereabouts:
    """``inside``: the user code that runs."""
    runs, frames = dict(inside), sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    due = {name: _step(left - now) for member in members for name, left in _due(member).items()}
    me = threading.get_ident()
    places = [
        _place(names.get(ident, f"{ident}"), frame, ident, runs.get(ident), members, due, now)
        for ident, frame in frames.items()
        if ident != me
    ]
    calls = [(place, run) for place, run in runs.items() if not isinstance(place, int)]
    places += [_place("event loop, a coroutine", None, place, run, members, due, now) for place, run in calls]
    return Whereabouts(health, stats.partitions, tuple(sorted(places, key=lambda place: (not place.doing, place.name))))


def say(whereabouts: Whereabouts) -> None:
    """On standard error."""
    print(whereabouts, file=sys.stderr, flush=True)


def beside(tell: Callable[[], None]) -> None:
    """Call ``tell`` on a thread of its own: a signal may have come in the middle of a line that is being written."""
    threading.Thread(target=tell, name="karafka-whereabouts", daemon=True).start()


def _due(member: Watched) -> dict[str, float]:
    return {f"karafka-{thread}-{member.group_id}": due for thread, due in list(member.due.items())}


def _step(rest_s: float) -> str:
    return f"rests for another {rest_s:.1f} s" if rest_s > 0 else f"in its step for {-rest_s:.1f} s"


def _place(
    name: str,
    frame: FrameType | None,
    place: Place,
    run: Run | None,
    members: Collection[Watched],
    due: Mapping[str, str],
    now: float,
) -> ThreadPlace:
    if run is None:
        assert frame is not None
        return ThreadPlace(name, due.get(name, ""), _innermost(frame))
    owned = ((member, member.group) for member in members)
    its = [m for m, group in owned if run.ownership in (group.owned.get(run.ownership.tp), *group.leftovers.values())]
    whose = its[0].name_of(run) if its else "a handler"
    stack = stack_of(place) or "  (its function has returned; what it sent is not acknowledged yet)\n"
    return ThreadPlace(name, f"{run}: in {whose} for {now - run.began:.1f} s", stack)


def _innermost(frame: FrameType) -> str:
    calls = itertools.takewhile(lambda call: call.filename != SIGNALS, traceback.extract_stack(frame))
    return "".join(traceback.StackSummary.from_list(list(calls)[-FRAMES:]).format())


def _of_partition(one: PartitionStats) -> str:
    until = "" if one.until_ms is None else f", for another {one.until_ms / 1000:.1f} s"
    doing, error = f" on {one.doing}" if one.doing else "", f", last error: {one.error}" if one.error else ""
    offsets = f"position {_or_none(one.position)}, stored {_or_none(one.stored)}, committed {_or_none(one.committed)}"
    what = f"{one.state}{doing} for {one.since_ms / 1000:.1f} s{until}"
    return f"  group {one.group_id}: {one.topic}-{one.partition}: {what}; {offsets}, lag {_or_none(one.lag)}{error}"


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)
