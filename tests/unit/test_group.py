"""All partitions of a group: what stands until it is done, what changes nothing, and when it acts."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import Any

import pytest
from support.partitions import Partitions, hook, offsets_of

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.group import FINAL_COMMIT_S, Group
from karafka_lite.core.intake import BufferLimits, Intake
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import Hook, Options
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.starts import Place, Start
from karafka_lite.core.timers import MOST_STALE
from karafka_lite.errors import ProduceError

TP = ("topic", 0)
NO_WAIT = Backoff(1, 1)


AT_5 = Place(0, 9, 9, 5)  # a commit


# -- where partitions begin


def test_what_has_no_start_is_named_until_it_has_one() -> None:
    scene = Partitions(2, started=False)
    assert scene.group.unplaced() == [scene[0], scene[1]]
    assert scene.group.unplaced() == [scene[0], scene[1]], "an answer may not come"
    assert scene.place({scene[0]: AT_5}) == {TP: Start(5, "committed")}
    assert scene.group.unplaced() == [scene[1]]
    assert scene.plan() == {0: 5}


def test_a_start_is_known_once() -> None:
    scene = Partitions()
    assert scene.place({scene[0]: AT_5}) == {}
    assert (scene[0].intake.start, scene.plan()) == (0, {})


def test_a_start_that_was_asked_for_an_earlier_ownership_is_none() -> None:
    scene = Partitions(started=False)
    (earlier,) = scene.group.unplaced()
    scene.group.lose(0.0, rejoin=False)
    scene.group.assigned([TP], 0.0)
    assert scene.place({earlier: AT_5}) == {}
    assert scene[0].intake.start is None
    assert scene.group.unplaced() == [scene[0]]


def test_an_offset_found_for_an_earlier_ownership_is_none() -> None:
    scene = Partitions()
    earlier = scene[0]
    scene.group.redirect(earlier, "latest", 0.0)
    scene.group.lose(0.0, rejoin=False)
    scene.group.assigned([TP], 0.0)
    scene.start(3)
    scene.group.redirect(scene[0], "latest", 0.0)
    scene.group.found(earlier, "latest", 99, 0.0)
    assert scene.group.sought() == {scene[0]: "latest"}
    assert scene.plan() == {}


def test_with_latest_the_start_is_committed_at_once() -> None:
    group = Group({"topic": Options()}, reset="latest")
    scene = Partitions(started=False, group=group)
    scene.start(9)
    scene.plan()
    scene.fetch(0, 9)
    assert group.take_ready() == []
    assert scene.commit() == {TP: 9}
    assert group.take_ready() == [scene[0]]


def test_while_the_app_stops_nothing_is_assigned() -> None:
    scene = Partitions()
    scene.group.stop(0.0)
    assert scene.group.assigned([("topic", 7)], 0.0) == []
    assert ("topic", 7) not in scene.group.owned


def test_two_ownerships_of_one_partition_do_not_exist() -> None:
    scene = Partitions()
    earlier = scene[0]
    scene.group.assigned([TP], 0.0)
    assert earlier.state is State.LOST
    assert scene[0] is not earlier


# -- a plan stands until it is applied


def plan_of(scene: Partitions) -> tuple[Any, ...]:
    plan = scene.group.poll_plan(scene.now)
    return plan.seeks, plan.pause, plan.resume, plan.rejoin


def test_a_seek_stands_until_it_is_applied() -> None:
    scene = Partitions(started=False)
    scene.start(5)
    for _ in range(3):
        assert plan_of(scene) == ({scene[0]: 5}, [], [], False)
    assert not scene.fetch(0, 5), "nothing that was fetched before"
    scene.plan()
    assert scene.group.poll_plan(0.0).is_empty
    assert scene.fetch(0, 5)


def test_a_batch_that_is_not_put_back_is_sought_until_applied() -> None:
    """A plan that was dropped here lost messages: later ones were marked over it."""
    scene = Partitions(manual_offsets=True, max_messages=1, backoff=NO_WAIT)
    scene.fetch(0, 0, 1)
    scene.process()
    scene.process(failed=True)
    for _ in range(3):
        assert plan_of(scene)[0] == {scene[0]: 0}
        assert not scene.fetch(0, 2, 3)
    assert scene.plan() == {0: 0}


def test_a_seek_that_was_made_meanwhile_is_in_the_next_plan() -> None:
    scene = Partitions()
    scene.group.redirect(scene[0], 7, 0.0)
    plan = scene.group.poll_plan(0.0)
    scene.group.redirect(scene[0], 9, 0.0)
    scene.group.applied(plan, 0.0)
    assert not scene.fetch(0, 7)
    assert scene.plan() == {0: 9}


def test_a_target_that_was_sought_meanwhile_stands() -> None:
    scene = Partitions()
    scene.group.redirect(scene[0], 7, 0.0)
    plan = scene.group.poll_plan(0.0)
    scene.group.redirect(scene[0], "earliest", 0.0)
    scene.group.applied(plan, 0.0)
    assert not scene.fetch(0, 7)
    for _ in range(2):
        assert scene.group.sought() == {scene[0]: "earliest"}
    scene.group.found(scene[0], "earliest", 3, 0.0)
    assert scene.group.sought() == {}
    assert scene.plan() == {0: 3}


def test_what_was_found_for_an_earlier_wish_is_dropped() -> None:
    scene = Partitions()
    scene.group.redirect(scene[0], "earliest", 0.0)
    scene.group.redirect(scene[0], "latest", 0.0)
    scene.group.found(scene[0], "earliest", 3, 0.0)
    assert scene.group.sought() == {scene[0]: "latest"}
    scene.group.redirect(scene[0], 5, 0.0)
    scene.group.found(scene[0], "latest", 99, 0.0)
    assert scene.plan() == {0: 5}


def full(scene: Partitions, number: int = 0) -> None:
    position = scene[number].intake.size
    scene.fetch(number, *range(position, position + 16))


def test_a_pause_and_a_resume_stand_until_they_are_applied() -> None:
    scene = Partitions(max_messages=2)
    full(scene)
    for _ in range(2):
        assert plan_of(scene) == ({}, [scene[0]], [], False)
        assert not scene[0].intake.paused
    scene.plan()
    assert scene[0].intake.paused
    assert scene.group.poll_plan(0.0).is_empty
    for _ in range(6):
        scene.process()
    for _ in range(2):
        assert plan_of(scene) == ({}, [], [scene[0]], False)
    scene.plan()
    assert not scene[0].intake.paused


def test_the_poller_is_wanted_as_soon_as_a_full_queue_is_half_empty() -> None:
    scene = Partitions(max_messages=2)
    full(scene)
    scene.plan()
    scene.group.poll_wanted = False
    for left in (14, 12, 10, 8):
        scene.process()
        assert (scene[0].intake.size, scene.group.poll_wanted) == (left, False)
    scene.process()
    assert scene.group.poll_wanted
    assert plan_of(scene)[2] == [scene[0]]


def test_the_poller_is_wanted_after_a_failed_fetch_has_had_its_rest() -> None:
    scene = Partitions()
    wait = scene.group.fetch_failed(TP, 0.0)
    assert wait is not None
    scene.plan()
    scene.group.poll_wanted = False
    scene.group.advance(wait - 0.001)
    assert not scene.group.poll_wanted
    scene.group.advance(wait)
    assert scene.group.poll_wanted


@pytest.mark.parametrize("during_a_run", [False, True])
@pytest.mark.parametrize("target", [7, "earliest"])
def test_the_poller_is_wanted_for_a_seek(target: Any, during_a_run: bool) -> None:
    scene = Partitions()
    scene.fetch(0, 0)
    run = scene.begin() if during_a_run else None
    scene.group.poll_wanted = False
    scene.group.redirect(scene[0], target, 0.0)
    if run is not None:
        assert not scene.group.poll_wanted
        scene.group.end(run, failed=False, now=0.0)
    assert scene.group.poll_wanted


def test_the_poller_is_wanted_for_the_end() -> None:
    scene = Partitions()
    scene.group.poll_wanted = False
    scene.group.stop(0.0)
    assert scene.group.poll_wanted


def test_the_poller_is_not_wanted_for_what_is_as_it_should_be() -> None:
    scene = Partitions(max_messages=2)
    scene.group.poll_wanted = False
    scene.fetch(0, *range(4))
    scene.process()
    scene.process()
    assert not scene.group.poll_wanted


def test_a_pause_that_met_the_next_ownership_is_undone() -> None:
    """The client has paused the partition; that it has a new owner since then must not leave it so for ever."""
    scene = Partitions(max_messages=2)
    full(scene)
    plan = scene.group.poll_plan(0.0)
    scene.group.lose(0.0, rejoin=False)
    scene.group.assigned([TP], 0.0)
    scene.group.applied(plan, 0.0)
    assert plan_of(scene)[2] == [scene[0]]
    scene.plan()
    assert not scene[0].intake.paused


def test_an_applied_plan_does_nothing_for_what_is_not_owned() -> None:
    scene = Partitions(max_messages=2)
    full(scene)
    plan = scene.group.poll_plan(0.0)
    scene.group.lose(0.0, rejoin=False)
    scene.group.applied(plan, 0.0)
    assert scene.group.poll_plan(0.0).is_empty


def test_a_lost_member_rejoins_until_the_client_does() -> None:
    scene = Partitions()
    scene.group.lose(0.0, rejoin=True)
    for _ in range(2):
        assert plan_of(scene) == ({}, [], [], True)
    scene.plan()
    assert scene.group.poll_plan(0.0).is_empty


def test_a_member_that_is_lost_again_meanwhile_rejoins_again() -> None:
    scene = Partitions()
    scene.group.lose(0.0, rejoin=True)
    plan = scene.group.poll_plan(0.0)
    scene.group.assigned([TP], 0.0)
    scene.group.lose(0.0, rejoin=True)
    scene.group.applied(plan, 0.0)
    assert scene.group.poll_plan(0.0).rejoin


@pytest.mark.parametrize("rejoin", [False, True])
def test_who_was_told_of_the_loss_or_has_joined_need_not_rejoin(rejoin: bool) -> None:
    scene = Partitions()
    scene.group.lose(0.0, rejoin=rejoin)
    if rejoin:
        scene.group.assigned([TP], 0.0)
    assert not scene.group.poll_plan(0.0).rejoin


def test_what_cannot_be_read_is_paused_until_its_time() -> None:
    scene = Partitions(backoff=Backoff(1000, 1000))
    assert scene.group.fetch_failed(TP, 0.0) == 1.0
    assert plan_of(scene)[1] == [scene[0]]
    scene.plan()
    assert scene.group.wake_at(0.0) == 1.0
    scene.now = 1.0
    scene.group.advance(1.0)
    assert plan_of(scene)[2] == [scene[0]]
    assert scene.group.fetch_failed(("topic", 7), 1.0) is None, "not ours"


# -- what it costs


def test_a_poll_step_looks_at_what_has_changed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Intake] = []
    wants_pause = Intake.wants_pause

    def count(intake: Intake, limits: BufferLimits, now: float) -> bool:
        looked_at.append(intake)
        return wants_pause(intake, limits, now)

    scene = Partitions(500)
    scene.plan()  # what was just applied is looked at once more
    monkeypatch.setattr(Intake, "wants_pause", count)
    for _ in range(100):
        scene.plan()
    assert looked_at == []
    scene.fetch(7, 0)
    scene.plan()
    scene.plan()
    assert looked_at == [scene[7].intake]
    scene.process(7)
    scene.plan()
    scene.plan()
    assert set(looked_at) == {scene[7].intake}
    assert len(looked_at) <= 3


def test_looking_for_starts_costs_nothing_once_all_have_begun() -> None:
    scene = Partitions(500)
    assert scene.group._unknown == {}
    scene.group.redirect(scene[3], "latest", 0.0)
    assert list(scene.group._unknown) == [scene[3]]
    scene.group.redirect(scene[3], 5, 0.0)
    assert scene.group._unknown == {}


@pytest.mark.parametrize("failed", [False, True])
def test_ten_thousand_batches_leave_no_heap_of_timers(failed: bool) -> None:
    scene = Partitions(3, hooks=(hook(Hook.EVERY, 3_600_000),), max_messages=1, backoff=NO_WAIT)
    most = 0
    for turn in range(10_000):
        number = turn % 3
        if not failed or not scene[number].intake.size:
            scene.fetch(number, turn)
        scene.group.take_ready()
        scene.process(number, failed=failed)
        scene.now += 0.25
        scene.plan()
        most = max(most, len(scene.group._timers))
    assert most <= MOST_STALE + 4 * 3 + 1


def test_what_is_over_leaves_nothing() -> None:
    scene = Partitions(10, hooks=(hook(Hook.EVERY, 3_600_000),))
    for _ in range(100):
        for number in range(10):
            scene.fetch(number, 0)
            scene.process(number)
        scene.group.redirect(scene[0], "latest", scene.now)
        scene.group.lose(scene.now, rejoin=True)
        scene.group.assigned(scene.tps, scene.now)
        scene.start()
        scene.plan()
    group = scene.group
    assert len(group._timers) <= MOST_STALE + 4 * 10
    assert [len(one) for one in (group._running, group._leaving, group._unknown, group.leftovers)] == [0] * 4
    assert len(group._to_plan) <= 10


# -- who is ready


def test_each_ownership_is_named_once_until_it_has_begun() -> None:
    scene = Partitions(2)
    scene.fetch(0, 0)
    scene.fetch(0, 1)
    scene.fetch(1, 0)
    assert scene.group.take_ready() == [scene[0], scene[1]]
    scene.fetch(0, 2)
    assert scene.group.take_ready() == []
    run = scene.begin(0)
    assert scene.group.take_ready() == []
    scene.fetch(0, 3)
    scene.end(run)
    assert scene.group.take_ready() == [scene[0]]


def test_what_was_ready_and_is_not_any_more_begins_nothing() -> None:
    scene = Partitions()
    scene.fetch(0, 0)
    assert scene.group.take_ready() == [scene[0]]
    scene.group.pause(scene[0], 5.0, 0.0)
    assert scene.group.begin(scene[0], 0.0) is None
    assert scene.group.wake_at(0.0) == 5.0
    scene.group.advance(5.0)
    assert scene.group.take_ready() == [scene[0]]


def test_a_back_off_ends_by_itself() -> None:
    scene = Partitions(backoff=Backoff(2000, 2000))
    scene.fetch(0, 0)
    scene.group.take_ready()
    scene.process(failed=True)
    assert scene.group.wake_at(0.0) == 2.0
    scene.group.advance(1.999)
    assert scene.group.take_ready() == []
    scene.group.advance(2.0)
    assert scene.group.take_ready() == [scene[0]]


def test_the_outcome_of_a_failure_says_where_the_retry_begins() -> None:
    scene = Partitions(backoff=Backoff(2000, 2000))
    scene.fetch(0, 0, 1)
    scene.now = 3.0
    run = scene.begin()
    scene[0].marks.mark(1)
    assert scene.group.end(run, failed=True, now=4.0)[run] == (1.0, 1, 1, 2.0, None)


def test_the_outcome_of_a_failure_while_draining_has_no_retry() -> None:
    scene = Partitions()
    scene.fetch(0, 0)
    run = scene.begin()
    scene.group.revoke([TP], 0.0)
    assert scene.group.end(run, failed=True, now=1.0)[run] == (1.0, 0, None, 0.0, None)


def test_the_outcome_names_the_message_that_was_given_up() -> None:
    scene = Partitions(budget=1)
    scene.fetch(0, 0)
    run = scene.begin()
    assert run.ownership.gives_up(run)
    assert scene.group.give_up(run, now=2.0)[run] == (2.0, 0, None, 0.0, (0, 1))
    assert scene[0].marks.stored == 1


# -- user code that changes its mind


def test_a_seek_of_a_running_batch_counts_at_its_end() -> None:
    scene = Partitions()
    scene.fetch(0, 0, 1)
    run = scene.begin()
    assert scene.group.redirect(scene[0], 7, 0.0)
    assert scene.plan() == {}
    scene.end(run)
    assert (scene.plan(), scene[0].marks.stored) == ({0: 7}, None)


def test_who_is_not_the_owner_moves_and_pauses_nothing() -> None:
    scene = Partitions()
    earlier = scene[0]
    scene.group.lose(0.0, rejoin=False)
    assert not scene.group.redirect(earlier, 7, 0.0)
    assert not scene.group.pause(earlier, 7.0, 0.0)
    assert scene.group.poll_plan(0.0).is_empty


def test_a_pause_can_be_ended_early() -> None:
    scene = Partitions()
    scene.group.pause(scene[0], 60.0, 0.0)
    scene.fetch(0, 0)
    assert scene.group.take_ready() == []
    scene.group.pause(scene[0], 1.0, 1.0)
    assert scene.group.take_ready() == [scene[0]]


# -- turns of batches and every


class Pool:
    """``count`` workers and a clock: what is ready is called in its order, and takes as long as it takes."""

    def __init__(self, scene: Partitions, count: int, batch_s: float, hook_s: float) -> None:
        self.scene, self.count = scene, count
        self.seconds = {False: batch_s, True: hook_s}
        self.jobs: deque[Ownership] = deque()
        self.busy: list[tuple[float, int, Run]] = []  # a heap
        self.begun: list[tuple[float, Run]] = []
        self.next_offset = Counter[int]()

    def run_until(self, end: float) -> None:
        scene, group = self.scene, self.scene.group
        while scene.now < end:
            while self.busy and self.busy[0][0] <= scene.now:
                group.end(heapq.heappop(self.busy)[2], failed=False, now=scene.now)
            scene.plan()
            scene.commit()
            for number in range(len(scene.tps)):  # there is always more to read
                while scene[number].intake.size < 10:
                    scene.fetch(number, self.next_offset[number])
                    self.next_offset[number] += 1
            self.jobs += group.take_ready()
            while self.jobs and len(self.busy) < self.count:
                run = group.begin(self.jobs.popleft(), scene.now)
                if run is not None:
                    self.begun.append((scene.now, run))
                    heapq.heappush(self.busy, (scene.now + self.seconds[bool(run.hooks)], len(self.begun), run))
            moments = [group.wake_at(scene.now), *(moment for moment, _, _ in self.busy[:1])]
            scene.now = max(min(moments), scene.now + 1e-6)


def test_every_and_batches_take_turns_when_workers_are_few() -> None:
    """24 partitions, 5 workers, a hook of 300 ms each second: hooks alone would take 7.2 of 5 seconds."""
    scene = Partitions(24, hooks=(hook(Hook.EVERY, 1000),), max_messages=1)
    pool = Pool(scene, count=5, batch_s=0.1, hook_s=0.3)
    pool.run_until(180.0)
    times: dict[tuple[int, bool], list[float]] = {}
    for moment, run in pool.begun:
        times.setdefault((run.ownership.tp[1], bool(run.hooks)), [0.0]).append(moment)
    assert len(times) == 48
    for key, moments in times.items():
        gaps = [after - before for before, after in zip(moments, [*moments[1:], 180.0], strict=True)]
        assert max(gaps) < 5.0, f"partition and hook {key} waited {max(gaps):.1f} s"
        assert len(moments) > 60


def test_the_most_overdue_hook_of_all_partitions_goes_first() -> None:
    scene = Partitions(6, hooks=(hook(Hook.EVERY, 1000),), max_messages=1)
    pool = Pool(scene, count=1, batch_s=0.01, hook_s=0.5)
    pool.run_until(60.0)
    hooks = [run.ownership.tp[1] for _, run in pool.begun if run.hooks]
    assert Counter(hooks).most_common()[0][1] - Counter(hooks).most_common()[-1][1] <= 1


# -- commits


def marked(scene: Partitions, number: int = 0, offset: int = 0) -> Ownership:
    scene.fetch(number, offset)
    scene.process(number)
    return scene[number]


def test_marks_are_committed_each_interval() -> None:
    scene = Partitions()
    marked(scene)
    assert scene.commit() == {}
    assert scene.group.wake_at(0.0) == 5.0
    scene.now = 5.0
    assert scene.commit() == {TP: 1}
    assert scene.commit() == {}
    assert scene.group.wake_at(5.0) == 10.0


def test_a_requested_commit_does_not_wait_for_the_interval() -> None:
    scene = Partitions()
    marked(scene)
    scene.group.request_commit()
    assert scene.group.changed
    assert scene.group.wake_at(0.0) == 0.0
    assert scene.commit() == {TP: 1}
    assert scene.commit() == {}


def test_a_requested_commit_waits_for_what_was_sent() -> None:
    scene = Partitions()
    scene.fetch(0, 0)
    run = scene.begin()
    send = scene[0].marks.sending()
    scene[0].marks.mark(1)
    scene.group.request_commit()
    assert scene.commit() == {}
    assert scene.group.wake_at(0.0) > 0.0, "nobody spins"
    scene.group.changed = False
    scene.group.answered(run, send, None, 0.0, 1)
    assert scene.group.changed
    assert scene.commit() == {TP: 1}
    scene.end(run)


def test_a_refused_send_takes_its_marks_back() -> None:
    scene = Partitions(manual_offsets=True)
    scene.fetch(0, 0, 1)
    run = scene.begin()
    scene[0].marks.mark(1)
    send = scene[0].marks.sending()
    scene[0].marks.mark(2)
    scene.group.answered(run, send, ProduceError("no"), 0.0, 1)
    scene.now = 5.0
    assert scene.commit() == {TP: 1}


def test_a_failed_commit_stays_pending_and_is_tried_soon() -> None:
    scene = Partitions()
    marked(scene)
    scene.now = 5.0
    waits = []
    for _ in range(6):
        commits = scene.group.commit_batch(scene.now)
        assert [offset for _, offset, *_ in commits] == [1]
        scene.group.committed(commits, {TP: Refusal(OSError("no"))}, scene.now)
        assert scene.group.commit_batch(scene.now) == []
        waits.append(scene.group.wake_at(scene.now) - scene.now)
        scene.now = scene.group.wake_at(scene.now)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert scene.commit() == {TP: 1}


def test_what_is_refused_of_one_partition_counts_for_that_one() -> None:
    scene = Partitions(2)
    marked(scene, 0)
    marked(scene, 1)
    scene.now = 5.0
    commits = scene.group.commit_batch(scene.now)
    scene.group.committed(commits, {TP: Refusal(OSError("no"))}, scene.now)
    assert (scene[0].marks.committed, scene[1].marks.committed) == (None, 1)
    marked(scene, 1, 1)
    scene.group.request_commit()
    assert scene.commit() == {("topic", 1): 2}, "it does not wait for the back-off of the other"
    scene.now = scene.group.wake_at(scene.now)
    assert (scene.now, scene.commit()) == (pytest.approx(5.1), {TP: 1})


@pytest.mark.parametrize("lasting", ["gone", "denied"])
def test_nobody_waits_for_a_commit_that_can_never_succeed(lasting: Any) -> None:
    scene = Partitions(2)
    marked(scene, 0)
    marked(scene, 1)
    leaving = scene.group.revoke(scene.tps, 0.0)
    commits = scene.group.commit_batch(scene.now)
    scene.group.committed(commits, {TP: Refusal(OSError("no"), lasting)}, scene.now)
    assert scene.group.released(leaving)
    assert leaving[0].marks.uncommitted is (lasting == "denied"), "there is nothing that could come again"


def test_what_is_refused_for_good_is_tried_from_time_to_time_and_holds_up_no_interval() -> None:
    scene = Partitions(2)
    marked(scene, 0)
    scene.now = 5.0
    assert scene.refuse(lasting="denied") == {TP: 1}
    marked(scene, 1)
    assert scene.commit() == {}, "the interval counts for the others"
    assert scene.group.wake_at(5.0) == 10.0
    scene.now = 10.0
    assert scene.commit() == {TP: 1, ("topic", 1): 1}


def test_who_waits_for_a_commit_that_was_refused_for_good_has_it_tried_at_once() -> None:
    scene = Partitions()
    marked(scene)
    scene.now = 5.0
    scene.refuse(lasting="denied")
    version = scene[0].marks.version
    assert scene[0].marks.is_refused(version)
    scene[0].marks.try_again()
    scene.group.request_commit()
    assert not scene[0].marks.is_refused(version)
    assert scene.refuse(lasting="denied") == {TP: 1}
    assert scene[0].marks.is_refused(version)


def test_what_is_lost_is_not_committed_and_takes_no_answer() -> None:
    scene = Partitions()
    earlier = marked(scene)
    scene.now = 5.0
    commits = scene.group.commit_batch(5.0)
    scene.group.lose(5.0, rejoin=True)
    scene.group.committed(commits, {}, 5.0)
    assert earlier.marks.committed is None
    assert scene.group.commit_batch(99.0) == []


# -- the end


def test_a_hand_over_waits_for_user_code_and_for_its_commit() -> None:
    scene = Partitions(2)
    scene.fetch(0, 0)
    run = scene.begin()
    leaving = scene.group.revoke([TP, ("other", 9)], 0.0)
    assert leaving == [run.ownership]
    assert not scene.group.released(leaving)
    scene.end(run)
    assert leaving[0].state is State.RELEASING
    assert not scene.group.released(leaving)
    assert scene.commit() == {TP: 1}
    assert scene.group.released(leaving)
    assert list(scene.group.owned) == [("topic", 1)]


def test_what_has_nothing_to_do_is_handed_over_at_once() -> None:
    scene = Partitions()
    leaving = scene.group.revoke([TP], 0.0)
    assert scene.group.released(leaving)
    assert leaving[0].state is State.REVOKED


def test_the_drain_has_a_bound_and_the_last_commit_another() -> None:
    scene = Partitions(group=Group({"topic": Options(manual_offsets=True)}, drain_timeout_ms=10_000))
    scene.fetch(0, 0, 1)
    run = scene.begin()
    run.ownership.marks.mark(1)
    leaving = scene.group.revoke([TP], 0.0)
    assert scene.group.wake_at(0.0) <= 10.0
    scene.group.advance(9.9)
    assert leaving[0].state is State.DRAINING
    scene.now = 10.0
    scene.group.advance(10.0)
    assert (leaving[0].state, leaving[0].over) == (State.RELEASING, True)
    assert scene.refuse() == {TP: 1}
    scene.group.advance(10.0 + FINAL_COMMIT_S)
    assert leaving[0].state is State.REVOKED
    assert scene.group.leftovers == {TP: run.ownership}, "its handler has not returned"


def test_a_successor_waits_for_the_handler_that_was_left_behind() -> None:
    scene = Partitions()
    scene.fetch(0, 0)
    assert scene.group.take_ready() == [scene[0]]
    run = scene.begin()
    scene.group.lose(0.0, rejoin=False)
    scene.group.assigned([TP], 0.0)
    scene.start()
    scene.plan()
    scene.fetch(0, 0)
    assert scene.group.take_ready() == []
    scene.end(run)
    assert scene.group.leftovers == {}
    assert scene.group.take_ready() == [scene[0]]


def test_that_a_handler_of_an_earlier_run_returned_is_seen_soon() -> None:
    earlier = Partitions()
    earlier.fetch(0, 0)
    run = earlier.begin()
    earlier.group.lose(0.0, rejoin=False)
    scene = Partitions(group=Group({"topic": Options()}, leftovers=earlier.group.leftovers.values()))
    scene.fetch(0, 0)
    for _ in range(50):
        scene.now = scene.group.wake_at(scene.now)
        scene.group.advance(scene.now)
        scene.commit()
        assert scene.group.take_ready() == []
    earlier.end(run)
    scene.now = scene.group.wake_at(scene.now)
    scene.group.advance(scene.now)
    assert scene.group.take_ready() == [scene[0]]


def test_a_stop_drains_everything_and_runs_on_shutdown() -> None:
    scene = Partitions(2, hooks=(hook(Hook.ON_SHUTDOWN), hook(Hook.ON_REVOKED)))
    scene.fetch(0, 0)
    scene.process()
    first = scene[0]
    scene.group.take_ready()
    scene.group.stop(0.0)
    assert list(scene.group.owned) == [TP]
    assert scene.group.take_ready() == [first]
    run = scene.begin()
    assert run.hook is Hook.ON_SHUTDOWN
    scene.end(run)
    assert scene.commit() == {TP: 1}
    assert (scene.group.owned, scene.group.leftovers, scene.group.take_ready()) == ({}, {}, [])


def test_at_the_close_no_hook_waits_any_longer() -> None:
    scene = Partitions(hooks=(hook(Hook.ON_REVOKED),))
    scene.fetch(0, 0)
    scene.process()
    scene.group.lose(0.0, rejoin=False)
    assert list(scene.group.leftovers) == [TP]
    scene.group.close(0.0)
    assert scene.group.leftovers == {}


# -- what takes long


def test_a_call_that_gets_in_the_way_is_named_once() -> None:
    scene = Partitions(group=Group({"topic": Options()}, drain_timeout_ms=10_000, max_poll_interval_ms=100_000))
    scene.fetch(0, 0)
    run = scene.begin()
    assert scene.group.slow(80.0) == []
    assert scene.group.slow(81.0) == [(run, "poll", 100_000)]
    assert scene.group.slow(99.0) == []


@pytest.mark.parametrize("what", ["stop", "rebalance"])
def test_a_call_that_holds_up_the_end_is_named_at_half_time(what: str) -> None:
    scene = Partitions(group=Group({"topic": Options()}, drain_timeout_ms=10_000))
    scene.fetch(0, 0)
    run = scene.begin()
    scene.group.stop(100.0) if what == "stop" else scene.group.revoke([TP], 100.0)
    assert scene.group.slow(105.0) == []
    assert scene.group.slow(105.1) == [(run, what, 10_000)]


def test_offsets_of_a_run_are_those_that_were_fetched() -> None:
    scene = Partitions(max_messages=2)
    scene.fetch(0, 0, 3, 4)
    assert offsets_of(scene.begin()) == [0, 3]
