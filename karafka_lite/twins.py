"""Apps of one process that read the same topics in the same group."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from karafka_lite.functions import place_of
from karafka_lite.route import Route

log = logging.getLogger("karafka_lite")

NAMED = 3  # topics, or groups, in one line
Groups = Mapping[str, Mapping[str, Route]]


def warn_of_twins(groups: Groups, others: Iterable[Groups]) -> None:
    """Say which topics of an App, with its ``groups``, another App that runs reads in the same group."""
    for theirs in others:
        for group, topics in groups.items():
            if both := [topic for topic in topics if topic in theirs.get(group, {})]:
                here, there = topics[both[0]].handler, theirs[group][both[0]].handler
                log.warning(
                    "group %s: another App of this process already reads %s: %s there, %s here; they share the "
                    "partitions. Stop the other one, or use one App",
                    group,
                    some(both),
                    place_of(there),
                    place_of(here),
                )


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first of ``names``, and how many more there are."""
    more = len(names) - NAMED
    return between.join(names[:NAMED]) + (f"{between}{more} more" if more > 0 else "")
