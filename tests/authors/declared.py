"""A declared worker: a model server behind one route, a Python function behind the other."""

import datetime
import enum
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from lib.worker import HandlerConfig, LogActionConfig, Worker, WorkerConfig


def parse(payload: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": payload["prompt"], "max_tokens": int(payload.get("max_tokens", 16))}


def shout(text: str, times: int = 1) -> str:
    return " ".join([text.upper()] * times)


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
        model_log_file=os.environ["MODEL_LOG"],
        log_action_config=LogActionConfig(on_load=["model is ready"], on_error=["CUDA error"]),
        benchmark_route="/echo",
        benchmark_data=[{"prompt": "Once"}, {"prompt": "upon", "max_tokens": "8"}],
        handlers=[
            HandlerConfig("/echo", request_parser=parse, workload_calculator=lambda p: p["max_tokens"]),
            HandlerConfig("/shout", remote_function=shout),
            HandlerConfig("/blocks", remote_function=blocks),
            HandlerConfig("/picture", payload_class=Picture),
            HandlerConfig("/frame", payload_class=Frame, extra="forbid"),
        ],
    )
)

if __name__ == "__main__":
    worker.run(host="127.0.0.1")
