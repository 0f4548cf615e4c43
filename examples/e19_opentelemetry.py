"""A span and two metrics for each batch, with OpenTelemetry.

    karafka-lite run examples.e19_opentelemetry:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

Here they are printed; in production, use exporters that send them.
"""

import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from karafka_lite import App, Batch, Context
from karafka_lite.events import CallEnded, Event

traces, metrics = TracerProvider(), MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())])
traces.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
tracer, meter = traces.get_tracer("earthquakes"), metrics.get_meter("earthquakes")
messages, seconds = meter.create_counter("messages"), meter.create_histogram("handler_seconds", "s")
app = App("earthquake-traces")


@app.topic("earthquakes")
def count(batch: Batch, ctx: Context) -> None:
    print(f"{len(batch)} earthquakes")


@app.observe
def watch(event: Event) -> None:
    if isinstance(event, CallEnded) and event.hook is None:
        labels = {"messaging.destination.name": event.topic, "messaging.consumer.group.name": event.group_id}
        messages.add(event.messages, labels)
        seconds.record(event.seconds, labels)
        began = time.time_ns() - int(event.seconds * 1e9)
        span = tracer.start_span(f"process {event.topic}", start_time=began, attributes=labels)
        if event.error is not None:
            span.record_exception(event.error)
        span.end()
