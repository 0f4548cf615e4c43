"""Avro with the id of its schema in the value, as Confluent's serializers write it: a zero, 4 bytes, the record.

    pytest examples/e14_avro_value.py

SCHEMAS stands for a schema registry.
"""

from io import BytesIO
from struct import pack, unpack
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from karafka_lite import App
from karafka_lite.testing import TestClient

SCHEMAS = {7: parse_schema({"type": "record", "name": "Quake", "fields": [{"name": "magnitude", "type": "double"}]})}


def from_avro(value: bytes) -> Any:
    magic, schema_id = unpack(">bI", value[:5])
    if magic == 0:
        return schemaless_reader(BytesIO(value[5:]), SCHEMAS[schema_id], None)
    raise ValueError(f"it begins with {magic}, not with 0")


def to_avro(value: Any) -> bytes:
    schemaless_writer(record := BytesIO(), SCHEMAS[7], value)
    return pack(">bI", 0, 7) + record.getvalue()


app = App("avro-values", serializer=to_avro)
copy = app.topic("quakes", deserializer=from_avro)(lambda batch, ctx: ctx.produce("copies", batch[0].payload))


def test_avro_comes_in_and_goes_out() -> None:
    with TestClient(app) as client:
        client.send("quakes", {"magnitude": 3.5})
        client.run(raise_errors=True)
        assert from_avro(client.produced("copies")[0].value or b"") == {"magnitude": 3.5}
