"""What the guides for contributors say is there: tests, files, commands, versions."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.pythons import SUPPORTED

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
GITHUB = ROOT / ".github"
PACKAGE = ROOT / "karafka_lite"
GUIDES = [ROOT / "README.md", TESTS / "README.md", *sorted(GITHUB.glob("*.md"))]


def test_each_guarantee_is_a_test_of_that_name() -> None:
    guarantees = (TESTS / "README.md").read_text().partition("## What is guaranteed")[2]
    named = re.findall(r"`(test_\w+)`", guarantees)
    tests = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert len(named) >= 30
    assert not [name for name in named if f"def {name}(" not in tests]


def test_each_folder_of_tests_is_on_the_map() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert set(re.findall(r"^\| `(\w+)/` \|", (TESTS / "README.md").read_text(), re.MULTILINE)) == folders


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_a_guide_names_exist(guide: Path) -> None:
    text = guide.read_text()
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", text)) | set(re.findall(r"\]\(([^)#:]+)\)", text))
    named |= {word for line in commands(text) for word in shlex.split(line, comments=True) if "/" in word}
    missing = [name for name in named if not any((place / name).exists() for place in (ROOT, guide.parent, PACKAGE))]
    assert not missing


def commands(text: str) -> list[str]:
    """The lines of shell that call Python or pytest."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if re.search(r"\b(pytest|python) tests/", line)]


def test_ci_runs_on_each_supported_python() -> None:
    workflow = (GITHUB / "workflows" / "ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', workflow) == SUPPORTED
    assert "run: .ci/run" in workflow
