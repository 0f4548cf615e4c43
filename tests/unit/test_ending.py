"""Which exit code counts, of all that were asked for."""

from __future__ import annotations

from functools import reduce

import pytest

from karafka_lite.ending import ExitRequest
from karafka_lite.errors import Exit

STOP, ERROR, UNREACHED = ExitRequest(), ExitRequest(Exit.ERROR), ExitRequest(Exit.NO_BROKER)
FORCED, BUG = ExitRequest(Exit.FORCED), ExitRequest(Exit.ERROR, crashed=True)


@pytest.mark.parametrize(
    ("requests", "exit_code"),
    [
        ([], Exit.CLEAN),
        ([STOP, STOP], Exit.CLEAN),
        ([STOP, ERROR, STOP], Exit.ERROR),
        ([UNREACHED, ERROR], Exit.NO_BROKER),
        ([ERROR, UNREACHED], Exit.ERROR),
        ([ERROR, FORCED, ERROR], Exit.FORCED),
        ([STOP, BUG, FORCED, STOP], Exit.ERROR),
        ([FORCED, BUG], Exit.FORCED),
    ],
)
def test_the_first_that_is_not_clean_counts_but_what_is_forced_before_it_and_a_bug_for_good(
    requests: list[ExitRequest], exit_code: Exit
) -> None:
    assert reduce(lambda counts, request: request.after(counts), requests, ExitRequest()).exit is exit_code
