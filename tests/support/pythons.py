"""Runs what needs no Kafka on each Python that the package supports, in a fresh virtual environment each.

    python tests/support/pythons.py                          every version that this machine has
    python tests/support/pythons.py 3.10 3.13                these
    python tests/support/pythons.py 3.10 -- -n 2 --decoder pure tests/unit        what follows -- is for pytest

A version is found on the PATH as pythonX.Y, or among pyenv's. One line for each is printed, with pytest's last one, and
before it all that pytest had to say where something failed; the exit code is 1 then, or where a version that was asked
for is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORTED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())

# The mutations of the simulation are wrong on every Python.
TESTS = [
    "-n",
    "auto",
    "-m",
    "not kafka and not docker",
    "--ignore",
    "tests/simulation/test_mutations.py",
    "-p",
    "no:cacheprovider",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", metavar="X.Y", nargs="*", help=f"of {', '.join(SUPPORTED)}; default: all")
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    asked, options = parser.parse_args(arguments[:cut]).versions, arguments[cut + 1 :]
    if unknown := [version for version in asked if version not in SUPPORTED]:
        parser.error(f"{', '.join(unknown)}: not supported; choose from {', '.join(SUPPORTED)}")
    found = {version: python(version) for version in asked or SUPPORTED}
    missing = [version for version, program in found.items() if program is None]
    if missing:
        print(f"not on this machine: {', '.join(missing)}", flush=True)
    good = [run(version, program, options) for version, program in found.items() if program]
    return 0 if good and all(good) and not (asked and missing) else 1


def python(version: str) -> Path | None:
    """The interpreter, if it starts: pyenv leaves words on the PATH for versions that are not switched on."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = shutil.which(f"python{version}")
    places: list[str | Path] = [on_path] if on_path else []
    for place in [*places, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]:
        tell = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
        said = subprocess.run([place, "-c", tell], capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.startswith(f"{version} "):
            return Path(said.stdout.rstrip("\n").partition(" ")[2])
    return None


def run(version: str, program: Path, options: Sequence[str]) -> bool:
    """Whether all is well on it."""
    with tempfile.TemporaryDirectory(prefix=f"python-{version}-") as folder:
        inside = Path(folder) / "bin" / "python"
        steps: list[list[str | Path]] = [
            [program, "-m", "venv", folder],
            [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev]"],
            [inside, "-m", "pytest", *TESTS, *options],
        ]
        for step in steps:
            done = subprocess.run(step, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                print(done.stdout)
                break
    last = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
    print(f"Python {version}: {last}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
