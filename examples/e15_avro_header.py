"""Avro with the id of its schema in a header: a deserializer whose parameter is named message gets the Message.

    pytest examples/e15_avro_header.py

SCHEMAS stands for a schema registry.
"""

from dataclasses import dataclass
from io import BytesIO

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from karafka_lite import App, Batch, Context, Message
from karafka_lite.testing import TestClient

app = App("avro-headers")
SCHEMAS = {b"7": parse_schema({"type": "record", "name": "Quake", "fields": [{"name": "magnitude", "type": "double"}]})}


@dataclass
class Quake:
    magnitude: float


def from_avro(message: Message) -> Quake:  # never called for a tombstone
    schema, value = SCHEMAS[message.header("schema-id", b"")], BytesIO(message.value or b"")
    return Quake(**schemaless_reader(value, schema, None))  # type: ignore[arg-type]


@app.topic("quakes", deserializer=from_avro)
def copy(batch: Batch[Quake], ctx: Context) -> None:
    ctx.produce("copies", batch[0].payload)


def test_the_header_says_how_to_read_the_value() -> None:
    schemaless_writer(record := BytesIO(), SCHEMAS[b"7"], {"magnitude": 5.5})
    with TestClient(app) as client:
        client.send("quakes", record.getvalue(), headers=[("schema-id", b"7")])
        client.run(raise_errors=True)
        assert client.produced("copies")[0].payload == {"magnitude": 5.5}
