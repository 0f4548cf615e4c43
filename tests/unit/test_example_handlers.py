"""What each of ``examples/`` promises in its docstring, under failures, hand-overs, losses and stops."""

from __future__ import annotations

import importlib
import json
import logging
import runpy
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from karafka_lite import ProduceError
from karafka_lite.testing import Run, TestClient

ROOT = Path(__file__).parents[2]
TOPIC = "earthquakes"
REAL = (ROOT / "examples" / "earthquakes.jsonl").read_text().splitlines()

Example = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "karafka_lite")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Example:
    """The module of this number, whose prints can be replaced."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(number: str) -> ModuleType:
        (path,) = (ROOT / "examples").glob(f"e{number}_*.py")
        module = importlib.import_module(f"examples.{path.stem}")
        monkeypatch.setattr(module, "print", print, raising=False)
        return module

    return load


def quake(**other: object) -> dict[str, object]:
    """One that every example takes without a word, but for what is ``other``."""
    usual: dict[str, object] = json.loads(REAL[0])
    return {**usual, **other}


STRONG = quake(magnitude=6.5, place="5km N of Lima, Peru")
BAD = {"id": "has nothing else"}


def at_its_first_print(module: Any, act: Callable[[], object]) -> list[str]:
    """Have ``act`` happen in the middle of the handler. Returns what is printed, as it comes."""
    printed: list[str] = []
    acts = [act]

    def printed_by(text: str, **options: object) -> None:
        if acts:
            acts.pop()()
        printed.append(text)

    module.print = printed_by
    return printed


def fails_once(module: Any) -> list[str]:
    """Have the first print raise, as a full disk would. Returns what is printed, as it comes."""

    def fail() -> None:
        raise OSError("no space left")

    return at_its_first_print(module, fail)


def to_the_end(client: TestClient) -> list[Run]:
    """The runs until nothing happens any more, back-offs included."""
    runs = client.run()
    while runs and runs[-1].outcome == "failed":
        client.advance(ms=30_000)
        runs += client.run()
    return runs


# -- 01 to 03: marks ---------------------------------------------------------------------------------------------------


def test_automatic_marks_a_batch_that_returned_and_repeats_one_that_raised(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    with TestClient(example("01").app) as client:
        client.send_many(TOPIC, [quake(), STRONG, quake()])
        assert [run.marks for run in client.run()] == [[3]]
        assert "strongest of 3 earthquakes: 6.5 5km N of Lima, Peru" in capsys.readouterr().out
        client.send_many(TOPIC, [quake(), BAD])
        assert [(run.outcome, run.marks) for run in client.run()] == [("failed", [])]
        client.advance(ms=1000)
        assert [run.offsets for run in client.run()] == [[3, 4]], "all of it comes again"
    assert client.committed(TOPIC, 0) == 3


def test_manual_repeats_only_what_was_not_marked(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(example("02").app) as client:
        client.send_many(TOPIC, [STRONG, quake(), BAD, STRONG])
        assert [(run.outcome, run.marks) for run in client.run()] == [("failed", [1, 2])]
        client.advance(ms=1000)
        assert [run.offsets for run in client.run()] == [[2, 3]]
    assert client.committed(TOPIC, 0) == 2
    assert capsys.readouterr().out.count("magnitude 6.5") == 1


def test_a_mark_that_returns_false_ends_the_handler_and_the_next_owner_does_the_rest(example: Example) -> None:
    module = example("03")
    with TestClient(module.app) as client:
        printed = at_its_first_print(module, lambda: client.lose(TOPIC, 0))
        client.send_many(TOPIC, [STRONG] * 3)
        (run,) = client.run()
        assert (run.outcome, run.marks) == ("done", [])
        assert printed[0].startswith("alert: magnitude 6.5")
        assert printed[1:] == ["earthquakes-0@0: no longer ours, the new owner processes the other 2"]
        client.assign(TOPIC, 0)
        assert [run.marks for run in client.run()] == [[1, 2, 3]]


def test_a_hand_over_in_good_order_waits_for_the_batch_whose_marks_count(example: Example) -> None:
    module = example("03")
    with TestClient(module.app) as client:
        printed = at_its_first_print(module, lambda: client.revoke(TOPIC, 0))
        client.send_many(TOPIC, [STRONG] * 3)
        assert [run.marks for run in client.run()] == [[1, 2, 3]]
        assert client.committed(TOPIC, 0) == 3
        assert printed[-1] == "3 messages are done and marked, up to earthquakes-0@2"


# -- 04: the buffer in SQLite ------------------------------------------------------------------------------------------


@pytest.fixture
def archive(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = example("04")
    monkeypatch.setattr(module, "DATABASE", str(tmp_path / "quakes.db"))
    return module


def rows(archive: ModuleType) -> list[int]:
    """The offsets in the database; none without one."""
    if not Path(archive.DATABASE).is_file():
        return []
    with closing(sqlite3.connect(archive.DATABASE)) as database:
        return [offset for (offset,) in database.execute("select offset from earthquakes order by offset")]


def test_the_buffer_is_written_when_full_and_at_the_stop_and_marked_behind_it(archive: ModuleType) -> None:
    with TestClient(archive.app) as client:
        client.send_many(TOPIC, REAL[:450])
        assert [run.marks for run in client.run()] == [[200, 400]]
        assert (rows(archive), client.stored(TOPIC, 0)) == ([*range(400)], 400)
    assert (rows(archive), client.committed(TOPIC, 0)) == ([*range(450)], 450)


def test_the_buffer_is_written_before_a_revocation_and_not_after_a_loss(archive: ModuleType) -> None:
    with TestClient(archive.app, partitions=1) as client:
        client.send_many(TOPIC, REAL[:10])
        client.run()
        client.revoke(TOPIC, 0)
        assert (rows(archive), client.committed(TOPIC, 0)) == ([*range(10)], 10)
        client.assign(TOPIC, 0)
        client.send_many(TOPIC, REAL[10:15])
        client.run()
        client.lose(TOPIC, 0)
        assert (rows(archive), client.committed(TOPIC, 0)) == ([*range(10)], 10)
        client.assign(TOPIC, 0)
        assert [run.offsets for run in client.run()] == [[10, 11, 12, 13, 14]]


def test_what_sqlite_refuses_is_not_marked_and_comes_again(archive: ModuleType, tmp_path: Path) -> None:
    good, archive.DATABASE = archive.DATABASE, str(tmp_path)  # a folder is no database
    with TestClient(archive.app) as client:
        client.send_many(TOPIC, REAL[:250])
        (run,) = client.run()
        assert (type(run.exception), run.marks) == (sqlite3.OperationalError, [])
        archive.DATABASE = good
        client.advance(ms=1000)
        assert [run.marks for run in client.run()] == [[200]]
    assert rows(archive) == [*range(250)]


def test_a_flush_that_fails_at_the_stop_marks_nothing(archive: ModuleType, tmp_path: Path) -> None:
    archive.DATABASE = str(tmp_path)
    with TestClient(archive.app) as client:
        client.send_many(TOPIC, REAL[:50])
        client.run()
    assert client.committed(TOPIC, 0) is None


def test_what_is_written_twice_is_there_once(archive: ModuleType) -> None:
    for _ in range(2):  # as after a kill between SQLite's commit and the mark: nothing is committed to Kafka
        with TestClient(archive.app) as client:
            client.send_many(TOPIC, REAL[:210])
            client.run(raise_errors=True)
        assert client.committed(TOPIC, 0) == 210
    assert rows(archive) == [*range(210)]


def test_the_database_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHQUAKES_DB", "elsewhere.db")
    assert runpy.run_path(str(ROOT / "examples" / "e04_buffer.py"))["DATABASE"] == "elsewhere.db"


# -- 05 and 06: marks now and then, blocking ones ----------------------------------------------------------------------


def test_a_mark_at_every_tenth_message_is_where_a_failure_goes_back_to(example: Example) -> None:
    with TestClient(example("05").app) as client:
        client.send_many(TOPIC, [quake()] * 25)
        assert [run.marks for run in client.run()] == [[10, 20, 25]], "the last one by itself"
        client.send_many(TOPIC, [*[quake()] * 19, BAD])
        assert [(run.outcome, run.marks) for run in client.run()] == [("failed", [35])]
        client.advance(ms=1000)
        assert [run.offsets for run in client.run()] == [[*range(35, 45)]], "nine that were done, and the bad one"


def test_a_mark_at_every_tenth_message_stops_when_the_partition_is_lost(example: Example) -> None:
    module = example("05")
    with TestClient(module.app) as client:
        printed = at_its_first_print(module, lambda: client.lose(TOPIC, 0))
        client.send_many(TOPIC, [quake(depth_km=500)] * 30)
        assert [run.marks for run in client.run()] == [[]]
        assert len(printed) == 10


def test_a_blocking_mark_is_on_the_broker_before_the_next_message(example: Example) -> None:
    module, seen = example("06"), []
    with TestClient(module.app) as client:
        module.print = lambda text, **options: seen.append((text.split(":")[0], client.committed(TOPIC, 0)))
        client.send_many(TOPIC, [STRONG, quake(), STRONG, quake(), quake()])
        client.run()
        assert seen == [("wake up", None), ("wake up", 1), ("the broker has everything up to earthquakes-0@4", 5)]


def test_who_pages_stops_when_the_partition_is_lost(example: Example) -> None:
    module = example("06")
    with TestClient(module.app) as client:
        printed = at_its_first_print(module, lambda: client.lose(TOPIC, 0))
        client.send_many(TOPIC, [STRONG, STRONG])
        client.run()
        assert len(printed) == 1
        assert client.committed(TOPIC, 0) is None


# -- 07 and 08: groups, failures ---------------------------------------------------------------------------------------


def test_a_failure_of_one_group_holds_up_only_that_one(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(example("07").app) as client:
        client.send_many(TOPIC, [STRONG, {"region": "Peru"}])
        outcomes = {run.group_id: (run.outcome, run.marks) for run in client.run()}
        assert outcomes == {"earthquake-summaries": ("done", [2]), "earthquake-tsunamis": ("failed", [1])}
        assert "earthquake-tsunamis: 6.5, 5km N of Lima, Peru" in capsys.readouterr().out
    assert client.committed(TOPIC, 0, group_id="earthquake-summaries") == 2
    assert client.committed(TOPIC, 0, group_id="earthquake-tsunamis") == 1


def test_of_the_real_earthquakes_exactly_the_bad_ones_become_dead_letters(example: Example) -> None:
    with TestClient(example("08").app) as client:
        client.send_many(TOPIC, REAL)
        to_the_end(client)
        dead = [dict(message.headers) for message in client.dead_letters("earthquakes.dead")]
    assert client.committed(TOPIC, 0) == len(REAL)
    by_hand = [headers for headers in dead if headers["error"].endswith(b", not an earthquake")]
    raised = [headers for headers in dead if headers["error"].startswith(b"ValueError: ")]
    assert (len(by_hand), len(raised), len(dead)) == (28, 12, 40)
    assert len({headers["source-offset"] for headers in dead}) == 40, "none twice"


def test_a_message_sent_away_is_not_processed(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(example("08").app) as client:
        client.send_many(TOPIC, [{**STRONG, "type": "explosion"}, STRONG])
        assert [run.marks for run in client.run()] == [[1, 2]]
    assert len(client.dead_letters("earthquakes.dead")) == 1
    assert capsys.readouterr().out == "earthquakes-0@1: magnitude 6.5, 5km N of Lima, Peru\n"


def test_what_fails_for_a_while_is_done_in_the_end_and_no_dead_letter(example: Example) -> None:
    module = example("08")
    fails_once(module)
    with TestClient(module.app) as client:
        client.send_many(TOPIC, [quake(), STRONG, quake()])
        assert [(run.outcome, run.marks) for run in to_the_end(client)] == [("failed", [1]), ("done", [2, 3])]
        assert client.dead_letters("earthquakes.dead") == []


# -- 09 to 12 ----------------------------------------------------------------------------------------------------------


def test_each_ends_at_a_rebalance_and_the_next_owner_continues_after_the_last_mark(example: Example) -> None:
    module = example("09")
    with TestClient(module.app) as client:
        printed = at_its_first_print(module, lambda: client.revoke(TOPIC, 0))
        client.send_many(TOPIC, [quake(status="automatic", magnitude=3)] * 3)
        assert [run.marks for run in client.run()] == [[1]]
        assert printed[1:] == ["1 of 3 are reviewed and marked"]
        assert client.committed(TOPIC, 0) == 1
        client.assign(TOPIC, 0)
        assert [run.offsets for run in client.run()] == [[1, 2]]


def test_each_marks_what_was_done_before_a_failure(example: Example) -> None:
    with TestClient(example("09").app) as client:
        client.send_many(TOPIC, [quake(), quake(), BAD])
        assert [(run.outcome, run.marks) for run in client.run()] == [("failed", [1, 2])]
    assert client.committed(TOPIC, 0) == 2


def test_the_strong_ones_are_sent_on_with_their_region_as_the_key(example: Example) -> None:
    with TestClient(example("10").app) as client:
        client.send_many(TOPIC, REAL)
        client.run(raise_errors=True)
        sent = client.produced("earthquakes.strong")
    assert len(sent) == 39
    assert sent[-1].key == b"Tajikistan"
    assert {frozenset(message.payload) for message in sent} == {frozenset({"id", "time_ms", "magnitude", "place"})}


def test_what_cannot_be_sent_on_commits_nothing_and_is_sent_again(example: Example) -> None:
    with TestClient(example("10").app) as client:
        client.send_many(TOPIC, [STRONG, quake(), STRONG])
        client.refuse("earthquakes.strong", ProduceError("refused"))
        assert [(run.outcome, run.marks) for run in client.run()] == [("failed", [])]
        client.advance(ms=1000)
        assert [(run.outcome, run.marks) for run in client.run()] == [("done", [3])]
        assert {message.payload["id"] for message in client.produced("earthquakes.strong")} == {STRONG["id"]}


def test_the_buffer_is_written_by_size_by_time_before_a_revocation_and_at_the_stop(example: Example) -> None:
    module = example("11")
    with TestClient(module.app, partitions=2) as client:
        client.send_many(TOPIC, REAL[:250], partition=0)
        client.run()
        assert client.stored(TOPIC, 0) == 200
        client.advance(ms=1000)
        assert client.stored(TOPIC, 0) == 250
        for partition in (0, 1):
            client.send(TOPIC, STRONG, partition=partition)
        client.run()
        client.revoke(TOPIC, 0)
        assert client.committed(TOPIC, 0) == 251
        assert client.stored(TOPIC, 1) is None
    assert client.committed(TOPIC, 1) == 1


def test_a_timed_write_that_fails_loses_nothing(example: Example) -> None:
    module = example("11")
    written = fails_once(module)
    with TestClient(module.app) as client:
        client.send_many(TOPIC, [STRONG] * 3)
        client.run()
        client.advance(ms=1000)
        assert (written, client.stored(TOPIC, 0)) == ([], None)
        client.send(TOPIC, STRONG)
        client.run()
        client.advance(ms=1000)
        assert written == ["writing 4 earthquakes, the last one at offset 3"]
        assert client.stored(TOPIC, 0) == 4


def test_a_failed_batch_is_not_in_the_buffer_twice(example: Example) -> None:
    module = example("11")
    written = fails_once(module)
    with TestClient(module.app) as client:
        client.send_many(TOPIC, REAL[:210])
        to_the_end(client)
    assert [text.split()[1] for text in written] == ["200", "10"]
    assert client.committed(TOPIC, 0) == 210


def test_the_tests_of_the_last_example_pass_here_too(example: Example) -> None:
    module = example("12")
    names = [name for name in vars(module) if name.startswith("test_")]
    assert len(names) == 2
    for name in names:
        getattr(module, name)()
