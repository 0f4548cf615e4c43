"""What happened in a chaos run, told by nobody but its witnesses: the members' own facts, the watcher, the driver.

Pure: ``judge`` takes facts and returns a Verdict, so that the judge can be tested with made-up crimes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

Place = tuple[str, int]
Fact = Mapping[str, Any]

GRACE_S = 1.0  # after SIGCONT: until a member that was evicted meanwhile can know it
RECOVERY_S = 3.0  # after a breakage: until a request is answered again


class Pause(NamedTuple):
    """A member was stopped with SIGSTOP, or a broker or the network did not work."""

    began: float
    ended: float


class Commit(NamedTuple):
    """What the watcher was answered, and when."""

    at: float
    offset: int


class Sent(NamedTuple):
    """What the producer was told."""

    number: int
    at: float


class Deletion(NamedTuple):
    """Everything before an offset is gone, as after its retention."""

    at: float
    before: int


@dataclass
class Script:
    """What the driver did, and what the broker says at the end."""

    session_s: float
    kills: dict[str, float] = field(default_factory=dict)  # member -> when
    pauses: dict[str, list[Pause]] = field(default_factory=dict)
    forced: dict[str, float] = field(default_factory=dict)  # member that ended with 2: no answer in time -> when
    breakages: list[Pause] = field(default_factory=list)  # of brokers and of the network
    deleted: dict[Place, list[Deletion]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, float] = field(default_factory=dict)  # topic that was deleted -> when
    produced: dict[Place, dict[int, Sent]] = field(default_factory=lambda: defaultdict(dict))  # by offset
    ends: dict[Place, int] = field(default_factory=dict)
    committed: dict[Place, int | None] = field(default_factory=dict)


@dataclass
class Verdict:
    """Counts for the report, and every crime in words; none is what the framework promises."""

    figures: Counter[str] = field(default_factory=Counter)
    crimes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    longest_silence_s: float = 0.0  # of a partition that had messages to process

    def add(self, other: Verdict) -> None:
        self.figures.update(other.figures)
        for kind, cases in other.crimes.items():
            self.crimes[kind].extend(cases)
        self.longest_silence_s = max(self.longest_silence_s, other.longest_silence_s)

    def crime(self, kind: str, text: str) -> None:
        self.figures[kind] += 1
        self.crimes[kind].append(text)


@dataclass
class Run:
    """One call of a handler, as its facts tell it."""

    member: str
    own: int
    place: Place
    at: float
    first: int
    done: list[tuple[int, float]] = field(default_factory=list)  # offset, when
    marked: list[tuple[int, bool, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.member}/{self.own} {self.place[0]}-{self.place[1]}@{self.first} handed at {self.at:.3f}"


def judge(members: Mapping[str, Sequence[Fact]], watched: Iterable[Fact], script: Script) -> Verdict:
    """``members``: the facts of each member in their order; ``watched``: the watcher's in theirs."""
    commits: dict[Place, list[Commit]] = defaultdict(list)
    for fact in watched:
        commits[fact["topic"], fact["partition"]].append(Commit(fact["at"], fact["offset"]))
    runs: dict[Place, list[Run]] = defaultdict(list)
    for run in sorted((run for name, facts in members.items() for run in _runs(name, facts)), key=lambda run: run.at):
        runs[run.place].append(run)
    verdict = Verdict()
    excuses = _Excuses(script, _hooks(members))
    for place in sorted({*script.ends, *runs}):
        end = script.ends.get(place)  # None: with its topic
        _PartitionCase(place, end, runs[place], commits[place], script, excuses, verdict).hear()
    _judge_numbers(members, script, verdict)
    verdict.figures["messages"] = sum(script.ends.values())
    verdict.figures["ownerships"] = len({(run.member, run.own) for some in runs.values() for run in some})
    return verdict


def _runs(member: str, facts: Iterable[Fact]) -> Iterable[Run]:
    current: dict[Place, Run] = {}  # a partition is never handled twice at a time by one member
    for fact in facts:
        place = (fact["topic"], fact["partition"])
        if fact["kind"] == "handed":
            current[place] = Run(member, fact["own"], place, fact["at"], fact["first"])
            yield current[place]
        elif fact["kind"] == "done":
            if place not in current:  # its batch began in another life of the topic: that is for the judge of order
                current[place] = Run(member, fact["own"], place, fact["at"], fact["offset"])
                yield current[place]
            current[place].done.append((fact["offset"], fact["at"]))
        elif fact["kind"] == "marked" and (fact["ok"] or not fact["sync"]):
            # A blocking mark that says False is no answer: it was stored, and what it waited for may have happened.
            current[place].marked.append((fact["offset"], fact["ok"], fact["at"]))


def _hooks(members: Mapping[str, Sequence[Fact]]) -> dict[tuple[str, int], dict[str, float]]:
    """When each hook of an ownership was called."""
    hooks: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for name, facts in members.items():
        for fact in facts:
            if fact["kind"] == "hook":
                hooks[name, fact["own"]][fact["hook"]] = fact["at"]
    return hooks


@dataclass
class _Excuses:
    """What may excuse a repetition or an overlap."""

    script: Script
    hooks: Mapping[tuple[str, int], Mapping[str, float]]

    def killed(self, run: Run, before: float) -> bool:
        when = self.script.kills.get(run.member)
        return when is not None and run.at <= when <= before

    def paused(self, run: Run, until: float) -> bool:
        """Its member was stopped for about a session or longer, and the run or what came of it lies in that time."""
        return any(
            pause.ended - pause.began > self.script.session_s * 0.8
            and pause.began <= until
            and run.at <= pause.ended + GRACE_S
            for pause in self.script.pauses.get(run.member, ())
        )

    def lost(self, run: Run) -> bool:
        """Its ownership ended with ``on_revoked`` alone: the membership was lost, not handed over."""
        hooks = self.hooks.get((run.member, run.own), {})
        return "on_revoked" in hooks and "before_revoke" not in hooks

    def handed_over_unheard(self, run: Run) -> bool:
        """Something was broken while it was handed over: its last commit may have had no answer."""
        hooks = self.hooks.get((run.member, run.own), {})
        began, ended = hooks.get("before_revoke"), hooks.get("on_revoked")
        return None not in (began, ended) and any(
            breakage.began <= ended and began <= breakage.ended + RECOVERY_S for breakage in self.script.breakages
        )

    def repetition(self, earlier: Run, later: Run, at: float) -> str:
        """Why ``later`` may repeat, at ``at``, what ``earlier`` has done; "" when nothing excuses it."""
        if self.killed(earlier, later.at):
            return "kill"
        if self.paused(earlier, at) or self.paused(later, at):
            return "stop"
        if self.script.breakages and (self.lost(earlier) or self.handed_over_unheard(earlier)):
            return "breakage"
        if earlier.at <= self.script.forced.get(earlier.member, 0.0) <= later.at:
            return "forced stop"
        if at >= self.script.ended.get(earlier.place[0], float("inf")):
            return "deletion"
        return ""


@dataclass
class _PartitionCase:
    """One partition: its runs in the order of time, and what was seen committed."""

    place: Place
    end: int | None
    runs: Sequence[Run]
    commits: Sequence[Commit]
    script: Script
    excuses: _Excuses
    verdict: Verdict

    def hear(self) -> None:
        self.name = f"{self.place[0]}-{self.place[1]}"
        self.first_done: dict[int, float] = {}
        for run in self.runs:
            for offset, at in run.done:
                self.first_done[offset] = min(at, self.first_done.get(offset, at))
        self.deleted = self.script.deleted.get(self.place, [])
        if self.end is not None:
            self.losses(self.end)
        self.order()
        self.repetitions()
        self.overlaps()
        self.early_commits()
        self.silence()

    def gone_at(self, offset: int) -> float:
        """When it was deleted."""
        return min((deletion.at for deletion in self.deleted if offset < deletion.before), default=float("inf"))

    def losses(self, end: int) -> None:
        """Everything was processed, marked (or nobody was left to hear the answer), and is committed."""
        refused: dict[int, Run] = {}
        fine: set[int] = set()
        for run in self.runs:
            answers = {offset: ok for offset, ok, _ in run.marked}
            for offset, _ in run.done:
                if answers.get(offset, True):
                    fine.add(offset)
                else:
                    refused[offset] = run
        for offset in range(end):
            if offset not in self.first_done and self.gone_at(offset) < float("inf"):
                self.verdict.figures["deleted before they were processed"] += 1
            elif offset not in self.first_done:
                self.verdict.crime("lost", f"{self.name}@{offset} was never processed")
            elif offset not in fine:
                self.verdict.crime("lost", f"{self.name}@{offset}: its only mark was refused, by {refused[offset]}")
        committed = self.script.committed.get(self.place)
        if end and committed != end and self.gone_at(end - 1) == float("inf"):
            self.verdict.crime("not committed at the end", f"{self.name}: {committed}, ends at {end}")

    def order(self) -> None:
        """Within an ownership each offset follows the one before, or what was deleted."""
        last: dict[tuple[str, int], int] = {}
        for run in self.runs:
            for offset, _ in run.done:
                before = last.get((run.member, run.own))
                begins = (
                    {before + 1, *(deletion.before for deletion in self.deleted)} if before is not None else {offset}
                )
                if offset not in begins:
                    self.verdict.crime("order", f"{self.name}: {offset} behind {before} in {run}")
                last[run.member, run.own] = offset

    def repetitions(self) -> None:
        """Only what was not committed when its owner was killed or stopped comes again."""
        last: dict[int, Run] = {}
        times = [commit.at for commit in self.commits]
        for run in self.runs:
            for offset, at in run.done:
                earlier, last[offset] = last.get(offset), run
                if earlier is None:
                    continue
                excuse = self.excuses.repetition(earlier, run, at)
                if not excuse:
                    self.verdict.crime("repeated", f"{self.name}@{offset}: {earlier}, again {run}")
                    continue
                self.verdict.figures[f"repeated after a {excuse}"] += 1
                seen = bisect_right(times, run.at)
                if seen and self.commits[seen - 1].offset > offset and not self.excuses.paused(run, at):
                    told = f"{self.name}@{offset}: {self.commits[seen - 1].offset} was committed, {run}"
                    self.verdict.crime("repeated although committed", told)

    def overlaps(self) -> None:
        """Once a new owner was handed a batch, the old one is handed nothing, marks nothing, processes nothing."""
        began: dict[tuple[str, int], float] = {}
        for run in self.runs:
            began.setdefault((run.member, run.own), run.at)
        heirs = {owner: began[heir] for owner, heir in pairwise(sorted(began, key=began.__getitem__))}
        for run in self.runs:
            heir_at = heirs.get((run.member, run.own), float("inf"))
            marks = [at for _, ok, at in run.marked if ok and at > heir_at]
            late = [at for at in (run.at, *(at for _, at in run.done)) if at > heir_at]
            if not late and not marks:
                continue
            last = max(late + marks)
            told = f"{self.name}: {run} until {last:.3f}, its heir was handed a batch at {heir_at:.3f}"
            if self.excuses.paused(run, last):
                self.verdict.figures["still processing after a stop"] += 1
                if marks or run.at > heir_at:
                    self.verdict.crime("marked or handed over after a stop", told)
            elif marks or run.at > heir_at or not self.excuses.lost(run):
                self.verdict.crime("overlaps", told)
            else:
                self.verdict.figures["still processing after a loss"] += 1

    def early_commits(self) -> None:
        """What was seen committed had been processed by then, and never went back."""
        below, latest, highest, before = 0, 0.0, 0, -1
        for at, offset in self.commits:
            if offset == before:
                continue
            before = offset
            if offset < highest:
                self.verdict.crime("commit went back", f"{self.name}: {highest} to {offset} at {at:.3f}")
            highest = max(highest, offset)
            while below < offset:
                latest = max(latest, min(self.first_done.get(below, float("inf")), self.gone_at(below)))
                below += 1
            if latest > at:
                told = f"{self.name}: {offset} was committed at {at:.3f}, before all below was processed"
                self.verdict.crime("committed ahead", told)

    def silence(self) -> None:
        free = 0.0
        for offset, sent in sorted(self.script.produced.get(self.place, {}).items()):
            if offset in self.first_done and self.end is not None:
                waited = self.first_done[offset] - max(sent.at, free)
                self.verdict.longest_silence_s = max(self.verdict.longest_silence_s, waited)
                free = max(free, self.first_done[offset])


def _judge_numbers(members: Mapping[str, Sequence[Fact]], script: Script, verdict: Verdict) -> None:
    """What was handed over at an offset is what the producer was told to have written there."""
    for name, facts in members.items():
        for fact in facts:
            if fact["kind"] == "done":
                sent = script.produced.get((fact["topic"], fact["partition"]), {}).get(fact["offset"])
                if sent and sent.number != fact["number"]:
                    verdict.crime("wrong message", f"{name}: {fact} instead of {sent.number}")
