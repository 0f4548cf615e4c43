"""``karafka-lite lag``: how far the groups of an App have to go."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from karafka_lite.cli import answer, console, lines
from karafka_lite.cli.broker import sigterm_as_ctrl_c
from karafka_lite.cli.cluster import Target, connected, target_of, topics_of
from karafka_lite.cli.options import Parser, add_cluster, add_groups, add_log_level, number
from karafka_lite.core.starts import NowhereError, Place, begin, note_of
from karafka_lite.errors import KarafkaLiteError
from karafka_lite.messages import where

if TYPE_CHECKING:
    from karafka_lite.client.admin import Admin

WATCH_S = 2.0

_EPILOG = """\
examples:
  karafka-lite lag orders:app              every partition of the App's topics
  karafka-lite lag orders:app --watch      the same, refreshed in place
  karafka-lite lag --group billing --broker kafka:9092
                                           a group of any program
  karafka-lite lag orders:app --max-lag 1000 --json
                                           for a script: exit code 1 past it

Where a partition has no commit, "committed" is - (null), and the lag is counted
from where it would begin by auto_offset_reset. With --json a line has the keys
group_id, topic, partition, committed, end, lag and member (its id).

exit codes:
  0  done; with --max-lag, no partition is past it
  1  a partition is past --max-lag, a topic is missing, or a mistake
  3  no broker could be reached
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        lag,
        description="Show by partition what is committed, where the log ends, and who owns it.",
        epilog=_EPILOG,
        example="karafka-lite lag module:app --broker localhost:9092",
    )
    add_groups(parser)
    parser.add_argument("--max-lag", metavar="N", type=number, help="exit with 1 if a partition lags by more")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON, one object a line")
    how.add_argument("--watch", action="store_true", help=f"refresh in place every {WATCH_S:g} s until Ctrl-C")
    add_cluster(parser, app="with --group: an App whose brokers and settings to use")
    add_log_level(parser, "warning")


def lag(arguments: argparse.Namespace) -> int:
    if arguments.watch and arguments.max_lag is not None:
        arguments.parser.error("--max-lag cannot be combined with --watch, which runs until Ctrl-C")
    if arguments.watch and not (sys.stdout is not None and sys.stdout.isatty()):
        arguments.parser.error("--watch needs a terminal; elsewhere call lag again and again, perhaps with --json")
    console.configure_logging(arguments.log_level)
    target = target_of(arguments)
    with connected(target.cluster) as admin:
        if arguments.watch:
            return _watch(admin, target)
        rows = list(_rows(admin, target))
    with answer.until_nobody_reads():
        answer.show(rows, as_json=arguments.json)
    missing = _missing(target, rows)
    if missing:
        lines.complain(f"karafka-lite: topics do not exist: {', '.join(missing)} (or no Describe permission)")
    late = [] if arguments.max_lag is None else [row for row in rows if _is_past(row["lag"], arguments.max_lag)]
    for row in late:
        place = where(row["topic"], row["partition"])
        how_far = "is not known" if row["lag"] is None else f"is {row['lag']}"
        lines.complain(f"karafka-lite: the lag of {place} {how_far}, past --max-lag {arguments.max_lag}")
    return 1 if missing or late else 0


def _rows(admin: Admin, target: Target) -> Iterator[dict[str, Any]]:
    for group_id, named in target.groups.items():
        places = admin.places(group_id, topics_of(admin, group_id, named))
        members = {tp: member.id for member in admin.members(group_id) for tp in member.partitions}
        for tp, place in places.items():
            yield {
                "group_id": group_id,
                "topic": tp[0],
                "partition": tp[1],
                "committed": place.committed,
                "end": place.latest,
                "lag": lag_of(place, tp[1], target.reset),
                "member": members.get(tp),
            }


def lag_of(place: Place, partition: int, reset: str) -> int | None:
    """How many offsets a member would have to go from where it would begin; None: it would refuse to begin."""
    note = note_of(place, None, reset)
    try:
        start = begin(place, partition, reset, note.partitions or 0).offset
    except NowhereError:
        return None
    return max(0, place.latest - start)


def _is_past(lag: int | None, most: int) -> bool:
    return lag is None or lag > most


def _missing(target: Target, rows: list[dict[str, Any]]) -> list[str]:
    found = {row["topic"] for row in rows}
    return sorted({topic for topics in target.groups.values() for topic in topics} - found)


def _watch(admin: Admin, target: Target) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with sigterm_as_ctrl_c():
        try:
            with Live(Text("asking …"), console=Console(), auto_refresh=False) as live:
                while True:
                    try:
                        shown = answer.table(list(_rows(admin, target)))
                    except KarafkaLiteError as error:
                        shown = f"{error}\n"
                    live.update(Text(f"{shown}{time.strftime('%X')}, Ctrl-C ends it"), refresh=True)
                    time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 0
