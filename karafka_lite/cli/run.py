"""``karafka-lite run``: import an App and run it until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import difflib
import gc
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

from karafka_lite.app import App
from karafka_lite.cli import broker, config, console, importer, lines, probes
from karafka_lite.cli.feed import Feed, feed
from karafka_lite.cli.options import Parser, add_config, add_image, add_log_level, partitions, seconds
from karafka_lite.draining import NOT_DRAINED, Drain, Progress
from karafka_lite.observers import metrics
from karafka_lite.settings import PARTITIONS

IDLE_TIMEOUT_S = 60.0
GC_THRESHOLD = 10_000

_EPILOG = """\
examples:
  karafka-lite run orders:app                  the App named app in orders.py
  karafka-lite run orders                      the same, or its only App
  karafka-lite run shop.orders:consumers.app   a nested attribute
  karafka-lite run 'shop.orders:make_app()'    what a function returns
  karafka-lite run examples/quickstart.py      a file
  karafka-lite run orders:app --broker kafka-1:9092,kafka-2:9092
                                               brokers other than the App's
  karafka-lite run orders:app --broker embedded
                                               an in-memory broker, no Kafka
  karafka-lite run orders:app --broker docker  Apache Kafka in a container
  karafka-lite run orders:app --feed orders=orders.jsonl
                                               first send each line to the topic
  karafka-lite run orders:app --until-end          stop at the end of its topics

exit codes:
  0  clean stop
  1  configuration, usage or import error, or a critical exception
  2  forced stop: a handler or the final commit took too long
  3  no broker could be reached
  4  --until-end did not reach the end

SIGUSR1 has it print where every thread and every handler stands, also while a
handler hangs.
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        run,
        description="Run the consumers of an App until Ctrl-C or SIGTERM.",
        epilog=_EPILOG,
    )
    parser.add_argument("app", metavar="module:app", help="where the App is; ':app' may be omitted")
    group = parser.add_argument_group("brokers")
    group.add_argument(
        "--broker",
        metavar="HOST:PORT,...",
        help="brokers to connect to, or 'embedded' or 'docker' to start one for this run; overrides "
        "KARAFKA_LITE_BOOTSTRAP_SERVERS and the App's bootstrap_servers",
    )
    told = f"with --broker embedded or docker: how many each of the App's topics has (default: {PARTITIONS})"
    group.add_argument("--partitions", metavar="N", type=partitions, help=told)
    add_config(group)
    add_image(group, "--broker docker")
    group = parser.add_argument_group("input")
    group.add_argument(
        "--feed",
        metavar="TOPIC=FILE",
        action="append",
        default=[],
        help="before the App starts, send each line of FILE (JSON; - for standard input) to TOPIC; repeatable",
    )
    group.add_argument("--until-end", action="store_true", help="process what is in the topics now, then stop")
    group.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=seconds,
        help=f"with --until-end: exit with 4 after this long without progress (default: {IDLE_TIMEOUT_S:g})",
    )
    group = parser.add_argument_group("processing")
    group.add_argument(
        "--concurrency", metavar="N", type=int, help="calls of one handler at a time, each for another partition"
    )
    group.add_argument(
        "--no-gc-tuning", action="store_true", help=f"do not raise Python's GC threshold to {GC_THRESHOLD:,}"
    )
    probes.add_to(parser)
    group = parser.add_argument_group("display")
    told = "on a terminal: show, twice a second, what each partition does, and log lines above it"
    group.add_argument("--live", action="store_true", help=told)
    add_log_level(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.no_gc_tuning:
        _tune_gc()  # before the import, so that the user's module has the last word
    with console.logging_of_the_users_module(arguments.log_level):
        app = importer.load_app(arguments.app)
    app.override(concurrency=arguments.concurrency, settings=config.load_if(arguments.config))
    app.override(say_where=console.whereabouts)
    if arguments.live and not lines.on_terminal():
        arguments.parser.error("--live needs standard error to be a terminal, without --quiet and --log-format")
    if arguments.idle_timeout and not arguments.until_end:
        arguments.parser.error("--idle-timeout requires --until-end")
    feeds = _feeds(app, arguments)
    from karafka_lite.client.reader import choose_reader

    choose_reader()  # raises here, before a broker is started or a file is sent
    with _broker_of(app, arguments) as kind:
        console.banner(app, kind)
        if feeds:
            feed(feeds, app.brokers(), app.config.settings, console.feeding)
        with probes.watched(arguments, probes.Sources(app.health, lambda: metrics.exposed(app.reading()))):
            with console.live(app.stats, app.health) if arguments.live else nullcontext():
                return _serve(app, arguments)


def _serve(app: App, arguments: argparse.Namespace) -> int:
    if not arguments.until_end:
        return app.serve()
    progress = () if arguments.live else (console.draining,)  # there is one live display at a time
    return _drain(app, arguments.idle_timeout or IDLE_TIMEOUT_S, *progress)


def _tune_gc() -> None:
    """Have the garbage collector look at new objects after 10,000 of them instead of 700 (2,000 in Python 3.14).

    At 700 it runs with each batch and examines messages that are only queued: a third of the cost of a message.
    """
    threshold = gc.get_threshold()[0]
    if 0 < threshold < GC_THRESHOLD:  # 0: the user has turned it off
        gc.set_threshold(GC_THRESHOLD)


def _drain(app: App, timeout_s: float, *progress: Progress) -> int:
    began = time.monotonic()
    with closing(Drain(app, app.serve, timeout_s)) as drain:
        try:
            with broker.sigterm_as_ctrl_c():
                drain.prepare()
        except KeyboardInterrupt:
            lines.complain("karafka-lite: not drained: stopped before the start")
            return NOT_DRAINED
        code = drain.run(*progress)
    console.drained(drain.snapshots, time.monotonic() - began, drain.complaint)
    return code


@contextmanager
def _broker_of(app: App, arguments: argparse.Namespace) -> Iterator[str]:
    """Point the App at ``--broker``; yields the kind of the broker started for this run, or "" if none was started."""
    kind = arguments.broker if arguments.broker in broker.KINDS else ""
    if arguments.broker and not kind and (near := difflib.get_close_matches(arguments.broker, broker.KINDS, 1, 0.75)):
        arguments.parser.error(
            f"--broker {arguments.broker}: did you mean {near[0]}? For a host of that name, give its port: "
            f"--broker {arguments.broker}:9092"
        )
    if arguments.image and kind != "docker":
        arguments.parser.error("--image requires --broker docker")
    if arguments.partitions and not kind:
        arguments.parser.error("--partitions requires --broker embedded or --broker docker")
    if not kind:
        app.override(bootstrap_servers=arguments.broker)
        yield kind
        return
    count = arguments.partitions or PARTITIONS
    topics = {topic: count for routes in app.groups.values() for topic in routes}
    # An App that runs has signal handlers of its own; SIGTERM matters before and after that.
    with broker.sigterm_as_ctrl_c(), broker.development_broker(kind, topics, 0, arguments.image) as started:
        app.override(bootstrap_servers=started.bootstrap_servers)
        yield kind


def _feeds(app: App, arguments: argparse.Namespace) -> list[Feed]:
    """The feeds of ``--feed``; a topic that the App does not consume is a usage error."""
    topics = {topic: None for routes in app.groups.values() for topic in routes}
    feeds = []
    for given in arguments.feed:
        topic, equals, file = given.partition("=")
        if not (topic and equals and file):
            arguments.parser.error(f"--feed expects TOPIC=FILE, got {given!r}")
        if topic not in topics:
            arguments.parser.error(
                f"--feed {given}: the App does not consume {topic!r}; its topics: {', '.join(topics)}"
            )
        feeds.append(Feed(topic, file))
    if [feed.file for feed in feeds].count("-") > 1:
        arguments.parser.error("--feed TOPIC=- can be given only once: there is only one standard input")
    return feeds
