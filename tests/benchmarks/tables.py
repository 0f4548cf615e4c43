"""The tables that ``bench.py`` prints: which lines there are, what each should come to, and how it looks as Markdown.

A round is one run over all probes: what each of them measured, or the error with which it ended.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
Round = dict[str, Figures]  # probe -> figures
Medians = Mapping[str, Mapping[str, float]]  # probe -> figure -> median over the rounds

ERROR = "error"
HANDLERS = {
    "noop": "no-op",
    "values": "`batch.values`",
    "iterate": "iterates",
    "read": "iterates, reads `message.value`",
    "payloads": "`batch.payloads`",
    "mark_each": "marks each message",
}


# -- what it should come to -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """``most`` raises KeyError where what it compares with was not measured."""

    told: str
    figure: str
    most: Callable[[Medians], float]

    def verdict(self, own: Mapping[str, float], medians: Medians) -> str:
        try:
            return self.told if own[self.figure] <= self.most(medians) else f"{self.told} MISSED"
        except KeyError:
            return f"{self.told} (not measured)"


def loops(most: float) -> Limit:
    return Limit(f"≤ {most:g} x", "loops", lambda medians: most)


def peak(most: float) -> Limit:
    return Limit(f"≤ {most:g} MB", "peak_mb", lambda medians: most)


def below(probe: str) -> Limit:
    return Limit(f"≤ {probe}", "cpu_us", lambda medians: medians[probe]["cpu_us"])


def above(probe: str, more: float) -> Limit:
    """The CPU time of ``probe``, and ``more`` times the loop's."""
    told = f"≤ {probe} + {more:g} x"
    return Limit(told, "cpu_us", lambda medians: medians[probe]["cpu_us"] + more * medians["loop"]["cpu_us"])


# By data set and probe; bench.py says which probes there are. CPU time is compared within a run: machines differ by a
# factor of five.
LIMITS: Mapping[str, tuple[Limit, ...]] = {
    "16/run-pure-noop": (loops(0.35), peak(110)),
    "16/run-speed-noop": (loops(0.15), below("aiokafka"), below("confluent"), peak(110)),
    "16/run-speed-iterate": (loops(0.12),),
    "16/library-pure-noop": (loops(0.55),),
    "16/library-speed-noop": (loops(0.29),),
    "send-100-distinct/produce": (loops(0.5),),
    "send-100-distinct/produce-many": (below("confluent"),),
    "send-100-distinct/produce-one": (below("kafka-python-one"),),
    "send-100-none/produce": (loops(0.45),),
    "send-100-none/produce-many": (below("confluent"),),
    "forward-100-distinct/forward": (loops(0.7), below("faststream-forward")),
    "200/run-speed-noop": (loops(0.22),),
    "200/run-pure-payloads": (above("parser-json", 0.25),),
    "200/run-speed-payloads": (above("parser-orjson", 0.25),),
}


# -- throughput -------------------------------------------------------------------------------------------------------


def throughput(dataset: str, names: Mapping[str, str], rounds: Sequence[Round], beside: str = "loop") -> list[str]:
    """One line for each probe of ``names``, which was measured on this data set; each is compared with ``beside``."""
    medians = _medians(dataset, names, rounds, beside)
    head = ("", "µs CPU/message", "min", "max", f"x {beside.partition('-')[0]}", "messages/s", "peak MB", "target")
    cells = [head, ("-", *["-:"] * 6, "-")]
    for probe, name in names.items():
        measured = [figures for run in rounds if (figures := run.get(f"{dataset}/{probe}")) and ERROR not in figures]
        if not measured:
            cells.append((f"{name}: **failed**", *[""] * 7))
            continue
        own = medians[probe]
        costs = [figures["cpu_us"] for figures in measured]
        limits = LIMITS.get(f"{dataset}/{probe}", ())
        cells.append(
            (
                name,
                *map(short, (own["cpu_us"], min(costs), max(costs))),
                *(short(own[figure]) if figure in own else "" for figure in ("loops", "per_s", "peak_mb")),
                ", ".join(limit.verdict(own, medians) for limit in limits),
            )
        )
    return markdown(cells)


def _medians(
    dataset: str, probes: Mapping[str, str], rounds: Sequence[Round], beside: str
) -> dict[str, dict[str, float]]:
    medians = {}
    for probe in probes:
        measured = []
        for run in rounds:
            figures, loop = run.get(f"{dataset}/{probe}", {}), run.get(f"{dataset}/{beside}", {})
            if figures and ERROR not in figures:
                ratio = {"loops": figures["cpu_us"] / loop["cpu_us"]} if "cpu_us" in loop else {}
                measured.append({**figures, **ratio})
        if measured:
            shared = set.intersection(*map(set, measured))
            medians[probe] = {key: statistics.median([figures[key] for figures in measured]) for key in shared}
    return medians


# -- everything else --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """How a figure follows from the measurements of one round."""

    name: str
    unit: str
    figure: Callable[[Round], float]
    at_most: float | None = None
    at_least: float | None = None

    def verdict(self, median: float) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}{'' if median <= self.at_most else ' MISSED'}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{'' if median >= self.at_least else ' MISSED'}"
        return ""

    def values(self, rounds: Sequence[Round]) -> list[float | None]:
        """One for each round; None where something of it was not asked for, or failed."""
        return [self._value(run) for run in rounds]

    def _value(self, run: Round) -> float | None:
        try:
            return self.figure(run)
        except KeyError:
            return None


def _percentile(probe: str, percent: int) -> Callable[[Round], float]:
    return lambda run: percentile(run[probe]["ms"], percent)


def _mark(figure: str) -> Callable[[Round], float]:
    return lambda run: run["mark"][figure]


def _idle(probe: str) -> Callable[[Round], float]:
    return lambda run: run[probe]["percent"]


def _start(what: str) -> Callable[[Round], float]:
    return lambda run: run["start"][what]


def _first_message_run(run: Round) -> float:
    return float(run["first-message-run"]["s"])


def _ratio(one: Callable[[Round], float], other: Callable[[Round], float]) -> Callable[[Round], float]:
    return lambda run: one(run) / other(run)


MARKS = [
    Row("mark_as_consumed", "ns CPU/call", _mark("ns")),
    Row("an empty call, for scale", "ns CPU/call", _mark("empty_call_ns")),
    Row("mark_as_consumed / an empty call", "x", _ratio(_mark("ns"), _mark("empty_call_ns")), at_most=30),
    Row("mark_as_consumed(sync=True) p50", "ms", _percentile("sync-mark", 50)),
    Row("mark_as_consumed(sync=True) p99", "ms", _percentile("sync-mark", 99)),
    Row("consumer.commit of kafka-python p50", "ms", _percentile("bare-commit", 50)),
    Row("consumer.commit of kafka-python p99", "ms", _percentile("bare-commit", 99)),
    Row("produce to handler p50", "ms", _percentile("latency", 50)),
    Row("produce to handler p99", "ms", _percentile("latency", 99)),
    Row("produce to hand-written loop p50", "ms", _percentile("latency-loop", 50)),
    Row("produce to hand-written loop p99", "ms", _percentile("latency-loop", 99)),
    Row("handler p50 / loop p50", "x", _ratio(_percentile("latency", 50), _percentile("latency-loop", 50)), at_most=2),
    Row("failed run to its retry, backoff_ms=10, p50", "ms", _percentile("retry", 50), at_most=40),
    Row("idle app, 12 partitions", "% of a core", _idle("idle")),
    Row("idle app, 500 partitions", "% of a core", _idle("idle-500")),
    Row("idle hand-written loop, 12 partitions", "% of a core", _idle("idle-loop")),
    Row("idle app / hand-written loop", "x", _ratio(_idle("idle"), _idle("idle-loop")), at_most=2.25),
    Row("idle app, 500 partitions / 12", "x", _ratio(_idle("idle-500"), _idle("idle")), at_most=2),
    Row("python -c pass", "s", _start("python")),
    Row('python -c "import kafka"', "s", _start("kafka")),
    Row("karafka-lite --help", "s", _start("help")),
    Row("karafka-lite --help / import kafka", "x", _ratio(_start("help"), _start("kafka")), at_most=0.5),
    Row("karafka-lite run to first message", "s", _first_message_run),
    Row(
        "karafka-lite run to first message / import kafka",
        "x",
        _ratio(_first_message_run, _start("kafka")),
        at_most=1.3,
    ),
    Row("app.start() to first message", "s", lambda run: run["first-message"]["s"]),
    Row("KafkaConsumer() to first message", "s", lambda run: run["first-message-loop"]["s"]),
]


def _times_one(partitions: int) -> Callable[[Round], float]:
    return lambda run: run[f"partitions-{partitions}"]["per_s"] / run["partitions-1"]["per_s"]


def _of_ideal(name: str) -> Callable[[Round], float]:
    """Of what handlers that take nothing but their sleep would do."""
    return lambda run: run[name]["per_s"] / run[name]["ideal_per_s"]


def _alone(name: str) -> Callable[[Round], float]:
    return lambda run: run[f"alone-{name}"]["cpu_us"]


PARTITIONS = [
    Row("1 partition", "messages/s", lambda run: run["partitions-1"]["per_s"]),
    Row("2 partitions / 1", "x", _times_one(2)),
    Row("4 partitions / 1", "x", _times_one(4)),
    Row("8 partitions / 1", "x", _times_one(8), at_least=7.5),
    Row('order="key", 1 part', "messages/s", lambda run: run["parts-1"]["per_s"]),
    Row("8 parts / 1", "x", lambda run: run["parts-8"]["per_s"] / run["parts-1"]["per_s"], at_least=7.5),
    Row("100 partitions, 100 threads / ideal", "x", _of_ideal("partitions-many-threads")),
    Row("100 partitions, async, concurrency=100 / ideal", "x", _of_ideal("partitions-many-async"), at_least=0.8),
    Row("a batch of one message", "us of CPU", lambda run: run["alone-threads"]["cpu_us"]),
    Row("a batch of one message, async / plain", "x", _ratio(_alone("async"), _alone("threads")), at_most=1.6),
]


def rows(rows: Sequence[Row], rounds: Sequence[Round]) -> list[str]:
    """Medians, minimum and maximum; without lines of which nothing was measured."""
    cells = [("", "median", "min", "max", "unit", "target"), ("-", "-:", "-:", "-:", "-", "-")]
    for row in rows:
        figures = [figure for figure in row.values(rounds) if figure is not None]
        if figures:
            median = statistics.median(figures)
            told = map(short, (median, min(figures), max(figures)))
            cells.append((row.name, *told, row.unit, row.verdict(median)))
    return markdown(cells) if len(cells) > 2 else []


# -- beside another checkout ------------------------------------------------------------------------------------------

NOISE = 1.05  # what is dearer than that counts as a loss


def compared(rows: Sequence[Row], base: Sequence[Round], here: Sequence[Round]) -> list[str]:
    """What each of ``rows``, all of which should be small, was there and is here; the ratio is the median of the
    rounds' own ratios, for in one round both have had the same neighbours."""
    cells = [
        ("", "unit", "base", "min", "max", "here", "min", "max", "here / base", f"target ≤ {NOISE:g}"),
        ("-", "-", *["-:"] * 7, "-"),
    ]
    for row in rows:
        pairs = zip(row.values(base), row.values(here), strict=True)
        both = [(before, now) for before, now in pairs if before is not None and now is not None]
        if both:
            told = (short(cell) for side in zip(*both, strict=True) for cell in _spread(side))
            ratio = statistics.median([now / before for before, now in both])
            cells.append((row.name, row.unit, *told, f"{ratio:.2f}", "met" if ratio <= NOISE else "MISSED"))
    return markdown(cells) if len(cells) > 2 else []


def _spread(figures: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(figures), min(figures), max(figures)


def comparable(names: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """CPU of each line of the throughput (by data set and probe), and the others; no line is for scale only."""
    throughput = [
        Row(f"{dataset} B, {name}", "µs CPU/message", _cpu(f"{dataset}/{probe}"))
        for dataset, probes in names.items()
        for probe, name in probes.items()
    ]
    return [*throughput, *(row for row in MARKS if "for scale" not in row.name)]


def _cpu(probe: str) -> Callable[[Round], float]:
    return lambda run: run[probe]["cpu_us"]


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    columns = [_padded(column) for column in zip(*cells, strict=True)]
    return [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)]


def _padded(column: Sequence[str]) -> list[str]:
    """As wide as the widest cell; to the right where the rule ends with a colon, as Markdown has it."""
    header, rule, *cells = column
    width = max(map(len, column))
    pad = str.rjust if rule.endswith(":") else str.ljust
    return [pad(header, width), rule.rjust(width, "-"), *(pad(cell, width) for cell in cells)]


def short(figure: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
