"""The other half of e13_service.py: a Router, which its App includes; models of pydantic in and out."""

from datetime import datetime

from pydantic import BaseModel

from karafka_lite import Batch, Context, Router

router = Router()


class Quake(BaseModel):
    id: str
    time_ms: datetime
    magnitude: float
    place: str
    region: str
    type: str


class Alarm(BaseModel):
    quake: str
    at: datetime


@router.topic(
    "earthquakes",
    group_id="earthquake-alarms",
    deserializer=Quake.model_validate_json,
    dead_letter="earthquakes.dead",
)
def alarm(batch: Batch[Quake], ctx: Context) -> None:
    for message in ctx.each(batch):
        quake = message.payload
        if quake.type != "earthquake":
            ctx.dead_letter(message, f"{quake.type}, not an earthquake")
        elif quake.magnitude >= 6:
            ctx.produce("earthquakes.alarms", Alarm(quake=quake.id, at=quake.time_ms), key=quake.region)
            print(f"alarm: {quake.magnitude}, {quake.place}", flush=True)
