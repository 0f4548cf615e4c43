"""What the commands share: the parser, its checks of values, and options that mean the same in each.

It is imported for every ``--help``: whatever takes longer than argparse itself is imported where it is needed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DEFAULT_LEVEL = "info"
_LEVELS = ("debug", "info", "warning", "error")

_AGO = re.compile(r"-\d+[a-z]+")

Command = Callable[[argparse.Namespace], int]
"""What a command does with its arguments; returns the exit code."""


class Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage errors: its own, 2, means "forced" here."""

    as_json = False  # so that a usage error is one object, too
    example = "karafka-lite run module:app --broker localhost:9092 --concurrency 5 --log-level debug"

    def parse_known_args(  # type: ignore[override]  # argparse's is overloaded
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse has it, but for ``--to -2h``: a time that is so long ago is no option."""
        given: list[str] = []
        for text in sys.argv[1:] if args is None else args:
            if _AGO.fullmatch(text) and given and given[-1] in ("--from", "--to"):
                text = f"{given.pop()}={text}"
            given.append(text)
        return super().parse_known_args(given, namespace)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit, and name the option that the first of these may have meant."""
        import difflib  # here: only a mistake waits for it

        known = [option for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def error(self, message: str) -> NoReturn:
        """Exit. Its list of all options, which the help has, would hide what is wrong."""
        usage = f"for example: {self.example}\nhelp: {self.prog} --help"
        if self.as_json:
            from karafka_lite.cli import lines

            lines.complain(f"{self.prog}: {message}", usage=usage)
            self.exit(1)
        self.exit(1, f"{self.prog}: {message}\n{usage}\n")

    def describe(self, command: Command, *, description: str, epilog: str, example: str = "") -> None:
        """This parser is of ``command``."""
        self.set_defaults(command=command, parser=self)
        self.description, self.epilog, self.example = description, epilog, example or self.example
        self.formatter_class = argparse.RawDescriptionHelpFormatter


# -- options


def add_log_level(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``default``: the level of a command that answers, and says no more without need."""
    group = parser.add_argument_group("logging")
    usual = default or f"{DEFAULT_LEVEL}; with --quiet: warning"
    levels = f"{', '.join(_LEVELS)} (default: {usual})"
    group.add_argument("--log-level", metavar="LEVEL", type=str.lower, choices=_LEVELS, default=default, help=levels)
    formats = "auto: colour on a terminal, else text; text; json: one object a line for all of standard error"
    group.add_argument("--log-format", metavar="FORMAT", choices=("auto", "text", "json"), default="auto", help=formats)
    group.add_argument("--quiet", action="store_true", help="say only what is wrong: no banner, no summary")


def add_config(group: argparse._ArgumentGroup) -> None:
    text = "settings in TOML, under their own names, with ${VARIABLE} from the environment; overrides the App's"
    group.add_argument("--config", metavar="FILE", help=text)


def add_cluster(parser: argparse.ArgumentParser, app: str = "an App whose brokers and settings to use") -> None:
    """Where a command connects to; ``cluster.py`` reads it."""
    group = parser.add_argument_group("brokers")
    servers = "brokers to connect to (default: KARAFKA_LITE_BOOTSTRAP_SERVERS, or localhost:9092)"
    group.add_argument("--broker", metavar="HOST:PORT,...", help=servers)
    group.add_argument("--app", metavar="module:app", help=app)
    add_config(group)


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Whose offsets a command is about; ``cluster.py`` reads it."""
    whose = "the App whose groups and topics are meant; ':app' may be omitted"
    parser.add_argument("target", metavar="module:app", nargs="?", help=whose)
    parser.add_argument("--group", metavar="GROUP", help="instead: a consumer group, with the topics of its commits")


def add_image(group: argparse._ArgumentGroup, option: str) -> None:
    group.add_argument("--image", metavar="IMAGE", help=f"Kafka image for {option} (default: apache/kafka:4.3.1)")


# -- types of values


def partitions(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 10000, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0, got {text!r}")
    return value


def count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be an integer ≥ 1, got {text!r}")
    return int(text)


def number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer ≥ 0, got {text!r}")
    return int(text)


def port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return int(text)


def topic_with_partitions(text: str) -> tuple[str, int]:
    """``NAME`` or ``NAME:PARTITIONS``."""
    from karafka_lite.checks import check_topic
    from karafka_lite.errors import ConfigurationError
    from karafka_lite.settings import PARTITIONS

    name, colon, partitions = text.partition(":")
    try:
        check_topic(name)
    except ConfigurationError as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None
    if colon and not (partitions.isdecimal() and int(partitions)):
        raise argparse.ArgumentTypeError(f"partitions must be an integer ≥ 1, as in {name}:3, got {text!r}")
    return name, int(partitions or PARTITIONS)
