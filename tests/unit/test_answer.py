"""What commands print: a table, or JSON."""

from __future__ import annotations

import json
import os
import sys

import pytest

from karafka_lite.cli import answer

ROWS = [
    {"topic": "orders", "partition": 0, "lag": 12, "member": None},
    {"topic": "a", "partition": 10, "lag": None, "member": "me"},
]


def test_a_table_has_numbers_to_the_right_and_no_spaces_at_the_ends(capfd: pytest.CaptureFixture[str]) -> None:
    answer.show(ROWS, as_json=False)
    assert capfd.readouterr().out == (
        "topic   partition  lag  member\n"
        "orders          0   12  -\n"
        "a              10    -  me\n"
    )  # fmt: skip


def test_json_is_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    answer.show(ROWS, as_json=True)
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == ROWS


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_is_nothing(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    answer.show([], as_json=as_json)
    assert capfd.readouterr().out == ""


def test_what_is_no_text_stays_json(capfd: pytest.CaptureFixture[str]) -> None:
    answer.show([{"name": "h\udce9", "text": "é"}], as_json=True)
    out = capfd.readouterr().out
    assert "é" in out
    assert json.loads(out) == {"name": "h\udce9", "text": "é"}


def test_it_comes_after_what_was_printed_before_and_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    print("first", end="\n")
    answer.write(b"second\n")
    assert capfd.readouterr().out == "first\nsecond\n"


def test_a_reader_that_has_ended_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with answer.until_nobody_reads():
            answer.write(b"line\n")
            raise AssertionError("it went on")
        out.write("more")  # as Python may, at its end


def test_a_closed_standard_output_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    answer.show(ROWS, as_json=True)
