"""Lines of a file become messages, and the message about each bad line."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from karafka_lite.cli import feed as feeding
from karafka_lite.cli.feed import BadLine, Feed, FeedError, Line, feed, lines
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError, ProduceError
from karafka_lite.messages import Addressed


def read(data: bytes, key: str | None = None, text: bool = False) -> list[Line]:
    return list(lines(io.BytesIO(data), Feed("t", "f.jsonl", key, text)))


def values(data: bytes, text: bool = False) -> list[bytes]:
    return [line.value for line in read(data, text=text)]


def read_until_bad(data: bytes, key: str | None = None, text: bool = False) -> tuple[int, str]:
    """How many lines come before the bad one, and the message about it."""
    good: list[Line] = []
    with pytest.raises(BadLine) as bad:
        good.extend(lines(io.BytesIO(data), Feed("t", "f.jsonl", key, text)))
    return len(good), str(bad.value)


# What a line is


def test_the_bytes_of_a_json_line_are_sent_as_they_are() -> None:
    data = b' {"b": 1.10, "a":"\\u00e9"} \n"\xc3\xa9"\n3\nnull\n[1, 2]'
    assert values(data) == [b' {"b": 1.10, "a":"\\u00e9"} ', b'"\xc3\xa9"', b"3", b"null", b"[1, 2]"]


@pytest.mark.parametrize("text", [False, True])
def test_a_line_ends_with_or_without_a_carriage_return_and_the_last_one_also_without_either(text: bool) -> None:
    assert values(b"1\r\n2\n3", text) == values(b"1\r\n2\n3\r\n", text) == [b"1", b"2", b"3"]


def test_blank_lines_of_json_are_left_out_and_counted() -> None:
    assert [(line.number, line.value) for line in read(b"\n1\n \t\r\n\n2\n\n")] == [(2, b"1"), (5, b"2")]


def test_an_empty_line_of_text_is_an_empty_value_and_a_final_newline_is_no_line() -> None:
    assert values(b"\na\n\n", text=True) == [b"", b"a", b""]
    assert values(b"", text=True) == values(b"") == []


def test_text_may_be_any_bytes() -> None:
    assert values(b"\xff\x00{\r\n a\rb \n", text=True) == [b"\xff\x00{", b" a\rb "]


def test_each_line_has_the_position_up_to_which_the_file_was_read() -> None:
    assert [line.end for line in read(b'"a"\r\n\n"bc"')] == [5, 10]


def test_lines_are_read_one_by_one_while_more_are_coming() -> None:
    asked: list[int] = []

    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            asked.append(1)
            return b"1\n"

    reader = lines(Endless(), Feed("t"))
    assert [next(reader).number for _ in range(3)] == [1, 2, 3]
    assert len(asked) == 3


# Keys


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ('"Ä b"', "Ä b"),
        ('""', ""),
        ("12", "12"),
        ("1.5", "1.5"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("true", "true"),
        ("false", "false"),
        ('{"b": ["Ä", null], "a": 1}', '{"b":["Ä",null],"a":1}'),
        ("[]", "[]"),
    ],
)
def test_the_key_is_the_text_of_the_field(field: str, key: str) -> None:
    (line,) = read(f'{{"x": 0, "id": {field}}}\n'.encode(), key="id")
    assert line.key == key.encode()


def test_without_a_key_field_there_is_no_key() -> None:
    assert [line.key for line in read(b'{"id": 1}\n')] == [None]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"no": 1}', "the key field 'id' is missing"),
        (b'{"id": null}', "the key field 'id' is null"),
        (b'["id"]', "not a JSON object, so it has no key field 'id'"),
        (b'"id"', "not a JSON object, so it has no key field 'id'"),
        (b"null", "not a JSON object, so it has no key field 'id'"),
        (b'{"id": "\\ud800"}', "the key field 'id' cannot be encoded as UTF-8"),
    ],
)
def test_a_line_without_its_key_is_bad(line: bytes, words: str) -> None:
    good, said = read_until_bad(b'{"id": 1}\n\n' + line + b'\n{"id": 2}\n', key="id")
    assert good == 1
    assert said.startswith("f.jsonl:3: ")
    assert words in said
    assert "pass another field to --key" in said


# Bad lines


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nope", "not valid JSON (Expecting value at column 1)"),
        (b'{"a": 1,}', "not valid JSON ("),
        (b'{"a": 1} {"a": 2}', "not valid JSON (Extra data at column 10)"),
        (b'{"a":', "not valid JSON ("),
        (b"'a'", "not valid JSON ("),
        (b'"\xff"', "not readable as JSON in UTF-8 ("),
        (b'"\xed\xa0\x80"', "not readable as JSON in UTF-8 ("),
        ('{"a": 1}'.encode("utf-16"), "not readable as JSON in UTF-8 ("),
        ("\ufeff1".encode(), "BOM"),
        (b"[" * 200_000, "not readable as JSON in UTF-8 ("),
        (b"1" * 5000, "not readable as JSON in UTF-8 ("),
    ],
)
def test_a_line_that_is_not_json_is_named_with_its_number_and_the_reason(line: bytes, words: str) -> None:
    good, said = read_until_bad(b"1\r\n\n2\n" + line + b"\n3\n")
    assert good == 2
    assert said.startswith("f.jsonl:4: ")
    assert words in said
    assert "--text" in said
    assert len(said) < 500


@pytest.mark.parametrize("text", [False, True])
def test_a_line_longer_than_any_message_is_bad_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    monkeypatch.setattr(feeding, "MAX_LINE_BYTES", 10)
    assert values(b"1" * 10 + b"\r\n" + b"2" * 10 + b"\n" + b"3" * 10, text) == [b"1" * 10, b"2" * 10, b"3" * 10]
    good, said = read_until_bad(b"1\n" + b"2" * 11 + b"\n", text=text)
    assert (good, said) == (1, "f.jsonl:2: longer than 10 bytes, the maximum; split the line")


def test_a_file_without_line_ends_is_not_read_to_its_end() -> None:
    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            assert size
            assert 0 < size < 2 * feeding.MAX_LINE_BYTES
            return b"1" * size

    with pytest.raises(BadLine, match=r"^<stdin>:1: longer than"):
        next(lines(Endless(), Feed("t")))


def test_standard_input_has_a_name_in_messages() -> None:
    with pytest.raises(BadLine, match=r"^<stdin>:1: not valid JSON"):
        list(lines(io.BytesIO(b"x"), Feed("t", "-")))


# Sending, to a producer that only notes


class Answers:
    """Stands in for Producer; ``answer`` says what becomes of each value: None is an acknowledgement."""

    def __init__(self, answer: Callable[[bytes], Exception | None] = lambda value: None) -> None:
        self.answer = answer
        self.values: list[bytes] = []
        self.closed = False
        self.flushed: list[float | None] = []
        self.on_send: Callable[[], object] = lambda: None
        self.open: list[Future[tuple[int, int]]] = []

    def connect(self) -> None:
        assert not self.closed

    def send(self, message: Addressed) -> Future[tuple[int, int]]:
        value = message.value or b""
        self.values.append(value)
        self.on_send()
        future: Future[tuple[int, int]] = Future()
        if isinstance(error := self.answer(value), TimeoutError):
            self.open.append(future)
        elif error:
            future.set_exception(error)
        else:
            future.set_result((0, len(self.values)))
        return future

    def flush(self, timeout_s: float | None = None) -> bool:
        self.flushed.append(timeout_s)
        return True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Answers]]:
    def install(answer: Callable[[bytes], Exception | None] = lambda value: None) -> Answers:
        answers = Answers(answer)
        monkeypatch.setattr("karafka_lite.client.producer.Producer", lambda servers, settings: answers)
        return answers

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield install
    assert before == {number: signal.getsignal(number) for number in before}, "the signal handlers come back"


class Shown:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @contextmanager
    def __call__(self, topic: str, total: int | None, typed: bool) -> Iterator[Callable[[int, int], None]]:
        self.calls.append((topic, total, typed))
        yield lambda end, acknowledged: self.calls.append((end, acknowledged))
        self.calls.append(("end",))


def send(*feeds: Feed) -> Shown:
    shown = Shown()
    feed(feeds, ["localhost:9092"], {}, shown)
    return shown


def test_progress_is_reported_after_each_line_by_bytes_and_at_the_end_by_all_acknowledgements(
    sent: Callable[..., Answers], tmp_path: Path
) -> None:
    answers = sent()
    (tmp_path / "f").write_bytes(b"1\n\n22\n")
    assert send(Feed("t", str(tmp_path / "f"))).calls == [("t", 6, False), (2, 1), (6, 2), (6, 2), ("end",)]
    assert answers.closed


def test_the_length_of_a_device_is_unknown(sent: Callable[..., Answers]) -> None:
    sent()
    assert send(Feed("t", os.devnull)).calls == [("t", None, False), (0, 0), ("end",)]


def test_the_length_of_a_pipe_is_unknown(sent: Callable[..., Answers], tmp_path: Path) -> None:
    sent()
    reading, writing = os.pipe()
    os.write(writing, b"1\n")
    os.close(writing)
    assert send(Feed("t", f"/dev/fd/{reading}")).calls[0] == ("t", None, False)
    os.close(reading)


def test_a_bad_line_is_reported_with_what_was_acknowledged_before_it_and_how_to_continue(
    sent: Callable[..., Answers], tmp_path: Path
) -> None:
    answers = sent()
    (tmp_path / "a b").write_bytes(b'{"n": 1}\n{"n": 2}\nx\n{"n": 3}\n')
    with pytest.raises(FeedError) as stopped:
        send(Feed("t", str(tmp_path / "a b"), key="n"))
    assert answers.values == [b'{"n": 1}', b'{"n": 2}']
    assert answers.flushed == [None]
    assert "a b:3: not valid JSON" in str(stopped.value)
    assert "; messages sent to t and acknowledged: 2; to send the rest: tail -n +3 " in str(stopped.value)
    assert str(stopped.value).endswith("a b' | karafka-lite produce t - --key n")
    assert answers.closed


def test_a_refused_message_is_named_by_its_line_and_ends_it(sent: Callable[..., Answers], tmp_path: Path) -> None:
    answers = sent(lambda value: ProduceError("too large") if value == b"2" else None)
    (tmp_path / "f").write_bytes(b"\n1\n2\n3\n")
    with pytest.raises(FeedError, match=r"f:3: too large; messages sent to t and acknowledged: 1$"):
        send(Feed("t", str(tmp_path / "f")))
    assert answers.values == [b"1", b"2"]


def test_what_was_acknowledged_after_a_refused_line_is_reported(sent: Callable[..., Answers], tmp_path: Path) -> None:
    answers = sent(lambda value: TimeoutError() if value == b"2" else None)
    late = [ProduceError("refused")]

    def flush(timeout_s: float | None = None) -> bool:
        if late:
            answers.open[0].set_exception(late.pop())
        return True

    answers.flush = flush  # type: ignore[method-assign]
    (tmp_path / "f").write_bytes(b"1\n2\n3\n4\n")
    with pytest.raises(
        FeedError, match=r"f:2: refused; messages sent to t and acknowledged: 3 \(the last one from line 4\)$"
    ):
        send(Feed("t", str(tmp_path / "f")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_message_in_hand_be_sent_and_counted(
    sent: Callable[..., Answers], tmp_path: Path, number: signal.Signals
) -> None:
    answers = sent()
    answers.on_send = lambda: os.kill(os.getpid(), number) if len(answers.values) == 2 else None
    (tmp_path / "f").write_bytes(b"1\n2\n3\n")
    with pytest.raises(FeedError, match=f"^stopped by {number.name}; messages sent to t and acknowledged: 2$"):
        send(Feed("t", str(tmp_path / "f")))
    assert answers.flushed == [feeding.SETTLE_S]
    assert answers.closed


def test_at_a_stop_messages_that_were_not_acknowledged_are_counted_apart(
    sent: Callable[..., Answers], tmp_path: Path
) -> None:
    answers = sent(lambda value: TimeoutError() if value != b"1" else None)
    answers.on_send = lambda: os.kill(os.getpid(), signal.SIGINT) if len(answers.values) == 3 else None
    (tmp_path / "f").write_bytes(b"1\n2\n3\n4\n")
    with pytest.raises(FeedError, match=r"acknowledged: 1; sent but not acknowledged, may have arrived: 2$"):
        send(Feed("t", str(tmp_path / "f")))


def test_a_second_signal_does_not_wait_for_a_message_that_cannot_be_sent(
    sent: Callable[..., Answers], tmp_path: Path
) -> None:
    answers = sent()

    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    answers.on_send = press_twice
    (tmp_path / "f").write_bytes(b"1\n")
    with pytest.raises(FeedError, match=r"^stopped by SIGINT; messages sent to t and acknowledged: 0$"):
        send(Feed("t", str(tmp_path / "f")))


def test_no_file_is_sent_before_all_could_be_opened(sent: Callable[..., Answers], tmp_path: Path) -> None:
    answers = sent()
    (tmp_path / "f").write_bytes(b"1\n")
    with pytest.raises(FeedError, match=r"cannot read .*missing: No such file or directory"):
        send(Feed("t", str(tmp_path / "f")), Feed("t", str(tmp_path / "missing")))
    assert answers.values == []


def test_a_read_that_fails_in_the_middle_is_reported_with_the_count(
    sent: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            if line := super().readline():
                return line
            raise OSError(5, "Input/output error")

    sent()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Broken(b"1\n2\n")))
    with pytest.raises(FeedError, match=r"cannot read <stdin>: Input/output error .*acknowledged: 2$"):
        send(Feed("t", "-"))


@pytest.mark.parametrize("topic", ["", "a b", ".", "ä", "x" * 250])
def test_an_invalid_topic_name_is_refused_before_anything_else(topic: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid topic name"):
        send(Feed(topic, "missing"))


def test_values_that_are_sent_can_be_read_by_the_default_deserializer() -> None:
    for value in values(b'{"a": NaN}\n1e400\n"\\ud800"\n'):
        json.loads(value)


def test_without_a_broker_nothing_is_sent(sent: Callable[..., Answers], tmp_path: Path) -> None:
    answers = sent()

    def connect() -> None:
        raise BrokerUnavailableError("none")

    answers.connect = connect  # type: ignore[method-assign]
    (tmp_path / "f").write_bytes(b"1\n")
    with pytest.raises(BrokerUnavailableError):
        send(Feed("t", str(tmp_path / "f")))
    assert answers.values == []
