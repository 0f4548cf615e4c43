"""Where a partition begins: one table.

    the group has for this partition           it begins at
    -----------------------------------------  -----------------------------------------------------------------------
    a commit inside the log                    the commit
    a commit before the log's start            the log's start; retention was faster, and what it deleted is lost to all
    a commit past the log's end                the end; the log was cut, as by an unclean election of a leader
    a commit of another topic of that name     the start: the topic was deleted and made anew
    none, "earliest"                           the start
    none, "latest"                             the end; but the start of a partition that appeared after the group had
                                               started with its topic: nothing in it is older than the group
    none, "none"; or a commit before the       nowhere: that is refused
    log's start, "none"

The same table says where a partition goes on whose position is not in the log any more (``Stray``).

What "the group had started with its topic" means has to outlive members: each commit carries a ``Note``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from karafka_lite.errors import ConfigurationError
from karafka_lite.events import Reason


class Note(NamedTuple):
    """What a commit says of its topic.

    ``partitions``: how many the topic had when the group started with it; the others appeared later. 0 where nothing
    may be skipped, because the topic itself appeared later or the group began with its start. None: not known.
    """

    topic_id: str = ""  # "" where it is not known
    partitions: int | None = None

    def is_of(self, topic_id: str) -> bool:
        """Whether this can be the topic with that id."""
        return self.topic_id == topic_id or not self.topic_id or not topic_id


class Stray(NamedTuple):
    """A position that the log does not have (any more), or may not have; None: the log may be of another topic.

    ``end``: what was read from there on was cut off, and something else may have taken its place.
    """

    position: int | None
    end: int | None = None


class Place(NamedTuple):
    """What the cluster says of one partition."""

    start: int
    end: int
    latest: int  # where "latest" is: before ``end`` for a reader of committed messages, while a transaction is open
    committed: int | None = None
    note: Note = Note()  # of that commit
    topic_id: str = ""
    partitions: int = 1  # of the topic
    siblings: Collection[Note] = ()  # of the group's commits for the topic, where they matter

    def cut(self, stray: Stray | None) -> Place:
        """Without what has taken the place of what was cut off."""
        if stray is None or stray.end is None:
            return self
        return self._replace(end=min(self.end, stray.end), latest=min(self.latest, stray.end))

    def after(self, began_at: int, next_offset: int, note: Note) -> Place:
        """For who takes the place of an ownership that began somewhere, with ``note``, and came to ``next_offset``."""
        if not note.is_of(self.topic_id):
            return self._replace(committed=next_offset, note=note)
        return self if self.committed is not None else self._replace(committed=began_at)


class NowhereError(Exception):
    """``auto_offset_reset`` is "none", and there is no commit, or none that could be used: ``position``."""

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class Start(NamedTuple):
    """Where an ownership begins, or goes on, and why.

    ``expected``: where it should have been; None where nobody expected anything. ``missing``: how many offsets from
    there on, or before it, are not in the log any more. ``begins``: an ownership begins there, it does not go on.
    """

    offset: int
    reason: Reason
    expected: int | None = None
    missing: int = 0
    begins: bool = True

    def after(self, stray: Stray, end: int) -> Start:
        """The same for who takes the place of an ownership that went astray in a log that was cut at ``end``."""
        if self.reason not in ("committed", "truncated") or stray.position is None:
            return self
        return self._replace(reason="truncated", expected=stray.position, missing=stray.position - end)


def begin(place: Place, partition: int, reset: str, started_with: int) -> Start:
    """Where ``partition`` begins; see ``Note.partitions`` for ``started_with``. Raises NowhereError."""
    committed = place.committed
    if committed is None:
        if reset == "latest":
            late = partition >= started_with
            return Start(place.start, "new") if late else Start(place.latest, "latest")
        if reset == "earliest":
            return Start(place.start, "earliest")
        raise NowhereError(None)
    if not place.note.is_of(place.topic_id):
        return Start(place.start, "recreated", committed)
    if committed > place.end:
        return Start(place.end, "truncated", committed, committed - place.end)
    if committed < place.start:
        if reset == "none":
            raise NowhereError(committed)
        return after_deletion(place, committed)
    return Start(committed, "committed")


def nowhere(group_id: str, partitions: Collection[str]) -> ConfigurationError:
    """``partitions`` have nowhere to begin."""
    return ConfigurationError(
        f"group {group_id} has no usable committed offset ({', '.join(partitions)}), and auto_offset_reset='none' "
        f"forbids to choose one; commit one with karafka-lite reset, or use 'earliest', 'latest'"
    )


def after_deletion(place: Place, position: int) -> Start:
    """Where a partition goes on of which retention has deleted what comes next."""
    return Start(place.start, "deleted", position, place.start - position)


def note_of(place: Place, known: Note | None, reset: str) -> Note:
    """What commits say of a topic from now on. ``known``: what this member has noted before."""
    notes = [known] if known is not None else [*place.siblings]
    if known is None and place.committed is not None:
        notes.append(place.note)
    if not notes:
        return Note(place.topic_id, place.partitions if reset == "latest" else 0)
    made_anew = not all(note.is_of(place.topic_id) for note in notes)
    topic_id = place.topic_id or notes[0].topic_id
    return Note(topic_id, 0 if made_anew else min(note.partitions or 0 for note in notes))
