"""The command line: from its arguments to an exit code.

Every mistake becomes one message on standard error that says what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from karafka_lite.cli import broker, importer, lag, produce, read, redrive, reset, routes, run
from karafka_lite.cli.options import Parser
from karafka_lite.client.reader import choose_reader
from karafka_lite.errors import BrokerUnavailableError, KarafkaLiteError
from karafka_lite.version import details

NO_BROKER = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit code.

    ``--help`` and usage errors raise argparse's SystemExit (0 and 1).
    """
    if sys.stderr is None:  # the parent process closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it is open for as long as the process runs
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:  # reported by the command, whose usage lists its options
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.version:
        print("\n".join([*details(), f"reader: {choose_reader().name}"] if arguments.verbose else details()[:1]))
        return 0
    if arguments.command is None:
        arguments.parser.print_help()
        return 0
    code = _call(arguments)
    if code == NO_BROKER and arguments.command is run.run and arguments.broker not in broker.KINDS:
        print("karafka-lite: to try it without Kafka, add --broker embedded", file=sys.stderr)
    return code


def _call(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.command(arguments))
    except KeyboardInterrupt:  # during the import or the start of a broker; what runs handles signals itself
        return 1
    except importer.ImportFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    except KarafkaLiteError as mistake:
        print(f"karafka-lite: {mistake}", file=sys.stderr)
        return NO_BROKER if isinstance(mistake, BrokerUnavailableError) else 1


def _parser() -> Parser:
    parser = Parser(
        prog="karafka-lite",
        description="Kafka consumers as plain functions, with offsets that are right.",
        epilog="For the options of a command: karafka-lite COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--verbose", action="store_true", help="with --version: print what a bug report needs")
    parser.set_defaults(parser=parser, command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (run, routes, lag, reset, produce, read, redrive, broker):
        command.add_to(commands)
    return parser
