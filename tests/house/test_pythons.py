"""The package works on each Python that it says it supports, as far as that is cheap to see.

The rest is ``tests/support/pythons.py``, by hand. What differs between versions fails at the import, or in pure code:
so it is one whole run, and at the oldest and the newest version those tests, with no more packages than they need.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from support.pythons import ROOT, SUPPORTED, python

PLAIN = [requirement for requirement in requires("karafka-lite") or () if "extra ==" not in requirement]
FOR_TESTS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "confluent-kafka"]
# Pure code, threads, and what reads records; the rest starts many processes, or needs one more package.
CHOSEN = ["context", "example_handlers", "group", "marks", "messages", "options", "ownership", "reader", "report"]
CHOSEN += ["retries", "routing", "runner", "settings", "testing"]

QUICKSTART = "run examples.quickstart:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end"
PYTEST = ["pytest", "-q", "-p", "no:cacheprovider", "--assert=plain"]
PYTEST += ["--hypothesis-profile", "few"]  # a wrong answer is found on the Python of this run; here it is a wrong call
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OLDEST = SUPPORTED[0]  # it lacks what is newer; what a newer one has taken away fails at the import


@pytest.mark.slow
@pytest.mark.timeout(400)  # an environment is made and filled
@pytest.mark.parametrize("version", [version for version in SUPPORTED if version != HERE])
def test_it_works_on_the_other_versions_that_it_supports(version: str) -> None:
    program = python(version)
    if program is None:
        pytest.skip(f"Python {version} is not on this machine")
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest would keep 80 MB of it
        done(program, "-m", "venv", "--without-pip", folder)  # to make one takes longer than what it has to install
        inside = Path(folder) / "bin" / "python"
        pip = ["pip", "--python", str(inside), "--disable-pip-version-check", "install", "-q", "--no-compile"]
        done(sys.executable, "-m", *pip, *PLAIN, *(FOR_TESTS if version == OLDEST else ()))
        assert "drained: 1707 messages" in done(inside, "-W", "error", "-m", "karafka_lite", *QUICKSTART.split())
        if version == OLDEST:
            assert " passed" in done(inside, "-m", *PYTEST, *(f"tests/unit/test_{name}.py" for name in CHOSEN))


def done(program: str | Path, *arguments: str) -> str:
    """What it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [program, *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_version_that_runs_the_tests_is_supported_and_found() -> None:
    assert HERE in SUPPORTED
    assert python(HERE)
    assert python("3.0") is None
