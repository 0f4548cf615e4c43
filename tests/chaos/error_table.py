"""What an app makes of each error that Kafka documents for each request of its life: once, and without end.

    python tests/chaos/error_table.py                    every cell: a few minutes
    python tests/chaos/error_table.py Fetch              those of some kinds of requests
    python tests/chaos/error_table.py --cell Fetch 6     one, and all that the app said

Each cell is a process of its own (life.py) with an embedded broker that answers so. After one answer the app has to go
on, or to end with 1 and a reason, where trying again is pointless. Where the error lasts, it may do neither in silence.
In no case is a message lost, or committed before it was processed, or a traceback shown that is not the user's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = Path(__file__).with_name("life.py")
ONCE, FOREVER = 1, 1_000_000
SAID_WITHIN_S = 10.0
PATIENCE_S = {ONCE: 40.0, FOREVER: 12.0}
STOP_S = 25.0  # a request of its own, and drain_timeout_ms

# By the protocol's documentation of 4.x; -1, "the broker has met an unexpected error", may answer anything.
DOCUMENTED: dict[str, list[int]] = {
    "ApiVersions": [35, 42],
    "Metadata": [3, 5, 9, 17, 29, 72, 100],
    "FindCoordinator": [14, 15, 24, 30, 42],
    "JoinGroup": [14, 15, 16, 23, 24, 25, 26, 27, 30, 79, 81, 82],
    "SyncGroup": [14, 15, 16, 22, 23, 25, 27, 30, 82],
    "Heartbeat": [14, 15, 16, 22, 25, 27, 30, 82],
    "OffsetFetch": [3, 14, 15, 16, 22, 25, 29, 30, 88],
    "ListOffsets": [3, 5, 6, 7, 13, 29, 43, 56, 74, 75, 78],
    "Fetch": [1, 2, 3, 6, 9, 29, 56, 70, 71, 74, 75, 76, 78, 100, 103, 106],
    "OffsetCommit": [3, 7, 12, 14, 15, 16, 22, 25, 27, 28, 29, 30, 82],
    "Produce": [2, 3, 6, 7, 10, 17, 18, 19, 20, 21, 29, 31, 32, 45, 47, 56, 59, 87, 90],
    "InitProducerId": [14, 15, 16, 31, 47, 51, 90],
    "CreateTopics": [7, 17, 29, 31, 36, 37, 38, 39, 40, 41, 42, 44, 89],
    "LeaveGroup": [14, 15, 16, 25, 30, 82],
}
CELLS = [(api, code) for api, codes in DOCUMENTED.items() for code in [-1, *codes]]


class Outcome(NamedTuple):
    """What became of one life."""

    exit: int | None  # None: it did not end
    processed: int
    repeated: int
    committed: int
    sent: int
    seconds: float  # until everything was processed, committed and sent, or the patience was over
    said: list[tuple[float, str]]  # after how many seconds, at warning or above
    faults: list[str]

    @property
    def word(self) -> str:
        if self.faults:
            return "FAULT"
        if self.processed == self.committed == MESSAGES:
            return "goes on"
        if self.exit == 1:
            return "exit 1"
        return "said" if self.said and self.said[0][0] <= SAID_WITHIN_S else "SILENT"


MESSAGES = 30


def live(api: str, code: int, times: int) -> Outcome:
    command = [sys.executable, str(PROGRAM), api, str(code), str(times), str(PATIENCE_S[times])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=PATIENCE_S[times] + STOP_S + 20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
    facts: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {}
    said = [
        (float(match[1]), match[2]) for match in re.finditer(r"^(\d+\.\d+) karafka_lite\S* (.*)$", errors, re.MULTILINE)
    ]
    outcome = Outcome(
        facts.get("exit"), facts.get("processed", 0), facts.get("repeated", 0), facts.get("committed", 0),
        facts.get("sent", 0), facts.get("seconds", 0.0), said, [],
    )  # fmt: skip
    outcome.faults.extend(faults(outcome, facts, errors, times))
    return outcome


def faults(outcome: Outcome, facts: dict[str, Any], errors: str, times: int) -> Iterator[str]:
    """What must not be, whatever is answered."""
    if outcome.exit is None:
        yield "it did not end when it was stopped"
    if outcome.committed > outcome.processed:
        yield f"{outcome.committed} are committed, {outcome.processed} were processed"
    if outcome.committed > outcome.sent:
        yield f"{outcome.committed} are committed, {outcome.sent} of what was sent for them are there"
    if "Traceback" in errors or "please report" in errors:
        yield f"a traceback: {errors[-300:]}"
    if times == ONCE and outcome.exit not in (1, None) and outcome.committed < MESSAGES:
        yield f"after one error {outcome.committed} of {MESSAGES} are committed"
    if outcome.exit == 1 and not outcome.said:
        yield "exit 1 without a word"
    if not facts.get("answered"):
        yield "the request was not made"


def table(cells: Iterable[tuple[str, int]], times: int, side_by_side: int) -> dict[tuple[str, int], Outcome]:
    cells = list(cells)
    with ThreadPoolExecutor(side_by_side) as pool:
        return dict(zip(cells, pool.map(lambda cell: live(*cell, times), cells), strict=True))


def told(found: dict[tuple[str, int], Outcome]) -> Iterator[str]:
    """One line for each kind of request, and one for each cell that is not well."""
    for api in dict.fromkeys(api for api, _ in found):
        words: dict[str, list[int]] = {}
        for (of, code), outcome in found.items():
            if of == api:
                words.setdefault(outcome.word, []).append(code)
        yield f"  {api:16}" + "; ".join(f"{word}: {' '.join(map(str, codes))}" for word, codes in sorted(words.items()))
    for (api, code), outcome in found.items():
        if outcome.word in ("FAULT", "SILENT"):
            yield f"    {api} {code}: {outcome.word} {'; '.join(outcome.faults)} {outcome.said[:2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("apis", metavar="REQUEST", nargs="*", help=f"of {', '.join(DOCUMENTED)}; default: all")
    parser.add_argument("--cell", nargs=2, metavar=("REQUEST", "ERROR"))
    parser.add_argument("--side-by-side", type=int, default=4 * (os.cpu_count() or 1))
    options = parser.parse_args()
    cells = [cell for cell in CELLS if not options.apis or cell[0] in options.apis]
    if options.cell:
        cells = [(options.cell[0], int(options.cell[1]))]
    bad, began = 0, time.monotonic()
    for times, name in ((ONCE, "once"), (FOREVER, "without end")):
        found = table(cells, times, options.side_by_side)
        print(f"{name}: {len(found)} cells, {time.monotonic() - began:.0f} s", *told(found), sep="\n", flush=True)
        bad += sum(outcome.word in ("FAULT", "SILENT") for outcome in found.values())
        if options.cell:
            print(*(outcome for outcome in found.values()), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
