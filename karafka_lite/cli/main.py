"""The command line: from ``karafka-lite run module:app`` to an exit code.

Every mistake ends as one message on standard error that says what to type next, with exit code 1. One function per
subcommand; ``_parser`` lists them.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NoReturn

from karafka_lite.app import App
from karafka_lite.cli import console
from karafka_lite.cli import importer as target
from karafka_lite.cli.drain import NOT_DRAINED, Drain
from karafka_lite.cli.feed import Feed, feed
from karafka_lite.client.reader import choose_reader
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError, KarafkaLiteError
from karafka_lite.routing import check_topic
from karafka_lite.settings import resolve_bootstrap_servers
from karafka_lite.version import __version__

if TYPE_CHECKING:
    from karafka_lite.broker.docker import DockerBroker
    from karafka_lite.broker.embedded import EmbeddedBroker

DRAIN_TIMEOUT_S = 60.0
GC_THRESHOLD = 10_000
NO_BROKER = 3
KINDS = ("embedded", "docker")
_LEVELS = ("debug", "info", "warning", "error")

_RUN_EXAMPLES = """\
examples:
  karafka-lite run orders:app                        the App named app in orders.py
  karafka-lite run orders                            the same; or the only App in there
  karafka-lite run shop.orders:consumers.app         an attribute of an attribute
  karafka-lite run 'shop.orders:make_app()'          what a function returns (the quotes are for the shell)
  karafka-lite run examples/quickstart.py            a file
  karafka-lite run orders:app --broker kafka-1:9092,kafka-2:9092 --concurrency 10 --log-level debug
  karafka-lite run orders:app --feed orders=orders.jsonl    first sends each line of the file to the topic
  karafka-lite run orders:app --drain                to the end of its topics, then stops: for scripts and cron
  karafka-lite run orders:app --broker embedded      without a Kafka: a broker of this process, which keeps nothing
  karafka-lite run orders:app --broker docker        an Apache Kafka in a container, removed at the end

exit codes: 0 clean; 1 configuration, usage or import error, or a critical exception; 2 forced; 3 no broker;
4 --drain did not come to the end
"""

_PRODUCE_EXAMPLES = """\
examples:
  karafka-lite produce orders orders.jsonl                 each line is JSON, and becomes the value of a message
  karafka-lite produce orders orders.jsonl --key customer  with the field "customer" of each line as the key
  tail -f access.log | karafka-lite produce log --text     each line as it is

A line ends at \\n or \\r\\n. Blank lines are left out; with --text an empty line is an empty message. The first line
that cannot be sent ends it; how many messages were acknowledged until then is said. A missing topic is created where
the broker permits it.

exit codes: 0 all was sent and acknowledged; 1 not all; 3 no broker
"""


_BROKER_EXAMPLES = """\
examples:
  karafka-lite broker                                      in this process, at 127.0.0.1:9092
  karafka-lite broker --topic orders:3 --topic clicks      with topics of 3 partitions and of 1
  karafka-lite broker --docker                             Apache Kafka in a container, removed at the end

It is for development and tests: nothing is kept when it ends. Production is Apache Kafka.

exit codes: 0 stopped by Ctrl-C or SIGTERM; 1 configuration or usage error; 3 no Docker, or no Kafka in its container
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code.

    ``--help``, ``--version`` and usage errors end in argparse's SystemExit (0, 0 and 1).
    """
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:  # said by the subcommand, whose usage lists what there is
        arguments.parser.error(f"unknown arguments: {' '.join(unknown)}")
    code = _call(arguments.command, arguments)
    if code == NO_BROKER and arguments.command is _run and arguments.broker not in KINDS:
        print("karafka-lite: to try it without a Kafka, type the same with --broker embedded", file=sys.stderr)
    return code


def _call(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return command(arguments)
    except KeyboardInterrupt:  # while importing, or while a broker starts; what runs has its own way to stop
        return 1
    except target.Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    except KarafkaLiteError as mistake:
        print(f"karafka-lite: {mistake}", file=sys.stderr)
        return NO_BROKER if isinstance(mistake, BrokerUnavailableError) else 1


def _run(arguments: argparse.Namespace) -> int:
    console.configure_logging(arguments.log_level)  # before the import: the user's module may log
    if not arguments.no_gc_tuning:
        _tune_gc()  # before the import, too: what the user's module sets is what counts
    app = target.load(arguments.target)
    app.override(concurrency=arguments.concurrency)
    if arguments.drain_timeout and not arguments.drain:
        arguments.parser.error("--drain-timeout belongs to --drain: type both, or none")
    feeds = _feeds(app, arguments)
    choose_reader()  # raises here, before a broker is started or a file is sent
    with _broker_of(app, arguments) as kind:
        console.banner(app, kind)
        if feeds:
            feed(feeds, app.brokers(), app.config.settings, console.feeding)
        return _drain(app, arguments.drain_timeout or DRAIN_TIMEOUT_S) if arguments.drain else app.run()


def _tune_gc() -> None:
    """Have the collector look for garbage in cycles after 10,000 new objects instead of 700 (2,000 in Python 3.14).

    At 700 it runs with each batch, and looks at what is only queued: a third of what a message costs.
    """
    threshold = gc.get_threshold()[0]
    if 0 < threshold < GC_THRESHOLD:  # 0: somebody has turned it off
        gc.set_threshold(GC_THRESHOLD)


def _drain(app: App, timeout_s: float) -> int:
    began = time.monotonic()
    with closing(Drain(app, timeout_s)) as drain:
        try:
            with _sigterm_as_ctrl_c():
                drain.prepare()
        except KeyboardInterrupt:
            print("karafka-lite: not drained: stopped before the start", file=sys.stderr)
            return NOT_DRAINED
        code = drain.run(console.draining)
    console.drained(drain.standings, time.monotonic() - began, drain.complaint)
    return code


@contextmanager
def _broker_of(app: App, arguments: argparse.Namespace) -> Iterator[str]:
    """Points the App at ``--broker``; yields the kind of broker that was started for it, "" for a Kafka elsewhere."""
    kind = arguments.broker if arguments.broker in KINDS else ""
    if arguments.image and kind != "docker":
        arguments.parser.error("--image is what --broker docker starts: type --broker docker --image IMAGE")
    if not kind:
        app.override(bootstrap_servers=arguments.broker)
        yield kind
        return
    topics = {topic: 1 for routes in app.groups.values() for topic in routes}
    with _sigterm_as_ctrl_c(), _new_broker(kind, topics, 0, arguments.image) as broker:
        app.override(bootstrap_servers=broker.bootstrap_servers)
        yield kind


def _feeds(app: App, arguments: argparse.Namespace) -> list[Feed]:
    """What ``--feed`` asks for; a topic that nobody consumes is a usage error."""
    topics = {topic: None for routes in app.groups.values() for topic in routes}
    feeds = []
    for given in arguments.feed:
        topic, equals, file = given.partition("=")
        if not (topic and equals and file):
            arguments.parser.error(f"--feed {given}: type --feed TOPIC=FILE")
        if topic not in topics:
            arguments.parser.error(f"--feed {given}: the App does not consume {topic!r}, but {', '.join(topics)}")
        feeds.append(Feed(topic, file))
    if [feed.file for feed in feeds].count("-") > 1:
        arguments.parser.error("--feed TOPIC=- can be typed once: there is one standard input")
    return feeds


def _produce(arguments: argparse.Namespace) -> int:
    if arguments.text and arguments.key is not None:
        arguments.parser.error("--key is a field of JSON, which --text does not read: type one of them")
    console.configure_logging(arguments.log_level)
    servers = resolve_bootstrap_servers(arguments.broker, os.environ, "localhost:9092")
    feed([Feed(arguments.topic, arguments.file, arguments.key, arguments.text)], servers, {}, console.feeding)
    return 0


def _broker(arguments: argparse.Namespace) -> int:
    topics = dict(arguments.topics)
    if len(topics) < len(arguments.topics):
        arguments.parser.error("a topic stands twice: type --topic once for each")
    if arguments.image and not arguments.docker:
        arguments.parser.error("--image is what --docker starts: type --docker --image IMAGE")
    kind = "docker" if arguments.docker else "embedded"
    console.configure_logging(arguments.log_level)
    with _sigterm_as_ctrl_c(), _new_broker(kind, topics, arguments.port, arguments.image) as broker:
        console.serving(kind, broker.bootstrap_servers, topics)
        try:
            getattr(broker, "wait", threading.Event().wait)()  # a container may end by itself
        except KeyboardInterrupt:
            return 0
    return 1


def _new_broker(kind: str, topics: Mapping[str, int], port: int, image: str | None) -> DockerBroker | EmbeddedBroker:
    if kind == "docker":
        from karafka_lite.broker.docker import IMAGE, DockerBroker

        return DockerBroker(topics, port=port, image=image or IMAGE)
    from karafka_lite.broker.embedded import EmbeddedBroker

    return EmbeddedBroker(topics, port=port)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that SIGTERM, too, ends a broker behind its ``with``. An App that runs has handlers of its own meanwhile."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage errors (its own is 2, which says "forced" here)."""

    example = "karafka-lite run module:app --broker localhost:9092 --concurrency 5 --log-level debug"

    def error(self, message: str) -> NoReturn:
        usage = f"{self.format_usage()}for example: {self.example}\nhelp: {self.prog} --help"
        self.exit(1, f"{self.prog}: {message}\n{usage}\n")


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --con would break on the day when a second option begins with it.
    parser = _Parser(
        prog="karafka-lite",
        description="Kafka consumers as plain functions, with offsets that are right.",
        epilog="example: karafka-lite run module:app",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"karafka-lite {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_produce(commands)
    _add_broker(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    does: str,
    description: str,
    examples: str,
) -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        name, help=does, description=description, epilog=examples, formatter_class=formatter, allow_abbrev=False
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    does = "run the consumers of an App until Ctrl-C or SIGTERM"
    parser = _command(
        commands, "run", _run, does, "Run the consumers of an App until Ctrl-C or SIGTERM.", _RUN_EXAMPLES
    )
    parser.add_argument("target", metavar="module:app", help="where the App is; ':app' may be left out")
    here = "'embedded' or 'docker' starts one for this run"
    _add_servers(parser, f"KARAFKA_LITE_BOOTSTRAP_SERVERS and the App's bootstrap_servers; {here}")
    _add_image(parser, "--broker docker")
    parser.add_argument("--concurrency", metavar="N", type=int, help="worker threads; wins over the App's concurrency")
    parser.add_argument(
        "--feed",
        metavar="TOPIC=FILE",
        action="append",
        default=[],
        help="before the start, send each line of FILE (JSON; - is standard input) to TOPIC; may be repeated",
    )
    collector = f"leave the threshold of Python's garbage collector; otherwise it is set to {GC_THRESHOLD:,}"
    parser.add_argument("--no-gc-tuning", action="store_true", help=collector)
    parser.add_argument("--drain", action="store_true", help="process what is in the topics now, then stop")
    patience = "how long nothing may be processed while no handler runs (default: 60), then exit 4"
    parser.add_argument("--drain-timeout", metavar="SECONDS", type=_seconds, help=f"with --drain: {patience}")
    _add_log_level(parser)


def _add_produce(commands: argparse._SubParsersAction[_Parser]) -> None:
    does = "send the lines of a file to a topic"
    parser = _command(
        commands,
        "produce",
        _produce,
        does,
        "Send the lines of a file to a topic, and wait until all in-sync replicas have them.",
        _PRODUCE_EXAMPLES,
    )
    parser.example = "karafka-lite produce my_topic my_file.jsonl --broker localhost:9092"
    parser.add_argument("topic", metavar="TOPIC", help="where the messages go")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: -, which is standard input")
    parser.add_argument("--key", metavar="FIELD", help="the field of each JSON object that is the message's key")
    parser.add_argument("--text", action="store_true", help="send the lines as they are, whatever they hold")
    _add_servers(parser, "KARAFKA_LITE_BOOTSTRAP_SERVERS; default: localhost:9092")
    _add_log_level(parser)


def _add_broker(commands: argparse._SubParsersAction[_Parser]) -> None:
    does = "run a broker for development, for several terminals"
    parser = _command(
        commands,
        "broker",
        _broker,
        does,
        "Run a broker for development at 127.0.0.1 until Ctrl-C or SIGTERM.",
        _BROKER_EXAMPLES,
    )
    parser.example = "karafka-lite broker --port 9092 --topic user_events:3 --topic clicks"
    parser.add_argument("--port", metavar="PORT", type=_port, default=9092, help="of 127.0.0.1 (default: %(default)s)")
    parser.add_argument(
        "--topic",
        metavar="NAME[:PARTITIONS]",
        dest="topics",
        type=_topic,
        action="append",
        default=[],
        help="a topic to begin with, of 1 partition unless given; may be repeated",
    )
    parser.add_argument("--docker", action="store_true", help="Apache Kafka in a container; needs karafka-lite[docker]")
    _add_image(parser, "--docker")
    _add_log_level(parser)


def _seconds(typed: str) -> float:
    try:
        seconds = float(typed)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{typed!r}: type a number of seconds above 0")
    return seconds


def _port(typed: str) -> int:
    if not (typed.isdecimal() and 0 < int(typed) < 65_536):
        raise argparse.ArgumentTypeError(f"{typed!r} is no port: type a number from 1 to 65535")
    return int(typed)


def _topic(typed: str) -> tuple[str, int]:
    name, colon, partitions = typed.partition(":")
    try:
        check_topic(name)
    except ConfigurationError as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None
    if colon and not (partitions.isdecimal() and int(partitions)):
        raise argparse.ArgumentTypeError(f"{partitions!r} partitions: type a number from 1, as in {name}:3")
    return name, int(partitions or 1)


def _add_servers(parser: argparse.ArgumentParser, over: str) -> None:
    parser.add_argument("--broker", metavar="HOST:PORT,...", help=f"brokers to start from; wins over {over}")


def _add_image(parser: argparse.ArgumentParser, option: str) -> None:
    parser.add_argument("--image", metavar="IMAGE", help=f"of Kafka, for {option} (default: apache/kafka:4.3.1)")


def _add_log_level(parser: argparse.ArgumentParser) -> None:
    levels = f"{', '.join(_LEVELS)} (default: %(default)s)"
    parser.add_argument("--log-level", metavar="LEVEL", type=str.lower, choices=_LEVELS, default="info", help=levels)
