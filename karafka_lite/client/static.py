"""A static member, ``group_instance_id``: a restart within the session causes no rebalance.

What kafka-python has left out, and private touch points in kafka-python 3.0 (pinned below 3.1), with tests in
tests/kafka/test_static.py:

    coordinator._handle_heartbeat_response   another process has taken our place (fenced): heartbeats end, nobody is
                                             told, and the member works on until its session is over
    coordinator.poll                         a fenced member would join again, and throw out who took its place
    coordinator._assignment_snapshot         a leader that was started again does not know that it leads: new partitions
                                             would be seen by nobody
"""

from __future__ import annotations

from typing import Any

import kafka.errors


def keep_place(coordinator: Any) -> Any:
    """``coordinator``, corrected where its member is a static one."""
    if not coordinator.is_dynamic_member():
        StaticMember(coordinator)
    return coordinator


class StaticMember:
    """The coordinator of a consumer, with that corrected. All of it runs on the poller's and kafka-python's thread."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._fenced: Exception | None = None
        self._stock_poll, self._stock_heartbeat = coordinator.poll, coordinator._handle_heartbeat_response
        coordinator.poll, coordinator._handle_heartbeat_response = self._poll, self._heard

    def _poll(self, *arguments: Any, **options: Any) -> Any:
        if self._fenced is not None:
            raise self._fenced
        joined = self._stock_poll(*arguments, **options)
        if joined and self._coordinator._assignment_snapshot is None:
            self._coordinator._assignment_snapshot = self._coordinator._metadata_snapshot
        return joined

    def _heard(self, *arguments: Any) -> Any:
        try:
            return self._stock_heartbeat(*arguments)
        except kafka.errors.FencedInstanceIdError as fenced:
            self._fenced = fenced
            self._coordinator.reset_generation()  # the membership is over, at once
            raise
