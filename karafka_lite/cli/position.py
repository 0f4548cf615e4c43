"""``--from`` and ``--to``: a place in a partition, as people write it."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime, timedelta

from karafka_lite.core.options import SeekTarget, Timestamp

WORDS = "earliest, latest, an offset, or a time as in 2026-01-31T12:00Z or -2h"
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MAX_OFFSET = (1 << 63) - 1


def position(text: str) -> SeekTarget:
    """What ``text`` means, for argparse: one of ``WORDS``; ``-2h`` is before now."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    if text.isdecimal() and text.isascii():
        if int(text) > MAX_OFFSET:
            raise argparse.ArgumentTypeError(f"must be an offset up to {MAX_OFFSET}, got {text}")
        return int(text)
    if ago := re.fullmatch(r"-(\d{1,9})([smhd])", text):
        before = timedelta(**{UNITS[ago[2]]: int(ago[1])})
        return Timestamp(int((time.time() - before.total_seconds()) * 1000))
    try:
        when = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))  # Python 3.10 does not know the Z
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {WORDS}, got {text!r}") from None
    if when.utcoffset() is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add one, as in {when.isoformat()}Z or +01:00")
    return Timestamp(int(when.timestamp() * 1000))
