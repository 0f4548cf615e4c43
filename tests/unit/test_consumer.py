"""A client without a broker: what it answers while it has no connection, and what it does with odd questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition as KafkaTP
from support.member import commits

from karafka_lite.client.consumer import Client, _Listener
from karafka_lite.core.answers import PollPlan
from karafka_lite.errors import ClientBrokenError, ConfigurationError, PollError
from karafka_lite.events import Event

TP = ("user_events", 0)


class Notebook:
    """In place of the runner."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Client, list[tuple[str, int]]]] = []
        self.events: list[Event] = []
        self.bugs: list[Exception] = []
        self.begun = False

    def crash(self, thread: str, bug: Exception) -> None:
        self.bugs.append(bug)

    def on_assigned(self, client: Client, tps: Collection[tuple[str, int]]) -> None:
        self.calls.append(("assigned", client, list(tps)))

    def on_revoke(self, client: Client, tps: Collection[tuple[str, int]]) -> Callable[[], float | None]:
        self.calls.append(("revoke", client, list(tps)))
        return lambda: None

    def on_lost(self, client: Client) -> None:
        self.calls.append(("lost", client, []))


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def client(notebook: Notebook) -> Client:
    return Client("group", ["127.0.0.1:9"], {}, notebook, notebook.events.append)


def test_an_answer_to_a_fetch_is_small_unless_the_user_wants_it_otherwise(client: Client, notebook: Notebook) -> None:
    assert client.settings["fetch_max_bytes"] == 8 << 20
    large = Client("group", ["127.0.0.1:9"], {"fetch_max_bytes": 1 << 30}, notebook, notebook.events.append)
    assert large.settings["fetch_max_bytes"] == 1 << 30


# -- without a connection ----------------------------------------------------------------------------------------------


def test_a_client_that_was_never_connected_is_a_member_of_nothing(client: Client) -> None:
    assert client.lost(0.0)
    assert client.generation() == -1
    assert isinstance(client.commit(commits({TP: 1}), -1)[TP].error, PollError)
    client.wake_rebalance()
    assert client.close() is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.poll(),
        lambda client: client.positions(),
        lambda client: client.missing_topics(["user_events"]),
        lambda client: client.places([TP]),
        lambda client: client.offset_of(TP, "earliest"),
    ],
    ids=["poll", "positions", "missing_topics", "places", "offset_of"],
)
def test_a_client_that_was_never_connected_raises_errors_of_ours(
    client: Client, ask: Callable[[Client], object]
) -> None:
    with pytest.raises(PollError, match="not connected"):
        ask(client)


# -- positions ---------------------------------------------------------------------------------------------------------


class Fleeting:
    """A partition whose position the IO thread takes away as soon as somebody has looked at it."""

    def __init__(self) -> None:
        self.looks = 0

    @property
    def position(self) -> Any:
        self.looks += 1
        return SimpleNamespace(offset=5) if self.looks == 1 else None


def test_a_position_that_is_taken_away_meanwhile_harms_nobody(client: Client) -> None:
    assignment = {KafkaTP(*TP): Fleeting(), KafkaTP("other", 1): SimpleNamespace(position=None)}
    client._consumer = SimpleNamespace(_subscription=SimpleNamespace(assignment=assignment))
    assert client.positions() == {TP: 5}


def test_the_end_of_a_partition_stays_known_where_the_session_of_an_earlier_assignment_goes_on(client: Client) -> None:
    """The broker tells only what has changed, and a new assignment knows nothing yet."""
    states = {KafkaTP(*TP): 7, KafkaTP("other", 1): None}
    assignment = SimpleNamespace(assignment=states)
    client._consumer = SimpleNamespace(_subscription=assignment, highwater=lambda tp: states[tp])
    assert client.ends() == {TP: 7}
    states[KafkaTP(*TP)] = None
    assert client.ends() == {TP: 7}


# -- plans -------------------------------------------------------------------------------------------------------------


class Seeks:
    """A consumer that is assigned ``TP``, and refuses what kafka-python refuses."""

    def __init__(self, *, assigned: bool, error: Exception | None = None) -> None:
        self.done: list[tuple[str, Any]] = []
        self._subscription = SimpleNamespace(assignment={KafkaTP(*TP): None} if assigned else {})
        self._error = error

    def seek(self, tp: Any, offset: int) -> None:
        if self._error:
            raise self._error
        if tp not in self._subscription.assignment:
            raise ValueError("Unassigned partition")
        self.done.append(("seek", offset))

    def pause(self, tp: Any) -> None:
        self._subscription.assignment[tp]
        self.done.append(("pause", tp))

    resume = pause


class Owned(NamedTuple):
    """What a plan asks of an ownership."""

    tp: tuple[str, int]


def plan(offset: int = 7) -> PollPlan:
    ownership: Any = Owned(TP)
    return PollPlan(seeks={ownership: offset}, pause=[ownership], resume=[ownership])


def test_a_plan_for_a_partition_that_is_not_assigned_does_nothing(client: Client) -> None:
    client._consumer = consumer = Seeks(assigned=False)
    client._fetching = SimpleNamespace(moved=lambda: None)
    client.apply(plan())
    assert consumer.done == []


def test_a_plan_for_a_partition_that_is_assigned_is_carried_out(client: Client) -> None:
    client._consumer = consumer = Seeks(assigned=True)
    client._fetching = SimpleNamespace(moved=lambda: None)
    client.apply(plan())
    assert [verb for verb, _ in consumer.done] == ["seek", "pause", "pause"]


@pytest.mark.parametrize("error", [ValueError("Offset must be int >= 0"), RuntimeError("the loop"), TypeError("tp")])
def test_other_errors_of_a_seek_are_not_swallowed(client: Client, error: Exception) -> None:
    client._consumer = Seeks(assigned=True, error=error)
    client._fetching = SimpleNamespace(moved=lambda: None)
    with pytest.raises(ClientBrokenError) as broken:
        client.apply(plan())
    assert broken.value.__cause__ is error


def test_a_seek_past_all_offsets_that_can_be_sent_goes_to_the_last_of_them(client: Client) -> None:
    client._consumer = consumer = Seeks(assigned=True)
    client._fetching = SimpleNamespace(moved=lambda: None)
    client.apply(plan(1 << 64))
    assert consumer.done[0] == ("seek", (1 << 63) - 1)


# -- the listener ------------------------------------------------------------------------------------------------------


def test_a_listener_names_the_client_that_it_belongs_to(client: Client, notebook: Notebook) -> None:
    """The runner may have another client by then, which this word is not about."""
    listener = _Listener(client)
    client._consumer = SimpleNamespace(_subscription=SimpleNamespace(assign_from_subscribed=lambda tps: None))
    client._stalls = SimpleNamespace(assigned=lambda tps: None)
    tps = {KafkaTP("b", 1), KafkaTP("a", 0)}
    asyncio.run(listener.on_partitions_assigned(tps))
    asyncio.run(listener.on_partitions_revoked(tps))
    asyncio.run(listener.on_partitions_lost(tps))
    in_order = [("a", 0), ("b", 1)]
    assert notebook.calls == [("assigned", client, in_order), ("revoke", client, in_order), ("lost", client, [])]


def test_a_bug_in_a_listener_is_reported_to_the_runner(
    client: Client, notebook: Notebook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(client: Client, tps: Collection[tuple[str, int]] = ()) -> Any:
        raise ZeroDivisionError

    for name in ("on_assigned", "on_revoke", "on_lost"):
        monkeypatch.setattr(notebook, name, broken)
    client._consumer = SimpleNamespace(_subscription=SimpleNamespace(assign_from_subscribed=lambda tps: None))
    client._stalls = SimpleNamespace(assigned=lambda tps: None)
    listener = _Listener(client)
    asyncio.run(listener.on_partitions_assigned(set()))
    asyncio.run(listener.on_partitions_revoked(set()))
    asyncio.run(listener.on_partitions_lost(set()))
    assert [type(bug) for bug in notebook.bugs] == [ZeroDivisionError] * 3
    assert not caplog.records, "kafka-python's IO thread does not log: a full pipe would stop its heartbeats"


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_setting_that_kafka_python_refuses_is_a_mistake_in_the_configuration(notebook: Notebook) -> None:
    client = Client("group", ["127.0.0.1:9"], {"fetch_max_wait_ms": 10**9}, notebook, notebook.events.append)
    with pytest.raises(ConfigurationError, match="settings of group group"):
        client.connect()
    assert client.lost(0.0)
