"""Leaving a group: kafka-python sends one request, and hears no answer.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_silence.py:

    coordinator.maybe_leave_group, _generation, state    what it forgets as soon as it has asked
    coordinator.coordinator_dead                         the coordinator may have moved
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kafka.errors
from kafka.structs import MemberState

from karafka_lite.client.trouble import Trouble


class Leaving:
    """In the place of ``maybe_leave_group``. ``error``: why the broker does not know that we have left."""

    def __init__(self, coordinator: Any, trouble: Trouble) -> None:
        self.error: Exception | None = None
        self._coordinator, self._trouble = coordinator, trouble
        self._stock: Callable[..., None] = coordinator.maybe_leave_group
        coordinator.maybe_leave_group = self

    def __call__(self, timeout_ms: float) -> None:
        """Leave. Where that is refused, ask who the coordinator is, and try once more."""
        coordinator = self._coordinator
        generation, state = coordinator._generation, coordinator.state
        if state is MemberState.UNJOINED or not generation.has_member_id():
            return
        if not coordinator.is_dynamic_member():  # it stays one for the session
            self._stock(timeout_ms=timeout_ms)
            return
        for _ in range(2):
            coordinator._generation, coordinator.state = generation, state
            coordinator.ensure_coordinator_ready(timeout_ms=timeout_ms)
            self._stock(timeout_ms=timeout_ms)
            self.error = self._trouble.why_not("LeaveGroup")
            if isinstance(self.error, kafka.errors.UnknownMemberIdError):
                self.error = None
            if self.error is None:
                return
            coordinator.coordinator_dead(self.error)
