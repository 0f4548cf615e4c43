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
        "partition", "if self.state >= RELEASING:", "if self.state >= State.REVOKED:"),
    "marks are refused during a drain": (
        "partition", "if self.state >= RELEASING:", "if self.state >= State.DRAINING:"),
    "a drain keeps the queue": (
        "partition", "self.deadline = deadline\n        self.drop_queue()", "self.deadline = deadline"),
    "a failed batch is not read again": (
        "partition", "self.begin_next_at(self.retry_position if run.redirect is None else run.redirect)", "pass"),
    "a failed batch is read again behind what was queued": (
        "partition", "self.drop_queue()\n        if isinstance(target, int):", "if isinstance(target, int):"),
    "the state survives a failure": ("partition", "self.user_state.clear()", "pass"),
    "attempts are not counted": ("partition", "self.attempt += 1", "pass"),
    "attempts are counted on after a success": ("partition", "return\n        self.attempt = 1", "return"),
    "there is no back-off": ("partition", "self.not_before = now + self.policy.backoff.delay_ms(self.attempt)",
        "self.not_before = 0.0 * self.policy.backoff.delay_ms(self.attempt)"),
    "a mark does not move the retry position": (
        "partition", "self.retry_position = offset\n", "pass\n"),
    "automatic: a batch is not marked": ("partition", "self.mark(self.processed)", "pass"),
    "automatic: a failed batch is marked": (
        "partition", "if failed:\n", "if failed:\n            self.mark(following(run.records[-1].offset))\n"),
    "an older mark is not stored": (
        "partition", "if offset != self.stored:", "if self.stored is None or offset > self.stored:"),
    "a commit is taken for the newest mark": (
        "partition", "self.committed_version = version", "self.committed_version = self.version"),
    "a start at the end of the log is not committed": ("partition", "elif commit_start:", "elif False:"),
    "a start at the end of the log is committed too late": (
        "partition", "if self.pending and not self.handed:", "if False:"),
    "a predecessor is ignored": (
        "partition", "if self.running or (self.predecessor and self.predecessor.busy):", "if self.running:"),
    "a predecessor's hook is ignored": ("partition", "self.predecessor.busy):", "self.predecessor.running):"),
    "two runs of one partition": (
        "partition", "if self.running or (self.predecessor", "if (self.predecessor"),
    "a hook that had no time still runs": (
        "partition", "self.deadline = commit_deadline\n        self.hook_due = None",
        "self.deadline = commit_deadline"),
    "on_revoked runs after a stop": (
        "partition", "if state is State.LOST or not self.stopping_app:", "if True:"),
    "on_revoked does not run after a loss": (
        "partition", "if state is State.LOST or not self.stopping_app:",
        "if state is not State.LOST and not self.stopping_app:"),
    "hooks run for what was never handed over": ("partition", "if self.handed and hook in", "if hook in"),
    "a partition is never resumed": (
        "partition", "return self.queued >= limit or", "return self.paused or self.queued >= limit or"),
    "a partition that could not be read rests for good": (
        "partition", "or now < self.fetch_at", "or self.fetch_at > 0"),
    "a partition is never paused": ("partition", "return self.queued >= limit or", "return"),
    "what was fetched before a seek is queued": (
        "partition", "if self.seek_to is not None or self.target is not None:", "if self.target is not None:"),
    "what is left of a chunk is thrown away": (
        "partition", "self._chunks.appendleft((chunk[room:], end_offset))", "self.queued -= len(chunk) - room"),
    "chunks are handed over in the wrong order": ("partition", "self._chunks.popleft()", "self._chunks.pop()"),
    "the message in hand of a loop that was left is skipped": (
        "partition", "elif run.in_hand is not None:", "elif False:"),
    "a loop that is left without a mark spins": ("partition", "if self.version == run.version:", "if False:"),
    "a seek is forgotten": (
        "group", "partition.run.redirect = target", "pass"),
    "a seek of a failed run is forgotten": (
        "partition", "self.retry_position if run.redirect is None else run.redirect", "self.retry_position"),
    "a pause is ignored": (
        "partition", "ready_at = max(self.not_before, self.rests_until)", "ready_at = self.not_before"),
    "every is called too early": ("partition", "if at <= now)", "if at <= now + 1.0)"),
    "every is called once": (
        "partition", "self.every_at[run.number] = now + self", "self.every_at[run.number] = 1e9 + self"),
    "every has no time": ("partition", "else [batch_at, *self.every_at]", "else [batch_at]"),
    "a pause is for good": ("group", "partition.rests_until = until", "partition.rests_until = until + 1e9"),
    "a loss does not refuse a seek": (
        "group", "if partition.over:\n            return False\n        if partition.run", "if partition.run"),
    "what was fetched while a place is looked up is queued": (
        "partition", "if self.seek_to is not None or self.target is not None:", "if self.seek_to is not None:"),
    "a batch does not wait for its timeout": (
        "partition", "return max(ready_at, self.queued_since + self.policy.batch_timeout_ms / 1000)",
        "return ready_at"),
    "a job that has passed blocks the partition": (
        "partition", "self.enlisted = False\n        due", "due"),
    "a partition is handed over before its last commit": (
        "group", "return all(p.state >= State.REVOKED", "return all(p.state >= State.RELEASING"),
    "a hand-over does not wait for the handler": (
        "group", "(not partition.busy or now >= partition.deadline)", "True"),
    "a drain has no bound": (
        "group", "(not partition.busy or now >= partition.deadline)", "not partition.busy"),
    "a hand-over does not wait for its commit": (
        "group", "(not partition.pending or now >= partition.deadline)", "True"),
    "a last commit has no bound": (
        "group", "(not partition.pending or now >= partition.deadline)", "not partition.pending"),
    "a last commit has no time of its own": (
        "group", "partition.release(max(partition.deadline, now + FINAL_COMMIT_S))",
        "partition.release(partition.deadline)"),
    "a loss spares what is being drained": (
        "group", "lost = list(self.owned.values())",
        "lost = [p for p in self.owned.values() if p.state is State.ASSIGNED]"),
    "what is over is committed": (
        "group", "pending = [p for p in self.owned.values() if p.pending]",
        "pending = [p for p in [*self.owned.values(), *self.leftovers.values()] if p.pending]"),
    "a handler that outlives its ownership is forgotten": (
        "group", "self.leftovers[partition.place] = partition", "pass"),
    "hooks without a worker block the successor for good": (
        "group", "partition.hook_due = None\n", "pass\n"),
    "leftovers of an earlier run are ignored": ("group", "= {p.place: p for p in leftovers}", "= {}"),
    "an assignment is taken while stopping": (
        "group", "if self.stopping:\n            return []", "if False:\n            return []"),
    "a stop runs the hooks of a hand-over": ("group", "stopping_app=True", "stopping_app=False"),
    "a lost member does not join anew": ("group", "self._join_anew = join_anew", "self._join_anew = False"),
    "a seek is never done": ("group", "if partition.seek_to is not None:", "if False:"),
    "a seek is done again and again": (
        "group", "partition.seek_to = None\n", "pass\n"),
    "a requested commit waits for the interval": (
        "group", "self._commit_requested = True\n        self.news = True\n\n    def commit_batch",
        "pass\n\n    def commit_batch"),
    "a request does not wake the committer": (
        "group", "self._commit_requested = True\n        self.news = True\n\n    def commit_batch",
        "self._commit_requested = True\n\n    def commit_batch"),
    "commits do not keep to their interval": (
        "group", "self._commit_at = now + self._interval\n        elif", "pass\n        elif"),
    "a failed commit is tried again without a pause": (
        "group", "if now < self._commit_retry_at:", "if False:"),
    "a failed commit waits for the interval": (
        "group", "COMMIT_RETRY.delay_ms(self._commit_failures) / 1000\n        self._commit_requested = True",
        "COMMIT_RETRY.delay_ms(self._commit_failures) / 1000"),
    "a topic that refuses commits holds up the others": (
        "group", "if self._refusing.intersection(p.place[0] for p in pending):", "if False:"),
    "a topic that refuses commits is tried again and again": (
        "group", "self._commit_tried[topic] = now", "pass"),
    "an acknowledged commit does not end the hand-over": (
        "group", "partition.commit_succeeded(offset, version)\n                self._settle(partition, now)",
        "partition.commit_succeeded(offset, version)"),
    "nobody gets up for the bound of a drain": (
        "group", "times.append(partition.deadline)", "pass"),
    "nobody gets up for the end of a back-off": ("group", "times.append(ready_at)", "pass"),
    "who sleeps is not told of a batch that waits": (
        "group", "self.news = True  # who sleeps", "pass  # who sleeps"),
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
