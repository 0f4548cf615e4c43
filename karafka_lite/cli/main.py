"""The command line: from its arguments to an exit code.

Every mistake becomes one message on standard error that says what to do, and exit code 1. A new command is a line of
``COMMANDS`` and a module ``cli/<name>.py`` with ``add_to(parser)``, which calls ``parser.describe`` and adds its
options. The module is imported when its command is chosen: a help does not wait for kafka-python.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from karafka_lite.cli.options import Parser
from karafka_lite.errors import BrokerUnavailableError, KarafkaLiteError
from karafka_lite.version import details

NO_BROKER = 3
COMMANDS = {
    "run": "run the consumers of an App",
    "routes": "list the topics, groups and functions of an App",
    "lag": "show how far consumer groups have to go",
    "reset": "move the committed offsets of a group",
    "produce": "send the lines of a file to a topic",
    "read": "print the messages of a topic",
    "redrive": "send dead letters back to their topics",
    "broker": "run a broker for development",
}
"""By name, what ``karafka-lite --help`` says of it."""


def main(argv: Sequence[str] | None = None, orders: Mapping[str, Any] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit code.

    ``orders``: values that go before what ``argv`` says, from the parent of this process (see ``child.py``).
    ``--help`` and usage errors raise argparse's SystemExit (0 and 1).
    """
    if sys.stderr is None:  # the parent process closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it is open for as long as the process runs
    argv = sys.argv[1:] if argv is None else argv
    Parser.as_json = "--log-format=json" in argv or ("--log-format", "json") in itertools.pairwise(argv)
    if Parser.as_json:
        _lines().choose("json", False)
    arguments, unknown = _parser(argv).parse_known_args(argv)
    vars(arguments).update(orders or {}, argv=list(argv))
    if unknown:  # reported by the command, whose usage lists its options
        arguments.parser.refuse(unknown)
    if arguments.version:
        print("\n".join([*details(), _reader()] if arguments.verbose else details()[:1]))
        return 0
    if arguments.command is None:
        arguments.parser.print_help()
        return 0
    _lines().choose(getattr(arguments, "log_format", "auto"), getattr(arguments, "quiet", False))
    try:
        return int(arguments.command(arguments))
    except KeyboardInterrupt:  # during the import or the start of a broker; what runs handles signals itself
        return 1
    except KarafkaLiteError as mistake:
        _lines().complain(str(mistake) if getattr(mistake, "is_complete", False) else f"karafka-lite: {mistake}")
        return NO_BROKER if isinstance(mistake, BrokerUnavailableError) else 1


def _lines() -> ModuleType:
    from karafka_lite.cli import lines  # here: it imports logging

    return lines


def _reader() -> str:
    from karafka_lite.client.reader import choose_reader

    return f"reader: {choose_reader().name}"


def _parser(argv: Sequence[str] | None = None) -> Parser:
    """With the options of the command that ``argv`` has chosen; None: with those of all."""
    parser = Parser(
        prog="karafka-lite",
        description="Kafka consumers as plain functions, with offsets that are right.",
        epilog="For the options of a command: karafka-lite COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--verbose", action="store_true", help="with --version: print what a bug report needs")
    parser.set_defaults(parser=parser, command=None, parent=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    chosen = COMMANDS if argv is None else [word for word in argv if not word.startswith("-")][:1]
    for name, told in COMMANDS.items():
        # --con would break as soon as a second option begins with it
        command = commands.add_parser(name, help=told, allow_abbrev=False)
        if name in chosen:
            importlib.import_module(f"karafka_lite.cli.{name}").add_to(command)
    return parser
