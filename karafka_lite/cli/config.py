"""``--config FILE``: settings in TOML, under their own names.

bootstrap_servers = "kafka-1:9093,kafka-2:9093"
security_protocol = "SASL_SSL"
sasl_plain_password = "${KAFKA_PASSWORD}"    # from the environment; $${ is a plain ${
ssl_check_hostname = true
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from karafka_lite.errors import ConfigurationError
from karafka_lite.settings import ARGUMENTS, Config, setting_of, text_as

SERVERS = "bootstrap_servers"
_VARIABLE = re.compile(r"\$(\$?)\{(\w*)\}")


def load(path: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What a file has: settings, and arguments of an App (``settings.ARGUMENTS``).

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or has what is no setting; the text has the line's number,
            and never a value.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not a text in UTF-8"
        raise ConfigurationError(f"--config {path} cannot be read: {why}") from None
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        found = toml.loads(text)
    except ValueError as error:
        hint = '; it is TOML: name = "value", with quotes around text'
        raise ConfigurationError(f"{path} cannot be read: {error}{hint}") from None
    settings: dict[str, Any] = {}
    for name, value in found.items():
        try:
            settings[name] = _value(name, value, environ)
        except ConfigurationError as mistake:
            line = next((n for n, of in enumerate(text.splitlines(), 1) if re.match(rf"\W*{re.escape(name)}\W", of)), 1)
            raise ConfigurationError(f"{path}:{line}: {mistake}") from None
    return settings


def load_if(path: str | None) -> dict[str, Any]:
    """As ``load``; nothing without a file."""
    return {} if path is None else load(path)


def of_no_app(path: str | None) -> tuple[str, Mapping[str, Any]]:
    """The brokers and the settings of a command that has no App: those of the file, if there is one."""
    given = load_if(path)
    servers = given.setdefault(SERVERS, "localhost:9092")
    arguments = {name: given.pop(name) for name in ARGUMENTS if name in given}
    return servers, Config.validated("karafka-lite", **arguments, settings=given).settings


def _value(name: str, value: Any, environ: Mapping[str, str]) -> Any:
    """``value`` with the environment's variables in it, as a setting. Raises ConfigurationError."""

    def variable(match: re.Match[str]) -> str:
        escaped, named = match.groups()
        if not escaped and named not in environ:
            raise ConfigurationError(f"{name}: the environment has no variable {named!r}")
        return f"${{{named}}}" if escaped else environ[named]

    if isinstance(value, list):
        return setting_of(name, [_VARIABLE.sub(variable, one) if isinstance(one, str) else one for one in value])
    if not isinstance(value, str) or not _VARIABLE.search(value):
        return setting_of(name, value)
    return setting_of(name, text_as(name, _VARIABLE.sub(variable, value)))
