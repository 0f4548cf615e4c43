"""The numbered examples are short, complete, and listed in their README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("e*_*.py"))
MOST_LINES = 40


def test_they_are_numbered_from_01_on_each_once() -> None:
    numbers = [int(path.name[1:3]) for path in EXAMPLES]
    assert numbers[:21] == list(range(1, 22))
    assert len(set(numbers)) == len(numbers)
    assert {path.stem for path in EXAMPLES} == {path.stem for path in (ROOT / "examples").glob("e[0-9]*.py")}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_is_short_and_begins_with_what_it_shows_and_the_command_that_runs_it(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MOST_LINES
    said = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    assert re.fullmatch(r"\S.*[.]", said[0]), "what it shows, in one sentence"
    assert [said[1], said[3]] == ["", ""]
    runs = rf"karafka-lite run examples\.{path.stem}:app --broker embedded --feed \S+ --until-end"
    others = rf"(pytest|python) examples/{path.name}|uvicorn examples\.{path.stem}:api"
    assert re.fullmatch(rf"    ({runs}|{others})", said[2])


def test_no_two_share_a_consumer_group() -> None:
    """On one Kafka each would go on where the other stopped."""
    groups = [group for path in (ROOT / "examples").glob("*.py") for group in named_groups(path.read_text())]
    assert len(groups) == len(set(groups)) > len(EXAMPLES)


def named_groups(source: str) -> list[str]:
    return re.findall(r'(?:App\(|group_id=)"([^"]+)"', source)


def test_their_readme_lists_them_in_their_order() -> None:
    listed = re.findall(r"^\| `(e\d\d_\w+\.py)` \|", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.name for path in EXAMPLES]
