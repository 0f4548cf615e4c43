"""A web service that sends messages from an endpoint, and reads them in the same process.

    uvicorn examples.e16_web:api

An endpoint with "def" is called in a thread of its own, where it may wait; with "async def" it would hold up the others.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from karafka_lite import App, Batch, Context

app = App("felt-earthquakes")
reports: list[str] = []


@app.topic("earthquakes.felt")
def count(batch: Batch, ctx: Context) -> None:
    reports.extend(message.payload["place"] for message in batch)


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    with app:  # from before the first request until after the last one
        yield


api = FastAPI(lifespan=lifespan)


@api.post("/felt/{place}")
def felt(place: str) -> dict[str, int]:
    return {"offset": app.produce("earthquakes.felt", {"place": place}, key=place).result(timeout=10)[1]}


@api.get("/felt")
def felt_so_far() -> list[str]:
    return reports
