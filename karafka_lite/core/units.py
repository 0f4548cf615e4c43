"""A partition whose order is by key and whose messages leave with its marks: a batch is one unit.

The parts of a batch run side by side (``core.parts``), and all that they send waits for one mark (``core.exact``):
that of the whole batch, which is made when the last of them has returned, and only if none has failed. Until then a
mark inside a part says whether the partition is ours, and nothing more: what it would release is not its own alone.

If a part has failed, all of them come again, and nothing that they have sent leaves. A message that may have to be
given up is tried alone from its first failure on, so that its dead letter leaves with the mark that passes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.options import Options
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.parts import KeyOwnership, Part, PartMarks, Span
from karafka_lite.messages import TopicPartition, next_offset_after


class UnitMarks(PartMarks):
    """The ledger of a part of a unit: nothing of it is done before all parts have returned."""

    __slots__ = ()

    def mark(self, offset: int) -> bool:  # noqa: ARG002 - as that of any ledger
        """Whether the partition is ours."""
        return not self._whole.closed

    @property
    def failure(self) -> BaseException | None:
        """Of a message of the batch, whichever part has sent it."""
        return self._whole.failure

    @failure.setter
    # It is that of the partition.
    def failure(self, failure: BaseException | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._whole.failure = failure

    def _tell(self) -> None:
        """Nothing."""


class UnitOwnership(KeyOwnership, ExactOwnership):
    """One ownership of such a partition. ``_good``: how many of the ``_dealt`` parts have returned, with all done."""

    __slots__ = "_dealt", "_good"

    def __init__(self, tp: TopicPartition, options: Options, predecessor: Ownership | None = None) -> None:
        super().__init__(tp, options, predecessor)
        self._dealt = self._good = 0

    def _deal(self, batch: Run) -> None:
        super()._deal(batch)
        self._dealt, self._good = len(self.waiting), 0

    def _ledger(self, spans: Sequence[Span], offsets: Sequence[int]) -> PartMarks:
        return UnitMarks(self.marks, spans, offsets)

    def returned(self, run: Run, *, failed: bool) -> None:
        """User code has returned, but the run is not over. The last part of a batch makes its mark now."""
        if not isinstance(run, Part):
            super().returned(run, failed=failed)
            return
        # Also where a message of a batch before it was refused meanwhile: it comes again, and this one after it.
        good, batch = not failed and run.in_hand is None and self.marks.failure is None, self.run
        self._good += good
        if batch is None:
            return
        if not good:
            self._drop_what_comes_again(batch, failed=True)
        elif self._is_good and batch.redirect is None:
            self.marks.add_done((batch.begin_offset, next_offset_after(batch.records[-1].offset)))

    @property
    def _is_good(self) -> bool:
        return self._good == self._dealt

    def _end_batch(self, now: float) -> Sequence[Run]:
        if self.run is not None and not self.inside and not self.waiting and not self._is_good:
            self._drop_what_comes_again(self.run, failed=True)
        return super()._end_batch(now)

    # -- messages that are given up

    def gives_up(self, run: Run) -> bool:
        """As of any ownership, where the message is alone; else it will be."""
        if run.hook or self._is_alone:
            return super().gives_up(run)
        if self._counts(run):
            tried = [one.offset for one in run.records] if run.culprit is None else [run.culprit]
            self.retries.count(tried, known=False)
        return False

    @property
    def _is_alone(self) -> bool:
        return self.run is None or len(self.run.records) == 1

    def mark_alone(self, run: Run, offset: int) -> None:  # noqa: ARG002 - it counts for the batch
        """As of any ownership, where the message is alone; else it is done with its batch, also as a dead letter."""
        if self.run is not None and self._is_alone:
            super().mark_alone(self.run, offset)

    def _begin_of(self, run: Run, offset: int) -> int:
        return (self.run or run).begin_of(offset)


def owner(tp: TopicPartition, options: Options, predecessor: Ownership | None) -> Ownership:
    """A new ownership, as ``options`` want it."""
    if options.parts:
        return (UnitOwnership if options.exactly_once else KeyOwnership)(tp, options, predecessor)
    return (ExactOwnership if options.exactly_once else Ownership)(tp, options, predecessor)
