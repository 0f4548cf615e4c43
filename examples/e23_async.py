"""Async handlers: a library of asyncio, and many partitions that wait at the same time.

    karafka-lite run examples.e23_async:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

The coroutines of all partitions run on one event loop, each partition's one after the other. What waits is awaited; a
call that blocks would hold up all others, and belongs into "await asyncio.to_thread(...)" or into a plain handler.
"""

import asyncio

from karafka_lite import App, AsyncContext, Batch

app = App("earthquake-sirens", concurrency=100)
wanted: "asyncio.Queue[float]"


@app.on_start
async def open_pool() -> None:  # here: asyncpg.create_pool(...), httpx.AsyncClient(), ...
    global wanted
    wanted = asyncio.Queue()


@app.topic("earthquakes", manual_offsets=True)
async def alert(batch: Batch, ctx: AsyncContext) -> None:
    for message in ctx.each(batch):
        if message.payload["magnitude"] >= 6:
            await wanted.put(message.payload["magnitude"])
            partition, offset = await ctx.produce("earthquakes.alerts", message.payload, key=message.key)
            print(f"alert {offset} of partition {partition}: {message.payload['place']}", flush=True)


@app.on_shutdown(alert)
async def say(ctx: AsyncContext) -> None:
    ours = await ctx.commit_offsets(sync=True)
    print(f"partition {ctx.partition} is committed: {ours}; {wanted.qsize()} alerts so far", flush=True)
