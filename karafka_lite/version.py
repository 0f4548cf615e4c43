"""The version, in its one place, and what a report about a bug has to say."""

from __future__ import annotations

__version__ = "0.1.0"

PACKAGES = ("kafka-python", "crc32c", "aiokafka", "orjson", "rich", "typing-extensions")


def please_report() -> str:
    """What to do about a bug of this package; with the address, where the installed package knows it."""
    import importlib.metadata  # here: it is slow to load, and seldom needed

    where = ""
    try:
        links = importlib.metadata.metadata("karafka-lite").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        links = []
    for link in links:
        name, _, url = str(link).partition(", ")
        if name.lower() in ("issues", "bug tracker"):
            where = f" at {url}"
    return f"this is a bug of karafka-lite: please report it{where} with these lines"


def details() -> list[str]:
    """The versions of everything that matters, one a line: what ``karafka-lite --version --verbose`` prints."""
    import importlib.metadata
    import platform

    installed = []
    for package in PACKAGES:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            installed.append(f"{package} is not installed")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [f"karafka-lite {__version__}", python, platform.platform(), *installed]
