"""What ``pip install karafka-lite`` brings along."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distribution

MOST_PACKAGES = 7
MOST_BYTES = 20_000_000


def required_by(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The packages behind ``name``, without extras and without itself."""
    for requirement in distribution(name).requires or ():
        needed, _, marker = requirement.partition(";")
        package = re.split(r"[^A-Za-z0-9._-]", needed.strip())[0].lower()
        if "extra" not in marker and package not in found and "python_version" not in marker:
            found[package] = distribution(package)
            required_by(package, found)
    return found


def test_the_package_brings_few_packages_and_few_bytes() -> None:
    packages = required_by("karafka-lite", {})
    sizes = {
        name: sum(path.stat().st_size for file in found.files or () if (path := found.locate_file(file)).is_file())  # type: ignore[attr-defined]
        for name, found in packages.items()
    }
    assert {"kafka-python", "rich"} < set(packages)
    assert len(packages) <= MOST_PACKAGES, sorted(packages)
    assert sum(sizes.values()) <= MOST_BYTES, sizes
