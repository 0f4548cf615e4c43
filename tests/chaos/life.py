"""A short life of an app whose broker answers one kind of request with an error.

``python life.py REQUEST ERROR TIMES SECONDS``: it reads 30 messages, sends one for each, has a topic for dead letters,
and is stopped when everything is committed, or after so many seconds. What came of it is the last line of standard
output, as JSON; on standard error stands what it said at warning or above, after how many seconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

from error_table import MESSAGES

from karafka_lite import App
from karafka_lite.broker import EmbeddedBroker

LIFE_S = 1.5  # long enough for a few heartbeats and commits
LATER_S = 5.0  # an error that lasts may show late


class Clock(logging.Formatter):
    began = time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.monotonic() - self.began:.2f} {super().format(record)}"


def main(api: str, code: int, times: int, patience_s: float) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Clock("%(name)s %(levelname)s %(message)s"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # before and after ``run``, which has a handler of its own
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with EmbeddedBroker({"inputs": 1, "outputs": 1}, auto_create_topics=False, min_session_timeout_ms=1000) as broker:
        fill(broker)
        broker.fail(api, code, times)
        app, seen = make_app(broker.bootstrap_servers), Counter[int]()
        app.topic("inputs", dead_letter="letters", max_messages=10, backoff_ms=100)(handle(app, seen))
        facts: dict[str, Any] = {}
        watcher = threading.Thread(target=watch, args=(broker, app, facts, patience_s, times > 1))
        watcher.start()
        code_of_exit = app.run()
        facts["over"] = True
        watcher.join()
        left = len(broker._server.faults[api])
        facts |= {"exit": code_of_exit, "processed": len(seen), "repeated": seen.total() - len(seen)}
        facts |= {"committed": committed(broker), "sent": ends(broker, "outputs"), "answered": left < times}
    print(json.dumps(facts), flush=True)


def make_app(servers: str) -> App:
    return App(
        "group", bootstrap_servers=servers, auto_commit_interval_ms=200, heartbeat_interval_ms=100,
        session_timeout_ms=4000, fetch_max_wait_ms=100, drain_timeout_ms=3000,
    )  # fmt: skip


def handle(app: App, seen: Counter[int]) -> Any:
    def handler(batch: Any, ctx: Any) -> None:
        for message in batch:
            ctx.produce("outputs", message.payload)
            seen[message.offset] += 1

    return handler


def fill(broker: EmbeddedBroker) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in range(MESSAGES):
        producer.send("inputs", str(number).encode(), partition=0)
    producer.flush()
    producer.close()


def watch(broker: EmbeddedBroker, app: App, facts: dict[str, Any], patience_s: float, lasts: bool) -> None:
    began = time.monotonic()
    while not facts.get("over"):
        seconds = time.monotonic() - began
        is_done = committed(broker) == MESSAGES and ends(broker, "outputs") >= MESSAGES
        if (is_done and seconds > (LATER_S if lasts else LIFE_S)) or seconds > patience_s:
            facts["seconds"] = round(seconds, 2)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.02)


def committed(broker: EmbeddedBroker) -> int:
    groups = broker._groups.groups
    return groups["group"].offsets.get(("inputs", 0), (0, ""))[0] if "group" in groups else 0


def ends(broker: EmbeddedBroker, topic: str) -> int:
    return broker._topics.log(topic, 0).end


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
