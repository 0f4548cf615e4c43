"""The independent eye of the chaos: ``python watcher.py GROUP FILE TOPICS`` tells what is committed, again and again.

Each line of ``FILE`` was true before ``at``, when the answer was there. ``TOPICS`` is JSON: how many
partitions each has. It asks with librdkafka's consumer, in a process of its own: the admin client was seen to crash its
process while brokers came and went.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition


def main(group: str, file: str, topics: dict[str, int]) -> None:
    # Never subscribed, it does not join the group whose name it has.
    eye = Consumer({"bootstrap.servers": os.environ["BROKERS"], "group.id": group, "log_level": 0})
    places = [TopicPartition(topic, partition) for topic, count in topics.items() for partition in range(count)]
    with Path(file).open("a", buffering=1) as facts:
        while os.getppid() != 1:
            try:
                answer = eye.committed(places, timeout=5)
            except KafkaException:
                continue  # no coordinator just now
            at = time.time()
            for place in answer:
                if place.offset >= 0 and not place.error:
                    fact = {"at": at, "topic": place.topic, "partition": place.partition, "offset": place.offset}
                    facts.write(json.dumps(fact) + "\n")
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
