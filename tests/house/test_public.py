"""What users may rely on: the names that five modules export, documented and typed to the last one.

The rest of the package may change without notice.
"""

from __future__ import annotations
import __future__

import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import karafka_lite

ROOT = Path(__file__).parents[2]
PACKAGES = ["karafka_lite", "karafka_lite.testing", "karafka_lite.broker"]
DEFINING = ["karafka_lite.events", "karafka_lite.errors"]
PUBLIC = [*PACKAGES, *DEFINING]

# Classes of those modules that users never meet.
INTERNAL = {
    "Exit",  # the command line's numbers
    "PollError",  # the runner polls again
    "StrayedError",  # it asks where they are
    "ClientBrokenError",  # the runner makes a new client
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_what_it_imports_and_nothing_else(name: str) -> None:
    package = importlib.import_module(name)
    for exported_name in package.__all__:
        getattr(package, exported_name)  # some are imported when they are used first
    imported = {
        name
        for name, thing in vars(package).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType | __future__._Feature)
    }
    assert set(package.__all__) - {"__version__"} == imported
    assert len(package.__all__) == len(set(package.__all__))


@pytest.mark.parametrize("name", DEFINING)
def test_a_module_exports_the_classes_that_it_defines(name: str) -> None:
    module = importlib.import_module(name)
    defined = {
        name
        for name, thing in vars(module).items()
        if isinstance(thing, type) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    assert set(module.__all__) == defined - INTERNAL
    assert len(module.__all__) == len(set(module.__all__))


def test_every_error_can_be_imported_from_the_package() -> None:
    errors = importlib.import_module("karafka_lite.errors")
    assert set(errors.__all__) <= set(karafka_lite.__all__)


def test_the_brokers_are_exported() -> None:
    assert set(importlib.import_module("karafka_lite.broker").__all__) == {"EmbeddedBroker", "DockerBroker"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    """And so have the public members of their classes; the docstring of the class may speak for them."""
    missing = []
    for thing in exported(name):
        documented = inspect.cleandoc(thing.__doc__ or "")
        missing += [thing.__qualname__] * (not documented)
        missing += [
            f"{thing.__qualname__}.{name}"
            for name, member in vars(thing).items()
            if callable(member) or isinstance(member, property | classmethod | staticmethod)
            if not name.startswith("_") and not member.__doc__ and name not in documented
        ]
    assert not missing


def exported(name: str) -> list[Any]:
    """The classes and functions that a module exports."""
    module = importlib.import_module(name)
    return [thing for n in module.__all__ if callable(thing := getattr(module, n))]


@pytest.mark.xdist_group("measured types")  # one worker measures them for all
@pytest.mark.parametrize("name", PUBLIC)
def test_the_types_of_what_is_public_are_complete(name: str) -> None:
    """As ``pyright --verifytypes`` measures it: for each public name, its members, and all that their types name."""
    symbols = {symbol["name"]: symbol for symbol in measured()}
    homes = {f"{thing.__module__}.{thing.__qualname__}" for thing in exported(name)}
    assert homes <= set(symbols)
    members = {name for name in symbols for home in homes if name.startswith(f"{home}.")}
    incomplete = {name for name in homes | members if not symbols[name]["isTypeKnown"]}
    # The public name may only inherit it: the cause is a symbol with a diagnostic, often in another module.
    causes = [symbol for symbol in symbols.values() if not symbol["isTypeKnown"] and symbol["diagnostics"]]
    assert not incomplete, "\n".join(["", *sorted(incomplete), "", "because of some of these:", *map(describe, causes)])


@functools.cache
def measured() -> list[dict[str, Any]]:
    command = ["pyright", "--pythonpath", sys.executable, "--verifytypes", "karafka_lite", "--ignoreexternal"]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--outputjson"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    symbols: list[dict[str, Any]] = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    return symbols


def describe(symbol: dict[str, Any]) -> str:
    said = symbol["diagnostics"][0]
    return f"{symbol['name']}: {said['message'].splitlines()[0]}"
