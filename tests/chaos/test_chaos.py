"""Nothing is lost and nothing repeated without need, whatever happens to the members; and the judge who says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import randrange
from typing import Any

import pytest
from chaos import Chaos, report
from judge import Pause, Script, Sent, Verdict, judge
from support.observer import Observer

PLACE = ("topic", 0)
SESSION_S = 4.0


@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_members_that_join_leave_are_killed_and_stopped_lose_nothing_and_repeat_nothing_committed(
    kafka: Observer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed, seconds = randrange(10**6), 20 if "embedded" in request.node.callspec.id else 60
    verdict = Chaos(kafka, tmp_path, seed).run(seconds)
    print(report(verdict, seed))
    assert not verdict.crimes, f"{report(verdict, seed)}\nfacts in {tmp_path}"
    assert verdict.figures["messages"] > 80 * seconds
    assert verdict.figures["joins"] > seconds // 20


# -- the judge --------------------------------------------------------------------------------------------------------


def run_of(own: int, at: float, *offsets: int, refused: int | None = None) -> Iterator[dict[str, Any]]:
    """One run of a manual handler: handed over at ``at``, one message every 0.1 s."""
    yield fact("handed", own, at, first=offsets[0], last=offsets[-1])
    for offset in offsets:
        at += 0.1
        yield fact("done", own, at, offset=offset, number=offset)
        yield fact("marked", own, at, offset=offset, ok=offset != refused, sync=False)


def fact(kind: str, own: int, at: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "own": own, "at": at, "topic": PLACE[0], "partition": PLACE[1], **more}


def committed(at: float, offset: int) -> dict[str, Any]:
    return {"at": at, "topic": PLACE[0], "partition": PLACE[1], "offset": offset}


def verdict_on(
    watched: list[dict[str, Any]] | None = None,
    *,
    end: int = 4,
    kept: int | None = None,
    script: Script | None = None,
    **members: list[Any],
) -> Verdict:
    script = script or Script(SESSION_S)
    script.ends = {PLACE: end}
    script.committed = {PLACE: end if kept is None else kept}
    script.produced[PLACE] = {offset: Sent(offset, 0.0) for offset in range(end)}
    return judge({name: [one for run in runs for one in run] for name, runs in members.items()}, watched or [], script)


def test_two_members_that_hand_over_in_good_order_are_innocent() -> None:
    verdict = verdict_on([committed(1.5, 2), committed(3, 4)], a=[run_of(1, 1, 0, 1)], b=[run_of(1, 2, 2, 3)])
    assert not verdict.crimes
    assert verdict.figures == {"messages": 4, "ownerships": 2}
    assert verdict.longest_silence_s == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("crime", "case"),
    [
        ("lost", lambda: verdict_on(a=[run_of(1, 1, 0, 1)], b=[run_of(1, 2, 3)])),
        ("lost", lambda: verdict_on(a=[run_of(1, 1, 0, 1, refused=1)], b=[run_of(1, 2, 2, 3)])),
        ("not committed at the end", lambda: verdict_on(kept=3, a=[run_of(1, 1, 0, 1, 2, 3)])),
        ("order", lambda: verdict_on(a=[run_of(1, 1, 0, 2, 1, 3)])),
        ("repeated", lambda: verdict_on(a=[run_of(1, 1, 0, 1)], b=[run_of(1, 2, 1, 2, 3)])),
        ("overlaps", lambda: verdict_on(a=[run_of(1, 1, 0, 1, 2)], b=[run_of(1, 1.15, 3)])),
        ("committed ahead", lambda: verdict_on([committed(1.35, 4)], a=[run_of(1, 1, 0, 1, 2, 3)])),
        ("commit went back", lambda: verdict_on([committed(2, 3), committed(3, 2)], a=[run_of(1, 1, 0, 1, 2, 3)])),
        (
            "wrong message",
            lambda: verdict_on(
                a=[
                    run_of(1, 1, 0, 1, 2),
                    [fact("handed", 1, 2, first=3, last=3), fact("done", 1, 2, offset=3, number=7)],
                ]
            ),
        ),
    ],
)
def test_the_judge_finds(crime: str, case: Any) -> None:
    assert list(case().crimes) == [crime]


def test_a_kill_excuses_the_repetition_of_what_was_not_committed() -> None:
    script = Script(SESSION_S, kills={"a": 1.5})
    members = {"a": [run_of(1, 1, 0, 1)], "b": [run_of(1, 6, 1, 2, 3)]}
    verdict = verdict_on([committed(1.4, 1)], script=script, **members)
    assert not verdict.crimes
    assert verdict.figures["repeated after a kill"] == 1


def test_a_kill_does_not_excuse_the_repetition_of_what_was_committed() -> None:
    script = Script(SESSION_S, kills={"a": 1.5})
    verdict = verdict_on([committed(1.4, 2)], script=script, a=[run_of(1, 1, 0, 1)], b=[run_of(1, 6, 1, 2, 3)])
    assert list(verdict.crimes) == ["repeated although committed"]


def test_a_stop_past_the_session_excuses_a_message_that_is_finished_late_but_no_mark() -> None:
    def late(marked: bool) -> Verdict:
        script = Script(SESSION_S, pauses={"a": [Pause(1.05, 7)]})
        work = [
            fact("handed", 1, 1, first=0, last=0),
            fact("done", 1, 7.1, offset=0, number=0),
            fact("marked", 1, 7.1, offset=0, ok=marked, sync=False),
        ]
        return verdict_on(script=script, a=[work], b=[run_of(1, 6, 0, 1, 2, 3)])

    assert not late(False).crimes
    assert late(False).figures["still processing after a stop"] == 1
    assert list(late(True).crimes) == ["marked or handed over after a stop"]


def test_a_stop_within_the_session_excuses_nothing() -> None:
    script = Script(SESSION_S, pauses={"a": [Pause(1.05, 3)]})
    verdict = verdict_on(script=script, a=[run_of(1, 1, 0, 1)], b=[run_of(1, 4, 1, 2, 3)])
    assert list(verdict.crimes) == ["repeated"]
