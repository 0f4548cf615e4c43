"""The benchmark program works; its timings are looked at by people, never asserted."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.observer import Observer
from tables import MARKS, PARTITIONS, Row, compared, throughput

BENCH = Path(__file__).with_name("bench.py")
EMBEDDED = Path(__file__).with_name("embedded.py")
DECODE = Path(__file__).with_name("decode.py")
PROCESSES = Path(__file__).with_name("processes.py")


@pytest.mark.slow
@pytest.mark.apache_only("that is whose figures are in the README")
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_a_quick_run_fills_every_line_of_every_table(kafka: Observer, tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    command = [sys.executable, str(BENCH), "--broker", kafka.bootstrap_servers, "--quick", "--json", str(raw)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    (measured,) = json.loads(raw.read_text())["rounds"]
    small, large, sent, forwarded, marks, partitions = tables(done.stdout)
    consumers, senders = {"loop", "run-pure-noop", "confluent", "aiokafka"}, {"produce", "produce-many", "kafka-python"}
    for dataset, table, wanted in (
        ("16", small, consumers),
        ("200", large, consumers),
        ("send-100-distinct", sent, {*senders, "aiokafka", "confluent", "produce-one"}),
        ("forward-100-distinct", forwarded, {"forward", "forward-many", "aiokafka-forward", "confluent-forward"}),
    ):
        probes = [name for name in measured if name.startswith(f"{dataset}/")]
        assert len(table) == len(probes)
        assert {f"{dataset}/{name}" for name in wanted} <= {*probes}
        for name, *figures, _ in table:
            assert all(is_measured(figure) for figure in figures if figure), name
            assert all(figures[:5]), name
    assert [line[0] for line in marks + partitions] == [row.name for row in MARKS + PARTITIONS]
    for name, *figures, _, _ in marks + partitions:
        # A call's cost is a difference, and a few ns: on a busy machine it may come out as less than nothing.
        assert "an empty call" in name or all(map(is_measured, figures)), name


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, without its header."""
    blocks = [block.splitlines()[2:] for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block] for block in blocks]


def is_measured(figure: str) -> bool:
    value = float(figure.replace(",", ""))
    return math.isfinite(value) and value > 0


def test_a_line_tells_what_it_missed_and_who_failed_and_what_it_could_not_be_compared_with() -> None:
    dear = {"cpu_us": 2.0, "per_s": 1000.0, "peak_mb": 50.0}
    loop, failed = {**dear, "cpu_us": 4.0}, {"error": "no"}
    run = {"16/loop": loop, "16/run-speed-noop": dear, "16/aiokafka": dear, "16/confluent": failed}
    names = {"loop": "loop", "run-speed-noop": "ours", "aiokafka": "theirs", "confluent": "broken"}

    (table,) = tables("\n".join(throughput("16", names, [run, run])))

    assert table[1][:7] == ["ours", "2", "2", "2", "0.5", "1,000", "50"]
    assert table[1][7] == "≤ 0.15 x MISSED, ≤ aiokafka, ≤ confluent (not measured), ≤ 110 MB"
    assert table[3][0] == "broken: **failed**"


@pytest.mark.slow
@pytest.mark.apache_only("that is whose figures are in the README")
@pytest.mark.xdist_group("one hog at a time")
def test_a_quick_run_beside_another_checkout_compares_what_is_ours(kafka: Observer) -> None:
    checkout = str(BENCH.parents[2])
    command = [sys.executable, str(BENCH), "--broker", kafka.bootstrap_servers, "--quick", "--base", checkout]

    done = subprocess.run([*command, "--only", "loop,16/run-pure-noop,retry"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    *_, beside = tables(done.stdout)
    assert [line[0] for line in beside] == [
        "16 B, `karafka-lite run`, pure: no-op",
        "failed run to its retry, backoff_ms=10, p50",
    ]
    for name, _, *figures, _ in beside:
        assert all(map(is_measured, figures)), name


def test_a_line_beside_another_checkout_tells_the_ratio_within_each_round_and_whether_it_is_a_loss() -> None:
    row = Row("a line", "ms", lambda run: run["probe"]["ms"])
    unmeasured = Row("another", "ms", lambda run: run["other"]["ms"])
    base = [{"probe": {"ms": figure}} for figure in (10.0, 20.0, 40.0)]
    cheaper, dearer = ([{"probe": {"ms": factor * run["probe"]["ms"]}} for run in base] for factor in (1.04, 1.06))

    (met,) = tables("\n".join(compared([row, unmeasured], base, cheaper)))
    (missed,) = tables("\n".join(compared([row, unmeasured], base, dearer)))

    assert met == [["a line", "ms", "20", "10", "40", "20.8", "10.4", "41.6", "1.04", "met"]]
    assert [line[-2:] for line in missed] == [["1.06", "MISSED"]]


@pytest.mark.slow
@pytest.mark.apache_only("it starts an embedded broker by itself")
@pytest.mark.xdist_group("one hog at a time")
def test_a_quick_run_tells_how_quick_the_embedded_broker_is_beside_kafka(kafka: Observer) -> None:
    environment = {**os.environ, "KARAFKA_LITE_TEST_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    command = [sys.executable, str(EMBEDDED), "--quick"]

    done = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    told = re.findall(r"^(start to ready|embedded|Apache Kafka)\b.*: [\d.]+ m?s \(", done.stdout, re.MULTILINE)
    assert told == ["start to ready", *["embedded"] * 3, *["Apache Kafka"] * 3]


def test_a_quick_run_tells_what_each_decoder_costs() -> None:
    done = subprocess.run([sys.executable, str(DECODE), "--quick"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    told = re.findall(r"^\| +(16|200) B \| +[\d,]+ \| (stock|pure|compiled) +\| +[\d.]+ \|", done.stdout, re.MULTILINE)
    assert {("16", "stock"), ("16", "pure"), ("200", "stock"), ("200", "pure")} <= set(told)


@pytest.mark.slow
@pytest.mark.xdist_group("one hog at a time")
def test_a_quick_run_tells_how_much_more_several_processes_do() -> None:
    done = subprocess.run([sys.executable, str(PROCESSES), "--quick"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"1 process: \d+ .* 4 processes: \d+ .*, [\d.]+ times as many$", done.stdout, re.MULTILINE)) == 2
    )
