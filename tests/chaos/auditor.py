"""The independent eye of the forwarding: ``python auditor.py GROUP FOLDER SOURCE TARGET PARTITIONS``.

With EXACTLY_ONCE=1 it reads what is committed.

Again and again: what is committed, **then** everything in TARGET, **then** whether each input below what was committed
has its outputs. Each round is a line of ``FOLDER/audits.jsonl``. A leader that was elected a moment ago may not know
yet how much of its log everybody has, and show less than was acknowledged; asked for its end, it refuses until it knows
(KIP-207). So the end is asked for first, and reading goes on until there.

It asks with librdkafka's consumer, in a process of its own: see watcher.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from outputs import Outputs

ANSWER_S = 5.0
ROUND_S = 10.0  # then it begins anew with new clients: librdkafka may hold on to a leader that is gone


class Auditor:
    def __init__(self, group: str, source: str, target: str, partitions: int) -> None:
        self.outputs = Outputs(partitions)
        self._group, self._source, self._target = group, source, target
        self._positions = dict.fromkeys(range(partitions), 0)
        self._connect()

    def _connect(self) -> None:
        quiet = {"bootstrap.servers": os.environ["BROKERS"], "log_level": 0, "enable.auto.commit": False}
        # Never subscribed, they do not join the groups whose names they have.
        self._eye = Consumer({**quiet, "group.id": self._group})
        self._reader = Consumer(
            {
                **quiet,
                "group.id": "auditor",
                "isolation.level": "read_committed" if os.environ.get("EXACTLY_ONCE") else "read_uncommitted",
                "auto.offset.reset": "error",  # what was read once cannot go
                "fetch.wait.max.ms": 50,
                "enable.partition.eof": True,  # the end of a transaction has an offset, and is no message
            }
        )
        self._reader.assign([TopicPartition(self._target, *place) for place in self._positions.items()])

    def round(self) -> tuple[dict[int, int], list[str]]:
        """What is committed, and the holes before it. KafkaException, TimeoutError: no answer just now."""
        places = [TopicPartition(self._source, partition) for partition in self._positions]
        answer = self._eye.committed(places, timeout=ANSWER_S)
        committed = {place.partition: place.offset for place in answer if place.offset >= 0 and not place.error}
        self._read_to_end()
        return committed, self.outputs.holes(committed)

    def reconnect(self) -> None:
        self._eye.close()
        self._reader.close()
        self._connect()

    def _read_to_end(self) -> None:
        deadline = time.monotonic() + ROUND_S
        ends = {
            partition: self._reader.get_watermark_offsets(TopicPartition(self._target, partition), ANSWER_S)[1]
            for partition in self._positions
        }
        while any(self._positions[partition] < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise TimeoutError
            self._take(0.1)
        self._take(0.2)  # also the pause between two rounds

    def _take(self, timeout: float) -> None:
        for message in self._reader.consume(1000, timeout):
            if (error := message.error()) is None:
                self.outputs.read(message.value())
                self._positions[message.partition()] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                place, at = message.partition(), message.offset()
                self._positions[place] = max(self._positions[place], at or 0)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise RuntimeError(f"what {self._target} held is gone: {error}")


def main(group: str, folder: str, source: str, target: str, partitions: int) -> None:
    auditor = Auditor(group, source, target, partitions)
    with Path(folder, "audits.jsonl").open("a", buffering=1) as audits:
        while os.getppid() != 1:
            try:
                committed, holes = auditor.round()
            except (KafkaException, TimeoutError):
                auditor.reconnect()
                continue
            fact = {"at": time.time(), "committed": committed, "read": auditor.outputs.count, "holes": holes[:10]}
            audits.write(json.dumps(fact) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
