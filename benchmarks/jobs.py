"""The messages between the benchmark and its load generator: one JSON object a line.

A job has three steps. Each begins with a line from the benchmark and ends with an answer:

1. The job itself: the generator makes and signs the requests, and answers `{}`.
2. `send`: it sends the requests, and answers with the result.
3. `close`: it closes the connections, streams that are held open among them, and answers `{}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from benchmarks.loads import Form, Kind, Load
from benchmarks.processes import ChildProcess

# Seconds for thousands of signatures, and on top of a load's own limit.
PREPARE_LIMIT_S = 120.0
GRACE_S = 60.0


class WrongAnswers(Exception):
    """Answers are not as expected: there is no figure for this load and subject."""


@dataclass(frozen=True)
class LoadJob:
    """A load, the port that it is sent to, and the URL that is signed. See `Load` for the other fields."""

    port: int
    url: str
    kind: Kind
    form: Form
    model: str
    events: int
    prompt_bytes: int
    concurrency: int
    count: int
    limit_s: float

    @classmethod
    def of(cls, load: Load, port: int, url: str, form: Form) -> LoadJob:
        """The job of `load`, with signatures of the form `form`."""
        return cls(
            *(port, url, load.kind, form, load.model, load.events),
            *(load.prompt_bytes, load.concurrency, load.count, load.limit_s),
        )


@dataclass(frozen=True)
class JobResult:
    """The result of a job; `error` is "" if every answer was as expected.

    Latencies are from a request's first byte to its answer's last. `longest_wait_s` is the longest latency of
    a probe. `begun` is the number of held streams that have sent their first event.
    """

    answered: int = 0
    elapsed_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    longest_wait_s: float = 0.0
    begun: int = 0
    error: str = ""


class LoadProcess:
    """The load generator, seen from the benchmark."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self.pid = child.process.pid

    async def prepare(self, job: LoadJob) -> None:
        """Have the requests made, and connections opened unless opening them is part of the measurement."""
        await self._ask(json.dumps(asdict(job)), PREPARE_LIMIT_S)

    async def send(self, job: LoadJob) -> JobResult:
        """Have the prepared requests sent; return the result. Raises `WrongAnswers`."""
        result = JobResult(**json.loads(await self._ask("send", job.limit_s + GRACE_S)))
        if result.error:
            await self.close()
            raise WrongAnswers(result.error)
        return result

    async def close(self) -> None:
        """Have the job's connections closed."""
        await self._ask("close", GRACE_S)

    async def _ask(self, line: str, limit_s: float) -> bytes:
        self._child.send_line(line)
        return await self._child.read_line(limit_s)
