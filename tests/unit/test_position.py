"""``--from`` and ``--to``, as people write them."""

from __future__ import annotations

import argparse
import time
from datetime import datetime, timezone

import pytest

from karafka_lite.cli.options import Parser
from karafka_lite.cli.position import position
from karafka_lite.core.options import SeekTarget, Timestamp

NOON = Timestamp(int(datetime(2026, 1, 31, 12, tzinfo=timezone.utc).timestamp() * 1000))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("earliest", "earliest"),
        ("latest", "latest"),
        ("0", 0),
        ("118", 118),
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31T12:00z", NOON),
        ("2026-01-31T13:00:00+01:00", NOON),
        ("2026-01-31 12:00:00.250+00:00", Timestamp(NOON.ms + 250)),
        ("1960-01-01T00:00+00:00", Timestamp(-315_619_200_000)),
    ],
)
def test_a_place_is_a_word_an_offset_or_a_time(text: str, means: SeekTarget) -> None:
    assert position(text) == means


@pytest.mark.parametrize(("text", "seconds"), [("-90s", 90), ("-30m", 1800), ("-2h", 7200), ("-1d", 86_400)])
@pytest.mark.parametrize("joined", [False, True])
def test_a_time_before_now_is_no_option(text: str, seconds: int, joined: bool) -> None:
    parser = Parser()
    parser.add_argument("--to", type=position)
    before = time.time()
    arguments, _ = parser.parse_known_args([f"--to={text}"] if joined else ["--to", text])
    assert 0 <= arguments.to.ms + 1 - (before - seconds) * 1000 < 5000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-01-31T12:00", "'2026-01-31T12:00' has no time zone: add one, as in 2026-01-31T12:00:00Z or +01:00"),
        ("2026-01-31", "has no time zone"),
        ("yesterday", "must be earliest, latest, an offset, or a time as in 2026-01-31T12:00Z or -2h, got 'yesterday'"),
        ("-2w", "must be earliest"),
        ("-1", "must be earliest"),
        ("", "must be earliest"),
        ("\u0663", "must be earliest"),
        ("9223372036854775808", "must be an offset up to 9223372036854775807"),
    ],
)
def test_what_is_no_place_is_said(text: str, says: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as mistake:
        position(text)
    assert says in str(mistake.value)


def test_other_options_take_no_time_so_that_a_wrong_one_is_named() -> None:
    parser = Parser()
    parser.add_argument("--count")
    with pytest.raises(SystemExit):
        parser.parse_known_args(["--count", "-2h"])
