"""Makes the topic "earthquakes" and sends examples/earthquakes.jsonl to it: python examples/feed.py [HOST:PORT]."""

import os
import sys
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError, TopicAlreadyExistsError

broker = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("KARAFKA_LITE_BOOTSTRAP_SERVERS", "localhost:9092")
try:
    admin = KafkaAdminClient(bootstrap_servers=broker, bootstrap_timeout_ms=5000)
except KafkaTimeoutError:
    sys.exit(f"no broker answers at {broker}; start one, or type: python examples/feed.py HOST:PORT")
try:
    admin.create_topics([NewTopic("earthquakes", num_partitions=1, replication_factor=1)])
except TopicAlreadyExistsError:
    print("the topic earthquakes exists already: sending to it once more")
admin.close()

lines = (Path(__file__).parent / "earthquakes.jsonl").read_bytes().splitlines()
producer = KafkaProducer(bootstrap_servers=broker, acks="all")
for line in lines:
    producer.send("earthquakes", line)
producer.flush()
producer.close()
print(f"sent {len(lines)} earthquakes to {broker}")
