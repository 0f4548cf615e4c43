"""``karafka-lite redrive``: send dead letters back to where they came from."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import TYPE_CHECKING

from karafka_lite.checks import check_topic
from karafka_lite.cli import answer, console, lines
from karafka_lite.cli.cluster import Cluster, cluster_of, connected
from karafka_lite.cli.interrupt import Interrupt
from karafka_lite.cli.letters import Letter
from karafka_lite.cli.options import Parser, add_cluster, add_log_level, count
from karafka_lite.core.starts import Place, begin, note_of
from karafka_lite.errors import ConfigurationError
from karafka_lite.messages import TopicPartition, next_offset_after, where

if TYPE_CHECKING:
    from karafka_lite.client.admin import Admin
    from karafka_lite.client.batches import Receipt
    from karafka_lite.client.producer import Producer

AT_ONCE, AT_ONCE_BYTES = 500, 8 << 20  # between two commits
RESET = "earliest"

_EPILOG = """\
examples:
  karafka-lite redrive orders.dead --dry-run    what it would send, and where
  karafka-lite redrive orders.dead              each to the topic it came from
  karafka-lite redrive orders.dead --where TimeoutError
                                                those whose error has this in it
  karafka-lite redrive orders.dead --to orders.late --count 10
                                                ten of them, to another topic

A message goes back with its key, its value and its own headers, without those
that were added, and into its partition, if the topic has it. What is sent back
is committed in the group TOPIC.redrive after the brokers acknowledged it: a
second run sends what is new. After a kill nothing is lost, and some may be sent
twice. What --where leaves out, or has no source-topic, is put back at the end
of its partition, if something past it is sent. It ends where the topic ended at
the start. Run one at a time. The brokers keep the commit for their
offsets.retention.minutes (7 days).

exit codes:
  0  done
  1  stopped, something was refused, or the topic of some is not known
  3  no broker could be reached
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        redrive,
        description="Send the messages of a dead-letter topic back to where they came from, once.",
        epilog=_EPILOG,
        example="karafka-lite redrive orders.dead --dry-run",
    )
    parser.add_argument("topic", metavar="TOPIC", help="the dead-letter topic")
    group = parser.add_argument_group("messages")
    group.add_argument("--to", metavar="TOPIC", help="send them there instead")
    group.add_argument("--where", metavar="ERROR", help="only those with this text in their header error")
    group.add_argument("--count", metavar="N", type=count, help="only N messages")
    group.add_argument("--dry-run", action="store_true", help="send and commit nothing, only say what would be sent")
    group.add_argument("--json", action="store_true", help="print JSON, one object a line: topic, error, messages")
    add_cluster(parser)
    add_log_level(parser, "warning")


def redrive(arguments: argparse.Namespace) -> int:
    for topic in filter(None, (arguments.topic, arguments.to)):
        check_topic(topic)
    if arguments.to == arguments.topic:
        arguments.parser.error(f"--to {arguments.to} is the dead-letter topic itself; name another one")
    console.configure_logging(arguments.log_level)
    cluster = cluster_of(arguments)
    with Interrupt() as interrupt, connected(cluster) as admin:
        work = Redrive(cluster, admin, interrupt, arguments.topic, arguments.to, arguments.where, arguments.count)
        complaint = work.run(dry=arguments.dry_run)
    rows = [{"topic": topic, "error": error, "messages": sent} for (topic, error), sent in sorted(work.sent.items())]
    with answer.until_nobody_reads():
        answer.show(rows, as_json=arguments.json)
    lines.say(work.summary(dry=arguments.dry_run))
    if complaint:
        lines.complain(f"karafka-lite: {complaint}")
    return 1 if complaint else 0


class Redrive:
    """One run over a dead-letter topic, to where it ends at the start.

    Two passes: the first finds the last letter of each partition that goes back, so that what comes after it need not
    be put back. Then letters are sent in pieces, and a piece is committed when all of it is acknowledged.

    Attributes:
        sent: how many went back, or would, by topic and error.
    """

    def __init__(
        self,
        cluster: Cluster,
        admin: Admin,
        interrupt: Interrupt,
        topic: str,
        to: str | None = None,
        error: str | None = None,
        most: int | None = None,
    ) -> None:
        self.sent: Counter[tuple[str, str]] = Counter()
        self._put_back = 0
        self._homeless = 0  # letters that say of no topic
        self._cluster, self._admin, self._interrupt = cluster, admin, interrupt
        self._topic, self._to, self._error, self._most = topic, to, error, most
        self._group = f"{topic}.redrive"
        self._places: Mapping[TopicPartition, Place] = {}
        self._partitions: dict[str, int] = {}  # of the topics that letters go to

    def run(self, *, dry: bool = False) -> str:
        """Returns why it is not done; "" when it is."""
        try:
            self._places = self._admin.places(self._group, [self._topic])
            if not self._places:
                raise ConfigurationError(f"topic {self._topic} does not exist (or no Describe permission)")
            spans = {tp: (begin(place, tp[1], RESET, 0).offset, place.latest) for tp, place in self._places.items()}
            wanted = self._look(spans)
            complaint = "" if dry else self._send(wanted)
        except KeyboardInterrupt:
            return f"stopped by {self._interrupt.name}; run it again to go on"
        if self._homeless and not complaint:
            complaint = (
                f"letters without a header source-topic, which stay in {self._topic}: {self._homeless}; "
                f"send them with --to TOPIC"
            )
        return complaint

    def summary(self, *, dry: bool) -> str:
        """What was done."""
        verb = "would be sent back" if dry else "sent back"
        text = f"{verb} from {self._topic}: {self.sent.total()}"
        return text + (f"; put back at its end: {self._put_back}" if self._put_back else "")

    def _look(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> dict[TopicPartition, tuple[int, int]]:
        """The part of each span up to the last letter that goes back; counts what goes."""
        last: dict[TopicPartition, int] = {}
        going: Counter[tuple[str, str]] = Counter()
        for tp, letter in self._letters(spans):
            if not letter.matches(self._error):
                continue
            topic = letter.topic(self._to)
            if topic is None:
                self._homeless += 1
            elif self._most is None or going.total() < self._most:
                going[topic, letter.kind] += 1
                last[tp] = letter.record.offset
        topics = {topic for topic, _ in going}
        self._partitions = Counter(topic for topic, _ in self._admin.partitions(topics))
        if missing := sorted(topics - set(self._partitions)):
            raise ConfigurationError(
                f"topics of dead letters do not exist: {', '.join(missing)} (or no Describe permission); "
                f"create them, or name another one with --to"
            )
        self.sent = going
        return {tp: (spans[tp][0], next_offset_after(offset)) for tp, offset in last.items()}

    def _send(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> str:
        """Send letters back, or to the end of their partition; returns why one was refused."""
        from karafka_lite.client.producer import Producer

        self.sent.clear()
        with closing(Producer(*self._cluster)) as producer:
            producer.connect()
            for piece in _pieces(self._letters(spans)):
                self._interrupt.hold()
                sent = [(tp, letter, self._send_one(producer, tp, letter)) for tp, letter in piece]
                producer.flush()
                complaint = self._settle(sent)
                self._interrupt.release()
                if complaint:
                    return complaint
        return ""

    def _send_one(self, producer: Producer, tp: TopicPartition, letter: Letter) -> Future[Receipt]:
        if self._goes_back(letter):
            return producer.send(letter.sent_back(self._to, self._partitions))
        return producer.send(letter.put_back(*tp))

    def _settle(self, sent: Sequence[tuple[TopicPartition, Letter, Future[Receipt]]]) -> str:
        """Commit what was acknowledged, up to the first that was refused; returns why it was."""
        done: dict[TopicPartition, int] = {}
        complaint = ""
        for tp, letter, receipt in sent:
            if (error := receipt.exception()) is not None:
                complaint = f"{where(*tp, letter.record.offset)} was not sent: {error}"
                break
            done[tp] = next_offset_after(letter.record.offset)
            if self._goes_back(letter):
                self.sent[letter.topic(self._to) or "", letter.kind] += 1
            else:
                self._put_back += 1
        if done:
            notes = {tp: note_of(self._places[tp], None, RESET) for tp in done}
            self._admin.commit(self._group, {tp: (offset, notes[tp]) for tp, offset in done.items()})
        return complaint

    def _goes_back(self, letter: Letter) -> bool:
        return letter.matches(self._error) and letter.topic(self._to) is not None

    def _letters(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[tuple[TopicPartition, Letter]]:
        from karafka_lite.client.browser import Browser

        with closing(Browser(*self._cluster)) as browser:
            browser.connect()
            for polled in browser.read(spans):
                for tp, records in polled:
                    for record in records:
                        yield tp, Letter.of(record)


def _pieces(letters: Iterator[tuple[TopicPartition, Letter]]) -> Iterator[list[tuple[TopicPartition, Letter]]]:
    piece, size = [], 0
    for tp, letter in letters:
        piece.append((tp, letter))
        size += len(letter.record.value or b"")
        if len(piece) >= AT_ONCE or size >= AT_ONCE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
