"""The comparison of ``exactly_once`` with ``ctx.produce`` works; what it measures is of no matter here."""

from __future__ import annotations

import pytest
from exactly_once import measure
from support.observer import Observer


@pytest.mark.apache_only("one broker is enough to see that it works")
def test_it_measures_both_ways_in_turns(kafka: Observer) -> None:
    rows = list(measure(kafka, {10: 40, 1: 4}, rounds=1, partitions=2, concurrency=1))
    assert [row.batch for row in rows] == [10, 1]
    assert all(row.plain > 0 and row.exactly_once > 0 for row in rows)
    assert "/s" in str(rows[0])
