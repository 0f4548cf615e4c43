"""User code as users write it: it marks some messages or none, fails, returns early, hangs, and waits for commits."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ledger import violated
from simulated_loop import SimulatedAsyncContext, as_coroutine

from karafka_lite.context import Context
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.core.ownership import Run
from karafka_lite.errors import CommitError, KarafkaLiteError, ProduceError
from karafka_lite.messages import Batch, Message
from karafka_lite.route import Route

if TYPE_CHECKING:
    from ledger import Book
    from simulated_runner import Life
    from simulation import Policy

SYNC_SLACK_S = 5.0


class Failed(Exception):
    """A handler fails; its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Pointless(Failed):
    """Trying again would not help."""


class Unwanted(TypeError):
    """What cannot be a message."""


class Bug(Exception):
    """The world has put it into our code."""


EXPECTED = CancelledError, Failed, CommitError, ProduceError, SystemExit, Unwanted, type(None)


class Handlers:
    """The user code of one run of the app."""

    def __init__(self, life: Life) -> None:
        self._life, self._world = life, life.world
        self._rng, self._settings = self._world.rng, self._world.settings
        self._ledger = self._world.ledger
        self.routes = {topic: self._route(topic, policy) for topic, policy in self._world.policies.items()}

    def _route(self, topic: str, policy: Policy) -> Route:
        handler, hook = (self.exact_batch, self.exact_hook) if policy.exactly_once else (self._batch, self._hook)
        functions = {Hook.ON_ASSIGNED: self._open}
        hooks = [RegisteredHook(kind, functions.get(kind, hook), every_ms) for kind, every_ms in policy.hooks]
        options = Options(
            policy.manual_offsets,
            policy.max_messages,
            policy.batch_timeout_ms,
            policy.backoff,
            budget=policy.budget,
            exactly_once=policy.exactly_once,
        )
        more = policy.dead_letter, (Pointless,), None, policy.order
        return SimulatedRoute(self._life, (topic,), handler, "g", options, None, hooks, *more)

    # -- a batch

    def _batch(self, batch: Batch, ctx: Context) -> None:
        o = self._ledger[ctx._ownership]
        if o.token is None:  # the ledger knows what is in the state: it has to come back with the next batch
            o.token = ctx.state["token"] = object()
        if not self._world.calm and self._rng.random() < 0.1:
            o.opened = ctx.state["opened"] = object()
        own = self._ledger.of(ctx._run)
        try:
            if self._world.calm:
                self._process_calmly(batch, ctx, o)
            else:
                self._process(batch, ctx, o)
        except BaseException:
            own.raised = True
            raise

    def _process_calmly(self, batch: Batch, ctx: Context, o: Book) -> None:
        self._world.point()
        if o.options.manual_offsets:
            self._mark(o, ctx, batch.last)

    def _process(self, batch: Batch, ctx: Context, o: Book) -> None:
        rng, settings, size = self._rng, self._settings, len(batch)
        if rng.random() < settings.failing / 100:
            raise SystemExit
        fails_at = rng.randrange(size + 1) if rng.random() < settings.failing else self._poison(batch)
        returns_at = rng.randrange(size) if rng.random() < 0.05 else None
        hangs_at = rng.randrange(size) if rng.random() < settings.hanging else None
        careful = rng.random() < 0.7  # stops at the first mark that is refused, and wraps up when asked to
        o.marking = rng.choice(["never", "as it comes"]) if o.marking is None else o.marking
        marking = rng.choice([0.0, 0.3, 1.0]) if o.options.manual_offsets else rng.choice([0.0, 0.0, 0.3])
        marking = 0.0 if o.marking == "never" else marking
        each = o.marking != "never" and rng.random() < 0.3
        messages: Iterable[Message] = ctx.each(batch) if each else batch
        for index, message in enumerate(messages):
            self._work(hangs=index == hangs_at)
            if index == fails_at:
                raise Failed if rng.random() < 0.7 else Pointless
            self._do_something(ctx, o, message)
            if index == returns_at or (careful and ctx.stopping and rng.random() < 0.3):
                return
            if not each and rng.random() < marking:
                if not self._mark(o, ctx, message) and careful:
                    return
                if rng.random() < settings.failing / 4:
                    raise Failed
                self._commit(o, ctx)
        if fails_at == size:
            raise Failed
        if o.options.manual_offsets and o.marking != "never" and rng.random() < 0.5:
            self._mark(o, ctx, batch.last)

    def _poison(self, batch: Batch) -> int | None:
        """The first message that no try can process, but for some luck."""
        limit = 1000 * self._settings.poison
        poisonous = (i for i, message in enumerate(batch) if message.offset * 7919 % 1000 < limit)
        return next(poisonous, None) if self._rng.random() < 0.9 else None

    def _do_something(self, ctx: Context, o: Book, message: Message) -> None:
        rng, settings = self._rng, self._settings
        if rng.random() < settings.sending:
            self._send(ctx, message)
            if o.marking != "never" and rng.random() < 0.2:
                self._mark(o, ctx, message, sync=True)
        if rng.random() < 0.01:
            ctx.pause(rng.choice([0, 300, 20_000]))
        elif rng.random() < 0.005:
            ctx.resume()
        if settings.backward_marks and rng.random() < 0.08:
            self._seek(ctx, o, message.offset)
        if settings.backward_marks and rng.random() < 0.03:
            handed = message if ctx._run.is_part else self._handed(o, message)
            self._mark(o, ctx, handed, sync=rng.random() < 0.3)
        if rng.random() < (0.05 if settings.backward_marks else 0.01):
            self._world.spawn(self._life.process, f"{self._life} helper", partial(self._help, ctx, o, message))
        if o.was_revoked or rng.random() < 0.1:
            revoked = ctx.revoked
            if revoked is o.was_revoked is False:
                return
            if not revoked:
                violated("revoked is never False again", o)
            o.was_revoked = True

    def _seek(self, ctx: Context, o: Book, before: int) -> None:
        """Backward: forward would be the user's own wish to skip."""
        begin = min(o.start or 0, before)
        choice = self._rng.random()
        if choice < 0.4:
            ctx.seek("earliest")
        elif choice < 0.8:
            ctx.seek(self._rng.randint(begin, before))
        else:
            ctx.pause(self._rng.choice([0, 100]), offset=self._rng.randint(begin, before))

    def _handed(self, o: Book, message: Message) -> Message:
        """Any message that this ownership was handed; ``message`` where the log has lost them all."""
        records = self._world.broker.logs[o.tp].read(int(o.lowest), 1000)
        offsets = [record.offset for record in records if record.offset < o.highest]
        return Message(*o.tp, self._rng.choice(offsets[-20:] or [message.offset]))

    def _work(self, *, hangs: bool) -> None:
        """Take some time."""
        rng, world = self._rng, self._world
        if hangs:
            world.say(self._life, "hangs")
            world.pause(world.now + self._life.drain_s * rng.uniform(0.5, 5.0))
        elif rng.random() < 0.2:
            world.pause(world.now + rng.choice([0.0, 0.01, 0.2, 2.0]))
        else:
            world.point()

    # -- what a context is asked for

    def _mark(self, o: Book, ctx: Context, message: Message, *, sync: bool = False) -> bool:
        rng, began = self._rng, self._world.now
        if (not sync and rng.random() < 0.93) or ctx._run.is_part:
            result = ctx.mark_as_consumed(message)
            if not (o.exact and ctx._run.is_part):
                self._ledger.has_marked(o, result)
            return result
        timeout_ms = rng.choice([200, 3000, 30_000])
        try:
            result = ctx.mark_as_consumed(message, sync=True, timeout_ms=timeout_ms)
        except (CommitError, ProduceError) as error:
            self._sync_raised(error)
            if rng.random() < 0.5:
                raise
            return True
        finally:
            self._took(began, timeout_ms)
        self._synced(o, result)
        return result

    def _commit(self, o: Book, ctx: Context) -> None:
        """Now and then: ask for a commit, or wait for one."""
        rng, began = self._rng, self._world.now
        chance = rng.random() / (3 if o.waiting else 1)
        if chance < 0.05 or ctx._run.is_part:
            ctx.commit_offsets()
        elif chance < 0.1:
            timeout_ms = rng.choice([200, 3000, 30_000])
            try:
                result = ctx.commit_offsets(sync=True, timeout_ms=timeout_ms)
            except (CommitError, ProduceError) as error:
                self._sync_raised(error)
                if rng.random() < 0.5:
                    raise
                return
            finally:
                self._took(began, timeout_ms)
            self._world.reached["a sync commit ended with the ownership"] += not result

    def _synced(self, o: Book, result: bool) -> None:
        if result:
            self._ledger.has_synced(o)
        else:
            self._world.reached["a sync commit ended with the ownership"] += 1

    def _sync_raised(self, error: Exception) -> None:
        timed_out = isinstance(error, CommitError)
        name = "a sync commit timed out" if timed_out else "a sync commit ended with a send that failed"
        self._world.reached[name] += 1

    def _took(self, began: float, timeout_ms: int) -> None:
        took, frozen = self._world.now - began, self._life.process.frozen_until >= began
        if took > timeout_ms / 1000 + SYNC_SLACK_S and not frozen and not self._world.over:
            violated("a sync commit ends within its timeout", self._life, took, timeout_ms)

    def _send(self, ctx: Context, message: Message) -> None:
        rng, world = self._rng, self._world
        try:
            if ctx._dead_letter and rng.random() < 0.2:
                future: Future[Any] = ctx.dead_letter(message, "by hand")
            else:
                future = self._produce(ctx)
        except (ProduceError, TypeError) as error:
            if rng.random() < 0.5:
                raise Unwanted from error
            return  # it goes on, whatever it is
        if rng.random() < 0.3:
            until = world.now + 3.0
            while not future.done() and world.now < until:
                world.pause(world.now + 0.1)

    def _help(self, ctx: Context, o: Book, message: Message, *, at_work: bool = True) -> None:
        """A thread of user code, which may outlive the call that started it."""
        rng, world = self._rng, self._world
        world.pause(world.now + rng.choice([0.0, 0.1, 2.0]))
        choice = 1.0 if world.calm else rng.random()
        try:
            if choice < 0.3:
                ctx.resume()
            elif choice < 0.5:
                ctx.commit_offsets(sync=rng.random() < 0.5 and not ctx._run.is_part, timeout_ms=500)
            elif not at_work:
                ctx.resume()
            elif self._settings.backward_marks and choice < 0.75:
                self._mark(o, ctx, message)
            elif self._settings.backward_marks and not world.calm:
                self._seek(ctx, o, message.offset)
        except KarafkaLiteError:
            pass

    # -- hooks

    def exact_batch(self, batch: Batch, ctx: Context) -> None:
        """Of a topic with ``exactly_once``: see ``exact_handlers``."""
        raise NotImplementedError

    def exact_hook(self, ctx: Context) -> None:
        """The same."""
        raise NotImplementedError

    def _open(self, ctx: Context) -> None:
        """Fail now and then, also when something is in the state already, or has been sent, or sought."""
        o, rng, settings = self._ledger[ctx._ownership], self._rng, self._settings
        own = self._ledger.of(ctx._run)
        o.opened = ctx.state["opened"] = object()
        try:
            if self._world.calm:
                return
            if settings.backward_marks and not o.exact and rng.random() < 0.2:
                self._seek(ctx, o, o.start or 0)
            self._work(hangs=rng.random() < 3 * settings.hanging)
            if rng.random() < settings.sending:
                self._produce_or_fail(ctx)
            if rng.random() < settings.failing / 20:
                raise SystemExit
            if rng.random() < settings.failing:
                raise Failed
        except BaseException:
            own.raised = True
            raise

    def _hook(self, ctx: Context) -> None:
        """Mark what was processed but not marked; ``on_revoked`` tries to, in vain."""
        o, hook = self._ledger[ctx._ownership], ctx._run.hook
        calm, rng = self._world.calm, self._rng
        self._work(hangs=not calm and rng.random() < 3 * self._settings.hanging)
        if not calm and rng.random() < self._settings.sending:
            self._produce_or_fail(ctx)
        if not calm and rng.random() < self._settings.failing:
            raise Failed
        if o.options.parts and o.handed and rng.random() < 0.5:
            self._mark(o, ctx, Message(*o.tp, int(o.highest) - 1))  # which may not be done
        flushes = hook is Hook.ON_REVOKED or (o.options.manual_offsets and rng.random() < 0.7)
        last = self._world.broker.logs[o.tp].read(o.done - 1, 1)
        processed = last and last[0].offset == o.done - 1 and o.lowest <= o.done - 1 < o.highest
        if flushes and processed and o.done > (o.stored or 0):
            self._mark(o, ctx, Message(*o.tp, o.done - 1), sync=not calm and rng.random() < 0.2)

    def _produce(self, ctx: Context) -> Future[Any]:
        if self._ledger[ctx._ownership].exact:
            return ctx.produce("out", self._ledger.makes(self._ledger[ctx._ownership], None))
        if self._rng.random() < 0.7:
            return ctx.produce("out", b"x")
        self._world.reached["many were sent at once"] += 1
        return ctx.produce_many("out", [b"x"] * self._rng.randrange(4))

    def _produce_or_fail(self, ctx: Context) -> None:
        try:
            self._produce(ctx)
        except TypeError as error:
            raise Unwanted from error


class SimulatedRoute(Route):
    """A route in which there may be a bug of ours."""

    def __init__(self, life: Life, *args: Any) -> None:
        super().__init__(*args)
        self._life = life
        if life.world.settings.asynchronous:
            self.context = SimulatedAsyncContext
            self.handler = as_coroutine(life.world, self.handler)
            self.hooks[:] = [replace(hook, function=as_coroutine(life.world, hook.function)) for hook in self.hooks]
        self._seen: set[Run] = set()

    def batch_of(self, run: Run) -> Batch:
        world, again = self._life.world, run in self._seen  # for a dead letter
        self._seen.add(run)
        if not again and not world.calm and world.rng.random() < world.settings.bugs:
            self._life.bugs += 1
            world.ledger.of(run).raised = True
            raise Bug
        return super().batch_of(run)
