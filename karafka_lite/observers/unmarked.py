"""Handlers in manual mode that seem to forget to mark."""

from __future__ import annotations

from collections import Counter, defaultdict

from karafka_lite.core.ownership import Ownership

TELL_AT = 10_000  # messages


class Unmarked:
    """How many processed messages wait for a mark, by handler. It is said once, and again only after a mark.

    Each time it takes twice as many: a handler that fills a large buffer is left in peace.
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[Ownership, int]] = defaultdict(dict)  # as they were after the last batch
        self._totals = Counter[str]()
        self._limits: dict[str, int] = {}
        self._said: set[str] = set()

    def batch_ended(self, handler: str, ownership: Ownership) -> int | None:
        """Returns of how many messages it is time to tell; None: of nothing."""
        counts, unmarked = self._counts[handler], ownership.unmarked
        more = unmarked - counts.pop(ownership, 0)
        if unmarked:
            counts[ownership] = unmarked
        self._totals[handler] += more
        if more < 0:
            self._said.discard(handler)
        limit = self._limits.get(handler, TELL_AT)
        if handler in self._said or self._totals[handler] < limit:
            return None
        # Since then hooks may have marked, and partitions may have gone.
        self._counts[handler] = counts = {one: one.unmarked for one in counts if not one.over}
        self._totals[handler] = total = sum(counts.values())
        if total < limit:
            return None
        self._said.add(handler)
        self._limits[handler] = 2 * total
        return total
