"""Nothing is lost and nothing repeated without need, whatever happens to the members; and the judge who says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random, randrange
from types import SimpleNamespace
from typing import Any

import pytest
from chaos import Chaos, report
from judge import Deletion, Pause, Script, Sent, Verdict, judge
from network import ProxiedKafka
from support.kafka_server import kafka_source
from support.observer import Observer
from topics import Topics

PLACE = ("topic", 0)
SESSION_S = 4.0


@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_members_that_join_leave_are_killed_and_stopped_lose_nothing_and_repeat_nothing_committed(
    embedded_kafka: Observer, tmp_path: Path
) -> None:
    innocent(Chaos(embedded_kafka, tmp_path, seed := randrange(10**6)).run(6), seed, tmp_path)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_nor_do_they_while_brokers_die_the_network_is_spoilt_and_topics_are_deleted(tmp_path: Path) -> None:
    if kafka_source().kind != "java":
        pytest.skip("proxies are put before brokers that are child processes")
    with ProxiedKafka() as server:
        kafka, seed = Observer(server.bootstrap_servers), randrange(10**6)
        verdict = Chaos(kafka, tmp_path, seed, server, ["brokers", "network", "topics"]).run(10)
        kafka.forget_clients()
    innocent(verdict, seed, tmp_path)
    assert any("network" in figure for figure in verdict.figures)
    assert any("broker" in figure for figure in verdict.figures)


def innocent(verdict: Verdict, seed: int, folder: Path) -> None:
    print(report(verdict, seed))
    assert not verdict.crimes, f"{report(verdict, seed)}\nfacts in {folder}"
    assert verdict.figures["messages"] > 500
    assert verdict.figures["members"] > 1


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


def test_what_was_deleted_before_it_was_read_is_not_lost_and_may_be_passed() -> None:
    script = Script(SESSION_S)
    script.deleted[PLACE] = [Deletion(1.5, 3)]
    verdict = verdict_on([committed(3, 4)], script=script, a=[run_of(1, 1, 0, 1), run_of(1, 2, 3)])
    assert not verdict.crimes
    assert verdict.figures["deleted before they were processed"] == 1


def test_where_all_is_deleted_nothing_has_to_be_committed() -> None:
    script = Script(SESSION_S)
    script.deleted[PLACE] = [Deletion(0.5, 4)]
    assert not verdict_on(script=script, kept=0).crimes


@pytest.mark.parametrize(("breakage", "crimes"), [(Pause(1.0, 2.0), []), (Pause(4.0, 5.0), ["repeated"])])
def test_a_hand_over_while_something_is_broken_excuses_a_repetition(breakage: Pause, crimes: list[str]) -> None:
    script = Script(SESSION_S, breakages=[breakage])
    hooks = [fact("hook", 1, 1.3, hook="before_revoke"), fact("hook", 1, 2.3, hook="on_revoked")]
    verdict = verdict_on(script=script, a=[run_of(1, 1, 0, 1), hooks], b=[run_of(1, 3, 1, 2, 3)])
    assert list(verdict.crimes) == crimes


@pytest.mark.parametrize("member", ["a", "b"])
def test_a_stop_that_was_forced_excuses_the_repetition_of_its_own_work_only(member: str) -> None:
    script = Script(SESSION_S, forced={member: 1.5})
    verdict = verdict_on(script=script, a=[run_of(1, 1, 0, 1)], b=[run_of(1, 2, 1, 2, 3)])
    assert list(verdict.crimes) == ([] if member == "a" else ["repeated"])


def test_a_topic_that_is_gone_is_not_judged_for_losses_but_for_order() -> None:
    script = Script(SESSION_S, ended={"topic#2": 3.0})
    work = [{**fact, "topic": "topic#2"} for fact in run_of(1, 1, 0, 2)]
    assert list(verdict_on(script=script, a=[run_of(1, 1, 0, 1, 2, 3), work]).crimes) == ["order"]


def test_facts_are_of_the_life_of_a_topic_that_their_message_was_sent_to() -> None:
    kafka: Any = SimpleNamespace(topic=lambda *_, **__: "", end_offset=lambda *_: 0, delete_topic=lambda _: None)
    topics, dice = Topics(kafka), Random(0)
    for number in (1, 2):
        topics.make("t", 1)
        topics.choose(number, dice)
        topics.answered("t")
        topics.delete("t")
    first, second = topics.lives
    told = topics.of_members([{"number": number, "topic": "t"} for number in (1, 2)])
    assert [fact["topic"] for fact in told] == ["t", "t#2"]
    first.ended, second.began, second.ended = 10.0, 11.0, 20.0
    first.began = 0.0
    seen = topics.of_watcher([{"topic": "t", "at": at} for at in (5.0, 10.5, 11.5, 15.0, 25.0)])
    assert [(fact["at"], fact["topic"]) for fact in seen] == [(5.0, "t"), (15.0, "t#2")]
