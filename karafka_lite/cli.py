"""The command line: from ``karafka-lite run module:app`` to an exit code.

Every mistake ends as one message on standard error that says what to type next, with exit code 1. One function per
subcommand; ``_parser`` lists them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from karafka_lite import console, target
from karafka_lite.errors import BrokerUnavailableError, KarafkaLiteError
from karafka_lite.version import __version__

_LEVELS = ("debug", "info", "warning", "error")

_RUN_EXAMPLES = """\
examples:
  karafka-lite run orders:app                        the App named app in orders.py
  karafka-lite run orders                            the same; or the only App in there
  karafka-lite run shop.orders:consumers.app         an attribute of an attribute
  karafka-lite run 'shop.orders:make_app()'          what a function returns (the quotes are for the shell)
  karafka-lite run examples/quickstart.py            a file
  karafka-lite run orders:app --broker kafka-1:9092,kafka-2:9092 --concurrency 10 --log-level debug

exit codes: 0 clean; 1 configuration, usage or import error, or a critical exception; 2 forced; 3 no broker
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code.

    ``--help``, ``--version`` and usage errors end in argparse's SystemExit (0, 0 and 1).
    """
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:  # said by the subcommand, whose usage lists what there is
        arguments.parser.error(f"unknown arguments: {' '.join(unknown)}")
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:  # while importing; a running app has its own way to stop
        return 1
    except target.Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    except KarafkaLiteError as mistake:
        print(f"karafka-lite: {mistake}", file=sys.stderr)
        return 3 if isinstance(mistake, BrokerUnavailableError) else 1


def _run(arguments: argparse.Namespace) -> int:
    console.configure_logging(arguments.log_level)  # before the import: the user's module may log
    app = target.load(arguments.target)
    app.override(bootstrap_servers=arguments.broker, concurrency=arguments.concurrency)
    console.banner(app)
    return app.run()


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage errors (its own is 2, which says "forced" here)."""

    def error(self, message: str) -> NoReturn:
        example = "for example: karafka-lite run module:app --broker localhost:9092 --concurrency 5 --log-level debug"
        self.exit(1, f"{self.prog}: {message}\n{self.format_usage()}{example}\nhelp: {self.prog} --help\n")


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
    return parser


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run the consumers of an App until Ctrl-C or SIGTERM",
        description="Run the consumers of an App until Ctrl-C or SIGTERM.",
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="module:app", help="where the App is; ':app' may be left out")
    parser.add_argument(
        "--broker",
        metavar="HOST:PORT,...",
        help="brokers to start from; wins over KARAFKA_LITE_BOOTSTRAP_SERVERS and the App's bootstrap_servers",
    )
    parser.add_argument("--concurrency", metavar="N", type=int, help="worker threads; wins over the App's concurrency")
    levels = f"{', '.join(_LEVELS)} (default: %(default)s)"
    parser.add_argument("--log-level", metavar="LEVEL", type=str.lower, choices=_LEVELS, default="info", help=levels)
    parser.set_defaults(command=_run, parser=parser)
