"""An error that Kafka documents, once or without end, loses nothing and is not met with silence; and who says so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random, randrange
from typing import Any

import pytest
from error_table import CELLS, FOREVER, MESSAGES, ONCE, Outcome, faults, table, told

SAMPLE = 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_error_that_kafka_documents_is_survived_or_said(pytestconfig: pytest.Config) -> None:
    """A few of them, others each time; all with --long."""
    cells = CELLS if pytestconfig.getoption("long") else Random(randrange(10**6)).sample(CELLS, SAMPLE)
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda times: table(cells, times, side_by_side=4), [ONCE, FOREVER]))
    for found in tables:
        lines = "\n".join(told(found))
        print(lines)
        assert {outcome.word for outcome in found.values()} <= {"goes on", "said", "exit 1"}, lines


# -- who says so ------------------------------------------------------------------------------------------------------


def outcome(**more: Any) -> Outcome:
    well = {"exit": 0, "processed": MESSAGES, "repeated": 0, "committed": MESSAGES, "sent": MESSAGES, "seconds": 1.5}
    return Outcome(**{**well, "said": [], "faults": [], **more})


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (outcome(), "goes on"),
        (outcome(committed=0, said=[(9.0, "WARNING waiting")]), "said"),
        (outcome(committed=0, said=[(11.0, "WARNING waiting")]), "SILENT"),
        (outcome(committed=0), "SILENT"),
        (outcome(exit=1, processed=0, committed=0), "exit 1"),
        (outcome(faults=["a traceback"]), "FAULT"),
    ],
)
def test_an_outcome_has_a_word(given: Outcome, word: str) -> None:
    assert given.word == word


@pytest.mark.parametrize(
    ("given", "errors", "times", "found"),
    [
        (outcome(), "", ONCE, ""),
        (outcome(committed=0, processed=0), "", FOREVER, ""),
        (outcome(committed=20), "", ONCE, "after one error 20 of 30"),
        (outcome(committed=20, processed=10), "", FOREVER, "20 are committed, 10 were processed"),
        (outcome(committed=20, sent=10), "", FOREVER, "20 are committed, 10 of what was sent"),
        (outcome(exit=None), "", FOREVER, "did not end"),
        (outcome(exit=1, committed=0), "", ONCE, "without a word"),
        (outcome(), "Traceback (most", ONCE, "a traceback"),
    ],
)
def test_a_fault_is_found(given: Outcome, errors: str, times: int, found: str) -> None:
    told = list(faults(given, {"answered": True}, errors, times))
    assert len(told) == bool(found)
    assert all(found in one for one in told)
