"""How an ownership goes on whose position the log does not have (any more): ``Stray``."""

from __future__ import annotations

from karafka_lite.core.ownership import Ownership
from karafka_lite.core.starts import NowhereError, Place, Start, after_deletion

STRAY_S = 0.2  # until a position is tried again that the log should have


def is_void(ownership: Ownership, place: Place) -> bool:
    """The log is another one, or was cut before the end of what was read: what was marked is of messages that are
    not there any more, and marks of others would not be told from them."""
    stray, read = ownership.intake.stray, ownership.intake.size > 0 or ownership.marks.delivered > place.end
    cut = stray is not None and stray.position is not None and stray.position > place.end
    return not ownership.note.is_of(place.topic_id) or (cut and read)


def go_on(ownership: Ownership, place: Place, reset: str, now: float) -> Start | None:
    """Leave a position that the log does not have; None: it has it after all.

    Raises:
        NowhereError: retention was faster, and ``reset`` is "none". A place of user code's own choice is no reason.
    """
    assert ownership.intake.stray is not None
    position = ownership.intake.stray.position
    if position is None:  # it is the same topic
        ownership.intake.stray = None
        return None
    if position > place.end:  # where user code wanted to go
        ownership.redirect(place.end)
        return Start(place.end, "truncated", position, position - place.end, begins=False)
    if position < place.start:
        if reset == "none" and position != ownership.sought:
            raise NowhereError(position)
        ownership.intake.fetch_from(place.start)
        return after_deletion(place, position)._replace(begins=False)
    ownership.intake.fetch_from(None)
    ownership.intake.fetch_at = now + STRAY_S
    return None
