"""``karafka-lite broker``: a broker for development, for several terminals."""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from karafka_lite import forks
from karafka_lite.cli import console
from karafka_lite.cli.options import Parser, add_image, add_log_level, port, topic_with_partitions
from karafka_lite.forks import HANG_UP, SIGNALS

if TYPE_CHECKING:
    from karafka_lite.broker.docker import DockerBroker
    from karafka_lite.broker.embedded import EmbeddedBroker

KINDS = ("embedded", "docker")

_EPILOG = """\
examples:
  karafka-lite broker                     in this process, on 127.0.0.1:9092
  karafka-lite broker --topic orders --topic clicks:6
                                          with topics of 3 partitions and of 6
  karafka-lite broker --docker            Apache Kafka in a container, which is
                                          removed on exit

For development and tests only: its data is discarded on exit. In production,
use Apache Kafka.

exit codes:
  0  stopped by Ctrl-C or SIGTERM
  1  configuration or usage error
  3  no Docker, or Kafka did not start in its container
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        broker,
        description="Run a broker for development on 127.0.0.1 until Ctrl-C or SIGTERM.",
        epilog=_EPILOG,
        example="karafka-lite broker --port 9092 --topic user_events:3 --topic clicks",
    )
    group = parser.add_argument_group("broker")
    group.add_argument(
        "--port", metavar="PORT", type=port, default=9092, help="port on 127.0.0.1 (default: %(default)s)"
    )
    group.add_argument(
        "--topic",
        metavar="NAME[:PARTITIONS]",
        dest="topics",
        type=topic_with_partitions,
        action="append",
        default=[],
        help="topic to create at the start, with 3 partitions by default; repeatable",
    )
    group.add_argument(
        "--docker", action="store_true", help="Apache Kafka in a container; needs the extra karafka-lite[docker]"
    )
    add_image(group, "--docker")
    add_log_level(parser)


def broker(arguments: argparse.Namespace) -> int:
    names = Counter(name for name, _ in arguments.topics)
    if repeated := [name for name, count in names.items() if count > 1]:
        arguments.parser.error(f"--topic {repeated[0]} is given more than once")
    if arguments.image and not arguments.docker:
        arguments.parser.error("--image requires --docker")
    topics = dict(arguments.topics)
    kind = "docker" if arguments.docker else "embedded"
    console.configure_logging(arguments.log_level)
    with sigterm_as_ctrl_c(), development_broker(kind, topics, arguments.port, arguments.image) as serving:
        console.serving(kind, serving.bootstrap_servers, topics)
        try:
            serving.wait()
        except KeyboardInterrupt:
            return 0
    return 1


def development_broker(
    kind: str, topics: Mapping[str, int], port: int, image: str | None
) -> DockerBroker | EmbeddedBroker:
    """A broker of one of the ``KINDS``, not started yet."""
    if kind == "docker":
        from karafka_lite.broker.docker import IMAGE, DockerBroker

        return DockerBroker(topics, port=port, image=image or IMAGE)
    from karafka_lite.broker.embedded import EmbeddedBroker

    return EmbeddedBroker(topics, port=port)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that they, too, leave a ``with`` block in order.

    A handler that was not installed from Python (None) stays: it could not be restored afterwards. So does the SIGHUP
    that ``nohup`` has turned off.
    """
    before: dict[int, Any] = {}
    for number in SIGNALS:
        now = signal.getsignal(number)
        if number != signal.SIGINT and now is not None and (number != HANG_UP or now is not signal.SIG_IGN):
            before[number] = signal.signal(number, signal.default_int_handler)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    forks.in_child(restore, lambda act: act())
    try:
        yield
    finally:
        restore()
