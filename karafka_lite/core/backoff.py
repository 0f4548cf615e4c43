"""When to try again: exponential, bounded, without a clock of its own."""

from __future__ import annotations

from typing import NamedTuple


class Backoff(NamedTuple):
    """Waits of ``base_ms``, then twice as long after each failure, up to ``max_ms``.

    >>> Backoff(1000, 30_000).delay_ms(attempt=1), Backoff(1000, 30_000).delay_ms(attempt=6)
    (1000, 30000)
    """

    base_ms: int = 1000
    max_ms: int = 30_000

    def delay_ms(self, attempt: int) -> int:
        """Milliseconds between the failed ``attempt`` (1 for the first) and the next one."""
        doublings = min(attempt - 1, 62)  # 2**62 exceeds any max_ms; unbounded attempts would build huge integers
        return min(self.max_ms, self.base_ms << doublings)
