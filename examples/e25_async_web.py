"""An async web service whose endpoints and handlers share one event loop, and what lives on it.

    uvicorn examples.e25_async_web:api

"async with app:" in the lifespan starts the app on the loop of the web server, and stops it in good order.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from karafka_lite import App, AsyncContext, Batch

app = App("felt-earthquakes-live", concurrency=10)
places, news = list[str](), asyncio.Condition()


@app.topic("earthquakes.felt")
async def tell(batch: Batch, ctx: AsyncContext) -> None:
    async with news:
        places.extend(message.payload["place"] for message in batch)
        news.notify_all()


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with app:
        yield


api = FastAPI(lifespan=lifespan)


@api.get("/felt/after/{count}")
async def felt_after(count: int) -> list[str]:
    async with news:  # a long poll: no thread waits
        await news.wait_for(lambda: len(places) > count)
    return places[count:]
