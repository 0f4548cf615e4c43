"""What a handler sends is never missing where its input is committed; and the judge who would see it."""

from __future__ import annotations

import json
from pathlib import Path
from random import randrange

import pytest
from forwarding import Forwarding, guilty, report
from outputs import Outputs, complaints
from support.embedded_kafka import EmbeddedKafka
from support.observer import BreakableKafka


@pytest.mark.slow
@pytest.mark.apache_only("with exactly_once, the embedded broker is chased as well")
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_while_brokers_and_members_die_no_committed_input_lacks_its_output(
    private_kafka: BreakableKafka, tmp_path: Path
) -> None:
    rage(private_kafka, tmp_path, exactly_once=False)


@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_while_the_embedded_broker_and_members_die_each_output_of_exactly_once_is_there_once(
    tmp_path: Path,
) -> None:
    """On Apache Kafka the program does it, with three nodes.

    One node that was killed amid a transaction was once seen not to end it for 90 s after its restart.
    """
    with EmbeddedKafka() as server:
        private_kafka = BreakableKafka(server)
        try:
            rage(private_kafka, tmp_path, exactly_once=True)
        finally:
            private_kafka.forget_clients()


def rage(private_kafka: BreakableKafka, tmp_path: Path, *, exactly_once: bool) -> None:
    seed, messages = randrange(10**6), 400  # 5 s: time for a disaster or two
    run = Forwarding(private_kafka, private_kafka.server, [1], tmp_path, seed, exactly_once=exactly_once)
    verdict = run.run(messages)
    print(report(verdict, seed))
    assert not guilty(verdict), f"{report(verdict, seed)}\nfacts in {tmp_path}"
    assert verdict.figures["inputs"] >= messages
    assert verdict.figures["broker kills"] + verdict.figures["broker freezes"] >= 1
    assert verdict.figures["audits"] >= 5


# -- the judge --------------------------------------------------------------------------------------------------------


def output(offset: int, part: int = 0, *, of: int = 1, send: str = "a.1", number: int = 7) -> bytes:
    fact = {"from": [0, offset], "number": number, "part": part, "of": of, "send": send}
    return json.dumps(fact).encode()


def outputs_of(*values: bytes) -> Outputs:
    outputs = Outputs(1)
    for value in values:
        outputs.read(value)
    return outputs


def test_what_has_all_its_outputs_or_is_not_committed_is_no_hole() -> None:
    outputs = outputs_of(output(0, 0, of=2), output(0, 1, of=2), output(1, send="a.2"))
    assert not outputs.holes({0: 2})
    assert not outputs.holes({0: None})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([output(1)], "0@0 (nothing), committed is 2"),
        ([output(0)], "0@1 (nothing), committed is 2"),
        ([output(0), output(1, 0, of=2), output(1, 0, of=2, send="a.2")], "0@1 (parts [0] of 2), committed is 2"),
    ],
)
def test_an_output_that_is_missing_below_the_commit_is_a_hole(values: list[bytes], told: str) -> None:
    assert outputs_of(*values).holes({0: 2}) == [told]


def test_a_hole_is_found_again_and_closes_with_its_output() -> None:
    outputs = outputs_of(output(1))
    assert outputs.holes({0: 2})
    assert outputs.holes({0: 2})
    outputs.read(output(0, send="a.2"))
    assert not outputs.holes({0: 2})


def test_repeated_and_written_twice_are_counted_apart() -> None:
    outputs = outputs_of(output(0), output(0), output(0, send="b.1"), output(1, send="a.2"), output(1, send="a.2"))
    assert outputs.figures() == {"outputs": 5, "duplicates": 3, "inputs repeated": 1, "sends written twice": 2}


def test_an_output_of_a_message_that_never_was_is_a_stranger() -> None:
    assert not outputs_of(output(0)).strangers({(0, 0): 7})
    assert outputs_of(output(0)).strangers({(0, 0): 8}) == ["0@0: outputs of 7, there stands 8"]


def test_only_what_handlers_raise_on_purpose_may_stand_in_a_log() -> None:
    start = ["Traceback (most recent call last):\n", '  File "x", line 1, in y\n', "    y()\n"]
    assert not complaints([*start, "__main__.Stumble: m1 stumbles\n", *start, "karafka_lite.errors.ProduceError: no\n"])
    assert complaints([*start, "KeyError: 1\n", "1.0 INFO all is well\n"]) == ["KeyError: 1"]
    assert complaints(["1.0 ERROR the worker has crashed; this is a bug of karafka-lite: please report it\n"])
