"""``--config FILE``: settings by kafka-python's names, one a line.

# secrets need not be in code
bootstrap_servers = kafka-1:9093,kafka-2:9093
security_protocol = SASL_SSL
ssl_check_hostname = true
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karafka_lite.errors import ConfigurationError
from karafka_lite.settings import Config, setting_of

SERVERS = "bootstrap_servers"


def load(path: str) -> dict[str, Any]:
    """The settings in a file, with their types, and ``bootstrap_servers``.

    Raises:
        ConfigurationError: it cannot be read, or a line is not ``name = value``; the text has the line's number.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not a text in UTF-8"
        raise ConfigurationError(f"--config {path} cannot be read: {why}") from None
    settings: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (name and equals):
            raise ConfigurationError(f"{path}:{number}: a line must be name = value, or begin with #")
        if name in settings:
            raise ConfigurationError(f"{path}:{number}: {name} is given a second time")
        try:
            settings[name] = value if name == SERVERS else setting_of(name, value)
        except ConfigurationError as mistake:
            raise ConfigurationError(f"{path}:{number}: {mistake}") from None
    return settings


def load_if(path: str | None) -> dict[str, Any]:
    """As ``load``; nothing without a file."""
    return {} if path is None else load(path)


def of_no_app(path: str | None) -> tuple[str, Mapping[str, Any]]:
    """The brokers and the settings of a command that has no App: those of the file, if there is one."""
    settings = load_if(path)
    servers = settings.pop(SERVERS, "localhost:9092")
    return servers, Config.validated("karafka-lite", bootstrap_servers=servers, settings=settings).settings
