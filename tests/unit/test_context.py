"""The promises of "Context" and "Marking" that need no Kafka: what is checked, asked of the shell, and answered."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from support.partitions import Record, records
from support.partitions import ownership as begun

from karafka_lite import Batch, CommitError, ConfigurationError, Context, Message, Outgoing
from karafka_lite.core.intake import Chunk
from karafka_lite.core.marks import Marks
from karafka_lite.core.options import Options, SeekTarget, Timestamp
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.parts import KeyOwnership
from karafka_lite.core.starts import Note, Start
from karafka_lite.messages import Addressed


@dataclass
class Shell:
    """Whoever runs the handler; ``owner`` is what the broker would say, ``commits`` answers blocking commits."""

    owner: bool = True
    commits: Any = True
    asked: list[Any] = field(default_factory=list)

    def owns(self, ownership: Ownership) -> bool:
        return self.owner and not ownership.over

    def mark(self, ownership: Ownership, marks: Marks, offset: int) -> bool:
        self.asked.append(("mark", offset))
        return self.owner and marks.mark(offset)

    def request_commit(self, ownership: Ownership) -> bool:
        self.asked.append("request_commit")
        return self.owns(ownership)

    async def commit(self, ownership: Ownership, timeout_ms: int) -> bool:
        self.asked.append(("commit", timeout_ms))
        if isinstance(self.commits, Exception):
            raise self.commits
        return bool(self.commits)

    def redirect(self, ownership: Ownership, target: SeekTarget) -> bool:
        self.asked.append(("redirect", target))
        return self.owns(ownership)

    def pause(self, ownership: Ownership, ms: float) -> bool:
        self.asked.append(("pause", ms))
        return self.owns(ownership)

    def hand_over(self) -> None:
        self.asked.append("hand_over")

    def dead_letter(
        self, run: Run, message: Addressed, offset: int, attempts: int, reason: str
    ) -> Future[tuple[int, int]]:
        return self.send(run, message)

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        self.asked.append(messages)
        future: Future[list[tuple[int, int]]] = Future()
        future.set_result([(0, index) for index in range(len(messages))])
        return future

    def send(self, run: Run, message: Addressed) -> Future[tuple[int, int]]:
        self.asked.append(message)
        future: Future[tuple[int, int]] = Future()
        future.set_result((0, len(self.asked)))
        return future


def run_of(ownership: Ownership, attempt: int = 1) -> Run:
    """A run of user code with what is in hand."""
    records = ownership.run.records if ownership.run else ()
    return Run(ownership, attempt, 0.0, Chunk(records, None, 0))


def message(offset: int, topic: str = "topic", partition: int = 1) -> Message:
    return Message(topic, partition, offset, value=b'{"id": 1}')


@pytest.fixture
def shell() -> Shell:
    return Shell()


@pytest.fixture
def ownership() -> Ownership:
    """Began at 10; 10 to 14 were handed over and are in hand."""
    ownership = begun(10, tp=("topic", 1), manual_offsets=True)
    ownership.fetched(records(range(10, 15)), 15, 0, now=0.0)
    assert ownership.begin(0.0)
    return ownership


@pytest.fixture
def ctx(shell: Shell, ownership: Ownership) -> Context:
    return Context(shell, run_of(ownership), "group")


# -- what it is -------------------------------------------------------------------------------------------------------


def test_a_context_tells_whose_messages_these_are(ctx: Context) -> None:
    assert (ctx.topic, ctx.partition, ctx.group_id) == ("topic", 1, "group")
    assert repr(ctx) == "<Context topic-1 group=group attempt=1>"


def test_attempt_counts_from_one_and_retrying_is_any_later_one(shell: Shell, ownership: Ownership) -> None:
    told = [(ctx.attempt, ctx.retrying) for ctx in (Context(shell, run_of(ownership, n), "group") for n in (1, 2, 7))]
    assert told == [(1, False), (2, True), (7, True)]


def test_attempt_does_not_change_while_the_handler_runs(ctx: Context, ownership: Ownership) -> None:
    run = ownership.run
    assert run
    ownership.end(run, failed=True, now=0.0)
    assert (ownership.retries.attempt, ctx.attempt) == (2, 1)


# -- marking: what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "name"),
    [({"id": 1}, "dict"), (None, "NoneType"), (11, "int"), (b"x", "bytes"), (Batch([message(11)]), "Batch")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_message_is_a_type_error(ctx: Context, shell: Shell, thing: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"takes a Message, not {name}; pass the message itself"):
        ctx.mark_as_consumed(thing)
    assert shell.asked == []


@pytest.mark.parametrize("foreign", [message(11, partition=0), message(11, topic="other")], ids=str)
def test_another_partition_is_a_value_error_that_names_both(ctx: Context, shell: Shell, foreign: Message) -> None:
    with pytest.raises(ValueError, match=f"{foreign} does not belong to topic-1, ") as caught:
        ctx.mark_as_consumed(foreign, sync=True)
    assert caught.type is ValueError
    assert shell.asked == []


@pytest.mark.parametrize("offset", [0, 9, 15, 99])
def test_an_offset_that_was_never_handed_is_a_value_error(ctx: Context, shell: Shell, offset: int) -> None:
    with pytest.raises(ValueError, match=f"topic-1@{offset} was never handed to this ownership"):
        ctx.mark_as_consumed(message(offset))
    assert shell.asked == []


def test_before_the_first_batch_every_message_is_refused(shell: Shell) -> None:
    fresh = Ownership(("topic", 1), Options())
    fresh.begin_at(Start(10, "committed"), Note())
    with pytest.raises(ValueError, match="was never handed"):
        Context(shell, run_of(fresh), "group").mark_as_consumed(message(0))


def test_mistakes_are_told_also_when_the_partition_is_gone(ctx: Context, shell: Shell) -> None:
    shell.owner = False
    with pytest.raises(TypeError):
        ctx.mark_as_consumed(b"payload")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not belong"):
        ctx.mark_as_consumed(message(11, topic="other"))
    with pytest.raises(ValueError, match="never handed"):
        ctx.mark_as_consumed(message(99))


# -- marking: what is stored ------------------------------------------------------------------------------------------


def test_a_mark_stores_the_next_offset_and_moves_the_retry(ctx: Context, ownership: Ownership) -> None:
    assert ctx.mark_as_consumed(message(12)) is True
    assert (ownership.marks.stored, ownership.marks.retry_position) == (13, 13)


@pytest.mark.parametrize("offset", [10, 14])
def test_the_first_and_the_last_message_may_be_marked(ctx: Context, ownership: Ownership, offset: int) -> None:
    assert ctx.mark_as_consumed(message(offset)) is True
    assert ownership.marks.stored == offset + 1


def test_a_message_made_by_the_user_is_the_one_at_its_offset(ctx: Context, ownership: Ownership) -> None:
    assert ctx.mark_as_consumed(Message("topic", 1, 13)) is True
    assert ownership.marks.stored == 14


def test_an_older_message_is_stored_too_with_a_warning(
    ctx: Context, ownership: Ownership, caplog: pytest.LogCaptureFixture
) -> None:
    assert [ctx.mark_as_consumed(message(offset)) for offset in (13, 11)] == [True, True]
    assert (ownership.marks.stored, ownership.marks.retry_position) == (12, 12)
    (told,) = caplog.records
    assert (told.name, told.levelno) == ("karafka_lite", logging.WARNING)
    assert "topic-1@11 is older than the last mark (next offset 14)" in told.getMessage()


def test_a_second_mark_of_a_message_is_true_without_a_warning(
    ctx: Context, ownership: Ownership, caplog: pytest.LogCaptureFixture
) -> None:
    assert [ctx.mark_as_consumed(message(12)) for _ in range(3)] == [True] * 3
    assert ownership.marks.stored == 13
    assert caplog.records == []


@pytest.mark.parametrize("sync", [False, True])
def test_a_mark_without_ownership_is_false_and_stores_nothing(
    ctx: Context, shell: Shell, ownership: Ownership, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ctx.mark_as_consumed(message(13))
    ownership.release(0.0)
    shell.asked.clear()
    assert ctx.mark_as_consumed(message(11), sync=sync) is False
    assert ownership.marks.stored == 14
    assert shell.asked == [("mark", 12)]
    assert caplog.records == [], "nothing was stored, so there is nothing to warn about"


# -- marking and committing: sync -------------------------------------------------------------------------------------


def test_a_plain_mark_waits_for_nothing(ctx: Context, shell: Shell) -> None:
    ctx.mark_as_consumed(message(12), timeout_ms=5)
    assert shell.asked == [("mark", 13)]


def test_a_blocking_mark_stores_and_then_waits_for_the_broker(ctx: Context, shell: Shell) -> None:
    assert ctx.mark_as_consumed(message(12), sync=True) is True
    assert ctx.mark_as_consumed(message(13), sync=True, timeout_ms=5) is True
    assert shell.asked == [("mark", 13), ("commit", 30_000), ("mark", 14), ("commit", 5)]


def test_a_blocking_mark_is_false_when_the_ownership_ends(ctx: Context, shell: Shell) -> None:
    shell.commits = False
    assert ctx.mark_as_consumed(message(12), sync=True) is False


def test_a_timeout_never_turns_into_false(ctx: Context, shell: Shell) -> None:
    shell.commits = CommitError("late")
    with pytest.raises(CommitError):
        ctx.mark_as_consumed(message(12), sync=True)
    with pytest.raises(CommitError):
        ctx.commit_offsets(sync=True)


def test_commit_offsets_asks_and_does_not_wait(ctx: Context, shell: Shell) -> None:
    assert ctx.commit_offsets() is True
    assert shell.asked == ["request_commit"]


def test_a_blocking_commit_waits_as_long_as_it_was_told(ctx: Context, shell: Shell) -> None:
    assert ctx.commit_offsets(sync=True) is True
    assert ctx.commit_offsets(sync=True, timeout_ms=5) is True
    assert shell.asked == [("commit", 30_000), ("commit", 5)]


def test_commit_offsets_without_ownership_is_false_at_once(ctx: Context, shell: Shell) -> None:
    shell.owner = False
    assert (ctx.commit_offsets(), ctx.commit_offsets(sync=True)) == (False, False)
    assert shell.asked == ["request_commit"]


# -- ownership --------------------------------------------------------------------------------------------------------


def test_revoked_is_live_and_asks_without_waiting_for_a_poll(ctx: Context, shell: Shell) -> None:
    assert ctx.revoked is False
    shell.owner = False
    assert ctx.revoked is True


@pytest.mark.parametrize("end", [State.RELEASING, State.REVOKED, State.LOST])
def test_revoked_never_goes_back_to_false(ctx: Context, shell: Shell, ownership: Ownership, end: State) -> None:
    ownership.release(0.0) if end is State.RELEASING else ownership.finish(end)
    assert shell.owner
    assert ctx.revoked is True
    assert ctx.stopping is False, "there is nothing left to wrap up"


@pytest.mark.parametrize("stopping_app", [False, True], ids=["a rebalance", "the app"])
def test_stopping_says_wrap_up_while_the_partition_is_still_ours(
    ctx: Context, ownership: Ownership, stopping_app: bool
) -> None:
    assert ctx.stopping is False
    ownership.drain(60.0, stopping_app=stopping_app)
    assert (ctx.stopping, ctx.revoked) == (True, False)
    assert ctx.mark_as_consumed(message(12)) is True


def test_a_late_handler_never_touches_the_next_ownership(ctx: Context, shell: Shell, ownership: Ownership) -> None:
    ownership.finish(State.LOST)
    successor = Ownership(("topic", 1), Options(manual_offsets=True), predecessor=ownership)
    successor.begin_at(Start(10, "committed"), Note())
    ctx.state["late"] = True
    assert ctx.mark_as_consumed(message(12)) is False
    assert (successor.marks.stored, successor.user_state) == (10, {})
    assert Context(shell, run_of(successor), "group").revoked is False


# -- state ------------------------------------------------------------------------------------------------------------


def test_state_is_a_dict_that_contexts_of_an_ownership_share(ctx: Context, shell: Shell, ownership: Ownership) -> None:
    assert ctx.state == {}
    ctx.state["rows"] = [1]
    assert Context(shell, run_of(ownership, 2), "group").state == {"rows": [1]}


def test_state_is_never_shared_by_two_partitions(ctx: Context, shell: Shell) -> None:
    ctx.state["rows"] = [1]
    assert Context(shell, run_of(Ownership(("topic", 2), Options())), "group").state == {}
    assert Context(shell, run_of(Ownership(("topic", 1), Options())), "group").state == {}


def test_a_context_takes_no_attributes_that_are_not_its_own(ctx: Context) -> None:
    with pytest.raises(AttributeError):
        ctx.rows = []  # type: ignore[attr-defined]


# -- each -------------------------------------------------------------------------------------------------------------


def batch_of(ownership: Ownership) -> Batch:
    """The batch in hand, as a handler gets it."""
    assert ownership.run
    return Batch.of_records(ownership.tp, ownership.run.records, 15, None)


def same(batch: Batch) -> list[Message]:
    return [message(one.offset) for one in batch]


@pytest.mark.parametrize(
    ("taken", "offsets"),
    [
        (lambda batch: batch, [10, 11, 12, 13, 14]),
        (lambda batch: Batch(same(batch)), [10, 11, 12, 13, 14]),
        (list, [10, 11, 12, 13, 14]),
        (lambda batch: batch[2:], [12, 13, 14]),
        (lambda batch: batch[::2], [10, 12, 14]),
        (lambda batch: (one for one in batch if one.offset != 12), [10, 11, 13, 14]),
        (lambda batch: sorted(batch, key=lambda one: one.offset), [10, 11, 12, 13, 14]),
        (lambda batch: [], []),
    ],
    ids=["batch", "made by the user", "list", "slice", "steps", "generator", "sorted by offset", "nothing"],
)
def test_each_takes_what_is_in_order(shell: Shell, ownership: Ownership, taken: Any, offsets: list[int]) -> None:
    run, seen = run_of(ownership), []
    for one in Context(shell, run, "group").each(taken(batch_of(ownership))):
        seen.append(one.offset)
        assert run.in_hand == one.offset
    assert seen == offsets
    assert shell.asked == [("mark", offset + 1) for offset in offsets]
    assert run.in_hand is None


@pytest.mark.parametrize(
    ("taken", "error", "words"),
    [
        (lambda batch: sorted(batch, key=lambda one: -one.offset), ValueError, "rising order"),
        (lambda batch: sorted(batch, key=lambda one: one.offset == 10), ValueError, "rising order"),
        (lambda batch: reversed(batch), ValueError, "rising order"),
        (lambda batch: dict.fromkeys(reversed(batch), 1).keys(), ValueError, "rising order"),
        (lambda batch: [batch[0], batch[0]], ValueError, "rising order"),
        (lambda batch: [*batch, batch[0]], ValueError, "rising order"),
        (lambda batch: [*same(batch), message(15, partition=2)], ValueError, "does not belong to topic-1"),
        (lambda batch: [message(12, topic="other")], ValueError, "does not belong to topic-1"),
        (lambda batch: [message(9)], ValueError, "of the batch that was handed to this call"),
        (lambda batch: [*batch, message(15)], ValueError, "of the batch that was handed to this call"),
        (lambda batch: Batch([message(14), message(15)]), ValueError, "of the batch that was handed to this call"),
        (lambda batch: [b"{}"], TypeError, "takes a Message, not bytes"),
        (lambda batch: batch.values, TypeError, "takes a Message, not bytes"),
    ],
)
def test_each_refuses_the_rest_before_the_first_message(
    shell: Shell, ownership: Ownership, taken: Any, error: type, words: str
) -> None:
    run, seen = run_of(ownership), list[Message]()
    with pytest.raises(error, match=words):
        seen.extend(Context(shell, run, "group").each(taken(batch_of(ownership))))
    assert (seen, shell.asked, run.in_hand) == ([], [], None)


def test_each_refuses_the_batch_of_an_earlier_call(shell: Shell, ownership: Ownership) -> None:
    """Kept in ``ctx.state``, say: the next call is not to mark what it was not handed."""
    earlier = batch_of(ownership)
    assert ownership.run
    ownership.end(ownership.run, failed=False, now=0.0)
    ownership.fetched(records([15, 16]), None, 0, now=0.0)
    run = ownership.begin(0.0)
    assert run
    with pytest.raises(ValueError, match="of the batch that was handed to this call"):
        list(Context(shell, run, "group").each(earlier))
    assert shell.asked == []


def test_each_does_not_read_an_endless_iterable(ctx: Context, ownership: Ownership) -> None:
    with pytest.raises(ValueError, match="rising order"):
        list(ctx.each(itertools.cycle(batch_of(ownership))))


def test_that_list_marks_ahead_is_said_in_bold() -> None:
    text = " ".join((Context.each.__doc__ or "").split())
    assert "**Work inside the loop.** ``list(ctx.each(batch))``, or a pool's ``map`` over it, marks before" in text


def test_each_marks_a_message_when_the_next_one_is_asked_for(ctx: Context, ownership: Ownership) -> None:
    stored = []
    for _ in ctx.each(batch_of(ownership)):
        stored.append(ownership.marks.stored)
    assert stored == [None, 11, 12, 13, 14]
    assert ownership.marks.stored == 15


def test_a_loop_that_is_left_leaves_the_message_in_hand_unmarked(shell: Shell, ownership: Ownership) -> None:
    run = run_of(ownership)
    for one in Context(shell, run, "group").each(batch_of(ownership)):
        if one.offset == 12:
            break
    assert (ownership.marks.stored, run.in_hand) == (12, 12)


def test_a_loop_that_came_to_its_end_has_nothing_in_hand(shell: Shell, ownership: Ownership) -> None:
    run = run_of(ownership)
    assert len(list(Context(shell, run, "group").each(batch_of(ownership)))) == 5
    assert run.in_hand is None


def test_each_ends_early_when_it_is_time_to_wrap_up(shell: Shell, ownership: Ownership) -> None:
    run, seen = run_of(ownership), []
    for one in Context(shell, run, "group").each(batch_of(ownership)):
        seen.append(one.offset)
        if one.offset == 11:
            ownership.drain(60.0, stopping_app=True)
    assert seen == [10, 11]
    assert (ownership.marks.stored, run.in_hand) == (12, 12)


def test_each_ends_when_the_partition_is_gone(ctx: Context, shell: Shell, ownership: Ownership) -> None:
    seen = []
    for one in ctx.each(batch_of(ownership)):
        seen.append(one.offset)
        shell.owner = one.offset < 12
    assert seen == [10, 11, 12]
    assert ownership.marks.stored == 12


# -- seek, pause, resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "target"),
    [
        (0, 0),
        (7, 7),
        ("earliest", "earliest"),
        ("latest", "latest"),
        (datetime(2026, 1, 1, tzinfo=timezone.utc), Timestamp(1_767_225_600_000)),
        (datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), Timestamp(1_767_225_600_000)),
    ],
)
def test_seek_takes_an_offset_a_word_or_a_time(ctx: Context, shell: Shell, to: Any, target: object) -> None:
    assert ctx.seek(to) is True
    assert shell.asked == [("redirect", target)]


@pytest.mark.parametrize(
    ("to", "error", "words"),
    [
        (-1, ValueError, "-1"),
        ("begin", ValueError, "'earliest'"),
        (datetime(2026, 1, 1), ValueError, "no time zone"),
        (None, TypeError, "None"),
        (True, TypeError, "True"),
        (1.5, TypeError, "1.5"),
    ],
)
def test_what_nobody_can_seek_to_is_refused(ctx: Context, shell: Shell, to: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        ctx.seek(to)
    assert shell.asked == []


def test_pause_changes_the_time_and_with_an_offset_the_place_too(ctx: Context, shell: Shell) -> None:
    assert ctx.pause(250) is True
    assert ctx.pause(0.5, offset=3) is True
    assert ctx.resume() is True
    assert shell.asked == [("pause", 250), ("pause", 0.5), ("redirect", 3), ("pause", 0)]


@pytest.mark.parametrize(
    ("ms", "offset", "error"),
    [(-1, None, ValueError), (float("nan"), None, ValueError), (float("inf"), None, ValueError), ("5", None, TypeError),
     (True, None, TypeError), (5, -1, ValueError), (5, "latest", TypeError)],
)  # fmt: skip
def test_a_pause_that_cannot_be_is_refused(ctx: Context, shell: Shell, ms: Any, offset: Any, error: type) -> None:
    with pytest.raises(error):
        ctx.pause(ms, offset=offset)
    assert shell.asked == []


def test_who_is_not_the_owner_any_more_is_told_so(ctx: Context, shell: Shell) -> None:
    shell.owner = False
    assert [ctx.seek(3), ctx.pause(5), ctx.pause(5, offset=3), ctx.resume()] == [False] * 4


# -- messages that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (b"raw", b"raw"),
        (bytearray(b"raw"), b"raw"),
        (None, None),
        ("text", b'"text"'),
        ({"\u00fc": [1, None]}, b'{"\xc3\xbc": [1, null]}'),
        (7, b"7"),
    ],
)
def test_a_value_that_is_not_bytes_becomes_json_in_utf_8(ctx: Context, shell: Shell, value: Any, sent: Any) -> None:
    assert ctx.produce("out", value, key="\u00fc", headers=iter([("h", b"1")])).result(0) == (0, 1)
    assert shell.asked == [Addressed("out", sent, b"\xc3\xbc", [("h", b"1")])]


@pytest.mark.parametrize("value", [object(), {1, 2}, float("inf"), "\udc80", {("a", "b"): 1}])
def test_a_value_that_cannot_be_encoded_is_a_type_error(ctx: Context, shell: Shell, value: Any) -> None:
    with pytest.raises(
        TypeError, match=f"value: to_json cannot make bytes of {type(value).__name__} for topic 'out': "
    ):
        ctx.produce("out", value)
    assert shell.asked == []


def test_many_are_values_or_outgoing_and_none_are_none(ctx: Context, shell: Shell) -> None:
    headers = [("h", b"1")]
    many = [b"raw", {"n": 1}, (1, 2), Outgoing(None, "k", iter(headers), 2, 5), Outgoing("text")]
    assert ctx.produce_many("out", iter(many)).result(0) == [(0, index) for index in range(5)]
    assert shell.asked.pop() == [
        Addressed("out", b"raw"),
        Addressed("out", b'{"n": 1}'),
        Addressed("out", b"[1, 2]"),
        Addressed("out", None, b"k", headers, 2, 5),
        Addressed("out", b'"text"'),
    ]
    assert ctx.produce_many("out", []).result(0) == []
    assert shell.asked == []


@pytest.mark.parametrize("one", ["text", b"raw", bytearray(b"raw"), {"n": 1}, 7, None, Outgoing(1), message(1)])
def test_one_message_is_not_many(ctx: Context, shell: Shell, one: Any) -> None:
    with pytest.raises(
        TypeError, match=f"iterable of values or of Outgoing, got {type(one).__name__}; for one message"
    ):
        ctx.produce_many("out", one)
    assert shell.asked == []


def test_of_many_a_mistake_says_which_one_it_is_and_none_leaves(ctx: Context, shell: Shell) -> None:
    with pytest.raises(TypeError, match=r"^messages\[1\]: value: to_json cannot make bytes of object for") as caught:
        ctx.produce_many("out", [1, object(), 3])
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match=r"^messages\[0\]: key cannot be encoded as UTF-8"):
        ctx.produce_many("out", [Outgoing(1, key="\ud800")])
    assert shell.asked == []


def test_a_dead_letter_keeps_the_message_and_says_where_it_was(shell: Shell, ownership: Ownership) -> None:
    ctx = Context(shell, run_of(ownership), "group", "dead")
    given = Message("topic", 1, 12, key=b"k", value=b"v", headers=[("own", b"1")], timestamp_ms=5)
    ctx.dead_letter(given, "no \udc80 id")
    (sent,) = shell.asked
    assert sent == Addressed(
        "dead", b"v", b"k",
        [
            ("own", b"1"),
            ("source-topic", b"topic"),
            ("source-partition", b"1"),
            ("source-offset", b"12"),
            ("source-timestamp", b"5"),
            ("source-group", b"group"),
            ("attempts", b"1"),
            ("error", b"no ? id"),
        ],
    )  # fmt: skip


def test_a_dead_letter_that_is_too_large_is_tried_without_the_reason_and_then_without_any_header_of_ours(
    shell: Shell, ownership: Ownership
) -> None:
    ctx = Context(shell, run_of(ownership), "group", "dead")
    given = Message("topic", 1, 12, key=b"k", value=b"v", headers=[("own", b"1")])
    complete, shorter, bare = ctx.as_dead_letters(given, "x" * 5000)
    assert len((complete.headers or [])[-1][1]) <= 2000 + len("…".encode())
    assert shorter == complete._replace(headers=(complete.headers or [])[:-1])
    assert bare == Addressed("dead", b"v", b"k", [("own", b"1")])
    assert complete.left_out(complete) == ()
    assert shorter.left_out(complete) == ("error",)
    assert bare.left_out(complete)[0] == "source-topic"
    assert len(bare.left_out(complete)) == 7


@pytest.mark.parametrize("dead_letter", [None, False])
def test_a_dead_letter_needs_a_topic(shell: Shell, ownership: Ownership, dead_letter: Any) -> None:
    ctx = Context(shell, run_of(ownership), "group", dead_letter)
    with pytest.raises(ConfigurationError, match=r'as in @app.topic\(\'topic\', dead_letter="topic.dead"\)'):
        ctx.dead_letter(message(10))


@pytest.mark.parametrize("wrong", [{}, None, message(10, topic="other"), message(10, partition=2), message(99)])
def test_what_was_not_handed_over_cannot_be_a_dead_letter(shell: Shell, ownership: Ownership, wrong: Any) -> None:
    ctx = Context(shell, run_of(ownership), "group", "dead")
    with pytest.raises(ValueError if isinstance(wrong, Message) else TypeError):
        ctx.dead_letter(wrong)
    assert shell.asked == []


# -- a part of a batch ------------------------------------------------------------------------------------------------


@pytest.fixture
def part(shell: Shell) -> Context:
    """Of the messages 0 to 3, this call has 0 and 2."""
    ownership = KeyOwnership(("topic", 1), Options(parts=2))
    ownership.begin_at(Start(0, "earliest"), Note())
    ownership.intake.sought(0)
    ownership.fetched([Record(offset, key=b"%d" % (offset % 2)) for offset in range(4)], 4, 0, now=0.0)
    run = ownership.begin(0.0)
    assert run
    assert run.is_part
    return Context(shell, run, "group")


@pytest.mark.parametrize("ask", ["mark_as_consumed", "commit_offsets"])
def test_a_part_cannot_wait_for_a_commit(part: Context, shell: Shell, ask: str) -> None:
    given = [message(0)] if ask == "mark_as_consumed" else []
    with pytest.raises(RuntimeError, match=r'sync=True is not for a handler with order="key" \(topic-1@0\.\.2\): '):
        getattr(part, ask)(*given, sync=True)
    assert shell.asked == [], "nothing is marked"


def test_a_part_marks_and_gives_up_messages_of_its_own_only(part: Context, shell: Shell) -> None:
    part._dead_letter = "dead"
    for ask in (part.mark_as_consumed, part.dead_letter):
        with pytest.raises(ValueError, match=r"topic-1@1 is not of the batch of this call \(topic-1@0\.\.2\)"):
            ask(message(1))
        with pytest.raises(ValueError, match="was never handed to this ownership"):
            ask(message(4))
    assert part.mark_as_consumed(message(2))
    assert shell.asked == [("mark", 3)]


def test_an_older_mark_of_a_part_changes_nothing_and_is_no_warning(
    part: Context, caplog: pytest.LogCaptureFixture
) -> None:
    assert part.mark_as_consumed(message(2))
    assert part.mark_as_consumed(message(0))
    assert (part._marks.stored, caplog.text) == (3, "")
