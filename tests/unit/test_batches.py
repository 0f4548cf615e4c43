"""What becomes of the messages of a batch, and the futures of those that somebody looks at, in every way."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from concurrent.futures import Future, as_completed, wait
from typing import Any

import pytest
from kafka.structs import TopicPartition

from karafka_lite.client.batches import Batch, Many, Sent
from karafka_lite.errors import ProduceError
from karafka_lite.futures import looking

FAILURE = ProduceError("refused")


class Owner:
    """Answers when somebody waits."""

    lock = None

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def answered(self, batch: Batch, base_offset: int, errors: Any) -> None: ...
    def split(self, batch: Batch, halves: Any) -> None: ...

    def check(self) -> None: ...

    def hand_over(self) -> None:
        if self.batch is not None:
            answer(self.batch)


def new_batch(partition: int = 3) -> Batch:
    return Batch(TopicPartition("orders", partition), 0, Owner())


def batch_of(count: int, partition: int = 3) -> Batch:
    batch = new_batch(partition)
    for index in range(count):
        assert batch.add((1000, None, b"%d" % index, None), 30, None) == index
    return batch


def answer(batch: Batch, base: int = 40) -> None:
    assert batch.answer(base, [])


def test_before_anybody_looks_a_future_is_a_place_in_a_batch() -> None:
    batch = batch_of(2)
    sent = Sent(batch, 1)
    answer(batch)
    assert vars(sent).keys() == {"_batch", "_index"}
    assert sent.result() == (3, 41)
    assert vars(sent).keys() == {"_batch", "_index"}
    assert sent.done()
    assert sent.exception() is None
    assert sent.result(0) == (3, 41)


@pytest.mark.parametrize("looks_first", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_future_is_one_of_the_standard_library(looks_first: bool, fails: bool) -> None:
    batch = batch_of(3)
    sent = [Sent(batch, index) for index in range(3)]
    called: list[Any] = []
    if looks_first:
        assert not sent[0].done()
        assert sent[0].running()
        assert not sent[0].cancel()
        assert wait(sent, 0).not_done == {*sent}
        with pytest.raises(TimeoutError):
            sent[0].result(0)
        sent[1].add_done_callback(called.append)
    assert batch.answer(-1 if fails else 40, [FAILURE] * 3 if fails else [])
    sent[1].add_done_callback(called.append)
    assert called == [sent[1]] * (2 if looks_first else 1)
    assert wait(sent, 1).done == {*sent} == {*as_completed(sent, 1)}
    assert not sent[0].cancelled()
    assert "finished" in repr(sent[0])
    for index, future in enumerate(sent):
        if fails:
            assert future.exception(0) is FAILURE
            with pytest.raises(ProduceError, match="refused"):
                future.result()
        else:
            assert future.result(0) == (3, 40 + index)


def test_it_can_be_awaited() -> None:
    batch = batch_of(1)

    async def story() -> tuple[int, int]:
        waiting = asyncio.wrap_future(Sent(batch, 0))
        threading.Thread(target=answer, args=(batch,)).start()
        return await waiting

    assert asyncio.run(story()) == (3, 40)


def test_who_waits_for_an_answer_has_what_is_open_leave() -> None:
    for ask in (Sent.result, Sent.exception):
        batch = batch_of(1)
        sent = Sent(batch, 0)
        assert not sent.done()
        batch.owner.batch = batch
        with pytest.raises(TimeoutError):
            ask(sent, 0)
        assert not batch.is_answered
        assert ask(sent, 1) in ((3, 40), None)


def test_looking_while_the_answer_comes_is_no_deadlock_and_no_mistake() -> None:
    def look_from_three_threads(batch: Batch) -> list[tuple[int, int]]:
        sent, found = Sent(batch, 0), list[tuple[int, int]]()
        threads = [threading.Thread(target=lambda: found.append(sent.result(5))) for _ in range(3)]
        threads.append(threading.Thread(target=answer, args=(batch,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        return found

    for _ in range(300):
        assert look_from_three_threads(batch_of(1)) == [(3, 40)] * 3


def test_there_is_one_answer() -> None:
    batch = batch_of(1)
    answer(batch)
    assert not batch.answer(-1, [FAILURE])
    assert Sent(batch, 0).result() == (3, 40)


def test_where_the_broker_knows_only_that_it_has_them_the_offset_is_unknown() -> None:
    batch = batch_of(2)
    answer(batch, -1)
    assert Sent(batch, 1).result() == (3, -1)


def test_a_future_that_is_kept_does_not_keep_the_messages() -> None:
    batch = batch_of(2)
    batch.records.buffer()
    sent = Sent(batch, 0)
    answer(batch)
    assert batch.records.buffer(), "it may be overdue, and be sent all the same"
    batch.done(base_offset=40)
    assert not batch.records.messages
    assert batch.records.count == batch.record_count == 2
    assert batch.records.buffer() == b""
    known = weakref.ref(batch)
    del batch, sent
    gc.collect()
    assert known() is None


def test_a_callback_that_ends_its_thread_keeps_no_other_from_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    batch = batch_of(2)
    first, second = Sent(batch, 0), Sent(batch, 1)
    first.add_done_callback(lambda _: sys.exit(1))
    assert not second.done()
    answer(batch)
    assert (first.result(0), second.result(0)) == ((3, 40), (3, 41))
    assert "exception calling callback" in caplog.text


def test_what_is_collected_while_somebody_looks_may_look() -> None:
    batch, found = batch_of(1), list[bool]()

    def look() -> None:
        with looking:  # as a ``__del__`` would
            found.append(Sent(batch, 0).done())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    assert found == [False], "not a deadlock"


# -- halves -----------------------------------------------------------------------------------------------------------


def test_the_halves_of_a_batch_are_answered_in_its_place() -> None:
    told: list[tuple[str, int]] = []
    a, b = (lambda count, _, name=name: told.append((name, count)) for name in "ab")
    batch = new_batch()
    for index in range(5):
        batch.add((1000, None, b"%d" % index, None), 30, a if index < 4 else b)
    early, late = ([Sent(batch, index) for index in range(5)] for _ in range(2))
    assert not any(future.done() for future in early)
    first, second = batch.split()
    assert [half.records.count for half in (first, second)] == [3, 2]
    assert [*first.tellings, *second.tellings] == [(a, 0, 3), (a, 0, 1), (b, 1, 2)]
    assert not batch.answer(-1, [FAILURE] * 5), "it has no answer of its own any more"
    second_first, second_second = second.split()
    answer(first, 10)
    assert not batch.is_answered
    assert second_first.answer(-1, [FAILURE])
    answer(second_second, 20)
    assert batch.is_answered
    for sent in (early, late):
        assert [future.result(0) for future in (*sent[:3], sent[4])] == [(3, 10), (3, 11), (3, 12), (3, 20)]
        assert sent[3].exception(0) is FAILURE


def test_a_half_knows_when_its_messages_were_sent_and_how_often() -> None:
    batch = batch_of(3)
    batch.attempts, batch.created = 2, batch.created - 7
    for half in batch.split():
        assert (half.attempts, half.created) == (2, batch.created)


def test_of_a_batch_that_was_given_up_nobody_is_told_again() -> None:
    batch = new_batch()
    for _ in range(2):
        batch.add((1000, None, b"", None), 30, lambda *_: None)
    assert batch.answer(-1, [FAILURE] * 2)
    assert [[*half.tellings] for half in batch.split()] == [[], []]


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_many_have_their_places_in_the_order_in_which_they_were_given(order: tuple[int, int]) -> None:
    batches = batch_of(2, 0), batch_of(2, 1)
    many = Many([(batches[0], 0), (batches[1], 1), (batches[0], 1), (batches[1], 0)])
    assert not many.cancel()
    for index in order:
        assert not many.done()
        answer(batches[index], 10 * (index + 1))
    assert many.result(0) == [(0, 10), (1, 21), (0, 11), (1, 20)]
    assert Many([(batches[0], 1)]).result(0) == [(0, 11)]
    assert Many([]).result(0) == []


def test_many_that_nobody_looks_at_cost_nothing() -> None:
    batch = batch_of(2)
    many = Many([(batch, 0), (batch, 1)])
    answer(batch, 10)
    assert vars(many).keys() == {"_places", "_resolved"}
    assert many.result(0) == [(3, 10), (3, 11)]


def test_many_fail_with_the_first_failure_when_all_have_an_answer() -> None:
    batches = batch_of(1), batch_of(1)
    many = Many([(batches[0], 0), (batches[1], 0)])
    assert batches[1].answer(-1, [FAILURE])
    assert not many.done()
    answer(batches[0])
    assert many.exception(0) is FAILURE


def test_many_wait_for_both_halves() -> None:
    batch = batch_of(4)
    early = Many([(batch, index) for index in range(4)])
    first, second = batch.split()
    late = Many([(batch, index) for index in range(4)])
    answer(second, 50)
    assert not early.done()
    assert not late.done()
    answer(first, 10)
    assert early.result(0) == late.result(0) == [(3, 10), (3, 11), (3, 50), (3, 51)]


def test_who_waits_for_many_has_what_is_open_leave() -> None:
    for ask in (Many.result, Many.exception):
        batch = batch_of(1)
        many = Many([(batch, 0)])
        batch.owner.batch = batch
        with pytest.raises(TimeoutError):
            ask(many, 0)
        assert ask(many, 1) in ([(3, 40)], None)
    assert isinstance(many, Future)
