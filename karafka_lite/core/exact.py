"""A partition whose messages leave with its marks: ``exactly_once``.

What user code sends waits (``core.sends``) for the next mark, and leaves with the commit of that mark. So an automatic
run makes its mark when user code has returned, and ends when that is committed. What a failed run has sent after its
last mark never leaves, as its messages come again.
"""

from __future__ import annotations

from collections.abc import Sequence

from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.sends import Held
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed, next_offset_after


class ExactOwnership(Ownership):
    """One ownership of such a partition."""

    __slots__ = ()

    def returned(self, run: Run, *, failed: bool) -> None:
        """User code has returned, but the run is not over. Where messages wait for its mark, that is made now."""
        if not self.marks.sends.held:
            return
        self._drop_what_comes_again(run, failed)
        goes_on = not failed and run.redirect is None and run.in_hand is None
        if goes_on and not run.hook and not self.options.manual_offsets:
            self.marks.mark(next_offset_after(run.records[-1].offset))

    def function_ended(self, *, failed: bool) -> None:
        """One function of a call of hooks has ended, and others may follow: what it has sent, if it has failed, does
        not leave with their marks; and what it has sent, if it has not, does not go with their failures."""
        if failed:
            self.marks.drop(of_run=True)
        self.marks.sends.goes_on()

    def _drop_what_comes_again(self, run: Run, failed: bool) -> None:
        left = run.in_hand is not None and run.redirect is None
        if failed or left:  # a failed batch is repeated from the last mark on; of all others what was before them stays
            self.marks.drop(of_run=not failed or bool(run.hook) or run.redirect is not None)

    def end(self, run: Run, *, failed: bool, now: float) -> Sequence[Run]:
        """As of any ownership. A message may have been refused after the run had looked for that for the last time, as
        the commit took too long: then it comes again, too."""
        return super().end(run, failed=failed or (not run.is_part and self.marks.failure is not None), now=now)

    def _come_again(self) -> None:
        """What is not marked comes again, and so what was made of it never leaves."""
        self.marks.drop(of_run=False)
        super()._come_again()

    def gives_up(self, run: Run) -> bool:
        """As of any ownership; but not while something before it comes again, because it was refused: then it comes
        again itself, and its dead letter leaves with its mark."""
        gives_up = super().gives_up(run)
        if not gives_up or run.culprit is None or self.options.manual_offsets:
            return gives_up
        return self._begin_of(run, run.culprit) <= self.marks.retry_position

    def hold_letter(self, run: Run, letter: Addressed, offset: int) -> Held | None:
        """The message at ``offset`` is given up, and ``letter`` leaves with the mark that passes it. None: not all
        before it is marked, which may take long, so the dead letter has to leave at once."""
        begin = self._begin_of(run, offset)
        last = run.error is not None  # then no user code will mark anything after it
        if (last or self.options.manual_offsets) and begin > self.marks.retry_position:
            return None
        self.marks.failure = None if last else self.marks.failure
        held = self.marks.sends.hold(self.marks.last, (begin, next_offset_after(offset)))
        held.messages.append(letter)
        self.mark_alone(run, offset)
        return held

    def _begin_of(self, run: Run, offset: int) -> int:
        return run.begin_of(offset)

    def refused(self, held: Held, error: ProduceError, now: float) -> None:
        """``held`` was refused: the run fails; where that is over, its messages come again all the same."""
        self.marks.refused_with(held, error)
        if self.run is None and self.marks.failure is not None:
            self.marks.failure = None
            self.retries.back_off(now)
            self._come_again()
