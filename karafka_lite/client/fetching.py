"""How a consumer fetches: ahead of who reads, at the cost of what has changed, and without keeping a busy partition
waiting.

A poll takes what has come, and waits only where nothing has. kafka-python's own hands over to its thread three times,
and waits for it each time: whether the coordinator is known, to send requests, and for their answers. Here its thread
asks a broker again as soon as an answer has come, and a poll has it ask for what was read to the end meanwhile, without
waiting for it. So a request is on its way while the poller reads. What is fetched ahead stays bounded: there is one
request at a time for each broker, and it leaves out partitions of which something is left.

kafka-python 3.0 walks over all partitions several times for each poll and each fetch request, some 30 us for each of
them: a consumer of 500 partitions to which nothing comes would need 4 % of a core. Here a poll and a request for which
nothing has changed since the ones before leave that out. Whether something has changed is not remembered but looked at:
``_state`` copies all that these walks read, which takes 0.1 us for each partition.

While partitions are paused, nothing ends a fetch that waits for news when one is to be resumed. So it waits an eighth
of the time that has passed without a pause or a resume: a queue that takes a minute to get half empty is full enough
for a while. 20 ms at any time would be 50 fetches a second for the sake of one slow handler.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_cures.py:

    consumer._fetcher._create_fetch_requests            a fetch for idle partitions keeps a busy one waiting
    consumer._fetcher._nodes_with_pending_fetch_requests, _session_handlers, and the fields of a FetchRequest
    consumer._fetcher._clear_pending_fetch_request      a fetch that fails at once is repeated without a pause
    consumer._fetcher.fetched_records, _send_fetches_async, _completed_fetches, _cached_log_truncation,
        _cached_list_offsets_exception, reset_offsets_if_needed, maybe_validate_positions, validate_offsets_if_needed
                                                        what ``KafkaConsumer.poll`` is made of
    consumer._fetcher._next_partition_records           a pause within a fetched chunk blocks the partition for ever
    consumer._fetcher._next_in_line_exception_metadata  how a poll is ended that has taken enough bytes
    consumer._coordinator.coordinator_id, poll, poll_heartbeat; consumer._net, and its _exception
    all that ``_state`` reads
"""

from __future__ import annotations

import copy
import threading
import time
from contextlib import suppress
from operator import attrgetter
from typing import Any

from karafka_lite.client.reader import PollIsFullError

BESIDE_MS = 20  # how long a fetch may wait for news that leaves out partitions, which wait for the next one
OF_A_REST = 1 / 8
AFTER_WHO_WAITS_S = 0.001

_OF_A_PARTITION = attrgetter("_position", "paused", "_awaiting_validation", "_preferred_read_replica")


class Fetching:
    """The fetching of one KafkaConsumer. ``poll`` and ``moved`` are the poller's; ``wake`` is anybody's.

    The rest runs on kafka-python's IO thread.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._fetcher = consumer._fetcher
        self._subscription = consumer._subscription
        self._max_wait_ms: int = self._fetcher.config["fetch_max_wait_ms"]
        self._moved_at = time.monotonic()  # when a partition was paused or resumed
        self._left_out = self._paused = (
            0  # partitions of which the requests leave out the news, and those of them paused
        )
        self._settled: Any = None  # the leaders and partitions that a poll has looked at last
        self._waits = False  # the poller waits for news
        self._news = threading.Event()  # something has come, or the poller is wanted elsewhere
        self._asking = False  # whether kafka-python's thread is going to send requests
        self._failure: Exception | None = None  # why it could not; kafka-python's own thread may have died, too
        self._requests: dict[Any, tuple[Any, Any]] = {}  # the last one to each broker that kafka-python made
        self._requests_of: Any = None  # the state in which they were made
        self._complete = False  # whether they ask for all partitions that can be asked for in that state
        self._cluster = consumer._cluster
        self._metadata: Any = None
        self._leaders = 0  # how often a leader may have changed
        self._stock_update_leader = self._cluster.update_partition_leader
        self._cluster.update_partition_leader = self._update_leader
        self._stock_create = self._fetcher._create_fetch_requests
        self._fetcher._create_fetch_requests = self._create
        self._stock_clear = self._fetcher._clear_pending_fetch_request
        self._fetcher._clear_pending_fetch_request = self._clear

    def moved(self) -> None:
        """A partition was paused or resumed."""
        self._moved_at = time.monotonic()
        current = self._fetcher._next_partition_records
        if current and self._subscription.is_paused(current.topic_partition):
            current.rest()

    def wake(self) -> None:
        """Have a poll that waits return, or else the next one that would wait. From any thread."""
        self._news.set()

    def poll(self, timeout_ms: int) -> dict[Any, list[Any]]:
        """What has come, ``max_poll_records`` at most; else it waits, for ``timeout_ms`` or until ``wake``.

        It does what ``KafkaConsumer.poll`` does, and leaves out what nothing calls for.
        """
        if not self._look_after_group(timeout_ms):
            return {}
        self._look_after_positions()
        failure, self._failure = self._consumer._net._exception or self._failure, None
        if failure is not None:
            raise failure
        self._tidy()
        most = self._consumer.config["max_poll_records"]
        records, _ = self._fetcher.fetched_records(most)
        asked = self._fetcher._nodes_with_pending_fetch_requests
        if not self._asking and len(asked) < len(self._cluster.brokers()) and self._fetcher._fetchable_partitions():
            self._asking = True
            self._consumer._net.call_soon_threadsafe(self._ask)
        if not records:
            if not asked:  # nothing may ever come, and what is in the way may pass without a word
                timeout_ms = min(timeout_ms, self._consumer.config["retry_backoff_ms"])
            self._waits = True
            self._news.wait(timeout_ms / 1000)
            self._waits = False
            self._news.clear()
            records, _ = self._fetcher.fetched_records(most)
        found: dict[Any, list[Any]] = records
        return found

    def _look_after_group(self, timeout_ms: int) -> bool:
        """Whether the coordinator is known; looks for it."""
        coordinator, client = self._consumer._coordinator, self._consumer._client
        node = coordinator.coordinator_id
        if node is None or client.is_disconnected(node):
            return bool(coordinator.poll(timeout_ms=timeout_ms))
        coordinator.poll_heartbeat()  # raises what has ended the heartbeats
        return True

    def _look_after_positions(self) -> None:
        """Have those validated whose leader has changed; raise what an earlier look has found out."""
        fetcher, states = self._fetcher, list(self._subscription.assignment.values())
        seen = self._leaders_seen(), states
        news = fetcher._cached_log_truncation or fetcher._cached_list_offsets_exception
        if seen == self._settled and not news and all(map(_needs_nothing, states)):
            return
        self._settled = seen
        fetcher.reset_offsets_if_needed()
        fetcher.maybe_validate_positions()
        fetcher.validate_offsets_if_needed()

    def _tidy(self) -> None:
        """Forget a reader that is through, which would block its partition for ever after a pause, and that the poll
        before was full."""
        fetcher = self._fetcher
        if fetcher._next_partition_records is not None and not fetcher._next_partition_records:
            fetcher._next_partition_records = None
        left = fetcher._next_in_line_exception_metadata
        if left is not None and isinstance(left.exception, PollIsFullError):
            fetcher._next_in_line_exception_metadata = None

    async def _ask(self) -> None:
        """Send requests to the brokers that have none. On kafka-python's thread."""
        self._asking = False
        try:
            await self._fetcher._send_fetches_async()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next poll raises it
            self._failure = error
            self._news.set()

    def _state(self) -> tuple[Any, ...]:
        """All that decides what is fetched, and how: equal as long as nothing has changed."""
        fetcher, assignment = self._fetcher, self._subscription.assignment
        current = fetcher._next_partition_records
        return (
            # Nothing changes the assignment meanwhile: that happens in a join, and while it joins this is not called.
            list(assignment),
            list(map(_OF_A_PARTITION, assignment.values())),
            self._leaders_seen(),
            [fetch.topic_partition for fetch in fetcher._completed_fetches.copy()],
            current.topic_partition if current else None,
            list(fetcher._paused_completed_fetches),
            list(fetcher._paused_partition_records),
        )

    def _leaders_seen(self) -> int:
        """The same as long as no leader has changed."""
        if (metadata := self._cluster._partitions) is not self._metadata:
            self._metadata = metadata
            self._leaders += 1
        return self._leaders

    def _update_leader(self, *arguments: Any) -> bool:
        """A broker says in its answer to a fetch that another one leads a partition now."""
        changed = bool(self._stock_update_leader(*arguments))
        self._leaders += changed
        return changed

    def _create(self) -> dict[Any, tuple[Any, Any]]:
        """The fetch requests that can be sent now, by broker, each with the offsets that it asks for.

        There is one request at a time for each broker. It leaves out partitions that are paused, and those of which
        something is left from the request before: these would wait ``fetch_max_wait_ms`` for every few thousand
        records, and the paused ones when they are resumed.
        """
        fetcher, state = self._fetcher, self._state()
        if state != self._requests_of:
            self._requests, self._requests_of, self._complete = {}, state, False
        if self._complete and (repeated := self._repeated()) is not None:
            return repeated
        wanted = fetcher._fetchable_partitions()
        if fetcher._next_partition_records and all(map(self._is_at_its_end, wanted)):
            return {}  # the next polls take what is left (it is not paused, or it was parked); then all are asked for
        self._left_out = len(state[1]) - len(wanted)
        self._paused = sum(paused for _, paused, _, _ in state[1])
        fetcher.config["fetch_max_wait_ms"] = self._wait_ms()
        requests: dict[Any, tuple[Any, Any]] = self._stock_create()
        self._requests.update(requests)
        self._complete = sum(len(offsets) for _, offsets in self._requests.values()) == len(wanted)
        return requests

    def _repeated(self) -> dict[Any, tuple[Any, Any]] | None:
        """The last requests once more, to the brokers that can take one; None: kafka-python has to make them.

        In a session (KIP-227) the broker remembers what was asked for, and a request names only what has changed.
        """
        requests = {}
        for node, (last, offsets) in self._requests.items():
            if node in self._fetcher._nodes_with_pending_fetch_requests or self._is_held_off(node):
                continue
            request = copy.copy(last)
            request.max_wait_ms = self._wait_ms()
            if (session := self._fetcher._session_handlers.get(node)) is not None:
                now = session.next_metadata
                if not now.is_full:
                    request.topics, request.forgotten_topics_data = [], []
                elif last.session_epoch > 0:
                    return None  # the session is over, and this request does not name all partitions
                request.session_id, request.session_epoch = now.session_id, now.epoch
            requests[node] = (request, offsets)
        return requests

    def _clear(self, node: Any, answer: Any) -> None:
        """A fetch has ended: ``node`` is asked again at once; in a moment, where it has answered nothing but errors.

        kafka-python asks a broker that answers so at once a thousand times a second.
        """
        if isinstance(answer, Exception) or self._fetcher._completed_fetches:
            self._news.set()
        if _is_in_vain(answer):
            rest_s = self._consumer.config["retry_backoff_ms"] / 1000
            with suppress(RuntimeError):  # closed meanwhile
                self._consumer._net.call_later(rest_s, lambda: self._asks_again(node, answer))
                return
        self._asks_again(node, answer)

    def _asks_again(self, node: Any, answer: Any) -> None:
        if isinstance(answer, Exception):  # the next poll asks
            self._stock_clear(node, answer)
            return
        self._asking = True  # before it counts as answered: no poll asks as well
        self._stock_clear(node, answer)
        # A poll that waits goes first, and the handler: to ask takes half a millisecond, in which this thread keeps the
        # interpreter.
        self._consumer._net.call_later(AFTER_WHO_WAITS_S if self._waits else 0, self._ask)

    def _wait_ms(self) -> int:
        """How long a fetch may wait for news."""
        if not self._left_out:
            return self._max_wait_ms
        if self._left_out > self._paused:  # something is left of the others
            return min(BESIDE_MS, self._max_wait_ms)
        rest_ms = int((time.monotonic() - self._moved_at) * 1000 * OF_A_REST)
        return min(self._max_wait_ms, max(BESIDE_MS, rest_ms))

    def _is_held_off(self, node: Any) -> bool:
        client = self._consumer._client
        return bool(client.connection_delay(node) > 0 or client.throttle_delay(node) > 0)

    def _is_at_its_end(self, tp: Any) -> bool:
        state = self._subscription.assignment[tp]
        return bool(state.highwater == state.position.offset)


def _is_in_vain(answer: Any) -> bool:
    partitions = [partition for topic in getattr(answer, "responses", None) or () for partition in topic.partitions]
    return any(partition.error_code for partition in partitions) and not any(each.records for each in partitions)


def _needs_nothing(state: Any) -> bool:
    return state._position is not None and not state._awaiting_validation
