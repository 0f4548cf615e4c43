"""What the topic of outputs says about the topic of inputs. Pure, so that it can be tested with made-up holes.

An output names the message that it was made from, which of how many parts it is, and its send: two sends of one part
are a repetition, which is allowed; one send that stands twice was written twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Made:
    """What was made of one input."""

    number: int
    of: int
    sends: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))  # part -> its sends

    @property
    def complete(self) -> bool:
        return len(self.sends) == self.of

    @property
    def repeated(self) -> bool:
        return any(len(set(sends)) > 1 for sends in self.sends.values())


class Outputs:
    """Everything that was read from the topic of outputs so far."""

    def __init__(self, partitions: int) -> None:
        self.count = 0
        self._made: dict[tuple[int, int], Made] = {}
        self._proven = dict.fromkeys(range(partitions), 0)  # every input before this offset has its outputs

    def read(self, value: bytes | None) -> None:
        fact = json.loads(value or b"")
        partition, offset = fact["from"]
        made = self._made.setdefault((partition, offset), Made(fact["number"], fact["of"]))
        made.sends[fact["part"]].append(fact["send"])
        self.count += 1

    def holes(self, committed: Mapping[int, int | None]) -> list[str]:
        """Inputs below the committed offset of their partition that lack an output: there must never be one."""
        found = []
        for partition, end in committed.items():
            while self._is_complete(partition, self._proven[partition]):
                self._proven[partition] += 1
            for offset in range(self._proven[partition], end or 0):
                if not self._is_complete(partition, offset):
                    found.append(f"{partition}@{offset} ({self._told(partition, offset)}), committed is {end}")
        return found

    def strangers(self, inputs: Mapping[tuple[int, int], int]) -> list[str]:
        """Outputs that were made from something else than the message that stands at their input's place."""
        return [
            f"{partition}@{offset}: outputs of {made.number}, there stands {inputs.get((partition, offset))}"
            for (partition, offset), made in sorted(self._made.items())
            if inputs.get((partition, offset)) != made.number
        ]

    def figures(self) -> dict[str, int]:
        sends = [send for made in self._made.values() for part in made.sends.values() for send in part]
        parts = sum(len(made.sends) for made in self._made.values())
        return {
            "outputs": self.count,
            "duplicates": self.count - parts,
            "inputs repeated": sum(made.repeated for made in self._made.values()),
            "sends written twice": len(sends) - len(set(sends)),
        }

    def _is_complete(self, partition: int, offset: int) -> bool:
        made = self._made.get((partition, offset))
        return made is not None and made.complete

    def _told(self, partition: int, offset: int) -> str:
        made = self._made.get((partition, offset))
        return f"parts {sorted(made.sends)} of {made.of}" if made else "nothing"


# Of a member's log, below a traceback: the exceptions that its handlers raise on purpose, or as the documentation says.
EXPECTED = ("Stumble: ", "karafka_lite.errors.CommitError: ", "karafka_lite.errors.ProduceError: ")
PANIC = ("is a bug of karafka-lite", "client has broken down")


def complaints(log: Iterable[str]) -> list[str]:
    """Tracebacks of anything else than what the handlers raise, and what only a mistake of the framework says."""
    found, inside = [], False
    for line in log:
        if any(words in line for words in PANIC):
            found.append(line.strip())
        if line.startswith("Traceback "):
            inside = True
        elif inside and line[:1].strip():  # the first line that is not indented is the exception
            inside = False
            if not line.removeprefix("__main__.").startswith(EXPECTED):
                found.append(line.strip())
    return found
