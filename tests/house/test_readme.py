"""What the README promises is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_guarantee_of_the_readme_is_a_test_of_that_name() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text())
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) >= 20
    assert not [name for name in named if f"def {name}(" not in tests]
