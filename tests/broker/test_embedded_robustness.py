"""Whatever is sent to the embedded broker, it serves the next client; and its faults do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import errors
from raw import (
    APIS,
    GroupMember,
    Wire,
    batch_of,
    codes,
    encoded,
    fetch,
    fetch_fields,
    make_topic,
    offset_at,
    produce,
    produce_fields,
    stable,
)
from support.observer import wait_until

from karafka_lite.broker.embedded import EmbeddedBroker
from karafka_lite.errors import ConfigurationError

TOPIC = "topic"


@pytest.fixture
def broker(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[EmbeddedBroker]:
    """A broker that must still serve at the end, and have logged and kept nothing."""
    said: list[Any] = []
    with EmbeddedBroker({TOPIC: 2}, request_timeout_ms=1000, min_session_timeout_ms=1000) as broker:
        broker._loop.set_exception_handler(lambda loop, context: said.append(context))
        yield broker
        serves(broker)
        wait_until(lambda: not broker._server.connections, message="all connections have ended")
        wait_until(lambda: len(tasks(broker)) == 1, message="only the clock's task is left")
        assert not any(log.waiting for topic in broker._topics.topics.values() for log in topic.logs)
    assert not said
    # What aiokafka left to the collector in an earlier test is logged by asyncio in this one. Our loop tells ``said``.
    assert not [record for record in caplog.records if record.name != "asyncio"]
    assert capfd.readouterr() == ("", "")


def serves(broker: EmbeddedBroker) -> None:
    """A normal client can send, read and join."""
    with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
        topic = make_topic(wire)
        assert produce(wire, topic, batch_of(b"value")) == (0, 0)
        assert bytes(fetch(wire, topic, 0).records).endswith(b"value\0")
        member = GroupMember(wire, f"group-of-{topic}")
        stable(member)
        assert member.commit(topic, 1) == 0
        assert member.leave() == 0


def tasks(broker: EmbeddedBroker) -> set[asyncio.Task[Any]]:
    return broker._call(lambda: {task for task in asyncio.all_tasks() if task is not asyncio.current_task()})


def connect(broker: EmbeddedBroker, *, linger: bool = True) -> socket.socket:
    host, _, port = broker.bootstrap_servers.rpartition(":")
    client = socket.create_connection((host, int(port)), 10)
    if not linger:  # a close is a reset, as when a machine goes down
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return client


def is_cut(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


# -- rubbish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 40,  # the start of TLS
        struct.pack(">i", -1),
        struct.pack(">i", 0),
        struct.pack(">i", 7) + b"\0" * 7,
        struct.pack(">i", (100 << 20) + 1),
        struct.pack(">ihhi", 8, 0, 9, 1),
        b"\0\0\0\x08" + b"\xff" * 8,
    ],
    ids=["http", "tls", "negative", "nothing", "too short", "too long", "no header", "unknown"],
)
def test_what_is_no_request_ends_the_connection_at_once(broker: EmbeddedBroker, rubbish: bytes) -> None:
    with connect(broker) as client:
        client.sendall(rubbish)
        began = time.monotonic()
        assert is_cut(client)
        assert time.monotonic() - began < 0.9, "not only after the timeout"


def test_the_versions_that_are_offered_are_those_that_are_answered(broker: EmbeddedBroker) -> None:
    with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
        offered = {api.api_key: (api.min_version, api.max_version) for api in wire.ask("ApiVersions").api_keys}
    assert offered == {api.key: (api.lowest, api.top) for api in APIS.values()}


def test_random_bytes_do_no_harm(broker: EmbeddedBroker) -> None:
    dice = random.Random(1)
    for _ in range(100):
        with connect(broker) as client, contextlib.suppress(ConnectionError):
            client.sendall(dice.randbytes(dice.randrange(1, 400)))


def test_half_a_request_is_waited_for_only_so_long(broker: EmbeddedBroker) -> None:
    whole = encoded("Metadata", topics=None)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(broker)) for _ in range(4)]
        for client, sent in zip(clients, (whole[:2], whole[:9], whole[:-1], whole + whole[:5]), strict=True):
            client.sendall(sent)
        assert all(is_cut(client) for client in clients[:3])
        while clients[3].recv(4096):  # the answer to the first request, then the end
            pass


def test_a_request_may_come_byte_by_byte(broker: EmbeddedBroker) -> None:
    with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire._asked.append(("ListGroups", APIS["ListGroups"].top, 1))
        for byte in encoded("ListGroups", states_filter=[]):
            wire.socket.sendall(bytes([byte]))
        assert wire.receive().error_code == 0


def test_random_bodies_for_every_request_in_every_version_do_no_harm(broker: EmbeddedBroker) -> None:
    dice = random.Random(2)
    began = time.monotonic()
    for api in APIS.values():
        for version in range(api.lowest, api.top + 1):
            with connect(broker) as client, contextlib.suppress(ConnectionError):
                for body in (b"", b"\0" * 64, b"\xff" * 64, b"\x7f" * 64, dice.randbytes(64), dice.randbytes(300)):
                    head = struct.pack(">hhih", api.key, version, 1, -1)
                    client.sendall(struct.pack(">i", len(head + body)) + head + body)
                    client.sendall(struct.pack(">i", len(head + body) + 1) + head + b"\0" + body)
    assert time.monotonic() - began < 20


def valid_requests() -> list[bytes]:
    join = GroupMember(None, "group")._join_fields()  # type: ignore[arg-type]
    part = {"partition_index": 0, "timestamp": 0, "current_leader_epoch": -1}
    create = {"name": "x", "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
    return [
        encoded("ApiVersions", client_software_name="x", client_software_version="1"),
        encoded("Metadata", topics=[{"name": TOPIC}], allow_auto_topic_creation=False),
        encoded("Produce", **produce_fields(TOPIC, batch_of(b"a", b"b"))),
        encoded("Fetch", **fetch_fields(TOPIC, 0, max_wait_ms=20)),
        encoded("ListOffsets", replica_id=-1, isolation_level=0, topics=[{"name": TOPIC, "partitions": [part]}]),
        encoded("CreateTopics", topics=[create], timeout_ms=1000, validate_only=True),
        encoded("JoinGroup", **join),
        encoded("OffsetFetch", group_id="group", topics=None, require_stable=False),
        encoded("LeaveGroup", group_id="g", members=[{"member_id": "a", "group_instance_id": None, "reason": ""}]),
        encoded("InitProducerId", transactional_id="t", transaction_timeout_ms=9, producer_id=-1, producer_epoch=-1),
    ]


def test_valid_requests_with_flipped_bits_or_cut_off_do_no_harm(broker: EmbeddedBroker) -> None:
    dice = random.Random(3)
    for whole in valid_requests():
        for _ in range(40):
            broken = bytearray(whole)
            for _ in range(dice.choice([1, 1, 1, 5])):
                broken[dice.randrange(4, len(broken))] ^= 1 << dice.randrange(8)
            if dice.random() < 0.3:
                del broken[dice.randrange(8, len(broken)) :]
                struct.pack_into(">i", broken, 0, len(broken) - 4)
            with connect(broker) as client, contextlib.suppress(ConnectionError):
                client.sendall(broken)


def test_500_connections_that_are_dropped_at_any_moment_leave_no_trace(broker: EmbeddedBroker) -> None:
    dice = random.Random(4)
    waiting = encoded("Fetch", **fetch_fields(TOPIC, 0, max_wait_ms=60_000))
    joining = GroupMember(None, "dropped", session_ms=1000)  # type: ignore[arg-type]
    join = encoded("JoinGroup", 3, **joining._join_fields())  # a member at once; the next ones make it rebalance
    requests = [*valid_requests(), waiting, join]
    open_now: list[socket.socket] = []
    for _ in range(500):
        client = connect(broker, linger=dice.random() < 0.5)
        open_now.append(client)
        with contextlib.suppress(ConnectionError):
            request = dice.choice(requests)
            client.sendall(request[: dice.choice([len(request), len(request), dice.randrange(len(request))])])
        while len(open_now) > dice.randrange(60):
            open_now.pop(dice.randrange(len(open_now))).close()
    for client in open_now:
        client.close()
    group = broker._groups.groups["dropped"]
    wait_until(lambda: not group.members, message="members that hung up expire")


def test_a_client_that_never_reads_its_answers_delays_no_other_and_fills_no_memory(broker: EmbeddedBroker) -> None:
    broker.create_topic("large")
    with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
        for _ in range(8):
            produce(wire, "large", batch_of(b"x" * 500_000))
        fields = fetch_fields("large", 0, max_bytes=50 << 20, partition_max_bytes=50 << 20)
        with connect(broker) as greedy:
            greedy.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(100):
                    greedy.send(encoded("Fetch", **fields) * 1000)
            serves(broker)
            held = [one._transport.get_write_buffer_size() + len(one._buffer) for one in broker._server.connections]
            assert max(held) < 8 << 20, "one answer, and what was read ahead"


def test_requests_after_one_that_waits_are_answered_in_order(broker: EmbeddedBroker) -> None:
    with (
        contextlib.closing(Wire(broker.bootstrap_servers)) as wire,
        contextlib.closing(Wire(broker.bootstrap_servers)) as other,
    ):
        wire.send("Fetch", **fetch_fields(TOPIC, 0, max_wait_ms=60_000))
        for index in range(500):
            wire.send("Produce", **produce_fields(TOPIC, batch_of(b"%d" % index), 1))
        wait_until(lambda: not wire.answered(), message="it waits")
        produce(other, TOPIC, batch_of(b"value"))
        assert codes(wire.receive()) == [0, 0]
        offsets = [wire.receive().responses[0].partition_responses[0].base_offset for _ in range(500)]
        assert offsets == list(range(500))


PROGRAM = """
import sys
from karafka_lite.broker.embedded import EmbeddedBroker
with EmbeddedBroker({"topic": 1}, retention_bytes=16 << 20) as broker:
    print(broker.bootstrap_servers, flush=True)
    sys.stdin.read()
"""


def test_a_broker_stays_within_100_mb_when_far_more_is_sent_than_it_retains() -> None:
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, **pipes) as process:
        assert process.stdout
        with contextlib.closing(Wire(process.stdout.readline().strip())) as wire:
            batch = batch_of(b"x" * 900_000)
            for _ in range(100):
                assert produce(wire, TOPIC, batch)[0] == 0
            code, first = offset_at(wire, TOPIC, -2)
            assert (code, first) == (0, 100 - (16 << 20) // len(batch))
            assert fetch(wire, TOPIC, 0).error_code == 1
            part = fetch(wire, TOPIC, first, max_bytes=50 << 20, partition_max_bytes=50 << 20)
            assert len(part.records) < 8 << 20
            status = Path(f"/proc/{process.pid}/status")
            if status.exists():
                (peak,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
                assert int(peak) < 100_000
        _, said = process.communicate("", timeout=20)
    assert process.returncode == 0
    assert said.strip() == "topic-0 is larger than 16777216 bytes; its oldest messages are dropped", (
        "once, and nothing else"
    )


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wire(broker: EmbeddedBroker) -> Iterator[Wire]:
    with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
        yield wire


@pytest.mark.parametrize("fault", [7, errors.RequestTimedOutError])
def test_a_fault_is_answered_as_often_as_it_was_ordered_and_nothing_is_done(
    broker: EmbeddedBroker, wire: Wire, fault: Any
) -> None:
    broker.fail("Produce", fault, times=2)
    given = [produce(wire, TOPIC, batch_of(b"value")) for _ in range(3)]
    assert given == [(7, -1), (7, -1), (0, 0)]


def test_every_request_can_be_spoiled(broker: EmbeddedBroker) -> None:
    for api in APIS:
        broker.fail(api, 7)
        broker.fail(api, "lose")
        with connect(broker) as client:
            client.sendall(encoded(api) * 2)
            while client.recv(4096):  # the first is answered, but for Produce with acks=0
                pass


def test_drop_closes_the_connection_before_the_request_is_executed_and_lose_after_it(broker: EmbeddedBroker) -> None:
    broker.fail("Produce", "drop")
    broker.fail("Produce", "lose")
    for done in (0, 1):
        with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
            wire.send("Produce", **produce_fields(TOPIC, batch_of(b"value")))
            assert wire.is_cut()
        with contextlib.closing(Wire(broker.bootstrap_servers)) as wire:
            assert offset_at(wire, TOPIC, -1) == (0, done)


def test_seconds_make_an_answer_late_and_hold_up_this_connection_only(broker: EmbeddedBroker, wire: Wire) -> None:
    broker.fail("Metadata", 0.3)
    began = time.monotonic()
    wire.send("Metadata", topics=None)
    serves(broker)
    wire.receive()
    assert 0.29 < time.monotonic() - began < 5


def test_a_fault_of_a_join_keeps_the_member_out(broker: EmbeddedBroker, wire: Wire) -> None:
    broker.fail("JoinGroup", errors.CoordinatorNotAvailableError)
    member = GroupMember(wire, "group")
    member.send_join()
    assert member.joined().error_code == 15
    assert member.state() == "Dead"
    assert member.enter().error_code == 0


@pytest.mark.parametrize(
    ("api", "fault", "says"),
    [
        ("Produced", "drop", "Produce"),
        ("produce", 1, "Produce"),
        ("Zebra", 1, "ApiVersions"),
        ("Fetch", "dorp", "drop"),
    ],
)
def test_faults_that_do_not_exist_are_refused_with_what_does(
    broker: EmbeddedBroker, api: str, fault: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        broker.fail(api, fault)


def test_a_broker_that_was_down_is_back_on_its_port_with_its_messages_and_members(broker: EmbeddedBroker) -> None:
    before = broker.bootstrap_servers
    with contextlib.closing(Wire(before)) as wire:
        produce(wire, TOPIC, batch_of(b"value"))
        member = GroupMember(wire, "group", session_ms=1000)
        stable(member)
        assert member.commit(TOPIC, 1) == 0
        broker.down()
        assert wire.is_cut()
    with pytest.raises(ConnectionRefusedError):
        Wire(before)
    away = time.monotonic() + 1.2
    wait_until(lambda: time.monotonic() > away, message="longer than the session")
    broker.up()
    broker._call(broker._groups.advance)  # its clock looks at the members
    assert broker.bootstrap_servers == before
    with contextlib.closing(Wire(before)) as wire:
        member.wire = wire
        assert member.heartbeat() == 0, "a whole session to come back"
        assert member.committed(TOPIC) == 1
        assert offset_at(wire, TOPIC, -1) == (0, 1)


def test_who_waited_when_the_broker_went_down_can_join_again(broker: EmbeddedBroker) -> None:
    with (
        contextlib.closing(Wire(broker.bootstrap_servers)) as one,
        contextlib.closing(Wire(broker.bootstrap_servers)) as two,
    ):
        first, second = GroupMember(one, "group"), GroupMember(two, "group")
        stable(first)
        second.get_id()
        second.send_join()
        wait_until(lambda: first.heartbeat() == 27, message="the group rebalances")
        two.send("Fetch", **fetch_fields(TOPIC, 0, max_wait_ms=60_000))
        broker.down()
        broker.up()
    with (
        contextlib.closing(Wire(broker.bootstrap_servers)) as one,
        contextlib.closing(Wire(broker.bootstrap_servers)) as two,
    ):
        first.wire, second.wire = one, two
        assert first.heartbeat() == 27
        second.send_join()
        first.send_join()
        assert first.joined().error_code == second.joined().error_code == 0


def test_a_member_that_is_kicked_learns_of_it(broker: EmbeddedBroker, wire: Wire) -> None:
    member = GroupMember(wire, "group")
    stable(member)
    broker.kick("group", member.id)
    assert member.heartbeat() == 25
    with pytest.raises(KeyError):
        broker.kick("group", member.id)
    with pytest.raises(KeyError):
        broker.kick("no group", member.id)


def test_a_port_that_is_in_use_or_invalid_is_refused_with_the_reason() -> None:
    with EmbeddedBroker() as first:
        port = int(first.bootstrap_servers.rpartition(":")[2])
        with pytest.raises(
            ConfigurationError, match=rf"port {port} on .* is already in use.*use another one, for example {port + 1}"
        ):
            EmbeddedBroker(port=port).start()
    for port in (70_000, -1):
        with pytest.raises(ConfigurationError, match=rf"port {port} on .* cannot be used.*use another one"):
            EmbeddedBroker(port=port).start()


def test_topics_that_cannot_be_created_are_refused_and_leave_no_thread() -> None:
    for topics, says in (
        ({"a b": 1}, "not a valid topic name"),
        ({"a": 0}, "at least 1 partition, got 0"),
        (["a.b", "a_b"], "collides"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            EmbeddedBroker(topics).start()


def test_a_broker_that_is_not_running_reports_it(recwarn: pytest.WarningsRecorder) -> None:
    broker = EmbeddedBroker()
    broker.stop()
    with pytest.raises(RuntimeError, match="is not running"):
        broker.create_topic("topic")
    broker.start()
    broker.stop()
    broker.stop()
    with pytest.raises(RuntimeError, match="is not running"):
        broker.fail("Produce", 7)
    assert not recwarn.list
