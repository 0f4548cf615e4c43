"""The runner: every thread of the package, all waiting, and the one lock of each group. It decides nothing.

    poller      one per group   the poll step in a loop, also while handlers run; at the end it winds down and leaves
    committer   one per group   the commit step in a loop: the only caller of ``Client.commit``
    workers     per handler, up to its ``concurrency``: user code; they never touch a client. Coroutines are tasks on
                an event loop instead (``loops``), with the same steps
    main                        waits for a reason to stop, and stops in order
    kafka-python's IO thread    calls ``on_assigned``, ``on_revoke`` and ``on_lost`` at a rebalance; must not be blocked
    kafka-python's sender       calls ``_answered`` for messages that user code has sent

What is decided, ``core/`` decides; what knows Kafka is ``client/``. A step takes the time and returns the seconds to
rest; ``testing`` and the simulation drive the same steps. Under a group's lock nothing is logged, sent, or called back:
events are collected there, and emitted after its release.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from karafka_lite import errors, events, forks
from karafka_lite.context import Context, give_up
from karafka_lite.core.group import Group
from karafka_lite.core.marks import Marks
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.ownership import Leftovers, Ownership, Run, State
from karafka_lite.coroutines import Rest
from karafka_lite.ending import ExitRequest
from karafka_lite.errors import CommitError, Exit, KarafkaLiteError, ProduceError
from karafka_lite.lifespan import Lifespan
from karafka_lite.messages import Addressed, TopicPartition, where
from karafka_lite.observers.frames import Place, stacks
from karafka_lite.observers.news import DeadLetter, News
from karafka_lite.observers.observed import Observed
from karafka_lite.route import Route
from karafka_lite.routing import Router
from karafka_lite.sending import Holding, Sending, Sent, pass_on
from karafka_lite.settings import Config
from karafka_lite.staff import Staff
from karafka_lite.workers import THREAD_END_S, Workers

if TYPE_CHECKING:
    from karafka_lite.client.protocol import Client, Outbox, Transactions
    from karafka_lite.loops import Side, Tasks

LOOK_AGAIN_S = 0.1  # how late a thread that waits sees that the membership was lost
TOPICS_CHECK_S = 1.0  # between two looks for missing topics, and two tries to connect again
SIGNALS_S = 0.5  # how late a signal may be seen that came at a bad moment
SPINS = 1000  # tries of a mark to get the lock before it waits in the lock's queue


class System:
    """Locks, threads and the clock of the operating system; tests pass others."""

    now = staticmethod(time.monotonic)
    lock = staticmethod(threading.Lock)
    condition = staticmethod(threading.Condition)
    queue: Callable[[], Any] = staticmethod(queue.SimpleQueue)
    event = staticmethod(threading.Event)
    thread_id = staticmethod(threading.get_ident)
    yield_now = staticmethod(partial(time.sleep, 0))

    def thread(self, name: str, function: Callable[[], object]) -> Any:
        return threading.Thread(target=function, name=name, daemon=True)  # not started yet


class Shared(NamedTuple):
    """What the members of one run share. A client calls the ``on_…`` functions of its member; ``emit`` never blocks."""

    config: Config
    system: System
    workers_of: Callable[[Route], Workers | Tasks]  # the same for all routes of a handler, in whatever group
    inside: dict[Place, Run]  # the user code that runs, by the id of its thread, or as a call on an event loop
    outbox: Outbox
    make_client: Callable[[Member], Client]
    make_transactions: Callable[[str], Transactions]
    emit: Callable[[events.Event], None]
    requests: queue.SimpleQueue[ExitRequest]
    side: Callable[[], Side | None] = lambda: None  # of a member, on the event loop where there are coroutines


# -- one group ---------------------------------------------------------------------------------------------------------


class Member:
    """One consumer group in this process: its rules (``core.Group``), its lock, its client, its steps."""

    def __init__(
        self, shared: Shared, group_id: str, routes: Mapping[str, Route], leftovers: Iterable[Ownership] = ()
    ) -> None:
        config, system = shared.config, shared.system
        self.group_id, self._shared, self._now = group_id, shared, system.now
        self.connected = system.event()  # or it could not: then ``error`` is set
        self.error: KarafkaLiteError | None = None
        self._routes, self.topics = routes, list(routes)
        self._workers = {topic: shared.workers_of(route) for topic, route in routes.items()}
        self._side = shared.side()
        self._drain_s = config.drain_timeout_ms / 1000
        self.exactly_once = {topic for topic, route in routes.items() if route.options.exactly_once}
        self._sendings = {topic: self._new_sending(topic) for topic in routes}
        self._transactions, self._client = shared.make_transactions(group_id), shared.make_client(self)
        # Runs that wait for a commit, until when, and as what they go on.
        self._resting: dict[Run, tuple[float, Coroutine[Any, Any, Any]]] = {}
        self._connected = self._closed = self.begun = self.positions_wanted = self._handing_over = False
        self._look_for_topics_at = self._wind_down_until = 0.0
        # ``due``: by thread, when its next step begins. ``_at_stop``: what was ours when the stop began.
        self.subscribed, self.due, self._at_stop = set[str](), dict[str, float](), list[Ownership]()
        options, reset = {t: route.options_for(config.concurrency) for t, route in routes.items()}, self._client.reset
        self.group = Group(options, **config.of_group, reset=reset, leftovers=leftovers, now=self._now(), name=group_id)
        self.lock, self._changes = system.lock(), 0  # how often ``_changed`` was notified
        self._changed = system.condition(self.lock)
        self.name_of: Callable[[Run], str] = lambda run: routes[run.ownership.tp[0]].name_of_call(run)
        self._news = News(group_id, self.name_of, shared.emit)
        self.poller = system.thread(f"karafka-poller-{group_id}", self._live)
        commit = partial(self._tell_how_it_ends, "committer", partial(self._repeat, "committer", self.commit_step))
        self._committer = system.thread(f"karafka-committer-{group_id}", commit)
        forks.watch(self)

    # -- the lock

    def locked(self) -> Member:
        """Hold the lock, knowing the time and whether we are still a member; then pass on what was decided."""
        return self  # no generator: it would cost 1 us more, a few times for each batch

    def __enter__(self) -> float:
        self.lock.acquire()
        try:
            self._check_membership(now := self._now())
            return now
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._dispatch()
        finally:
            settled = self.group.settled
            if settled:
                self.group.settled = []
            self.lock.release()
            self._news.emit()
            for held in settled:
                pass_on(held)

    def _check_membership(self, now: float) -> None:
        """See whether everything was lost; asked live, before ``poll`` knows."""
        if self.group.owned and self._client.lost(now):
            self._news.lost(self.group.lose(now, rejoin=True))

    def _dispatch(self) -> None:
        """Pass on what the group has decided: to who waits, and to workers."""
        if self.group.changed:
            self.group.changed = False
            self._changes += 1
            self._changed.notify_all()
            if self._side is not None:
                self._side.notify()
            if self._handing_over:
                self._client.wake_rebalance()
        if self.group.poll_wanted:
            self.group.poll_wanted = False
            self._client.wake()
        if self._resting:
            self._wake_resting()
        while self.group.untold:
            self._news.call_ended(*self.group.untold.popitem())
        for ownership in self.group.take_ready():
            self._workers[ownership.tp[0]].put(self, ownership)

    def _repeat(self, thread: str, step: Callable[[float], float | None]) -> None:
        """Call ``step`` with the time, and rest as long as it says, until it returns None; keep ``due``."""
        while True:
            changes = self._changes
            self.due[thread] = now = self._now()
            if (rest := step(now)) is None:
                del self.due[thread]
                return
            if rest > 0:
                self.due[thread] = now + rest
                with self.lock:
                    if self._changes == changes:
                        self._changed.wait(rest)

    # -- the poller's thread, from the first connection to the leaving

    def _live(self) -> None:
        """Whatever ends it, what runs is drained and what is stored is committed."""
        code = self._tell_how_it_ends("poller", self._poll_until_stopped) or Exit.CLEAN
        end = self._tell_how_it_ends("poller", self._wind_down)
        self.connected.set()
        self._shared.requests.put(ExitRequest(code if end is Exit.CLEAN else end or code, left=self))

    def _tell_how_it_ends(self, thread: str, story: Callable[[], Exit | None]) -> Exit | None:
        """Run a part of this member's life. Returns the exit code; None where nothing is wrong."""
        try:
            return story()
        except KarafkaLiteError as mistake:
            self.error = mistake
            self.begin_stop(mistake)
            return Exit.NO_BROKER if isinstance(mistake, errors.BrokerUnavailableError) else Exit.ERROR
        except BaseException as bug:  # noqa: BLE001 - no thread of ours dies unnoticed
            self.crash(thread, bug)
            return Exit.ERROR

    def crash(self, thread: str, bug: BaseException) -> None:
        """A thread has met a bug of ours; who notices does not emit: it may be the client's IO thread."""
        self._news.add(events.Crashed, thread, bug)
        self._shared.requests.put(ExitRequest(Exit.ERROR, crashed=True))

    def _poll_until_stopped(self) -> None:
        self._client.connect()
        self._connected = True
        self._committer.start()
        topics = {route.dead_letter for route in self._routes.values() if route.dead_letter}
        if topics and (created := self._client.ensure_topics(topics)):
            self._news.emit_now(events.TopicsCreated, tuple(sorted(created)))
        if self.exactly_once:
            self._transactions.check()
        self.connected.set()
        self._repeat("poller", self.poll_step)

    # -- the poll step

    def poll_step(self, now: float) -> float | None:
        """Join, find out where partitions begin, fetch. Returns the seconds to rest; None: the app stops."""
        if self.group.stopping:
            return None
        try:
            if not self._connected:
                self._client.connect()
                self._connected = True
            return self._poll(now)
        except errors.BrokerUnavailableError as error:
            self._news.emit_now(events.Unreachable, str(error))
            return TOPICS_CHECK_S
        except errors.PollError as error:
            self._news.emit_now(events.PollFailed, error)
            return LOOK_AGAIN_S
        except errors.ClientBrokenError as error:
            self._news.emit_now(events.ClientFailed, error.__cause__ or error)
            self._replace_client()
            return 0.0

    def _poll(self, now: float) -> float:
        self._subscribe_to_what_exists(now)
        if not self.subscribed:
            return TOPICS_CHECK_S
        self._find_offsets()
        self._apply_plan()
        try:
            fetched = self._client.poll()
        except (errors.FetchError, errors.StrayedError) as error:
            with self.locked() as now:
                if isinstance(error, errors.StrayedError):
                    self.group.stray(error.strays, now)
                elif (wait := self.group.fetch_failed((error.topic, error.partition), now)) is not None:
                    self._news.add(events.Unreadable, error.topic, error.partition, error, wait)
            return 0.0
        if fetched or self.positions_wanted:
            with self.locked() as now:
                for records in fetched:
                    self.group.fetched(*records, now)
                if self.positions_wanted:
                    self.positions_wanted = False
                    self.group.polled(self._client.positions(), self._client.ends())
        return 0.0

    def _subscribe_to_what_exists(self, now: float) -> None:
        """Join for the topics that exist, and look for the others from time to time. A topic stays subscribed."""
        unsubscribed = self._routes.keys() - self.subscribed
        if not unsubscribed or now < self._look_for_topics_at:
            return
        self._look_for_topics_at = now + TOPICS_CHECK_S
        if found := unsubscribed - self._client.missing_topics(self._routes):
            self.subscribed |= found
            self._client.subscribe(self.subscribed)
        if missing := unsubscribed - found:
            with self.lock:
                self.group.missing(missing)
            self._news.emit_now(events.Waiting, tuple(sorted(missing)))

    def _find_offsets(self) -> None:
        """Ask the cluster for what only it knows: where partitions begin, and where user code wants to go."""
        with self.lock:
            unplaced, sought = {o.tp: o for o in self.group.unplaced()}, self.group.sought()
        for ownership, target in sought.items():
            if (offset := self._client.offset_of(ownership.tp, target)) is not None:
                with self.locked() as now:
                    self.group.found(ownership, target, offset, now)
        if unplaced:
            places = self._client.places(list(unplaced))
            with self.locked() as now:
                self._news.placed(self.group.placed({unplaced[tp]: place for tp, place in places.items()}, now))

    def _apply_plan(self) -> None:
        with self.locked() as now:
            self.group.advance(now)
            self._news.slow(self.group.slow(now), now)
            plan = self.group.poll_plan(now)
        if not plan.is_empty:
            self._client.apply(plan)
            with self.locked() as now:
                self.group.applied(plan, now)

    def _replace_client(self) -> None:
        """The new client joins as a new member."""
        with self.locked() as now:
            self._news.lost(self.group.lose(now, rejoin=False))
            broken, self._client = self._client, self._shared.make_client(self)
        self._connected, self.subscribed, self._look_for_topics_at = False, set(), 0.0
        broken.close()

    # -- a call of user code: a coroutine, which on a worker's thread waits as any function does (``coroutines.drive``)

    async def run(self, ownership: Ownership, place: Place, inside: dict[Place, Run]) -> None:
        """Call what is due for ``ownership``, wait for the answers to what it sent, and end the run."""
        run = None
        try:
            with self.locked() as now:  # it asks for the membership right before a batch is handed over
                run = self.group.begin(ownership, now)
            if run is not None:
                inside[place] = run
                await self._run(run, place)
        except BaseException:  # a bug of ours: the partition does not stay in the hands of a dead thread
            with self.locked() as now:
                left = run or ownership.run
                if left is not None and not left.over:
                    self.group.end(left, failed=True, now=now)
            raise
        finally:
            if inside.get(place) is run:  # else it has rested, and its thread is another call's
                inside.pop(place, None)

    async def _run(self, run: Run, place: Place) -> None:
        route = self._routes[run.ownership.tp[0]]
        context = route.context(self, run, self.group_id, route.dead_letter, self._shared.config.serializer)
        error = await route.call(run, context, self._now, self._hook_ended, place)
        run.returned = True
        unsent = await self._sendings[run.ownership.tp[0]].ended(run, failed=error is not None)
        if error is None and unsent is not None:
            error = unsent
            if not run.comes_again:
                self._news.hook_ended(run, None, self._now() - run.began, unsent)
        gives_up = False
        if error is not None:
            run.failed_with(error, pointless=isinstance(error, route.no_retry))
            with self.lock:
                gives_up = run.ownership.gives_up(run)
        if gives_up and route.dead_letter:
            await self._send_dead_letter(run, route, context)
        else:
            self._end(run, gives_up)
        if isinstance(error, errors.CRITICAL) and run.comes_again:
            self._shared.requests.put(ExitRequest(Exit.ERROR))

    def _hook_ended(self, run: Run, function: str, seconds: float, error: BaseException | None) -> None:
        self._sendings[run.ownership.tp[0]].function_ended(run, failed=error is not None)
        self._news.hook_ended(run, function, seconds, error)

    async def wait(self, ownership: Ownership, seconds: float, *, to_the_end: bool = False) -> None:
        """Under the lock: wait until something has changed, and so that others on the event loop go on."""
        if (side := self._side) is not None and self._routes[ownership.tp[0]].is_async and side.is_here:
            await side.wait(self.lock, seconds, to_the_end)
        else:
            self._changed.wait(seconds)

    async def rest(self, run: Run, deadline: float) -> None:
        """Wait until what ``run`` has released is committed, or it is time to look again; no thread waits."""
        if self._routes[run.ownership.tp[0]].is_async:
            with self.lock:
                if run.ownership.marks.released:
                    await self.wait(run.ownership, min(LOOK_AGAIN_S, deadline - self._now()), to_the_end=True)
        else:
            await Rest(partial(self._keep, run, deadline))

    def _keep(self, run: Run, deadline: float, coroutine: Coroutine[Any, Any, Any]) -> None:
        with self.locked():  # where it is committed meanwhile, it goes on at once
            self._resting[run] = deadline, coroutine

    def _wake_resting(self) -> None:
        for run, (deadline, coroutine) in list(self._resting.items()):
            if not run.ownership.marks.released or self._now() >= deadline:
                del self._resting[run]
                workers = self._workers[run.ownership.tp[0]]
                assert isinstance(workers, Workers), "coroutines of user code wait on their loop"
                workers.put(self, coroutine)

    async def _send_dead_letter(self, run: Run, route: Route, context: Context) -> None:
        """Give the culprit of ``run`` up once its dead letter is acknowledged; else the run has failed."""
        send = partial(self._sendings[run.ownership.tp[0]].last_letter, run)
        given_up: DeadLetter = None
        try:
            given_up = await give_up(context, route.batch_of(run), send)
        except Exception as refused:  # noqa: BLE001 - whatever it is, the run has to end
            run.failed_with(ProduceError.of_dead_letter(refused, run.reason))
        self._end(run, given_up is not None, given_up)

    def _end(self, run: Run, given_up: bool = False, letter: DeadLetter = None) -> None:
        """End the run; ``letter``: the dead letter of the message that is given up."""
        with self.locked() as now:
            end = self.group.give_up if given_up else partial(self.group.end, failed=run.error is not None)
            for ended, outcome in end(run, now=now).items():
                if run.comes_again:  # other hooks have been reported one by one
                    self._news.call_ended(ended, outcome, letter if ended is run else None)

    # -- what a context asks (``context.Shell``), on the thread of user code

    def owns(self, ownership: Ownership) -> bool:
        if not ownership.over and self._client.lost(self._now()):
            with self.locked():
                pass
        return not ownership.over

    def mark(self, ownership: Ownership, marks: Marks, offset: int) -> bool:
        if self._client.lost(self._now()):
            self.owns(ownership)  # it finds out what was lost
        lock = self.lock
        if not lock.acquire(False):
            self._acquire_soon()
        try:
            ours = marks.mark(offset)
            if marks.failure is not None and ours:
                raise ProduceError.from_failure(marks.failure)
            return ours
        finally:
            lock.release()

    def _acquire_soon(self) -> None:
        # Two workers that wait in the lock's queue would hand over the lock and the interpreter at each mark: 7 us.
        for _ in range(SPINS):
            self._shared.system.yield_now()
            if self.lock.acquire(False):
                return
        self.lock.acquire()

    def request_commit(self, ownership: Ownership) -> bool:
        with self.locked():
            if not ownership.over:
                self.group.request_commit()
            return not ownership.over

    async def commit(self, ownership: Ownership, timeout_ms: int) -> bool:
        marks = ownership.marks
        self._shared.outbox.hand_over()
        with self.locked() as now:
            deadline, wanted, last_failure = now + timeout_ms / 1000, marks.version, marks.last_failure
            if marks.committed_version < wanted:
                marks.try_again()
                self.group.request_commit()
            while marks.failure is not None or marks.committed_version < wanted:
                self._check_membership(now)
                self._dispatch()
                if ownership.state >= State.REVOKED:
                    return False
                if failure := marks.failure or (marks.last_failure is not last_failure and marks.last_failure):
                    raise ProduceError.from_failure(failure)
                if marks.is_refused(wanted):
                    raise CommitError.refused(where(*ownership.tp, marks.stored), marks.waits_for)
                if now >= deadline:
                    raise CommitError.after(timeout_ms, where(*ownership.tp, marks.stored), marks.waits_for)
                await self.wait(ownership, min(LOOK_AGAIN_S, deadline - now))
                now = self._now()
        return True

    def redirect(self, ownership: Ownership, target: SeekTarget) -> bool:
        with self.locked() as now:
            return self.group.redirect(ownership, target, now)

    def pause(self, ownership: Ownership, ms: float) -> bool:
        with self.locked() as now:
            return self.group.pause(ownership, now + ms / 1000, now)

    def _new_sending(self, topic: str) -> Sending:
        how = (self, self._shared.outbox, self._workers[topic].posts)
        return Holding(*how, self._drain_s) if topic in self.exactly_once else Sending(*how)

    def hand_over(self) -> None:
        self._shared.outbox.hand_over()

    def send(self, run: Run, message: Addressed) -> Sent:
        return self._sendings[run.ownership.tp[0]].send(run, message)

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        return self._sendings[run.ownership.tp[0]].send_many(run, messages)

    def dead_letter(self, run: Run, message: Addressed, offset: int, attempts: int, reason: str) -> Sent:
        future = self._sendings[run.ownership.tp[0]].dead_letter(run, message, offset)
        tell = partial(self._news.given_up, run, offset, attempts, reason)
        future.add_done_callback(lambda done: done.exception() or tell(((message.topic, *done.result()), ())))
        return future

    # -- the commit step

    def commit_step(self, now: float) -> float | None:
        """Commit what is due. Returns the seconds to rest; None: the member has left."""
        with self.locked() as now:
            self.group.advance(now)
            commits = self.group.commit_batch(now)
            if not commits:
                return None if self._closed else max(0.0, self.group.wake_at(now) - now)
            client, generation = self._client, self._client.generation()
        if plain := [commit for commit in commits if not commit.ownership.options.exactly_once]:
            refusals = client.commit(plain, generation)
            with self.locked() as now:
                self.group.committed(plain, refusals, now)
                self._news.committed(plain, refusals)
        # Also without messages: brokers may carry out requests of two connections in any order.
        if exact := [commit for commit in commits if commit.ownership.options.exactly_once]:
            ended = self._transactions.commit(client, exact, generation)
            with self.locked() as now:
                self._news.transacted(exact, ended, self.group.transacted(exact, ended, now))
        return 0.0

    # -- a rebalance, on the client's IO thread. Calls of a replaced client change nothing; nothing is emitted.

    def on_assigned(self, client: Client, tps: Collection[TopicPartition]) -> None:
        with self.lock:
            if client is self._client:
                self.group.assigned(tps, self._now())
                self._dispatch()

    def on_revoke(self, client: Client, tps: Collection[TopicPartition]) -> Callable[[], float | None]:
        """Returns a question: seconds to wait before it is asked again, or None when ``tps`` may be given away."""
        began, leaving = self._now(), list[Ownership]()
        with self.lock:
            if client is self._client:
                leaving = self.group.revoke(tps, began)
                self._handing_over = True
                self._dispatch()
        return partial(self._hand_over, client, leaving, began)

    def _hand_over(self, client: Client, leaving: Sequence[Ownership], began: float) -> float | None:
        with self.lock:
            if client is not self._client:
                return None
            self._check_membership(now := self._now())
            self.group.advance(now)
            self._news.slow(self.group.slow(now), now)
            self._handing_over = not self.group.released(leaving)
            self._dispatch()
            if self._handing_over:
                return min(LOOK_AGAIN_S, max(0.001, self.group.wake_at(now) - now))
            self._news.handed_over(leaving, now - began)
            return None

    def on_lost(self, client: Client) -> None:
        with self.lock:
            if client is self._client:
                self._news.lost(self.group.lose(self._now(), rejoin=False))
                self._dispatch()

    # -- the end

    def begin_stop(self, error: BaseException | None = None) -> None:
        """Hand over nothing more. ``error``: why; None for a plain stop."""
        with self.locked() as now:
            if not self.group.stopping:
                self._at_stop = list(self.group.owned.values())
                self.group.stop(now)
                self._news.add(events.Stopping, error)

    def wind_down_step(self, now: float) -> float | None:
        """Wait for handlers, ``on_shutdown`` hooks and the last commit, inside the bounds. None: that is over."""
        # Nothing is polled meanwhile: heartbeats go on, and no new assignment can come in between.
        with self.locked() as now:
            self._wind_down_until = self._wind_down_until or now + self._drain_s
            self.group.advance(now)
            self._news.slow(self.group.slow(now), now)
            leftovers, bound = self.group.leftovers, self._wind_down_until
            if self._side is not None and leftovers and now >= bound:
                bound += self._side.cancel_all(leftovers.values())
            return LOOK_AGAIN_S if self.group.owned or (leftovers and now < bound) else None

    def _wind_down(self) -> Exit:
        """Stop in order; say what is stuck and what could not be committed; leave the group."""
        self.begin_stop()
        self._repeat("poller", self.wind_down_step)
        with self.locked() as now:
            stuck = stacks(self._shared.inside, self.group.leftovers.values())
            uncommitted = [o for o in self._at_stop if o.state is State.REVOKED and o.marks.uncommitted]
            self._news.uncommitted(uncommitted)
            self._news.stuck(stuck, self._drain_s * 1000)
            self._closed = True
            self.group.close(now)
        if self._committer.ident is not None:
            self._committer.join(self._drain_s)
            self._transactions.close()
            unmarked, error = {o.tp: o.unmarked for o in self._at_stop}, self._client.close()
            self._news.emit_now(events.Left, unmarked, error, self._shared.config.instance_id)
        return Exit.FORCED if stuck or uncommitted else Exit.CLEAN


class Runner:
    """One run of an app. Constructed idle; ``start`` begins, ``serve`` waits for the end and knows the exit code."""

    def __init__(
        self,
        config: Config,
        servers: list[str],
        router: Router,
        observed: Observed,
        leftovers: Leftovers,
        close_sender: Callable[[Exit], object],
        loop: Any = None,
    ) -> None:
        from karafka_lite.client import consumer, outbox, transactions  # here: kafka-python takes 0.1 s to import

        system, self.observed, self._close_sender = System(), observed, close_sender
        emit = observed.emit
        self._requests: queue.SimpleQueue[ExitRequest] = queue.SimpleQueue()  # ``put`` may be called by signal handlers
        self.inside = dict[Place, Run]()
        self._outbox = outbox.Outbox(servers, config.settings, emit)
        asked = self._requests.put
        self._staff = Staff(system, config.concurrency, router, self.inside, self._outbox, emit, asked, loop)
        self._lifespan = Lifespan(router.process_hooks, emit, system.thread_id, self._staff.call)

        def make_client(member: Member) -> Client:
            reads = {"isolation_level": "read_committed"} if member.exactly_once else {}
            return consumer.Client(member.group_id, servers, {**config.settings, **reads}, member, emit)

        def make_transactions(group_id: str) -> Transactions:
            return transactions.Transactions(group_id, servers, config.settings, emit)

        places = self._staff.of, self.inside, self._outbox
        made = make_client, make_transactions
        shared = Shared(config, system, *places, *made, emit, self._requests, self._staff.side)
        self.members = [Member(shared, name, routes, leftovers.get(name, ())) for name, routes in router.groups.items()]
        self._counts, self.ended = ExitRequest(), threading.Event()  # ended: stuck handlers may run
        self._main = system.thread("karafka-main", self.serve)  # where nobody else serves
        self._left: set[Member] = set()

    def start(self) -> None:
        """Call ``on_start``, then start all threads; the pollers connect. Raises what ``on_start`` has raised."""
        self.observed.start()
        self._staff.start()
        try:
            self._lifespan.start()
        except BaseException:
            self.members = []  # of whom nobody has begun, so it ends at once
            self.serve()
            raise
        for member in self.members:
            member.poller.start()

    def start_in_background(self) -> None:
        """Start, serve in a thread of its own, and return when every group has reached a broker; else raise why not."""
        self.start()
        self._main.start()
        if mistakes := [m.error for m in self.members if m.connected.wait() and m.error is not None]:
            self._main.join()
            raise mistakes[0]

    def serve(self) -> Exit:
        """Wait for a reason to stop, stop in order, and say how it ended. Where it was interrupted it can go on."""
        while not all(member in self._left for member in self.members):
            try:  # bounded: Python handles a signal that comes right before the wait only after it
                request = self._requests.get(timeout=SIGNALS_S)
            except queue.Empty:
                continue
            self._counts = request.after(self._counts)
            if request.left is not None:
                self._left.add(request.left)
                request.left.poller.join(THREAD_END_S)
            for member in self.members:
                member.begin_stop(request.error)
                if not member.connected.is_set():
                    self._left.add(member)  # nothing was joined: its thread ends by itself when the client gives up
        self._staff.stop()
        self._lifespan.stop()
        self._outbox.close()
        self._staff.leave()
        self._close_sender(self._counts.exit)
        self.observed.stop()
        self.ended.set()
        return self._counts.exit

    def ask_to_stop(self) -> None:
        """Stop soon; returns at once. May be called from a signal handler and from user code."""
        self._requests.put(ExitRequest())

    def stop(self) -> Exit:
        """Stop and wait for the end. User code only asks: the end waits for it."""
        self.ask_to_stop()
        thread = threading.get_ident()
        if thread in self.inside or thread == self._lifespan.thread or self._staff.waits_for_us:
            return Exit.CLEAN
        self._main.join() if self._main.ident else self.ended.wait()
        return self._counts.exit
