"""Whether the app works, and whether it can: for whoever restarts it, and for whoever waits for it.

Nothing in here takes a lock: what hangs may hold it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from karafka_lite import events
from karafka_lite.core.group import Group
from karafka_lite.core.ownership import Run, State
from karafka_lite.messages import where

STEP_S = 30.0  # a thread that has not taken its next step for so long will not take it
NAMED = 10  # partitions of a reason


@dataclass(frozen=True)
class Health:
    """Whether an app works.

    Attributes:
        live: False: something hangs, and only a restart helps: a handler has been running for longer than
            ``drain_timeout_ms``, a thread of ours has made no progress for 30 s, or the run has ended.
        ready: it is live, and every group has joined and works. False while no broker answers, a topic is missing, a
            rebalance is under way, or the app stops.
        reasons: why not, a sentence each; what keeps it from being live comes first.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()


class Watched(Protocol):
    """A member, as far as its health is concerned. ``due``: by thread, when its next step begins."""

    @property
    def group_id(self) -> str: ...
    @property
    def group(self) -> Group: ...
    @property
    def topics(self) -> Collection[str]: ...
    @property
    def subscribed(self) -> Collection[str]: ...
    @property
    def due(self) -> Mapping[str, float]: ...
    @property
    def name_of(self) -> Callable[[Run], str]: ...


class Conditions:
    """What events say of the groups. An immediate observer: it never blocks."""

    def __init__(self) -> None:
        self.joined: set[str] = set()
        self.trouble: dict[str, str] = {}  # what a group waits for
        self.missing: dict[str, tuple[str, ...]] = defaultdict(tuple)  # topics that it has waited for

    def observe(self, event: events.Event) -> None:
        """Take note of ``event``."""
        if type(event) in _OFTEN:
            return
        group_id = event.group_id
        if isinstance(event, events.Joined):
            self.joined.add(group_id)
            self.trouble.pop(group_id, None)
        elif isinstance(event, events.Resumed):
            self.trouble.pop(group_id, None)
        elif isinstance(event, events.Revoked | events.Lost | events.ClientFailed | events.Left):
            self.joined.discard(group_id)
        elif isinstance(event, events.Stalled):
            self.trouble[group_id] = f"has been waiting {event.for_} for {event.seconds:.0f} s ({event.cause})"
        elif isinstance(event, events.Unreachable) and group_id not in self.joined:  # else another broker may answer
            self.trouble[group_id] = f"cannot reach a broker: {event.reason}"
        elif isinstance(event, events.Waiting):
            self.missing[group_id] = event.topics


_OFTEN = {events.CallEnded, events.Committed}  # they say nothing of the group


@dataclass(frozen=True)
class Bounds:
    """What may take how long, in seconds. ``connect``: to reach a broker."""

    drain: float
    connect: float


def health(members: Collection[Watched], conditions: Conditions, bounds: Bounds, now: float) -> Health:
    """How ``members`` are at the moment ``now``."""
    hangs = [why for member in members for why in _what_hangs(member, conditions, bounds, now)]
    waits = [f"group {member.group_id}: {why}" for member in members for why in _what_waits(member, conditions)]
    return Health(not hangs, not hangs and not waits, (*hangs, *waits))


def together(healths: Mapping[int, Health]) -> Health:
    """Of several processes, by number, as one: it is what each of them is."""
    hangs_first = sorted(healths.items(), key=lambda item: item[1].live)
    reasons = tuple(f"[{number}] {why}" for number, one in hangs_first for why in one.reasons)
    return Health(all(one.live for one in healths.values()), all(one.ready for one in healths.values()), reasons)


def runs_of(member: Watched) -> Iterator[Run]:
    """The calls of user code that run now."""
    for ownership in (*list(member.group.owned.values()), *list(member.group.leftovers.values())):
        yield from list(ownership.calls)


def _what_hangs(member: Watched, conditions: Conditions, bounds: Bounds, now: float) -> Iterator[str]:
    bound = STEP_S if member.group_id in conditions.joined else STEP_S + bounds.connect
    for thread, due in list(member.due.items()):
        if now - due > bound:
            yield f"group {member.group_id}: the {thread} has made no progress for {now - due:.0f} s"
    for run in runs_of(member):
        if run.returned:
            continue  # it waits for brokers, which restarting the process does not bring back
        if (took := now - run.began) > bounds.drain:
            name, bound_ms = member.name_of(run), bounds.drain * 1000
            yield f"{run}: {name} has been running for {took:.0f} s, longer than drain_timeout_ms={bound_ms:.0f}"


def _what_waits(member: Watched, conditions: Conditions) -> Iterator[str]:
    group = member.group
    if group.stopping:
        yield "draining: the app stops"
        return
    if missing := sorted(set(conditions.missing[member.group_id]) - set(member.subscribed)):
        yield f"waiting for missing topics: {', '.join(missing)}"
    leaving = sorted(o.tp for o in list(group.owned.values()) if o.state is not State.ASSIGNED)
    if leaving:
        more = f" and {len(leaving) - NAMED} more" * (len(leaving) > NAMED)
        yield f"draining for a rebalance: {', '.join(where(*tp) for tp in leaving[:NAMED])}{more}"
    if trouble := conditions.trouble.get(member.group_id):
        yield trouble
    elif member.group_id not in conditions.joined and not missing:
        yield "has not joined"
