"""The rules are broken one by one in a copy of the package, and the simulation has to notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import karafka_lite

EVENTS = 600_000  # most are noticed within 10,000
SIMULATION = Path(__file__).with_name("simulation.py")

# What would be wrong, where, and how: the line that keeps the rule, and what stands there instead.
MUTATIONS = {
    "marks count while the last commit is under way": (
        "partition",
        "if self.state >= RELEASING:",
        "if self.state >= State.REVOKED:",
    ),
    "marks are refused during a drain": (
        "partition",
        "if self.state >= RELEASING:",
        "if self.state >= State.DRAINING:",
    ),
    "a drain keeps the queue": (
        "partition",
        "self.deadline = deadline\n        self.backlog.clear()",
        "self.deadline = deadline",
    ),
    "a failed batch is not read again": (
        "partition",
        "if redirect is None:\n            self.begin_next_at(self.retry_position)",
        "if redirect is None:\n            pass",
    ),
    "a failed batch is read again behind what was queued": (
        "partition",
        "self.backlog.clear()\n        if isinstance(target, int):",
        "if isinstance(target, int):",
    ),
    "the state survives a failure": ("partition", "self.user_state.clear()  # a buffer", "pass  # a buffer"),
    "attempts are not counted": ("partition", "self.attempt += 1", "pass"),
    "attempts are counted on after a success": ("partition", "return\n        self.attempt = 1", "return"),
    "there is no back-off": (
        "partition",
        "wait = self.policy.backoff.delay_ms(self.attempt)",
        "wait = 0.0 * self.policy.backoff.delay_ms(self.attempt)",
    ),
    "a mark does not move the retry position": ("partition", "self.retry_position = offset\n", "pass\n"),
    "automatic: a batch is not marked": (
        "partition",
        "self.mark(self.processed)\n\n    def _repeat",
        "pass\n\n    def _repeat",
    ),
    "automatic: a failed batch is marked": (
        "partition",
        "if failed:\n",
        "if failed:\n            self.mark(following(run.records[-1].offset))\n",
    ),
    "an older mark is not stored": (
        "partition",
        "if offset != self.stored:",
        "if self.stored is None or offset > self.stored:",
    ),
    "a commit is taken for the newest mark": (
        "partition",
        "self.committed_version = version",
        "self.committed_version = self.version",
    ),
    "a start at the end of the log is not committed": ("partition", "elif commit_start:", "elif False:"),
    "a start at the end of the log is committed too late": (
        "partition",
        "if self.pending and not self.handed:",
        "if False:",
    ),
    "a predecessor is ignored": (
        "partition",
        "if self.running or (self.predecessor and self.predecessor.busy):",
        "if self.running:",
    ),
    "a predecessor's hook is ignored": ("partition", "self.predecessor.busy):", "self.predecessor.running):"),
    "two runs of one partition": ("partition", "if self.running or (self.predecessor", "if (self.predecessor"),
    "a hook that had no time still runs": (
        "partition",
        "self.deadline = commit_deadline\n        self.hook_due = None",
        "self.deadline = commit_deadline",
    ),
    "on_revoked runs after a stop": ("partition", "if state is State.LOST or not self.stopping_app:", "if True:"),
    "on_revoked does not run after a loss": (
        "partition",
        "if state is State.LOST or not self.stopping_app:",
        "if state is not State.LOST and not self.stopping_app:",
    ),
    "hooks run for what was never handed over": ("partition", "if self.handed and hook in", "if hook in"),
    "a partition is never resumed": (
        "partition",
        ">= limit or now < self.fetch_at",
        ">= limit or self.paused or now < self.fetch_at",
    ),
    "a partition that could not be read rests for good": (
        "partition",
        "or now < self.fetch_at",
        "or self.fetch_at > 0",
    ),
    "a partition is never paused": (
        "partition",
        "return self.backlog.filled(self.policy.max_messages, room) >= limit or",
        "return",
    ),
    "bytes are not counted": (
        "backlog",
        "max(self.size / messages, self.size_bytes / room.size_bytes)",
        "self.size / messages",
    ),
    "a full queue waits for what cannot come": ("partition", " or self.paused  # paused: no more comes", ""),
    "what was fetched before a seek is queued": (
        "partition",
        "if self.seek_to is not None or self.target is not None:",
        "if self.target is not None:",
    ),
    "what is left of a chunk is thrown away": (
        "backlog",
        "self._chunks.appendleft((chunk[room:], end_offset, each_bytes))",
        "self.size -= len(chunk) - room",
    ),
    "chunks are handed over in the wrong order": ("backlog", "self._chunks.popleft()", "self._chunks.pop()"),
    "the message in hand of a loop that was left is skipped": (
        "partition",
        "elif run.in_hand is not None:",
        "elif False:",
    ),
    "a loop that is left without a mark spins": ("partition", "if self.version == run.version:", "if False:"),
    "a seek is forgotten": ("group", "partition.run.redirect = target", "pass"),
    "a seek of a failed run is forgotten": (
        "partition",
        "else:\n            self.redirect(redirect)",
        "else:\n            self.begin_next_at(self.retry_position)",
    ),
    "a pause is ignored": (
        "partition",
        "ready_at = max(self.not_before, self.rests_until)",
        "ready_at = self.not_before",
    ),
    "every is called too early": ("partition", "if at <= now)", "if at <= now + 1.0)"),
    "every is called once": (
        "partition",
        "self.every_at[run.number] = now + self",
        "self.every_at[run.number] = 1e9 + self",
    ),
    "every has no time": ("partition", "else [batch_at, *self.every_at]", "else [batch_at]"),
    "a pause is for good": ("group", "partition.rests_until = until", "partition.rests_until = until + 1e9"),
    "a loss does not refuse a seek": (
        "group",
        "if partition.over:\n            return False\n        if partition.run",
        "if partition.run",
    ),
    "what was fetched while a place is looked up is queued": (
        "partition",
        "if self.seek_to is not None or self.target is not None:",
        "if self.seek_to is not None:",
    ),
    "a batch does not wait for its timeout": (
        "partition",
        "return max(ready_at, self.queued_since + self.policy.batch_timeout_ms / 1000)",
        "return ready_at",
    ),
    "a job that has passed blocks the partition": ("partition", "self.enlisted = False\n        due", "due"),
    "a partition is handed over before its last commit": (
        "group",
        "return all(p.state >= State.REVOKED",
        "return all(p.state >= State.RELEASING",
    ),
    "a hand-over does not wait for the handler": ("group", "(not partition.busy or now >= partition.deadline)", "True"),
    "a drain has no bound": ("group", "(not partition.busy or now >= partition.deadline)", "not partition.busy"),
    "a hand-over does not wait for its commit": (
        "group",
        "(not partition.pending or now >= partition.deadline)",
        "True",
    ),
    "a last commit has no bound": (
        "group",
        "(not partition.pending or now >= partition.deadline)",
        "not partition.pending",
    ),
    "a last commit has no time of its own": (
        "group",
        "partition.release(max(partition.deadline, now + FINAL_COMMIT_S))",
        "partition.release(partition.deadline)",
    ),
    "a loss spares what is being drained": (
        "group",
        "lost = list(self.owned.values())",
        "lost = [p for p in self.owned.values() if p.state is State.ASSIGNED]",
    ),
    "what is over is committed": (
        "group",
        "ready = [p for p in self.owned.values() if p.committable]",
        "ready = [p for p in [*self.owned.values(), *self.leftovers.values()] if p.committable]",
    ),
    "a handler that outlives its ownership is forgotten": (
        "group",
        "self.leftovers[partition.place] = partition",
        "pass",
    ),
    "hooks without a worker block the successor for good": ("group", "partition.hook_due = None\n", "pass\n"),
    "leftovers of an earlier run are ignored": ("group", "= {p.place: p for p in leftovers}", "= {}"),
    "an assignment is taken while stopping": (
        "group",
        "if self.stopping:\n            return []",
        "if False:\n            return []",
    ),
    "a stop runs the hooks of a hand-over": ("group", "stopping_app=True", "stopping_app=False"),
    "a lost member does not join anew": ("group", "self._join_anew = join_anew", "self._join_anew = False"),
    "a seek is never done": ("group", "if partition.seek_to is not None:", "if False:"),
    "a seek is done again and again": ("group", "partition.seek_to = None\n", "pass\n"),
    "a requested commit waits for the interval": (
        "group",
        "self._commit_requested = True\n        self.news = True\n\n    def answered",
        "pass\n\n    def answered",
    ),
    "a request does not wake the committer": (
        "group",
        "self._commit_requested = True\n        self.news = True\n\n    def answered",
        "self._commit_requested = True\n\n    def answered",
    ),
    "commits do not keep to their interval": (
        "group",
        "self._commit_at = now + self._interval\n        elif",
        "pass\n        elif",
    ),
    "a failed commit is tried again without a pause": ("group", "if now < self._commit_retry_at:", "if False:"),
    "a failed commit waits for the interval": (
        "group",
        "COMMIT_RETRY.delay_ms(self._commit_failures) / 1000\n        self._commit_requested = True",
        "COMMIT_RETRY.delay_ms(self._commit_failures) / 1000",
    ),
    "a topic that refuses commits holds up the others": (
        "group",
        "if self._refusing.intersection(p.place[0] for p in ready):",
        "if False:",
    ),
    "a topic that refuses commits is tried again and again": ("group", "self._commit_turns[topic] = ", "unused = "),
    "an acknowledged commit does not end the hand-over": (
        "group",
        "partition.commit_succeeded(offset, version)\n                self._settle(partition, now)",
        "partition.commit_succeeded(offset, version)",
    ),
    "a mark does not wait for what was sent before it": (
        "partition",
        "mark = self._sends[0] if self._sends else self",
        "mark = self",
    ),
    "a mark waits for one send only": (
        "partition",
        "while self._sends and self._sends[0].acknowledged:",
        "if self._sends:",
    ),
    "a failed send leaves the marks behind it": (
        "partition",
        "self.stored, self.version, self.retry_position = send.stored, send.version, send.retry_position",
        "pass",
    ),
    "a failed send leaves the retry position": (
        "partition",
        "self.stored, self.version, self.retry_position = send.stored, send.version, send.retry_position",
        "self.stored, self.version = send.stored, send.version",
    ),
    "what a hook could not send does not come again": (
        "partition",
        "if unsent and self.state is State.ASSIGNED:",
        "if False:",
    ),
    "a failed send is forgotten": ("partition", "self.failure = self.failure or failure", "pass"),
    "a mark behind a failed send counts": (
        "partition",
        "if self.failure is not None:\n            return True",
        "if False:\n            return True",
    ),
    "the failure of a send outlives its run": ("partition", "self.run = self.failure = None", "self.run = None"),
    "a hand-over does not wait for what was sent": (
        "group",
        "partition.answered(send, failure)\n",
        "partition.answered(send, None)\n",
    ),
    "a request for a commit does not wait for what was sent": (
        "group",
        "self._commit_requested &= any(p.version != p.backed[1] for p in self.owned.values())",
        "self._commit_requested = False",
    ),
    "nobody is told of the last answer": (
        "group",
        "self.news |= waited_for or failure is not None or not partition.unanswered",
        "pass",
    ),
    "failures are not counted for each message": (
        "partition",
        "Tries(before.all + 1, before.alone + alone)",
        "Tries(before.all, before.alone)",
    ),
    "a message that a loop over each did not reach counts as tried": (
        "partition",
        "if reached and record.offset >= self.retry_position:",
        "if record.offset >= self.retry_position:",
    ),
    "a message is given up with its batch": (
        "partition",
        "Tries(before.all + 1, before.alone + alone)",
        "Tries(before.all + 1, before.alone + 1)",
    ),
    "a message has no budget of its own": (
        "partition",
        "self.tries(offset).alone < self.policy.budget",
        "self.tries(offset).all < self.policy.budget",
    ),
    "a batch that failed too often stays a batch": ("partition", "return max(next(alone, limit), 1)", "return limit"),
    "what succeeded keeps its failures": (
        "partition",
        "self._tries.pop(record.offset, None)\n        if self._set_aside",
        "pass\n        if self._set_aside",
    ),
    "a marked message is given up": (
        "partition",
        "if reached and record.offset >= self.retry_position:",
        "if reached:",
    ),
    "what was lost is given up": ("partition", "or self.over or self.tries", "or self.tries"),
    "a message is given up although the handler wants to go on elsewhere": (
        "partition",
        "if run.redirect is not None or self.over or",
        "if self.over or",
    ),
    "manual: what is set aside is marked although something before it is not": (
        "partition",
        "if before == self.retry_position:",
        "if True:",
    ),
    "manual: what is not marked before a message that was set aside does not come again": (
        "partition",
        "self.begin_next_at(self.retry_position)\n\n    def _past",
        "pass\n\n    def _past",
    ),
    "manual: what was set aside is handed over again": (
        "partition",
        "gone = set(self._set_aside.values())",
        "gone = set()",
    ),
    "manual: what was set aside never counts as marked": (
        "partition",
        "offset = self._past_set_aside(offset) if self._set_aside else offset",
        "pass",
    ),
    "manual: several that were set aside never count as marked": (
        "partition",
        "before, self.processed = self._past_set_aside(self.processed), ",
        "before, self.processed = self.processed, ",
    ),
    "automatic: what is set aside is not marked": (
        "partition",
        "self.mark(self.processed)\n            return",
        "return",
    ),
    "the state survives a message that is set aside": (
        "partition",
        "self.user_state.clear()\n        (record,)",
        "(record,)",
    ),
    "a message that has to be tried by itself waits for others": (
        "partition",
        "batch_timeout_ms or self._isolates():",
        "batch_timeout_ms:",
    ),
    "nobody gets up for the bound of a drain": ("group", "times.append(partition.deadline)", "pass"),
    "nobody gets up for the end of a back-off": ("group", "times.append(ready_at)", "pass"),
    "who sleeps is not told of a batch that waits": ("group", "self.news = True  # who sleeps", "pass  # who sleeps"),
}


def simulate_with(source: str, rule: str, instead: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the simulation on a copy of the package in which ``rule`` is replaced."""
    package = Path(karafka_lite.__file__).parent
    shutil.copytree(package, folder / "karafka_lite", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "karafka_lite" / f"{source}.py"
    text = file.read_text()
    assert text.count(rule) == 1, f"{source}.py has changed, this mutation has to be written anew: {rule}"
    file.write_text(text.replace(rule, instead))
    return subprocess.run(
        [sys.executable, SIMULATION, "--events", str(EVENTS)],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.xdist_group("mutations")  # one core's worth at a time: the others are for tests that watch the clock
@pytest.mark.parametrize("wrong", MUTATIONS)
def test_the_simulation_notices_when(wrong: str, tmp_path: Path) -> None:
    done = simulate_with(*MUTATIONS[wrong], tmp_path)
    assert "ledger.Violation" in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
