"""What a record costs to decode, without Kafka: kafka-python's own reader beside ours.

    python tests/benchmarks/decode.py
    python tests/benchmarks/decode.py --quick    a second: does the program still work?

Records are taken 500 at a time from batches as kafka-python's producer fills them, and thrown away. The readers take
turns, so that a noisy moment of the machine falls on all of them; medians of CPU time, with the lowest and the highest.
Once with Python's own threshold for the garbage collector's first generation, once with 10,000: each record is an
object that it looks at.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import struct
import time
from typing import Any

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from karafka_lite.client import reader as decode

PLACE = TopicPartition("t", 0)
SIZES = (16, 200)
THRESHOLDS = (gc.get_threshold()[0], 10_000)
TAKE = 500
BATCH_SIZE = 16_384


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="few records and turns; such figures say nothing")
    quick = options.parse_args().quick
    readers: dict[str, Any] = {"stock": Fetcher.PartitionRecords, "pure": decode.Reader}
    if decode.choose_reader() is not decode.Reader:
        readers["compiled"] = decode.choose_reader()
    print(f"decoder chosen here: {decode.choose_reader().name}\n")
    print("| value | collector | reader   | µs CPU/record | min   | max   |")
    print("|------:|----------:|:---------|--------------:|------:|------:|")
    for size, threshold in itertools.product(SIZES, THRESHOLDS):
        gc.set_threshold(threshold)
        data = fetched(size, records=5_000 if quick else 100_000)
        runs = [{name: cost_us(reader, data) for name, reader in readers.items()} for _ in range(2 if quick else 15)]
        for name in readers:
            costs = [run[name] for run in runs]
            figures = f"{statistics.median(costs):13.3f} | {min(costs):5.3f} | {max(costs):5.3f}"
            print(f"| {size:3d} B | {threshold:9,d} | {name:8} | {figures} |")


def fetched(size: int, records: int) -> bytes:
    """The answer to a fetch: as many batches as it takes."""
    data = bytearray()
    offset = 0
    while offset < records:
        builder = MemoryRecordsBuilder(2, compression_type=0, batch_size=BATCH_SIZE)
        while builder.append(1_700_000_000_000 + offset // 1000, None, bytes(size)):
            pass
        builder.close()
        batch = builder.buffer()
        struct.pack_into(">q", batch, 0, offset)
        data += batch
        offset += builder.next_offset()
    return bytes(data)


def cost_us(kind: Any, data: bytes) -> float:
    """CPU time for one record, checksums and all."""
    reader = kind(0, PLACE, MemoryRecords(data))
    taken = 0
    begin = time.process_time()
    while reader:
        taken += len(reader.take(TAKE))
    return (time.process_time() - begin) / taken * 1e6


if __name__ == "__main__":
    main()
