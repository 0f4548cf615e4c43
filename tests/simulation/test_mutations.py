"""The cures are taken out one by one, and the simulation has to notice.

A mutation changes what a function does, and quotes no line of it: a formatter and a new name inside a function leave it
as it is.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from ledger import Violation
from simulated_client import SimulatedClient
from simulated_transactions import Producers, SimulatedTransactions
from simulation import simulate

from karafka_lite.core import parts
from karafka_lite.core.answers import Committed, Refused, Undecided
from karafka_lite.core.commits import Commits
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.intake import Intake
from karafka_lite.core.marks import Marks, Refusal
from karafka_lite.core.options import Hook
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.parts import KeyMarks, KeyOwnership
from karafka_lite.core.retries import Retries
from karafka_lite.core.sends import Send, Sends
from karafka_lite.core.starts import Note, Place, Start
from karafka_lite.core.timers import Timers
from karafka_lite.core.units import UnitOwnership
from karafka_lite.errors import CommitError
from karafka_lite.messages import next_offset_after
from karafka_lite.runner import Member

EVENTS = 600_000  # most are noticed within 20,000
FOREVER = float("inf")
FAULT_OF_A_MUTATION = re.compile(
    rf'File "[^"]*{Path(__file__).name}", line .*(\n {{4,}}.*)*\n *(Type|Attribute|Name)Error|TypeError: _\.<locals>'
)

# Workers are busy elsewhere while parts of batches wait for them, until the bound of a drain.
PARTS_WAIT: dict[str, Any] = {
    "by_key": True,
    "max_messages": 10,
    "poll_records": 20,
    "growth": 0.1,
    "concurrency": 2,
    "hanging": 0.1,
    "drain_timeout_ms": 1000,
    "unrest": 1.0,
    "sending": 0.0,
    "backward_marks": False,
}

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]
MUTATIONS: dict[str, tuple[Mutation, dict[str, Any]]] = {}


def wrong(what: str, **settings: Any) -> Callable[[Mutation], Mutation]:
    """Name what a mutation makes wrong, and the settings of a world in which that matters soon."""

    def register(mutation: Mutation) -> Mutation:
        MUTATIONS[what] = mutation, settings
        return mutation

    return register


def after(patch: Patch, owner: type, name: str, act: Callable[..., None]) -> None:
    """Have ``act`` called with the arguments of a method after each call of it."""
    method = getattr(owner, name)

    @wraps(method)
    def mutated(self: Any, *args: Any, **named: Any) -> Any:
        result = method(self, *args, **named)
        act(self, *args, **named)
        return result

    patch.setattr(owner, name, mutated)


def instead(patch: Patch, owner: type, name: str, act: Callable[..., Any]) -> None:
    """Have ``act`` called with the method and its arguments instead of it."""
    method = getattr(owner, name)
    patch.setattr(owner, name, wraps(method)(lambda self, *args, **named: act(method, self, *args, **named)))


def keeping(patch: Patch, owner: type, name: str, *attributes: str) -> None:
    """Have a method leave ``attributes`` as they were."""

    def act(method: Callable[..., Any], self: Any, *args: Any, **named: Any) -> Any:
        before = {attribute: getattr(self, attribute) for attribute in attributes}
        result = method(self, *args, **named)
        for attribute, value in before.items():
            setattr(self, attribute, value)
        return result

    instead(patch, owner, name, act)


# -- faults that there were


@wrong("a plan is given once, whether it is applied or not")
def _(patch: Patch) -> None:
    applied = Group.applied
    instead(patch, Group, "poll_plan", lambda method, group, now: _given(method(group, now), group, now, applied))
    patch.setattr(Group, "applied", lambda group, plan, now: None)


def _given(plan: Any, group: Group, now: float, applied: Callable[..., None]) -> Any:
    applied(group, plan, now)
    return plan


@wrong("a client that was replaced reports a loss", unrest=0.3)
def _(patch: Patch) -> None:
    instead(patch, Member, "on_lost", lambda method, member, client: method(member, member._client))


@wrong("a client that was replaced reports a rebalance")
def _(patch: Patch) -> None:
    instead(patch, Member, "on_revoke", lambda method, member, client, tps: method(member, member._client, tps))


@wrong("a client that was replaced reports an assignment")
def _(patch: Patch) -> None:
    instead(patch, Member, "on_assigned", lambda method, member, client, tps: method(member, member._client, tps))


@wrong("an answer to an earlier ownership counts for the next one")
def _(patch: Patch) -> None:
    def placed_by_partition(method: Callable[..., Any], group: Group, places: Any, now: float) -> Any:
        return method(group, {group.owned.get(one.tp, one): place for one, place in places.items()}, now)

    instead(patch, Group, "placed", placed_by_partition)


@wrong("the committer dies when the client is replaced")
def _(patch: Patch) -> None:
    def use(client: SimulatedClient, offsets: Any, generation: int) -> None:
        if client._closed:
            raise RuntimeError("the client is closed")

    after(patch, SimulatedClient, "commit", use)


@wrong("a commit has the generation of the moment at which it is sent")
def _(patch: Patch) -> None:
    patch.setattr(SimulatedClient, "_stamp", lambda client, generation: client._generation)


@wrong("a worker dies of a bug, and nobody notices", bugs=0.02)
def _(patch: Patch) -> None:
    def crash(method: Callable[..., Any], member: Member, thread: str, bug: BaseException) -> None:
        if thread != "worker":
            method(member, thread, bug)

    instead(patch, Member, "crash", crash)


@wrong("a bug in a worker leaves the partition in its hands")
def _(patch: Patch) -> None:
    async def run_without_care(member: Member, ownership: Ownership, place: int, inside: dict[Any, Run]) -> None:
        with member.locked() as now:
            run = member.group.begin(ownership, now)
        if run is not None:
            await member._run(run, place)

    patch.setattr(Member, "run", run_without_care)


@wrong("functions of every go before batches, always")
def _(patch: Patch) -> None:
    def begin(method: Callable[..., Any], ownership: Ownership, now: float) -> Run | None:
        intake, since = ownership.intake, ownership.intake.queued_since
        if any(moment <= now for moment in ownership.every_at.values()):
            intake.queued_since = FOREVER
        run: Run | None = method(ownership, now)
        if intake.queued_since == FOREVER:
            intake.queued_since = since
        return run

    instead(patch, Ownership, "begin", begin)


@wrong("batches go before functions of every, always")
def _(patch: Patch) -> None:
    def begin(method: Callable[..., Any], ownership: Ownership, now: float) -> Run | None:
        moments = dict(ownership.every_at)
        ownership.every_at = {hook: max(moment, now) for hook, moment in moments.items()}
        run: Run | None = method(ownership, now)
        ownership.every_at.update(moments)
        return run

    instead(patch, Ownership, "begin", begin)


@wrong("a version is used twice", sending=0.5)
def _(patch: Patch) -> None:
    after(patch, Marks, "answered", lambda marks, send, *answer: setattr(marks, "_versions", marks.version))


@wrong("an answer counts twice", sending=0.5, failing=0.0, hanging=0.0, unrest=20.0)
def _(patch: Patch) -> None:
    instead(
        patch,
        Marks,
        "answered",
        lambda method, marks, send, failure, count=1: (
            marks.sends._open.add(send),
            setattr(send, "unanswered", max(send.unanswered, count)),
            method(marks, send, failure, count),
        ),
    )


@wrong("one answer counts for all that is counted together", sending=0.5)
def _(patch: Patch) -> None:
    def answered(method: Callable[..., Any], marks: Marks, send: Any, failure: Any, count: int = 1) -> None:
        method(marks, send, failure, send.unanswered)

    instead(patch, Marks, "answered", answered)


@wrong("messages are counted together whatever was marked in between", sending=0.5)
def _(patch: Patch) -> None:
    def sending(marks: Marks, count: int = 1) -> Send:
        send = marks.sends.newest or marks.sends.begin_send(marks.last)
        send.unanswered += count
        marks.sends.in_flight += count
        return send

    patch.setattr(Marks, "sending", sending)


@wrong("what is put back is lost")
def _(patch: Patch) -> None:
    patch.setattr(Intake, "put_back", lambda intake, chunk, offset: setattr(intake, "next_offset", offset))


@wrong("what is put back waits for batch_timeout_ms", failing=0.1, growth=1.0, unrest=5.0, poll_records=2)
def _(patch: Patch) -> None:
    keeping(patch, Intake, "put_back", "queued_since")


@wrong("a batch is put back although a later message is marked")
def _(patch: Patch) -> None:
    patch.setattr(Ownership, "_go_on_at", lambda ownership, run, offset: ownership.intake.put_back(run.chunk, offset))


@wrong("who outlived an earlier run of the app is never forgotten", hanging=0.1)
def _(patch: Patch) -> None:
    def advance(method: Callable[..., Any], group: Group, now: float) -> None:
        foreign = {o.tp: o for o in group.leftovers.values() if group.life is not o.marks.book.life}
        for tp in foreign:
            del group.leftovers[tp]
        method(group, now)
        group.leftovers = foreign | group.leftovers

    instead(patch, Group, "advance", advance)


@wrong("a change between a step and the rest after it is not seen")
def _(patch: Patch) -> None:
    def repeat(member: Member, _: str, step: Callable[[float], float | None]) -> None:
        while (rest := step(member._now())) is not None:
            if rest > 0:
                with member.lock:
                    member._changed.wait(rest)

    patch.setattr(Member, "_repeat", repeat)


# -- marks


@wrong("marks count while the last commit is under way")
def _(patch: Patch) -> None:
    after(patch, Ownership, "release", lambda ownership, deadline: setattr(ownership.marks, "closed", False))


@wrong("marks are refused during a drain")
def _(patch: Patch) -> None:
    after(patch, Ownership, "drain", lambda ownership, *_, **__: setattr(ownership.marks, "closed", True))


@wrong("a mark does not move the position of the retry")
def _(patch: Patch) -> None:
    keeping(patch, Marks, "mark", "retry_position")


@wrong("an older mark is not stored")
def _(patch: Patch) -> None:
    instead(patch, Marks, "mark", lambda method, marks, offset: method(marks, max(offset, marks.stored or 0)))


@wrong("a failed batch is marked")
def _(patch: Patch) -> None:
    def end(method: Callable[..., Any], ownership: Ownership, run: Run, *, failed: bool, now: float) -> Any:
        if failed and not run.hooks:
            ownership.marks.mark(next_offset_after(run.records[-1].offset))
        return method(ownership, run, failed=failed, now=now)

    instead(patch, Ownership, "end", end)


@wrong("a commit is taken for the newest mark")
def _(patch: Patch) -> None:
    instead(patch, Marks, "acknowledged", lambda method, marks, offset, version: method(marks, offset, marks.version))


@wrong("a mark does not wait for what was sent before it")
def _(patch: Patch) -> None:
    patch.setattr(Marks, "commit_point", property(lambda marks: (marks.stored, marks.version)))


@wrong("a failed send leaves the marks after it")
def _(patch: Patch) -> None:
    keeping(patch, Marks, "answered", "stored", "version", "retry_position")


@wrong("a mark after a failed send counts")
def _(patch: Patch) -> None:
    def mark(method: Callable[..., Any], marks: Marks, offset: int) -> Any:
        failure, marks.failure = marks.failure, None
        result = method(marks, offset)
        marks.failure = failure
        return result

    instead(patch, Marks, "mark", mark)


@wrong("a sync mark that was not acknowledged in time returns True")
def _(patch: Patch) -> None:
    async def commit(method: Callable[..., Any], member: Member, *args: Any) -> Any:
        try:
            return await method(member, *args)
        except CommitError:
            return True

    instead(patch, Member, "commit", commit)


@wrong("a sync mark that a failed send has undone returns True", sending=0.5, failing=0.0, refusing=60)
def _(patch: Patch) -> None:
    async def commit(method: Callable[..., Any], member: Member, ownership: Ownership, timeout_ms: int) -> Any:
        member.hand_over()  # answers may come meanwhile
        failure, ownership.marks.failure = ownership.marks.failure, None
        result = await method(member, ownership, timeout_ms)
        ownership.marks.failure = ownership.marks.failure or failure
        return result

    instead(patch, Member, "commit", commit)


@wrong("a failed send leaves the message given up whose dead letter it was", sending=0.5, poison=0.6, refusing=40)
def _(patch: Patch) -> None:
    keeping(patch, Marks, "answered", "_done")


@wrong("a message is given up although others before it are not marked")
def _(patch: Patch) -> None:
    def mark(ownership: Ownership, run: Run, offset: int) -> None:
        ownership.marks.mark(next_offset_after(offset))

    after(patch, Ownership, "mark_alone", mark)


@wrong("what was given up comes again")
def _(patch: Patch) -> None:
    patch.setattr(Marks, "is_done", lambda marks, offset: False)


@wrong("what was given up is not forgotten")
def _(patch: Patch) -> None:
    patch.setattr(Marks, "forget_done", lambda marks, **_: None)


# -- tries


@wrong("attempts are not counted")
def _(patch: Patch) -> None:
    keeping(patch, Retries, "failed", "attempt")


@wrong("a failure by the fault of another run is counted as a try", sending=0.5)
def _(patch: Patch) -> None:
    after(patch, Run, "failed_with", lambda run, _, **__: setattr(run, "excused", False))


@wrong("there is no back-off")
def _(patch: Patch) -> None:
    keeping(patch, Retries, "back_off", "not_before")


@wrong("a message is tried once more than its budget says")
def _(patch: Patch) -> None:
    patch.setattr(
        Retries, "is_exhausted", lambda retries, offset: retries.tries_of(offset) > (retries._budget or FOREVER)
    )


@wrong("a batch that has failed stays a batch")
def _(patch: Patch) -> None:
    patch.setattr(Retries, "limit", lambda retries, upcoming, most: most)


@wrong("the state survives a failure")
def _(patch: Patch) -> None:
    def end(method: Callable[..., Any], ownership: Ownership, run: Run, **named: Any) -> Any:
        state = dict(ownership.user_state)
        told = method(ownership, run, **named)
        ownership.user_state.update(state)
        return told

    instead(patch, Ownership, "end", end)


@wrong("a seek is forgotten")
def _(patch: Patch) -> None:
    patch.setattr(Group, "redirect", lambda group, ownership, target, now: not ownership.over)


@wrong("a full queue is never asked for more")
def _(patch: Patch) -> None:
    instead(patch, Intake, "wants_pause", lambda method, intake, *args: intake.paused or method(intake, *args))


@wrong("a full queue is asked for more")
def _(patch: Patch) -> None:
    patch.setattr(Intake, "wants_pause", lambda intake, limits, now: False)


# -- rebalances and ends


@wrong("a lost member does not join again")
def _(patch: Patch) -> None:
    instead(patch, Group, "lose", lambda method, group, now, rejoin: method(group, now, rejoin=False))


@wrong("a loss is not seen before the client reports it")
def _(patch: Patch) -> None:
    patch.setattr(Member, "_check_membership", lambda member, now: None)


@wrong("a partition is handed over before its last commit")
def _(patch: Patch) -> None:
    patch.setattr(Group, "released", lambda group, ownerships: all(o.state >= State.RELEASING for o in ownerships))


@wrong("a hand-over does not wait for the handler")
def _(patch: Patch) -> None:
    patch.setattr(Ownership, "busy", property(lambda ownership: False))


@wrong("a drain has no bound")
def _(patch: Patch) -> None:
    after(patch, Ownership, "drain", lambda ownership, *_, **__: setattr(ownership, "deadline", FOREVER))


@wrong("an ownership does not wait for the handler of the one before it")
def _(patch: Patch) -> None:
    after(patch, Ownership, "__init__", lambda ownership, *_: setattr(ownership, "predecessor", None))


@wrong("handlers that an earlier run of the app left behind are ignored", hanging=0.1)
def _(patch: Patch) -> None:
    instead(patch, Group, "__init__", lambda method, *args, leftovers, **named: method(*args, **named))


@wrong("on_revoked runs after a stop")
def _(patch: Patch) -> None:
    instead(
        patch,
        Ownership,
        "finish",
        lambda method, ownership, state: (setattr(ownership, "stopping_app", False), method(ownership, state)),
    )


@wrong("a hook that had no time still runs")
def _(patch: Patch) -> None:
    keeping(patch, Ownership, "release", "hook_due")


@wrong("hooks without a worker block the next ownership for good", hanging=0.1, concurrency=1)
def _(patch: Patch) -> None:
    patch.setattr(Group, "close", lambda group, now: None)


# -- commits and time


@wrong("a request for a commit does not wake the committer")
def _(patch: Patch) -> None:
    keeping(patch, Group, "request_commit", "changed")


@wrong("what was refused of one partition counts for all")
def _(patch: Patch) -> None:
    def committed(method: Callable[..., Any], group: Group, commits: Any, refusals: Any, now: float) -> None:
        every = {one.ownership.tp: next(iter(refusals.values())) for one in commits} if refusals else {}
        method(group, commits, every, now)

    instead(patch, Group, "committed", committed)


@wrong("what was accepted of one partition counts for all")
def _(patch: Patch) -> None:
    def committed(method: Callable[..., Any], group: Group, commits: Any, refusals: Any, now: float) -> None:
        method(group, commits, refusals if len(refusals) == len(commits) else {}, now)

    instead(patch, Group, "committed", committed)


@wrong("a failed commit is tried again without a pause")
def _(patch: Patch) -> None:
    keeping(patch, Marks, "refused", "commit_at")


@wrong("a hand-over waits for a commit that was refused for good")
def _(patch: Patch) -> None:
    patch.setattr(Marks, "awaited", property(lambda marks: marks.pending))


@wrong("a commit that was refused is not waited for")
def _(patch: Patch) -> None:
    patch.setattr(Marks, "awaited", property(lambda marks: marks.pending and marks.refusal is None))


@wrong("what retention has deleted is skipped together with what is left")
def _(patch: Patch) -> None:
    patch.setattr("karafka_lite.core.starts.after_deletion", lambda place, position: Start(place.end, "deleted"))


@wrong("a reader that retention has overtaken drops what it has in hand")
def _(patch: Patch) -> None:
    patch.setattr(Intake, "fetch_from", lambda intake, offset: intake.stray and intake.go_to(offset))


@wrong("a topic that was made anew is taken for the old one")
def _(patch: Patch) -> None:
    patch.setattr(Note, "is_of", lambda note, topic_id: True)


@wrong("marks of a topic that was made anew count for the next ownership")
def _(patch: Patch) -> None:
    patch.setattr(Place, "after", lambda place, began_at, next_offset, note: place._replace(committed=next_offset))


@wrong("who takes the place of an ownership does not wait for its handler", hanging=0.1)
def _(patch: Patch) -> None:
    def own(group: Group, tp: Any) -> None:
        if group._placing:  # type: ignore[attr-defined]
            group.owned[tp].predecessor = None

    after(patch, Group, "_own", own)


@wrong("a paused ownership that is replaced is never resumed")
def _(patch: Patch) -> None:
    def place(method: Callable[..., Any], group: Group, ownership: Ownership, *args: Any) -> Any:
        start = method(group, ownership, *args)
        successor = group.owned.get(ownership.tp)
        if successor is not None and successor is not ownership:
            successor.intake.paused = False
        return start

    instead(patch, Group, "_place", place)


@wrong("a start that was chosen is not committed")
def _(patch: Patch) -> None:
    instead(
        patch,
        Marks,
        "begin_at",
        lambda method, *args, committed, commit_start: method(*args, committed=committed, commit_start=False),
    )


@wrong("who sleeps is not woken for what is due earlier")
def _(patch: Patch) -> None:
    instead(patch, Timers, "set", lambda method, *given: method(*given) and False)


@wrong("every is called once")
def _(patch: Patch) -> None:
    def end(ownership: Ownership, run: Run, **_: Any) -> None:
        if run.hook is Hook.EVERY:
            ownership.every_at.pop(run.hooks[0], None)

    after(patch, Ownership, "end", end)


# -- on_assigned


@wrong("a batch is handed over before on_assigned has returned")
def _(patch: Patch) -> None:
    def begin(method: Callable[..., Any], ownership: Ownership, now: float) -> Run | None:
        opening = ownership.opening
        if ownership.intake.size and ownership.state is State.ASSIGNED and not ownership.hook_due:
            ownership.opening = ()
        run: Run | None = method(ownership, now)
        ownership.opening = opening
        return run

    instead(patch, Ownership, "begin", begin)


@wrong("on_assigned is called once, also when it has failed")
def _(patch: Patch) -> None:
    instead(
        patch,
        Ownership,
        "_end_opening",
        lambda method, ownership, run, failed, now: method(ownership, run, False, now),
    )


@wrong("functions of on_assigned that have returned are called again", failing=0.4)
def _(patch: Patch) -> None:
    def end(ownership: Ownership, run: Run, failed: bool, now: float) -> None:
        if failed:
            ownership.opening = ownership.options.hooks_of(Hook.ON_ASSIGNED)

    after(patch, Ownership, "_end_opening", end)


@wrong("on_assigned is not called where nothing comes")
def _(patch: Patch) -> None:
    instead(
        patch,
        Ownership,
        "ready_at",
        lambda method, ownership: None if ownership.opening and not ownership.intake.size else method(ownership),
    )


@wrong("what on_assigned has opened is closed only after a batch")
def _(patch: Patch) -> None:
    patch.setattr(Ownership, "open", property(lambda ownership: ownership.handed))


@wrong("what on_assigned opens after the end has begun is not closed")
def _(patch: Patch) -> None:
    keeping(patch, Ownership, "_end_opening", "hook_due")


@wrong("a failed batch takes away what on_assigned has left in the state")
def _(patch: Patch) -> None:
    keeping(patch, Ownership, "_end_opening", "_kept")


@wrong("on_assigned that has failed leaves what it had put into the state", failing=0.4)
def _(patch: Patch) -> None:
    def end(method: Callable[..., Any], ownership: Ownership, *args: Any) -> None:
        state = dict(ownership.user_state)
        method(ownership, *args)
        ownership.user_state.update(state)

    instead(patch, Ownership, "_end_opening", end)


@wrong("hooks of the end become due although no worker will come", hanging=0.1)
def _(patch: Patch) -> None:
    patch.setattr(Ownership, "call_no_more", lambda ownership: setattr(ownership, "hook_due", None))


# -- parts of batches


@wrong("what a part has done is stored, whatever is before it", by_key=True)
def _(patch: Patch) -> None:
    patch.setattr(KeyMarks, "add_done", lambda marks, *ranges: Marks.mark(marks, ranges[-1][1]))


@wrong(
    "each message that a part has done is a mark",
    by_key=True,
    backward_marks=True,
    concurrency=1,
    max_messages=10,
    poll_records=20,
    commit_interval_ms=200,
    growth=1.0,
    unrest=5.0,
    sending=0.0,
    failing=0.0,
    hanging=0.0,
    poison=0.0,
)
def _(patch: Patch) -> None:
    def add_done(method: Callable[..., Any], marks: Marks, *ranges: tuple[int, int]) -> None:
        for one in ranges:
            method(marks, one)

    instead(patch, Marks, "add_done", add_done)


@wrong("messages are dealt whatever their keys are", by_key=True)
def _(patch: Patch) -> None:
    patch.setattr(parts, "deal", lambda records, most: [records[n::most] for n in range(min(most, len(records)))])


@wrong("the last part of a batch does not wait for the others", by_key=True)
def _(patch: Patch) -> None:
    def end_batch(method: Callable[..., Any], ownership: KeyOwnership, now: float) -> Any:
        inside, ownership.inside = ownership.inside, []
        told = method(ownership, now)
        ownership.inside = inside
        return told

    instead(patch, KeyOwnership, "_end_batch", end_batch)


@wrong("parts that wait are begun when the ownership is over", **PARTS_WAIT)
def _(patch: Patch) -> None:
    patch.setattr(KeyOwnership, "_drop", lambda ownership: None)


@wrong("a drain leaves parts that wait out", **PARTS_WAIT)
def _(patch: Patch) -> None:
    after(patch, KeyOwnership, "drain", lambda ownership, *_, **__: ownership._drop())


@wrong("a mark of a part does not wait for what it has sent", by_key=True, sending=0.5)
def _(patch: Patch) -> None:
    patch.setattr(parts.PartMarks, "commit_point", property(lambda marks: (marks.stored, marks.version)))


@wrong("what a part gave up does not wait for its dead letter", by_key=True, sending=0.5)
def _(patch: Patch) -> None:
    patch.setattr(parts.PartMarks, "done", property(lambda marks: marks._done))


@wrong("a part that failed is done", by_key=True)
def _(patch: Patch) -> None:
    def out(ownership: KeyOwnership, part: parts.Part) -> None:
        part.marks.mark(part.marks.delivered)

    after(patch, KeyOwnership, "_out", out)


@wrong("what a part has done comes again", by_key=True)
def _(patch: Patch) -> None:
    patch.setattr(KeyOwnership, "_wanted", lambda ownership, records: records)


@wrong("a hook marks what a part has not done", by_key=True)
def _(patch: Patch) -> None:
    patch.setattr(KeyMarks, "mark", lambda marks, offset: Marks.mark(marks, offset))


@wrong("a batch is marked by its parts after one has sought", by_key=True)
def _(patch: Patch) -> None:
    def end(method: Callable[..., Any], ownership: KeyOwnership, run: Run, **named: Any) -> Any:
        redirect = ownership.run.redirect if ownership.run is not None and run.is_part else None
        if redirect is None or named["failed"] or run.in_hand is not None:
            return method(ownership, run, **named)
        run.marks.mark(run.marks.delivered)
        return method(ownership, run, **named)

    instead(patch, KeyOwnership, "end", end)


@wrong("tries are counted for the messages of all parts", by_key=True, failing=0.4)
def _(patch: Patch) -> None:
    def gives_up(ownership: KeyOwnership, run: Run) -> None:
        if run.is_part and not run.excused and ownership.run is not None and ownership.options.budget is not None:
            others = [one.offset for one in ownership.run.records if one not in run.records]
            ownership.retries.count(others, known=False)

    after(patch, Ownership, "gives_up", gives_up)


@wrong("each part that fails is told of", by_key=True, failing=0.4)
def _(patch: Patch) -> None:
    instead(
        patch,
        KeyOwnership,
        "_end_batch",
        lambda method, ownership, now: [setattr(one, "beside", False) or one for one in method(ownership, now)],
    )


@wrong("of a part that failed nobody is told when the others were dropped", **PARTS_WAIT, failing=0.4)
def _(patch: Patch) -> None:
    after(patch, KeyOwnership, "_drop", lambda ownership: setattr(ownership, "untold", ()))


@wrong("a loop that was left in a part comes again at once", by_key=True)
def _(patch: Patch) -> None:
    instead(
        patch, KeyOwnership, "_end_batch", lambda method, one, now: (setattr(one, "_spins", False), method(one, now))[1]
    )


# -- exactly_once


EXACT: dict[str, Any] = {"exactly_once": 1.0}
REFUSED: dict[str, Any] = {**EXACT, "broken": (100, 10, 10)}
UNDECIDED: dict[str, Any] = {**EXACT, "broken": (10, 10, 100)}
# Commits take longer than a run waits for them.
SLOW: dict[str, Any] = {"drain_timeout_ms": 1000, "slow": 0.6, "unrest": 5.0, "growth": 0.1}
# Calls of a batch run side by side.
BUSY: dict[str, Any] = {"by_key": True, "concurrency": 4, "max_messages": 10, "poll_records": 20, "growth": 0.1}


@wrong("what was sent after a mark leaves with it", **EXACT)
def _(patch: Patch) -> None:
    patch.setattr(Sends, "released", lambda sends, version: [one for one in sends.held if one.mark.version <= version])


@wrong("nothing comes again because of what was refused when its run was over", **REFUSED, **SLOW)
def _(patch: Patch) -> None:
    patch.setattr(Ownership, "_come_again", lambda ownership: None)


@wrong("all partitions of a transaction are to blame for a message that was refused", **REFUSED)
def _(patch: Patch) -> None:
    def transacted(group: Group, commits: Any, ended: Any, now: float) -> None:
        if isinstance(ended, Refused):
            for commit in commits:
                commit.ownership.refused((commit.sends or [ended.held])[0], ended.error, now)

    after(patch, Commits, "transacted", transacted)


@wrong("what was sent before a seek is dropped by a failure", **EXACT, failing=0.4, backward_marks=True)
def _(patch: Patch) -> None:
    patch.setattr(Sends, "keep", lambda sends: None)


@wrong("what was committed leaves again with the next mark", **EXACT)
def _(patch: Patch) -> None:
    patch.setattr(Sends, "committed", lambda sends, version: None)


@wrong("an automatic mark is made after the wait for the commit", **EXACT)
def _(patch: Patch) -> None:
    patch.setattr(ExactOwnership, "returned", lambda ownership, run, failed: None)


@wrong("what is undecided is taken for failed", **UNDECIDED)
def _(patch: Patch) -> None:
    def transacted(method: Callable[..., Any], group: Group, commits: Any, ended: Any, now: float) -> Any:
        if isinstance(ended, Undecided):
            ended = Committed({}, {one.ownership.tp: Refusal(ended.error) for one in commits})
        return method(group, commits, ended, now)

    instead(patch, Group, "transacted", transacted)


@wrong("a failure drops nothing", **EXACT, failing=0.4)
def _(patch: Patch) -> None:
    patch.setattr(Marks, "drop", lambda marks, of_run: None)


@wrong("a failure drops only what its own run has sent", **EXACT, failing=0.4)
def _(patch: Patch) -> None:
    instead(patch, Marks, "drop", lambda method, marks, of_run: method(marks, of_run=True))


@wrong("marks after a refused message stay", **REFUSED)
def _(patch: Patch) -> None:
    keeping(patch, Marks, "refused_with", "stored", "version", "retry_position")


@wrong(
    "what counts as given up because of a dead letter stays so when that is dropped",
    **EXACT,
    failing=0.4,
    max_messages=10,
    poll_records=20,
    poison=0.0,
    hanging=0.0,
    unrest=5.0,
    growth=0.1,
)
def _(patch: Patch) -> None:
    patch.setattr(Marks, "_take_back", lambda marks, dropped: None)


@wrong("the parts of a unit are marked one by one", **EXACT, by_key=True)
def _(patch: Patch) -> None:
    ledger = parts.PartMarks
    patch.setattr(UnitOwnership, "_ledger", lambda unit, spans, offsets: ledger(unit.marks, spans, offsets))


@wrong("a unit is marked although a part of it has failed", **EXACT, by_key=True)
def _(patch: Patch) -> None:
    def returned(method: Callable[..., Any], unit: UnitOwnership, run: Run, *, failed: bool) -> None:
        method(unit, run, failed=failed and not run.is_part)

    instead(patch, UnitOwnership, "returned", returned)


@wrong(
    "what a hook that has raised has sent leaves with the mark of another one",
    **EXACT,
    failing=0.2,
    unrest=1.0,
    growth=0.1,
    hanging=0.0,
    poison=0.0,
)
def _(patch: Patch) -> None:
    patch.setattr(ExactOwnership, "function_ended", lambda ownership, failed: None)


@wrong("what an ownership that is over has sent leaves", **EXACT)
def _(patch: Patch) -> None:
    patch.setattr(Sends, "end", lambda sends: None)


@wrong("a transaction has the generation of its begin", **EXACT, unrest=0.3, drain_timeout_ms=1000)
def _(patch: Patch) -> None:
    instead(
        patch,
        SimulatedTransactions,
        "commit",
        lambda method, transactions, client, commits, _: (
            transactions._pause(transactions._world.now + 6.0),
            method(transactions, client, commits, client.generation()),
        )[1],
    )


@wrong("offsets without messages are committed beside transactions", **EXACT, max_messages=1)
def _(patch: Patch) -> None:
    def commit(method: Callable[..., Any], transactions: Any, client: Any, commits: Any, generation: int) -> Any:
        if any(commit.sends for commit in commits):
            return method(transactions, client, commits, generation)
        world, session = transactions._world, client.session
        sent = transactions._life.books.on_the_way(commits)

        def arrive() -> None:
            world.pause(world.now + 6.0)
            client._arrives(sent, session, generation)

        world.spawn(None, "late commit", arrive)
        world.pause(world.now + 5.0)
        return Committed({}, {commit.ownership.tp: Refusal(CommitError("no answer")) for commit in commits})

    instead(patch, SimulatedTransactions, "commit", commit)


@wrong("a start does not wait for a transaction that is open", **UNDECIDED, unrest=1.0)
def _(patch: Patch) -> None:
    patch.setattr(Producers, "waits", lambda producers, tp: False)


@wrong("a run that rests is not woken when its time is over", **{**EXACT, **SLOW, "broken": (0, 1000, 0)})
def _(patch: Patch) -> None:
    instead(
        patch, Member, "_keep", lambda method, member, run, deadline, coroutine: method(member, run, FOREVER, coroutine)
    )


@wrong("a run that rests goes on twice", **EXACT)
def _(patch: Patch) -> None:
    def wake(method: Callable[..., Any], member: Member) -> None:
        resting = dict(member._resting)
        method(member)
        for run in resting.keys() - member._resting.keys():
            member._workers[run.ownership.tp[0]].put(member, resting[run][1])  # type: ignore[union-attr]

    instead(patch, Member, "_wake_resting", wake)


@wrong("of the parts of a unit that rest only the last one goes on", **EXACT, **BUSY, interrupts=0.8)
def _(patch: Patch) -> None:
    def keep(method: Callable[..., Any], member: Member, run: Run, *given: Any) -> None:
        for one in [one for one in member._resting if one.ownership is run.ownership]:
            run.marks._whole.book.life.world.rested.add(member._resting.pop(one)[1])  # type: ignore[attr-defined]
        method(member, run, *given)

    instead(patch, Member, "_keep", keep)


@wrong("a run that waits for its commit waits for the interval", **EXACT, commit_interval_ms=5000)
def _(patch: Patch) -> None:
    patch.setattr(Group, "claim", lambda group, ownership, now: group._settle(ownership, now))


@wrong("futures are not told of the commit", **EXACT)
def _(patch: Patch) -> None:
    patch.setattr("karafka_lite.runner.pass_on", lambda held: None)


# One worker of pytest runs them, one after the other: the other cores are for tests that watch the clock.
@pytest.mark.xdist_group("mutations")
@pytest.mark.parametrize("what", MUTATIONS)
def test_the_simulation_notices_when(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation, settings = MUTATIONS[what]
    mutation(monkeypatch)
    with pytest.raises(Violation) as noticed:
        simulate(**{"first_seed": 1, "events": EVENTS, "by_key": False, "exactly_once": 0.0, **settings})  # type: ignore[arg-type]
    told = "".join(traceback.format_exception(noticed.value))
    assert not FAULT_OF_A_MUTATION.search(told), f"the mutation does not fit what it changes any more:\n{told}"
