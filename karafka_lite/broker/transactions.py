"""The transaction coordinator of the embedded broker: producer ids, epochs for fencing, commit and abort."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kafka import errors

from karafka_lite.broker.groups import Groups, Offset
from karafka_lite.broker.log import Header
from karafka_lite.broker.topics import Topics, by_partition
from karafka_lite.broker.wire import Answer, Call, Handler
from karafka_lite.messages import TopicPartition

MAX_TIMEOUT_MS = 900_000
MAX_EPOCH = (1 << 15) - 1


@dataclass
class Transaction:
    """The state of one transactional id; ``committed``: how its last transaction ended (None: it had none)."""

    producer_id: int
    timeout_s: float
    epoch: int = 0
    deadline: float | None = None  # None: no transaction is open
    committed: bool | None = None
    partitions: set[TopicPartition] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    offsets: dict[str, dict[TopicPartition, Offset]] = field(default_factory=lambda: defaultdict(dict))

    def begin(self) -> None:
        if self.deadline is None:
            self.deadline = asyncio.get_running_loop().time() + self.timeout_s


class Transactions:
    """All transactional ids. Refused requests raise Kafka's own errors."""

    def __init__(self, topics: Topics, groups: Groups) -> None:
        self._topics = topics
        self._groups = groups
        self._ids = itertools.count(1000)
        self._known: dict[str, Transaction] = {}
        topics.check_transaction = self._check_write
        groups.unstable = self._unstable

    def handlers(self) -> dict[str, tuple[int, Handler]]:
        return {
            "InitProducerId": (4, self._init_producer_id),
            "AddPartitionsToTxn": (3, self._add_partitions),
            "AddOffsetsToTxn": (3, self._add_offsets),
            "TxnOffsetCommit": (3, self._commit_offsets),
            "EndTxn": (3, self._end),
        }

    def advance(self) -> None:
        """Abort transactions that have been open for too long, and fence their producers."""
        now = asyncio.get_running_loop().time()
        for transaction in self._known.values():
            if transaction.deadline is not None and now >= transaction.deadline:
                transaction.epoch += 1
                self._finish(transaction, commit=False)

    def _init_producer_id(self, call: Call) -> Answer:
        r = call.request

        def begin() -> tuple[int, int]:
            if r.transactional_id is None:
                return next(self._ids), 0
            if not r.transactional_id:
                raise errors.InvalidRequestError()
            if not 0 < r.transaction_timeout_ms <= MAX_TIMEOUT_MS:
                raise errors.InvalidTransactionTimeoutError()
            known = self._known.get(r.transactional_id)
            if call.version >= 3 and r.producer_id >= 0 and known is not None:
                self._get(r.transactional_id, r.producer_id, r.producer_epoch, call.version >= 4)
            if known is not None and known.deadline is not None:
                known.epoch += 1
                self._finish(known, commit=False)
            elif known is not None:
                known.epoch += 1
            if known is None or known.epoch >= MAX_EPOCH:
                known = self._known[r.transactional_id] = Transaction(next(self._ids), 0.0)
            known.committed, known.timeout_s = None, r.transaction_timeout_ms / 1000
            return known.producer_id, known.epoch

        answer, given = call.attempt(begin)
        producer_id, epoch = given or (-1, -1)
        return {**answer, "producer_id": producer_id, "producer_epoch": epoch}

    def _add_partitions(self, call: Call) -> Answer:
        r = call.request
        partitions = [(topic.name, partition) for topic in r.v3_and_below_topics for partition in topic.partitions]

        def add() -> None:
            ids = r.v3_and_below_transactional_id, r.v3_and_below_producer_id, r.v3_and_below_producer_epoch
            transaction = self._get(*ids, call.version >= 2)
            transaction.begin()
            transaction.partitions.update(partitions)

        known = {tp: call.attempt(self._topics.log, *tp)[0]["error_code"] for tp in partitions}
        if any(known.values()):  # all or none
            codes = {tp: code or errors.OperationNotAttemptedError.errno for tp, code in known.items()}
        else:
            codes = dict.fromkeys(partitions, call.attempt(add)[0]["error_code"])
        topics = [(t.name, [{"partition_index": p, "partition_error_code": codes[t.name, p]} for p in t.partitions])
                  for t in r.v3_and_below_topics]  # fmt: skip
        return {"results_by_topic_v3_and_below": [{"name": n, "results_by_partition": parts} for n, parts in topics]}

    def _add_offsets(self, call: Call) -> Answer:
        def add() -> None:
            transaction = self._of(call, 2)
            transaction.begin()
            transaction.groups.add(call.request.group_id)

        return call.attempt(add)[0]

    def _commit_offsets(self, call: Call) -> Answer:
        r = call.request

        def commit(topic: str, part: Any) -> None:
            transaction = self._of(call, 2)
            if r.group_id not in transaction.groups:
                raise errors.InvalidTxnStateError()
            if call.version >= 3 and (r.member_id or r.generation_id >= 0):
                self._groups.get(r.group_id).check_commit(r, r.generation_id, asyncio.get_running_loop().time())
            transaction.offsets[r.group_id].update([self._groups.check_offset(topic, part)])

        return {"topics": by_partition(r.topics, lambda topic, part: call.attempt(commit, topic, part)[0])}

    def _end(self, call: Call) -> Answer:
        def end() -> None:
            transaction, commit = self._of(call, 2), bool(call.request.committed)
            if transaction.deadline is not None:
                self._finish(transaction, commit=commit)
            elif transaction.committed is not commit:  # otherwise the producer repeats it: the response was lost
                raise errors.InvalidTxnStateError()

        return call.attempt(end)[0]

    def _finish(self, transaction: Transaction, *, commit: bool) -> None:
        for tp in transaction.partitions:
            self._topics.end_transaction(tp, transaction.producer_id, transaction.epoch, commit=commit)
        if commit:
            for group_id, offsets in transaction.offsets.items():
                self._groups.get(group_id).offsets.update(offsets)
        transaction.deadline, transaction.committed = None, commit
        transaction.partitions, transaction.groups, transaction.offsets = set(), set(), defaultdict(dict)

    def _of(self, call: Call, fenced_from: int) -> Transaction:
        r = call.request
        return self._get(r.transactional_id, r.producer_id, r.producer_epoch, call.version >= fenced_from)

    def _get(self, transactional_id: str, producer_id: int, epoch: int, knows_fenced: bool) -> Transaction:
        transaction = self._known.get(transactional_id)
        if transaction is None or transaction.producer_id != producer_id:
            raise errors.InvalidProducerIdMappingError()
        if transaction.epoch != epoch:
            raise errors.ProducerFencedError() if knows_fenced else errors.InvalidProducerEpochError()
        return transaction

    def _check_write(self, header: Header, tp: TopicPartition) -> None:
        known = next((one for one in self._known.values() if one.producer_id == header.producer_id), None)
        if known is None:
            raise errors.InvalidProducerIdMappingError()
        if known.epoch != header.producer_epoch:
            raise errors.InvalidProducerEpochError()
        if tp not in known.partitions:
            raise errors.InvalidTxnStateError()

    def _unstable(self, group_id: str) -> Iterable[TopicPartition]:
        return [tp for one in self._known.values() for tp in one.offsets.get(group_id, ())]
