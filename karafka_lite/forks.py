"""What a forked child may not touch: the locks of its parent's groups, which no thread of the child would release."""

from __future__ import annotations

import os
import weakref
from typing import Any, NoReturn, Protocol

from karafka_lite.errors import ConfigurationError


class _HasLock(Protocol):
    lock: Any


class ForeignLock:
    """Takes the place of a lock of the parent, and refuses with the reason."""

    def acquire(self, *args: object) -> NoReturn:
        """Raises ConfigurationError."""
        raise ConfigurationError(
            "this App belongs to the process that started it, and this is a fork of it: make and start an App in here"
        )

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None: ...


_watched: weakref.WeakSet[_HasLock] = weakref.WeakSet()


def watch(owner: _HasLock) -> None:
    """Replace ``owner.lock`` in each forked child."""
    _watched.add(owner)


def _replace_locks() -> None:
    for owner in list(_watched):
        owner.lock = ForeignLock()


os.register_at_fork(after_in_child=_replace_locks)
