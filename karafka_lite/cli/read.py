"""``karafka-lite read``: print the messages of a topic."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from karafka_lite.checks import check_topic
from karafka_lite.cli import answer, console
from karafka_lite.cli.broker import sigterm_as_ctrl_c
from karafka_lite.cli.cluster import cluster_of, connected
from karafka_lite.cli.options import Parser, add_cluster, add_log_level, count, number
from karafka_lite.cli.position import position
from karafka_lite.core.options import SeekTarget
from karafka_lite.errors import ConfigurationError
from karafka_lite.messages import Record, TopicPartition

if TYPE_CHECKING:
    from karafka_lite.client.admin import Admin
    from karafka_lite.client.browser import Span

_EPILOG = """\
examples:
  karafka-lite read orders                 everything that is there now
  karafka-lite read orders --from -30m --follow
                                           the last half hour, and what comes
  karafka-lite read orders --partition 3 --from 117 --count 1
                                           one message
  karafka-lite read orders --value | karafka-lite produce copy
                                           the values alone, as they are

A line is JSON: topic, partition, offset, timestamp_ms, key, headers (pairs of
name and value), and payload, the value. Where the value is not JSON, payload is
null and there is value_base64; of a tombstone both are null. A key or a header
that is not text in UTF-8 is {"base64": ...}. Messages of one partition come in
their order. It joins no group and commits nothing.

exit codes:
  0  done, or ended by Ctrl-C, SIGTERM or a closed pipe
  1  a mistake, or something cannot be read
  3  no broker could be reached
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        read,
        description="Print the messages of a topic, from its start to where its end is now.",
        epilog=_EPILOG,
        example="karafka-lite read my_topic --from -1h",
    )
    parser.add_argument("topic", metavar="TOPIC", help="what to read")
    group = parser.add_argument_group("messages")
    group.add_argument(
        "--from",
        metavar="PLACE",
        dest="start",
        type=position,
        default="earliest",
        help="earliest (the default), latest, OFFSET, or TIME: ISO 8601 with a zone, or -2h, -30m, -1d",
    )
    group.add_argument("--count", metavar="N", type=count, help="end after N messages")
    group.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    group.add_argument("--partition", metavar="N", type=number, help="only this partition")
    group.add_argument("--value", action="store_true", help="print values only, as they are, each with a line end")
    add_cluster(parser)
    add_log_level(parser, "warning")


def read(arguments: argparse.Namespace) -> int:
    from karafka_lite.client.browser import Browser

    console.configure_logging(arguments.log_level)
    check_topic(arguments.topic)
    cluster = cluster_of(arguments)
    with sigterm_as_ctrl_c(), answer.until_nobody_reads():
        try:
            with connected(cluster) as admin:
                spans = _spans(admin, arguments)
            with closing(Browser(*cluster)) as browser:
                browser.connect()
                _print(_limited(browser.read(spans), arguments.count), values=arguments.value)
        except KeyboardInterrupt:
            pass
    return 0


def _spans(admin: Admin, arguments: argparse.Namespace) -> dict[TopicPartition, Span]:
    """From where to where each partition is read."""
    topic = arguments.topic
    tps = admin.partitions([topic])
    if not tps:
        raise ConfigurationError(f"topic {topic} does not exist (or no Describe permission)")
    if arguments.partition is not None:
        if (topic, arguments.partition) not in tps:
            raise ConfigurationError(
                f"topic {topic} has no partition {arguments.partition}; it has 0 to {len(tps) - 1}"
            )
        tps = [(topic, arguments.partition)]
    start: SeekTarget = arguments.start
    at = admin.offsets_at(dict.fromkeys(tps, start))
    starts, ends = admin.earliest_offsets(tps), admin.end_offsets(tps)
    if all(at[tp] > ends[tp] for tp in tps):
        raise ConfigurationError(f"--from {arguments.start} is past the end of {topic}: {max(ends.values())}")
    return {tp: (min(max(at[tp], starts[tp]), ends[tp]), None if arguments.follow else ends[tp]) for tp in tps}


Polls = Iterator[list[tuple[TopicPartition, list[Record]]]]


def _limited(polls: Polls, most: int | None) -> Polls:
    """No more than ``most`` messages of ``polls``."""
    left = float("inf") if most is None else most
    for polled in polls:
        some = []
        for tp, records in polled:
            taken = records if len(records) <= left else records[: int(left)]
            left -= len(taken)
            some.append((tp, taken))
        yield some
        if not left:
            return


def _print(polls: Polls, *, values: bool) -> None:
    for polled in polls:
        lines = [_value(record) if values else line(*tp, record) for tp, records in polled for record in records]
        if lines:
            answer.write(b"".join(lines))


def _value(record: Record) -> bytes:
    return (record.value or b"") + b"\n"


def line(topic: str, partition: int, record: Record) -> bytes:
    """One message as a line of JSON. ``value_base64`` stands wherever ``payload`` is null, also JSON's own null."""
    value = record.value
    message: dict[str, Any] = {
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "key": _text(record.key),
        "headers": [[name, _text(header)] for name, header in record.headers],
        "payload": None,
    }
    if value is not None:
        try:
            message["payload"] = json.loads(value.decode())
            if message["payload"] is not None:
                return _encoded(message)
        except (ValueError, RecursionError):  # no UTF-8, no JSON, or NaN or 1e999, which only Python takes for JSON
            message["payload"] = None
    message["value_base64"] = None if value is None else base64.b64encode(value).decode()
    return _encoded(message)


def _encoded(message: dict[str, Any]) -> bytes:
    return f"{answer.as_line(message)}\n".encode(errors="backslashreplace")


def _text(data: bytes | None) -> str | dict[str, str] | None:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
