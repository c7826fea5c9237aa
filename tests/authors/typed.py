"""A declared worker whose payload classes have types of many kinds, and a function with a mistake."""

import datetime
import enum
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pydantic

from lib.worker import HandlerConfig, Worker, WorkerConfig


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)


async def blocks(until: str) -> str:
    wait_for(until)  # a mistake: it is not awaited
    return "done"


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Frame:
    colour: Colour
    width: float = 1.0


class Picture(pydantic.BaseModel):
    at: datetime.date
    frames: list[Frame]

    def count_workload(self) -> float:
        return len(self.frames)


worker = Worker(
    WorkerConfig(
        model_server_url=os.environ["TEST_MODEL_URL"],
        model_healthcheck_url="/health",
        handlers=[
            HandlerConfig("/blocks", remote_function=blocks),
            HandlerConfig("/picture", payload_class=Picture),
            HandlerConfig("/frame", payload_class=Frame, extra="forbid"),
        ],
    )
)

if __name__ == "__main__":
    worker.run(host="127.0.0.1")
