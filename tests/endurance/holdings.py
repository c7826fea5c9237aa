"""Reads what a worker process holds: tasks, descriptors, connections, files, slots and requests.

The worker is one of tests/fakes/many_routes.py, whose `/holdings` says the first two.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil

from tests.guard import GUARD_S
from tests.system import System

# Seconds between two looks: no event announces that a socket is closed.
LOOK_S = 0.01
# Looks at an idle worker that must be the same: between them its reports are on their way, and arrive.
IDLE_LOOKS = 8
# A connection that is kept would be one more that the worker holds.
CLOSING = {"Connection": "close"}
# Connections to the model server that may be idle: pooled ones, for as long as they may be reused.
MOST_IDLE = 8


@dataclass(frozen=True)
class Holdings:
    """The things that a worker holds. `files` are the names in its folder for bodies.

    `descriptors` are those besides the connections to the model server and the engine, `clients` is a number
    of connections.
    """

    tasks: tuple[str, ...]
    descriptors: int
    clients: int
    model_connections: int
    files: tuple[str, ...]
    in_flight: int
    arriving: int
    waiting: int
    working: int
    load: float

    def excess(self, before: Holdings) -> str:
        """The names of what is held in excess of `before`, with both values; "" if nothing is."""
        fields = (
            "descriptors",
            "clients",
            "in_flight",
            "arriving",
            "waiting",
            "working",
            "load",
        )
        found = [
            f"{name}: {now} (before: {was})"
            for name in fields
            if (now := getattr(self, name)) > (was := getattr(before, name))
        ]
        if tasks := Counter(self.tasks) - Counter(before.tasks):
            found.append(f"tasks: {dict(tasks)}")
        if self.files:
            found.append(f"files: {self.files}")
        if self.model_connections > MOST_IDLE:
            found.append(f"model_connections: {self.model_connections}")
        return ", ".join(found)


async def status_of(system: System) -> Any:
    """The JSON of the worker's `/status`."""
    async with system.http.get(system.loopback_url + "/status", headers=CLOSING) as answer:
        return await answer.json()


async def holdings(system: System, spool: Path) -> Holdings:
    """The holdings of the system's worker now, without the connection that asks."""
    assert system.worker is not None
    status = await status_of(system)
    async with system.http.get(system.url + "/holdings", headers=CLOSING) as answer:
        held = await answer.json()
        connections = psutil.Process(system.worker.process.pid).net_connections("tcp")
    ports = {name: int(url.rsplit(":", 1)[1]) for name, url in _urls(system).items()}
    open_to = [c.raddr.port for c in connections if c.raddr]
    model_connections, to_engine = open_to.count(ports["model"]), open_to.count(ports["engine"])
    clients = sum(1 for c in connections if c.raddr and c.laddr.port == ports["worker"])
    requests = status["requests"]
    return Holdings(
        tasks=tuple(held["tasks"]),
        descriptors=held["descriptors"] - model_connections - to_engine,
        clients=clients,
        model_connections=model_connections,
        files=tuple(os.listdir(spool)),
        in_flight=requests["in_flight"],
        arriving=requests["arriving"],
        waiting=status["queue"]["waiting"],
        working=status["queue"]["working"],
        load=status["load"]["current"],
    )


async def idle_holdings(system: System, spool: Path) -> Holdings:
    """The holdings of the worker once it has nothing to do: the same in several looks."""
    looks = [await holdings(system, spool)]
    with anyio.fail_after(GUARD_S):
        while len(looks) < IDLE_LOOKS or len(set(looks[-IDLE_LOOKS:])) > 1:
            await anyio.sleep(LOOK_S)
            looks.append(await holdings(system, spool))
    return looks[-1]


async def until_status(system: System, condition: Callable[[Any], bool]) -> None:
    """Return once `condition` holds for the worker's `/status`."""
    with anyio.fail_after(GUARD_S):
        while True:
            if condition(await status_of(system)):
                return
            await anyio.sleep(LOOK_S)


async def until_released(system: System, spool: Path, before: Holdings) -> None:
    """Return once nothing is held in excess of `before`. Raises `AssertionError` with what still is."""
    excess = "?"
    with anyio.move_on_after(GUARD_S / 2):
        while True:
            excess = (await holdings(system, spool)).excess(before)
            if not excess:
                return
            await anyio.sleep(LOOK_S)
    raise AssertionError(f"left behind: {excess}")


def _urls(system: System) -> dict[str, str]:
    return {"model": system.model.url, "engine": system.engine_url, "worker": system.url}
