"""``karafka-lite produce``: send the lines of a file to a topic."""

from __future__ import annotations

import argparse

from karafka_lite.cli import console
from karafka_lite.cli.cluster import cluster_of
from karafka_lite.cli.feed import Feed, feed
from karafka_lite.cli.options import Parser, add_cluster, add_log_level

_EPILOG = """\
examples:
  karafka-lite produce orders orders.jsonl        each line is JSON and becomes
                                                  the value of a message
  karafka-lite produce orders orders.jsonl --key customer
                                                  keyed by the field "customer"
  tail -f access.log | karafka-lite produce log --text
                                                  each line as it is
  karafka-lite produce orders orders.jsonl --app orders:app
                                                  to the App's brokers, with its
                                                  settings for security
  karafka-lite produce orders orders.jsonl --config kafka.toml
                                                  with the settings in a file

A line ends with \\n or \\r\\n. Blank lines are skipped; with --text an empty line
is an empty message. The command stops at the first line that cannot be sent
and reports how many messages were acknowledged. A missing topic is created if
the broker allows it.

exit codes:
  0  every message was sent and acknowledged
  1  not every message was, or a broker refuses us
  3  no broker could be reached
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        produce,
        description="Send the lines of a file to a topic and wait until all in-sync replicas\nhave acknowledged them.",
        epilog=_EPILOG,
        example="karafka-lite produce my_topic my_file.jsonl --broker localhost:9092",
    )
    parser.add_argument("topic", metavar="TOPIC", help="where to send the messages")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: -, standard input")
    group = parser.add_argument_group("messages")
    group.add_argument("--key", metavar="FIELD", help="field of each JSON object to use as the message key")
    group.add_argument("--text", action="store_true", help="send lines as they are, without parsing them")
    add_cluster(parser)
    add_log_level(parser)


def produce(arguments: argparse.Namespace) -> int:
    if arguments.text and arguments.key is not None:
        arguments.parser.error("--key cannot be combined with --text: it needs JSON, which --text does not parse")
    console.configure_logging(arguments.log_level)
    feeds = [Feed(arguments.topic, arguments.file, arguments.key, arguments.text)]
    feed(feeds, *cluster_of(arguments), console.feeding)
    return 0
