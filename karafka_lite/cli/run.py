"""``karafka-lite run``: import an App and run it until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import difflib
import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext

from karafka_lite.app import App
from karafka_lite.cli import broker, child, config, console, importer, lines, probes, topics
from karafka_lite.cli.feed import Feed, feed
from karafka_lite.cli.options import Parser, add_config, add_image, add_log_level, count, partitions, seconds
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
  karafka-lite run orders:app --until-end      stop at the end of its topics
  karafka-lite run orders:app --broker embedded --reload
                                               and again when the code changes
  karafka-lite run orders:app --processes 4    on all cores

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
    add_config(group)
    add_image(group, "--broker docker")
    group = parser.add_argument_group("topics")
    group.add_argument("--create-topics", action="store_true", help="create those of the App that do not exist")
    told = f"of each topic that is created (default: the brokers'; with --broker embedded or docker {PARTITIONS})"
    group.add_argument("--partitions", metavar="N", type=partitions, help=told)
    group.add_argument("--replication-factor", metavar="N", type=count, help="the same (default: the brokers')")
    told = "exit with 1 if a topic does not exist, instead of waiting for it"
    group.add_argument("--strict", action="store_true", help=told)
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
    group.add_argument("--group", metavar="NAME", help="another consumer group than the App's own")
    told = (
        "static membership: a restart within session_timeout_ms causes no rebalance; with --processes NAME-1, NAME-2 …"
    )
    group.add_argument("--instance-id", metavar="NAME", help=told)
    group.add_argument("--processes", metavar="N", type=count, help="as many processes, each a member of the groups")
    told = "start again when a Python file changes; an embedded broker keeps what it has. Needs karafka-lite[reload]"
    group.add_argument("--reload", action="store_true", help=told)
    group.add_argument(
        "--no-gc-tuning", action="store_true", help=f"do not raise Python's GC threshold to {GC_THRESHOLD:,}"
    )
    probes.add_to(parser)
    group = parser.add_argument_group("display")
    told = "on a terminal: show, twice a second, what each partition does, and log lines above it"
    group.add_argument("--live", action="store_true", help=told)
    add_log_level(parser)


def run(arguments: argparse.Namespace) -> int:
    _check_usage(arguments)
    parent: child.Parent | None = arguments.parent
    if arguments.reload and parent is None:
        return _reload(arguments)
    if not arguments.no_gc_tuning:
        _tune_gc()  # before the import, so that the user's module has the last word
    with console.logging_of_the_users_module(arguments.log_level):
        app = importer.load_app(arguments.app)
    settings = config.load_if(arguments.config)
    if arguments.instance_id is not None:
        settings["group_instance_id"] = arguments.instance_id
    app.override(concurrency=arguments.concurrency, group_id=arguments.group, settings=settings)
    app.override(say_where=console.whereabouts)
    feeds = _feeds(app, arguments)
    from karafka_lite.client.reader import choose_reader

    choose_reader()  # raises here, before a broker is started or a file is sent
    with _broker_of(app, arguments) as kind:
        if parent is None or not parent.prepared:
            _prepare(app, arguments, feeds, kind)
        if parent is not None:
            parent.meet(app)
        elif arguments.processes:
            from karafka_lite.cli.supervisor import supervise

            servers = ",".join(app.brokers()) if kind else arguments.broker
            done = {"feed": [], "create_topics": False, "partitions": None, "replication_factor": None, "strict": False}
            done["instance_id"] = app.config.instance_id
            orders = {**done, "broker": servers, "image": None, "prepared": True, "banner": False, "broker_kind": kind}
            return supervise(arguments, orders)
        with probes.watched(arguments, probes.Sources(app.health, lambda: metrics.exposed(app.reading()))):
            with console.live(app.stats, app.health) if arguments.live else nullcontext():
                return _serve(app, arguments)


def _serve(app: App, arguments: argparse.Namespace) -> int:
    if not arguments.until_end:
        return app.serve_here()
    progress = () if arguments.live else (console.draining,)  # there is one live display at a time
    return _drain(app, arguments.idle_timeout or IDLE_TIMEOUT_S, *progress)


def _prepare(app: App, arguments: argparse.Namespace, feeds: list[Feed], kind: str) -> None:
    """What is done once, however many processes run the App."""
    if arguments.parent is None or arguments.parent.banner:
        console.banner(app, kind or (arguments.parent.broker if arguments.parent else ""))
    if arguments.create_topics:
        topics.create_topics(app, arguments.partitions, arguments.replication_factor)
    if arguments.strict:
        topics.demand_topics(app)
    if feeds:
        feed(feeds, app.brokers(), app.config.settings, console.feeding)


def _reload(arguments: argparse.Namespace) -> int:
    """The App is imported in a process that can be started again; a broker for this run stays in this one."""
    from karafka_lite.cli.reload import reload

    console.configure_logging(arguments.log_level)
    with _development_broker(arguments, {}) as (kind, servers):
        orders: dict[str, object] = {"prepared": False, "broker_kind": kind}
        if kind:
            created = {"create_topics": True, "partitions": arguments.partitions or PARTITIONS}
            orders |= {**created, "broker": servers, "image": None}
        files = [arguments.config] if arguments.config else []
        return reload(arguments.app, files, arguments.argv, orders)


def _tune_gc() -> None:
    """Have the garbage collector look at new objects after 10,000 of them instead of 700 (2,000 in Python 3.14).

    At 700 it runs with each batch and examines messages that are only queued: a third of the cost of a message.
    """
    threshold = gc.get_threshold()[0]
    if 0 < threshold < GC_THRESHOLD:  # 0: the user has turned it off
        gc.set_threshold(GC_THRESHOLD)


def _drain(app: App, timeout_s: float, *progress: Progress) -> int:
    began = time.monotonic()
    with closing(Drain(app, app.serve_here, timeout_s)) as drain:
        try:
            with broker.sigterm_as_ctrl_c():
                drain.prepare()
        except KeyboardInterrupt:
            lines.complain("karafka-lite: not drained: stopped before the start")
            return NOT_DRAINED
        code = drain.run(*progress)
    console.drained(drain.snapshots, time.monotonic() - began, drain.complaint)
    return code


def _check_usage(arguments: argparse.Namespace) -> None:
    refuse, kind = arguments.parser.error, _kind_of(arguments)
    if arguments.broker and not kind and (near := difflib.get_close_matches(arguments.broker, broker.KINDS, 1, 0.75)):
        refuse(
            f"--broker {arguments.broker}: did you mean {near[0]}? For a host of that name, give its port: "
            f"--broker {arguments.broker}:9092"
        )
    if arguments.image and kind != "docker":
        refuse("--image requires --broker docker")
    if arguments.partitions and not (kind or arguments.create_topics):
        refuse("--partitions requires --create-topics, --broker embedded or --broker docker")
    if arguments.replication_factor and not arguments.create_topics:
        refuse("--replication-factor requires --create-topics")
    if arguments.idle_timeout and not arguments.until_end:
        refuse("--idle-timeout requires --until-end")
    if arguments.processes and arguments.live:
        refuse("--live shows one process; leave out --processes")
    if arguments.live and not lines.on_terminal():
        refuse("--live needs standard error to be a terminal, without --quiet and --log-format")
    if arguments.processes and (arguments.reload or arguments.until_end):
        refuse(f"--{'reload' if arguments.reload else 'until-end'} runs one process; leave out --processes")


def _kind_of(arguments: argparse.Namespace) -> str:
    return arguments.broker if arguments.broker in broker.KINDS else ""


@contextmanager
def _broker_of(app: App, arguments: argparse.Namespace) -> Iterator[str]:
    """Point the App at ``--broker``; yields the kind of the broker started for this run, or "" if none was started."""
    counts = dict.fromkeys(topics.topics_of(app), arguments.partitions or PARTITIONS)
    with _development_broker(arguments, counts) as (kind, servers):
        app.override(bootstrap_servers=servers)
        yield kind


@contextmanager
def _development_broker(arguments: argparse.Namespace, topics: Mapping[str, int]) -> Iterator[tuple[str, str | None]]:
    """Start the one that ``--broker`` asks for. Yields its kind, or "" if it asks for none, and its address."""
    if not (kind := _kind_of(arguments)):
        yield kind, arguments.broker
        return
    # An App that runs has signal handlers of its own; SIGTERM matters before and after that.
    with broker.sigterm_as_ctrl_c(), broker.development_broker(kind, topics, 0, arguments.image) as started:
        yield kind, started.bootstrap_servers


def _feeds(app: App, arguments: argparse.Namespace) -> list[Feed]:
    """The feeds of ``--feed``; a topic that the App does not consume is a usage error."""
    known = topics.topics_of(app)
    feeds = []
    for given in arguments.feed:
        topic, equals, file = given.partition("=")
        if not (topic and equals and file):
            arguments.parser.error(f"--feed expects TOPIC=FILE, got {given!r}")
        if topic not in known:
            arguments.parser.error(
                f"--feed {given}: the App does not consume {topic!r}; its topics: {', '.join(known)}"
            )
        feeds.append(Feed(topic, file))
    if [feed.file for feed in feeds].count("-") > 1:
        arguments.parser.error("--feed TOPIC=- can be given only once: there is only one standard input")
    return feeds
