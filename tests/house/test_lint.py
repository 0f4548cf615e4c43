"""The tools that read the code run as tests, so that one command says everything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import karafka_lite

ROOT = Path(__file__).parents[2]

# Written so that they do not find themselves.
MACHINE_PATHS = re.compile(r"(?<![\w.~})/-])/(?:root|work|home|Users)(?![\w-])")
REGISTRY_HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|repo1?\.maven\.|registry\.npmjs\.|proxy\.golang\.org|crates\.io"
    r"|docker\.io|docker\.com|ghcr\.io|quay\.io|[\w-]*(?:artifactory|nexus)[\w-]*\.\w",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "karafka_lite", "tests", "examples"],
        ["mypy", "--strict", "karafka_lite"],
    ],
    ids=lambda command: command[0],
)
def test_the_linters_find_nothing(command: list[str]) -> None:
    existing = [word for word in command if word != "examples" or (ROOT / word).is_dir()]
    done = subprocess.run([sys.executable, "-m", *existing], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_newest_of_the_changelog() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md yet")
    heading = re.search(r"^## .*$", changelog.read_text(), re.MULTILINE)
    assert heading, "CHANGELOG.md has no heading of a version"
    assert karafka_lite.__version__ in re.findall(r"\d+\.\d+[\w.]*", heading[0])


def test_no_file_tells_of_the_machine_it_was_written_on() -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in repository_files()
        for number, line in enumerate(read_text(path).splitlines(), 1)
        if MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line)
    ]
    assert not found, "absolute paths of a machine, or hosts of package registries:\n" + "\n".join(found)


def repository_files() -> list[str]:
    """What git tracks or would add; the package, tests and examples where this is no checkout."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    folders = ("karafka_lite", "tests", "examples")
    return [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")]


def read_text(path: str) -> str:
    """ "" for what is not text, or was deleted but is still in git's index."""
    try:
        return (ROOT / path).read_text()
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        return ""


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("see {}root/notes", True),
        ('path = "{}home/me/data"', True),
        ("({}work)", True),
        ("https://example.com{}home", False),
        ("~{}work, ${{HOME}}{}work, a{}home, {}homework, {}health", False),
    ],
)
def test_machine_paths_are_told_from_others(line: str, is_found: bool) -> None:
    assert bool(MACHINE_PATHS.search(line.replace("{}", "/"))) is is_found
