"""User code of partitions with ``exactly_once``: it makes one output of each message, and marks what it has made.

Beyond that it does what any user code does (``handlers.py``), and now and then it goes back. It goes nowhere that would
leave a message out: that would be its own wish.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from exact import leaves_out
from handlers import Failed, Handlers, Pointless, Unwanted
from ledger import require

from karafka_lite.context import Context
from karafka_lite.core.options import Hook
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Batch, Message

if TYPE_CHECKING:
    from ledger import ExactBook


class ExactHandlers(Handlers):
    """The user code of one run of the app, of whichever topics."""

    def exact_batch(self, batch: Batch, ctx: Context) -> None:
        call = self._ledger.of(ctx._run)
        try:
            self._make(batch, ctx, self._ledger[ctx._ownership])  # type: ignore[arg-type]
        except BaseException:
            call.raised = True
            raise

    def exact_hook(self, ctx: Context) -> None:
        call = self._ledger.of(ctx._run)
        try:
            self._flush(ctx, self._ledger[ctx._ownership])  # type: ignore[arg-type]
        except BaseException:
            call.raised = True
            raise

    def _make(self, batch: Batch, ctx: Context, o: ExactBook) -> None:
        rng, settings, size, calm = self._rng, self._settings, len(batch), self._world.calm
        manual, alone = o.options.manual_offsets, not ctx._run.is_part
        if not calm and rng.random() < settings.failing / 100:
            raise SystemExit
        if o.leaves_it_to_hooks is None:
            flushes = bool(o.options.hooks_of(Hook.EVERY)) or len(o.options.hooks_of(Hook.BEFORE_REVOKE)) > 1
            o.leaves_it_to_hooks = manual and rng.random() < (0.6 if flushes else 0.1)
        if o.leaves_it_to_hooks and not calm:
            ctx.state.setdefault("made", []).extend(batch)
            self._work(hangs=rng.random() < settings.hanging)
            if rng.random() < settings.failing:
                raise Failed
            return
        for message in ctx.state.pop("made", ()):
            self._send_output(ctx, o, message)
        fails = not calm and rng.random() < settings.failing
        fails_at = None if calm else rng.randrange(size + 1) if fails else self._poison(batch)
        each = rng.random() < 0.3
        leaves_at = rng.randrange(size) if each and not calm and rng.random() < 0.2 else None
        hangs_at = rng.randrange(size) if not calm and rng.random() < settings.hanging else None
        marking = 0.0 if calm or each else rng.choice([0.0, 0.3, 1.0] if manual else [0.0, 0.0, 0.3])
        letters = 0.0 if calm else rng.choice([0.0, 0.0, 0.05, 0.4])
        last: Message | None = None
        messages: Iterable[Message] = ctx.each(batch) if each else batch
        for index, message in enumerate(messages):
            self._work(hangs=index == hangs_at)
            if index == fails_at:
                raise Failed if rng.random() < 0.7 else Pointless
            self._send_output(ctx, o, last := message, letters)
            self._do_little(ctx, o, message)
            if index == leaves_at:
                return
            if not calm and settings.backward_marks and not each and rng.random() < 0.1:
                self._go_back(ctx, o, batch[0], message)
            if rng.random() < marking:
                if not self._mark(o, ctx, message):
                    return
                if rng.random() < settings.failing / 4:
                    raise Failed
                self._commit(o, ctx)
        self._work(hangs=False)
        if fails_at == size:
            raise Failed
        if last is not batch.last:  # a loop over each ends early at a hand-over
            return
        if not each and not calm and alone and rng.random() < (0.4 if settings.backward_marks else 0.05):
            self._world.reached["what was sent before a seek waited for the next mark"] += ctx.seek(
                batch.last.next_offset
            )
        elif manual and (calm or rng.random() < 0.5):
            self._mark(o, ctx, batch.last)

    def _go_back(self, ctx: Context, o: ExactBook, first: Message, message: Message) -> None:
        """What is made again then is there again."""
        self._ledger.repeated.add(o.log)
        if self._rng.random() < 0.5:
            self._mark(o, ctx, first)
        elif not ctx._run.is_part:
            self._seek(ctx, o, message.offset)

    def _do_little(self, ctx: Context, o: Any, message: Message) -> None:
        rng = self._rng
        if self._world.calm:
            return
        if rng.random() < 0.01:
            ctx.pause(rng.choice([0, 300, 20_000]))
        elif rng.random() < 0.01:
            self._world.spawn(
                self._life.process, f"{self._life} helper", lambda: self._help(ctx, o, message, at_work=False)
            )
        if rng.random() < 0.05 and not ctx._run.is_part:
            self._commit(o, ctx)

    def _send_output(self, ctx: Context, o: ExactBook, message: Message, letters: float = 0.0) -> None:
        """Of ``message``, unless it goes to the dead letters; a hook would have to know that this is a mark."""
        rng, ledger = self._rng, self._ledger
        try:
            if ctx._dead_letter and rng.random() < letters:
                future: Any = ctx.dead_letter(message, "by hand")
                self._world.reached["a message of exactly_once was given up by hand"] += 1
                return
            if leaves_out(message.offset):
                return
            value = ledger.makes(o, message.offset)
            if rng.random() < 0.7:
                values, future = [value], ctx.produce("out", value)
            else:
                values = [value, *(ledger.makes(o, None) for _ in range(rng.randrange(3)))]
                future = ctx.produce_many("out", values)
        except (ProduceError, TypeError) as error:
            if isinstance(error, TypeError) or rng.random() < 0.5:
                raise Unwanted from error
            self._ledger.of(ctx._run).raised = True  # as good as: what was refused fails the run
            return
        ledger.promised(o, future, values, looks=rng.random() < 0.2)

    def _flush(self, ctx: Context, o: ExactBook) -> None:
        """A hook sends what handlers have left to it, and marks that."""
        rng, calm = self._rng, self._world.calm
        self._work(hangs=not calm and rng.random() < 3 * self._settings.hanging)
        if not calm and rng.random() < self._settings.sending:
            value = self._ledger.makes(o, None)
            self._ledger.promised(o, ctx.produce("out", value), [value], looks=rng.random() < 0.5)
        made = ctx.state.get("made", [])
        fails = not calm and rng.random() < self._settings.failing
        fails_at = rng.randrange(len(made) + 1) if fails else None
        for index, message in enumerate(made):
            if index == fails_at:
                raise Failed
            self._send_output(ctx, o, message)
            self._world.point()
        if fails_at is not None:
            raise Failed
        if made:
            last = made[-1]
            made.clear()
            marked = self._mark(o, ctx, last, sync=not calm and rng.random() < 0.2)
            self._world.reached["a hook has sent and marked"] += marked
            ended = ctx._run.hook is Hook.ON_REVOKED
            require(not (marked and ended), "on_revoked marks nothing", o)
