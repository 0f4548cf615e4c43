"""Metrics: what is counted, what several processes have together, and the text as Prometheus' own parser reads it."""

from __future__ import annotations

import json
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from karafka_lite import ConfigurationError, events
from karafka_lite.observers.metrics import BUCKETS_S, MISSING, Counts, Histogram, Reading, exposed, together

TP = ("orders", 0)


def counted() -> Reading:
    counts = Counts(lambda: 0.0)
    for event in (
        events.Joined("shop", (TP,)),
        events.CallEnded("shop", *TP, "store", None, 0, 9, 1, 0.02, 10),
        events.CallEnded("shop", *TP, "store", None, 10, 19, 1, 400.0, 3, ValueError()),
        events.CallEnded("shop", *TP, "close", "on_shutdown", -1, -1, 1, 9.0),
        events.DeadLettered("shop", *TP, 11, "store", 4, "no"),
        events.Committed("shop", {TP: 10, ("orders", 1): 3, ("clicks", 0): 1}),
        events.CommitFailed("shop", {TP: 11}, OSError()),
        events.Revoked("shop", {TP: 10}, 0.25),
    ):
        counts.observe(event)
    return counts.read({("shop", *TP): 7})


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels in the order of their names."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


def test_every_metric_is_read_by_prometheus_own_parser_with_its_labels() -> None:
    found = samples(exposed(counted()))
    expected = {
        ("karafka_lite_messages_total", "shop", "orders"): 13,
        ("karafka_lite_batches_total", "shop", "orders"): 1,
        ("karafka_lite_failures_total", "shop", "orders"): 1,
        ("karafka_lite_dead_letters_total", "shop", "orders"): 1,
        ("karafka_lite_handler_seconds_count", "shop", "orders"): 2,
        ("karafka_lite_handler_seconds_sum", "shop", "orders"): 400.02,
        ("karafka_lite_handler_seconds_bucket", "shop", "0.01", "orders"): 0,
        ("karafka_lite_handler_seconds_bucket", "shop", "0.05", "orders"): 1,
        ("karafka_lite_handler_seconds_bucket", "shop", "300.0", "orders"): 1,
        ("karafka_lite_handler_seconds_bucket", "shop", "+Inf", "orders"): 2,
        ("karafka_lite_lag", "shop", "0", "orders"): 7,
        ("karafka_lite_commits_total", "shop", "orders"): 1,
        ("karafka_lite_commits_total", "shop", "clicks"): 1,
        ("karafka_lite_commit_failures_total", "shop", "orders"): 1,
        ("karafka_lite_rebalances_total", "shop"): 1,
        ("karafka_lite_drain_seconds_count", "shop"): 1,
        ("karafka_lite_drain_seconds_sum", "shop"): 0.25,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_a_label_of_any_text_is_read_back() -> None:
    counts = Counts()
    counts.observe(events.Joined('a "quoted"\nname', ()))
    assert samples(exposed(counts.read({})))["karafka_lite_rebalances_total", 'a "quoted"\nname'] == 1


def test_a_duration_is_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS_S[0], BUCKETS_S[-1], BUCKETS_S[-1] + 1):
        histogram.add(seconds)
    assert (histogram.counts[0], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1)


def test_several_processes_together_are_their_sum_and_a_reading_goes_through_json() -> None:
    one, other = counted(), counted()
    other.lags = {("shop", "orders", 1): 2}
    sums = samples(exposed(together([one, Reading.of(json.loads(json.dumps(other.plain()))), Reading()])))
    assert sums["karafka_lite_messages_total", "shop", "orders"] == 26
    assert sums["karafka_lite_handler_seconds_bucket", "shop", "+Inf", "orders"] == 4
    assert sums["karafka_lite_drain_seconds_sum", "shop"] == 0.5
    assert sums["karafka_lite_lag", "shop", "1", "orders"] == 2
    assert samples(exposed(one)) == samples(exposed(counted())), "what is added up stays"


def test_a_reading_does_not_change_when_more_is_counted() -> None:
    counts = Counts()
    counts.observe(events.Joined("shop", (TP,)))
    before = counts.read({})
    counts.observe(events.Joined("shop", (TP,)))
    assert before.groups["shop"].rebalances == 1


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'karafka-lite\[metrics\]'") as refused:
        exposed(Reading())
    assert str(refused.value) == MISSING
