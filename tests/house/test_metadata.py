"""What pyproject.toml, version.py and the changelog say of the package agrees, and is said once."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import karafka_lite

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()

# As Keep a Changelog has them. "Known limits" is ours, for what a first release leaves open.
HEADINGS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}


def versions() -> list[str]:
    """The headings of the changelog, newest first, without "Unreleased"."""
    return [
        version for version in re.findall(r"^## \[?([\w.]+)\]?", CHANGELOG, re.MULTILINE) if version != "Unreleased"
    ]


def test_the_version_is_the_newest_of_the_changelog() -> None:
    assert karafka_lite.__version__ == versions()[0]


def test_the_changelog_has_the_headings_that_readers_know() -> None:
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= HEADINGS


def test_the_repository_is_named_in_one_place() -> None:
    """What needs its address asks the package's metadata: the day it moves, one line changes."""
    (address,) = re.findall(r'^Repository = "https://([^"]+)"$', read_text("pyproject.toml"), re.MULTILINE)
    named = [path for path in repository_files() for _ in re.findall(re.escape(address), read_text(path))]
    assert named == ["pyproject.toml"]


def repository_files() -> list[str]:
    """What git tracks or would add."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # The checkout may belong to another user than the tests, as in CI's containers.
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def read_text(path: str) -> str:
    """Empty for what is not text, or was deleted but is still in git's index."""
    try:
        return (ROOT / path).read_text()
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        return ""
