"""The tools that read the code run as tests, so that one command says everything."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ["karafka_lite", "tests", "examples"]
USAGE = ["examples", "tests/house/typed_usage.py"]  # code as users write it

SILENCED = re.compile(r"# (?:noqa(?:: [A-Z]+\d+(?:, [A-Z]+\d+)*)?|pyright: ignore(?:\[\w+\])?)(?P<reason> - \w.*)?")

# pyright asks at each start whether there is a newer one, unless it is told not to.
ENVIRONMENT = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", *FOLDERS],
        ["ruff", "format", "--diff", *FOLDERS],
        ["mypy", "--strict", "karafka_lite"],
        ["pyright", "--pythonpath", sys.executable, "karafka_lite", *USAGE],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_linters_find_nothing(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_noqa_has_its_reason() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {comment}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, comment in unexplained(path.read_text())
    ]
    assert not found, "say why, in the same line or in a comment above:\n" + "\n".join(found)


def unexplained(source: str) -> list[tuple[int, str]]:
    """The comments that silence a checker where nobody says why, with their lines."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {number for number, token in comments.items() if token.line.lstrip().startswith("#")}
    return [
        (number, token.string)
        for number, token in comments.items()
        if (silenced := SILENCED.match(token.string)) and not silenced["reason"] and number - 1 not in alone
    ]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import a  # noqa: F401 - it registers a codec", []),
        ("import a  # noqa: F401, E402 - it registers a codec", []),
        ("# it registers a codec\nimport a  # noqa: F401", []),
        ("import a  # noqa: F401", [1]),
        ("import a  # noqa", [1]),
        ("import os\nimport a  # noqa: F401 -", [2]),
        ("a.b  # pyright: ignore[reportAttributeAccessIssue]", [1]),
        ("a.b  # pyright: ignore[reportAttributeAccessIssue] - the stubs lack it", []),
    ],
)
def test_a_reason_is_told_from_none(source: str, lines: list[int]) -> None:
    assert [number for number, _ in unexplained(source)] == lines
