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
from bench import ROWS
from observer import Observer

BENCH = Path(__file__).with_name("bench.py")
EMBEDDED = Path(__file__).with_name("embedded.py")
DECODE = Path(__file__).with_name("decode.py")


@pytest.mark.slow
@pytest.mark.apache_only("that is whose figures are in the README")
@pytest.mark.xdist_group("one hog at a time")
@pytest.mark.timeout(300)
def test_a_quick_run_fills_every_row_of_the_table(kafka: Observer, tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    command = [sys.executable, str(BENCH), "--broker", kafka.bootstrap_servers, "--quick", "--json", str(raw)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    table = {(name, unit): figures for name, *figures, unit, _ in lines[2:]}
    assert list(table) == [(row.name, row.unit) for row in ROWS]
    for row, figures in table.items():
        assert [figure for figure in figures if not _is_measured(figure, *row)] == [], row
    (measured,) = json.loads(raw.read_text())["rounds"]
    assert all(row.figure(measured) for row in ROWS)


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


def _is_measured(figure: str, name: str, unit: str) -> bool:
    value = float(figure.replace(",", ""))
    # A call's cost is a difference, and a few ns: on a busy machine it may come out as less than nothing.
    return math.isfinite(value) and (value > 0 or name == "an empty call, for scale")
