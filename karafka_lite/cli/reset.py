"""``karafka-lite reset``: move the committed offsets of a group that does not run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from karafka_lite.cli import answer, console, lines
from karafka_lite.cli.cluster import Target, connected, target_of, topics_of
from karafka_lite.cli.options import Parser, add_cluster, add_groups, add_log_level, number
from karafka_lite.cli.position import position
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.starts import Place, note_of
from karafka_lite.errors import ConfigurationError
from karafka_lite.messages import TopicPartition, where

if TYPE_CHECKING:
    from karafka_lite.client.admin import Admin

_EPILOG = """\
examples:
  karafka-lite reset orders:app --to earliest
                                     process everything again
  karafka-lite reset orders:app --to -2h
                                     what came in the last two hours; also -30m
  karafka-lite reset orders:app --to 2026-01-31T12:00:00Z --topic orders
                                     from a time on, in one topic
  karafka-lite reset --group billing --topic orders --partition 3 --to 118 --yes
                                     one partition, without a question

Stop the group first: while it has members, nothing is changed. The change is
shown and asked about; without a terminal, --yes is needed, and without --yes
nothing is changed. An OFFSET is the next one to process: to skip the message at
117, use 118. A TIME past the last message is the end.

exit codes:
  0  the offsets are committed
  1  nothing was changed: no was the answer, or a mistake
  3  no broker could be reached
"""


class Change(NamedTuple):
    """Of one partition of a group."""

    group_id: str
    tp: TopicPartition
    place: Place
    to: int


def add_to(parser: Parser) -> None:
    parser.describe(
        reset,
        description="Move the committed offsets of a consumer group that does not run.",
        epilog=_EPILOG,
        example="karafka-lite reset module:app --to earliest",
    )
    add_groups(parser)
    group = parser.add_argument_group("the change")
    group.add_argument(
        "--to",
        metavar="PLACE",
        type=position,
        required=True,
        help="earliest, latest, OFFSET, or TIME: ISO 8601 with a zone, or -2h, -30m, -1d",
    )
    group.add_argument("--topic", metavar="TOPIC", help="only this topic")
    group.add_argument("--partition", metavar="N", type=number, help="only this partition; requires one topic")
    group.add_argument("--yes", action="store_true", help="do not ask")
    group.add_argument("--json", action="store_true", help="print the change as JSON, one object a line")
    add_cluster(parser, app="with --group: an App whose brokers and settings to use")
    add_log_level(parser, "warning")


def reset(arguments: argparse.Namespace) -> int:
    console.configure_logging(arguments.log_level)
    target = target_of(arguments)
    with connected(target.cluster) as admin:
        changes = _changes(admin, target, arguments)
        rows = [_row(change) for change in changes]
        with answer.until_nobody_reads():
            answer.show(rows, as_json=arguments.json)
        if not arguments.yes and not _agreed(len(changes)):
            return 1
        for group_id in dict.fromkeys(change.group_id for change in changes):
            mine = [change for change in changes if change.group_id == group_id]
            notes = {change.tp: note_of(change.place, None, target.reset) for change in mine}
            admin.commit(group_id, {change.tp: (change.to, notes[change.tp]) for change in mine})
            lines.say(f"committed for group {group_id}: {_partitions(len(mine))}")
    return 0


def _changes(admin: Admin, target: Target, arguments: argparse.Namespace) -> list[Change]:
    """Raises ConfigurationError: a group has members, there is no such partition, or no such offset."""
    changes: list[Change] = []
    to: SeekTarget = arguments.to
    for group_id, named in target.groups.items():
        if arguments.topic is not None and named and arguments.topic not in named:
            continue
        members = admin.members(group_id)
        if members:
            who = ", ".join(sorted(f"{member.id} on {member.host.strip('/')}" for member in members))
            raise ConfigurationError(f"group {group_id} has members: {who}. Stop them first; nothing was changed")
        topics = [arguments.topic] if arguments.topic is not None else topics_of(admin, group_id, named)
        places = admin.places(group_id, topics)
        if missing := sorted(set(topics) - {topic for topic, _ in places}):
            raise ConfigurationError(f"topics do not exist: {', '.join(missing)} (or no Describe permission)")
        chosen = _chosen(places, topics, arguments.partition)
        at = admin.offsets_at(dict.fromkeys(chosen, to))
        changes += [Change(group_id, tp, place, at[tp]) for tp, place in chosen.items()]
    if not changes:
        raise ConfigurationError(f"no group of the App has topic {arguments.topic}; see: karafka-lite routes")
    if isinstance(to, int):
        _check_offset(changes)
    return changes


def _chosen(
    places: Mapping[TopicPartition, Place], topics: list[str], partition: int | None
) -> Mapping[TopicPartition, Place]:
    if partition is None:
        return places
    if len(topics) > 1:
        raise ConfigurationError(f"--partition requires --topic: one of {', '.join(topics)}")
    tp = topics[0], partition
    if tp not in places:
        raise ConfigurationError(f"topic {topics[0]} has no partition {partition}; it has 0 to {len(places) - 1}")
    return {tp: places[tp]}


def _check_offset(changes: list[Change]) -> None:
    if len(changes) > 1:
        raise ConfigurationError(
            f"--to OFFSET is of one partition, and this would move {len(changes)}: add --topic and --partition, and "
            f"--group where the App has several"
        )
    ((_, tp, place, to),) = changes
    if not place.start <= to <= place.latest:
        raise ConfigurationError(
            f"{where(*tp, to)} is not in the log, which has {place.start} to {place.latest} (the end)"
        )


def _row(change: Change) -> dict[str, Any]:
    topic, partition = change.tp
    of_partition = {"group_id": change.group_id, "topic": topic, "partition": partition}
    return {**of_partition, "committed": change.place.committed, "to": change.to, "end": change.place.latest}


def _agreed(count: int) -> bool:
    """Ask on the terminal, if there is one."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        lines.complain("karafka-lite: nothing was changed: there is no terminal to ask on; add --yes")
        return False
    print(f"commit these offsets of {_partitions(count)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    lines.say("nothing was changed")
    return False


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count > 1 else ''}"
