"""The event loop that the coroutines of handlers run on: the caller's own, or one in a thread of ours.

A loop is watched, on a thread of its own: a coroutine that does not await holds up all others, and nobody else would
say so.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any

from karafka_lite import events, forks
from karafka_lite.core.options import Hook
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.coroutines import LOOP_CLOSED, Call, drive
from karafka_lite.errors import ConfigurationError
from karafka_lite.functions import is_coroutine
from karafka_lite.observers.frames import stack_of
from karafka_lite.posts import Posts
from karafka_lite.workers import STUCK_END_S, THREAD_END_S, Caller

if TYPE_CHECKING:
    from karafka_lite.client.protocol import Outbox

LOOK_S = 0.25  # between two looks at a loop that works
BLOCKED_S, AGAIN_S = 1.0, 30.0  # after which a blocked one is said, and said again
FREEZE_S = 0.1  # and once more after that: the process may have been frozen
LAST_S = 1.0  # for what is left on a loop of ours at its end
CANCEL_S = 1.0  # for a coroutine to end when it is cancelled


class Guest:
    """A run of an app that has coroutines: what it needs of an event loop. ``loop``: the caller's, None for ours.

    ``look`` is called now and then by the watch; ``fail`` with what ends the loop, or with what a task of user code has
    ended it with. ``inside``: the user code that runs.
    """

    def __init__(
        self,
        system: Any,
        loop: asyncio.AbstractEventLoop | None,
        inside: dict[Any, Run],
        emit: Callable[[events.Event], None],
        look: Callable[[], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        self.system, self._wanted, self.inside, self.emit, self.look, self.fail = system, loop, inside, emit, look, fail
        self.context = contextvars.copy_context()  # of who starts the app: each call has a copy of it
        self.tasks: list[Tasks] = []
        self._loop: Loop | None = None

    def start(self) -> None:
        """Be on the loop, from now on."""
        with _loops.lock(self.system):
            self._loop = _loops.find(self.system, self._wanted)
            self._loop.guests.append(self)

    def stop(self) -> None:
        """Leave the loop; the last one ends ours."""
        for tasks in self.tasks:
            tasks.posts.stop()
        with _loops.lock(self.system):
            self.loop.guests.remove(self)
            if last := not self.loop.guests:
                _loops.forget(self.loop)
        if last:
            self.loop.stop()

    @property
    def loop(self) -> Loop:
        """The loop, after ``start``."""
        assert self._loop is not None
        return self._loop

    @property
    def is_here(self) -> bool:
        """Whether this thread is that of the loop, which runs."""
        return self._loop is not None and self._loop.is_here

    def call(self, function: Callable[[], object]) -> object:
        """As ``Loop.call``."""
        return self.loop.call(function, self.context)

    def side(self) -> Side:
        """For a member."""
        return Side(self)

    def tasks_of(self, name: str, concurrency: int, outbox: Outbox) -> Tasks:
        """In the place of the threads of a handler."""
        tasks = Tasks(self, concurrency, Posts(self.system, name, concurrency, outbox))
        self.tasks.append(tasks)
        return tasks


class Loops:
    """The event loops that are in use."""

    def __init__(self) -> None:
        self._reset()
        forks.in_child(self, Loops._reset)

    def _reset(self) -> None:
        self._locks: dict[str, Any] = {}
        self._known: dict[asyncio.AbstractEventLoop | None, Loop] = {}  # None: ours

    def lock(self, system: Any) -> Any:
        """Who comes and goes has it."""
        return self._locks.setdefault("", system.lock())

    def find(self, system: Any, wanted: asyncio.AbstractEventLoop | None) -> Loop:
        """This one, or ours; it runs."""
        if (loop := self._known.get(wanted)) is None:
            loop = self._known[wanted] = Loop(system, wanted or asyncio.new_event_loop(), ours=wanted is None)
            loop.start()
        return loop

    def forget(self, loop: Loop) -> None:
        """Nobody uses it any more."""
        self._known = {wanted: known for wanted, known in self._known.items() if known is not loop}


class Loop:
    """One event loop, whoever uses it. ``thread``: the one that it runs on; ``current``: the call that takes a step."""

    def __init__(self, system: Any, loop: asyncio.AbstractEventLoop, *, ours: bool) -> None:
        self.loop, self._system, self._ours = loop, system, ours
        self.current: Call | None = None
        self.thread: int = 0 if ours else system.thread_id()
        self.guests: list[Guest] = []
        self._over = system.event()
        self._thread: Any = None
        self._watcher: Any = None

    def start(self) -> None:
        """Begin to watch it; one of ours begins to run."""
        if self._ours:
            self._thread = self._system.thread("karafka-loop", self._run)
            self._thread.start()
        self._watcher = self._system.thread("karafka-loop-watch", self._watch)
        self._watcher.start()

    def stop(self) -> None:
        """Watch it no longer. One of ours ends, but is not waited for where a coroutine blocks it."""
        self._over.set()
        if self._thread is not None:
            self.submit(self.loop.stop)
            self._thread.join(THREAD_END_S if self.current is None else STUCK_END_S)
        self._watcher.join(THREAD_END_S)

    @property
    def is_here(self) -> bool:
        """Whether it runs, and on this thread."""
        return asyncio._get_running_loop() is self.loop

    # -- what is put on it

    def submit(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call ``function`` on the loop's thread, soon; False: the loop is closed. Never blocks."""
        try:
            if self.is_here:
                self.loop.call_soon(function, *arguments)
            else:
                self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def create(self, coroutine: Coroutine[Any, Any, object], context: contextvars.Context) -> Any:
        """A task with a copy of ``context``. On the loop's thread."""
        return context.copy().run(self.loop.create_task, coroutine)

    def call(self, function: Callable[[], object], context: contextvars.Context) -> object:
        """Call a function, or run a coroutine to its end on the loop, while this thread waits. Raises what it raises.

        Raises:
            ConfigurationError: the loop is closed.
        """
        if not is_coroutine(function):
            return forks.call(function)
        ended, outcome = self._system.event(), list[BaseException | None]()

        async def run() -> None:
            try:
                call = Call(self)
                call.task = asyncio.current_task()
                await call.finish(forks.call(function))  # type: ignore[arg-type]
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001 - it is raised on the thread that waits
                outcome.append(error)
            finally:
                ended.set()

        tasks: list[Any] = []  # asyncio itself keeps none
        alive = self.submit(lambda: tasks.append(self.create(run(), context)))
        while alive and not ended.wait(LOOK_S):
            alive = not self.loop.is_closed()
        if not outcome:
            raise ConfigurationError(LOOP_CLOSED)
        if (error := outcome[0]) is not None:
            raise error
        return None

    # -- the thread of one of ours

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.thread = self._system.thread_id()
        while not self._over.is_set():
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as critical:  # of a task that user code has made
                for guest in list(self.guests):
                    guest.fail(critical)
        self._end()

    def _end(self) -> None:
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=LAST_S))
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # it was said that it is stuck
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()

    # -- the thread of the watch

    def _watch(self) -> None:
        closed = False
        while not self._over.wait(LOOK_S):
            self._look()
            if not self.loop.is_closed():
                if sum(tasks.look() for guest in list(self.guests) for tasks in guest.tasks):
                    self._wait_for_an_answer()
                continue
            for guest in list(self.guests):
                if not closed:
                    guest.fail(ConfigurationError(LOOP_CLOSED))
                for tasks in guest.tasks:
                    tasks.abandon()
            closed = True

    def _look(self) -> None:
        for guest in list(self.guests):
            guest.look()

    def _wait_for_an_answer(self) -> None:
        answered, began, say_after = self._system.event(), self._system.now(), BLOCKED_S
        if not self.submit(answered.set):
            return
        while not answered.wait(LOOK_S) and not self._over.is_set() and not self.loop.is_closed():
            self._look()
            seconds = self._system.now() - began
            if seconds >= say_after and not answered.wait(FREEZE_S):
                say_after = seconds + AGAIN_S
                self._say_blocked(seconds)

    def _say_blocked(self, seconds: float) -> None:
        call, guests = self.current, list(self.guests)
        stack = stack_of(self.thread if call is None else call)
        whose = [(guest, run) for guest in guests if call is not None and (run := guest.inside.get(call)) is not None]
        if whose:
            guest, run = whose[0]
            guest.emit(events.LoopBlocked("", str(run), seconds, stack))
        elif guests:
            guests[0].emit(events.LoopBlocked("", "", seconds, stack))


class Tasks:
    """The calls of one handler, each a task on the loop: at most ``concurrency`` at the same time.

    Attributes:
        jobs: what was put and has not ended, and whose it is.
    """

    def __init__(self, guest: Guest, concurrency: int, posts: Posts) -> None:
        self._guest, self._concurrency, self.posts = guest, concurrency, posts
        self.jobs: dict[Call, tuple[Caller, Ownership]] = {}
        self._waiting, self._running, self._lock = deque[Call](), 0, guest.system.lock()

    def put(self, member: Caller, ownership: Ownership) -> None:
        """There is something to run. It never blocks: the group's lock is held."""
        call = Call(self._guest.loop)
        with self._lock:
            self.jobs[call] = member, ownership
            if self._running >= self._concurrency:
                self._waiting.append(call)
                return
            self._running += 1
        self._guest.loop.submit(self._begin, call)

    def look(self) -> bool:
        """Begin again what was cancelled before its first step. False: there is nothing to run."""
        for call in list(self.jobs):
            if call.task is not None and call.task.done() and not call.begun:
                self._guest.loop.submit(self._begin, call)
        return bool(self.jobs)

    def stop(self) -> None:
        """Nothing to do: a task that goes on is stuck in user code, and the loop's."""

    def _begin(self, call: Call) -> None:
        if call.task is not None and not call.task.done():
            return
        member, ownership = self.jobs[call]
        call.task = self._guest.loop.create(self._work(call, member, ownership), self._guest.context)

    async def _work(self, call: Call, member: Caller, ownership: Ownership) -> None:
        call.begun = True
        try:
            await member.run(ownership, call, self._guest.inside)
        except BaseException as bug:  # noqa: BLE001 - user code is caught further in, so this is a bug of ours
            member.crash("event loop", bug)
        finally:
            self._ended(call)

    def _ended(self, call: Call) -> None:
        with self._lock:
            self.jobs.pop(call, None)
            following = self._waiting.popleft() if self._waiting else None
            self._running -= following is None
        if following is not None:
            self._guest.loop.submit(self._begin, following)

    def abandon(self) -> None:
        """The loop is closed: what has begun fails where it waits, and what is due fails when it is called."""
        for call, (member, ownership) in list(self.jobs.items()):
            if not call.begun:
                if call.task is not None:  # cancelled before its first step, and begun again when it was too late
                    call.task._log_destroy_pending = False
                    call.task.get_coro().close()
                drive(self._work(call, member, ownership))
            elif call.task is not None:
                call.abandon()


class Side:
    """What a member needs on the loop beside its condition: to wait, and to cancel what is past its bound."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self._waiting = guest, set[asyncio.Future[None]]()

    @property
    def is_here(self) -> bool:
        """Whether this thread is that of the loop, which runs."""
        return self._guest.is_here

    async def wait(self, lock: Any, seconds: float, to_the_end: bool) -> None:
        """As ``Condition.wait`` of a condition of ``lock``, which is held.

        ``to_the_end``: whoever cancels is too late, the user's coroutine has ended.
        """
        loop = self._guest.loop.loop
        changed = loop.create_future()
        timer = loop.call_later(seconds, _set, changed)
        self._waiting.add(changed)
        lock.release()
        try:
            await changed
        except asyncio.CancelledError:
            if not to_the_end:
                raise
        finally:
            timer.cancel()
            lock.acquire()
            self._waiting.discard(changed)

    def notify(self) -> None:
        """Something has changed. Under the lock."""
        if self._waiting:
            self._guest.loop.submit(self._wake)
        self.cancel(_is_past_its_bound)

    def cancel(self, which: Callable[[Run], bool]) -> None:
        """Cancel the coroutines of these runs, each once."""
        for call, run in list(self._guest.inside.items()):
            if isinstance(call, Call) and not call.cancelled and which(run):
                self._guest.loop.submit(call.cancel)

    def cancel_all(self, ownerships: Collection[Ownership]) -> float:
        """Cancel what runs of ``ownerships``, lost ones among them. Returns the seconds that it gets to end."""
        self.cancel(lambda run: run.ownership in ownerships)
        return CANCEL_S

    def _wake(self) -> None:
        for changed in list(self._waiting):
            _set(changed)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _is_past_its_bound(run: Run) -> bool:
    """Its partition was handed over without it. At a loss nothing is cancelled: what it does may be of use."""
    return run.ownership.state in (State.RELEASING, State.REVOKED) and run.hook is not Hook.ON_REVOKED


_loops = Loops()
