"""The fault matrix: model server x client x engine x worker, as a table of cases.

Each case says what its clients see and which outcomes its requests have. From the outcomes follow the
statuses and the sums that the engine is told (docs/protocol.md, "Outcomes"). After each case the worker must
serve the next client, the engine's sums must be exact, and nothing may be left behind: no request, slot,
socket, task, descriptor or file, and no traceback in the log. A client that waits longer than its bound fails
its case.

tests/e2e/test_matrix.py runs every case once. By hand, with both carriers, every case with every behaviour of
the engine, and the cases that take long; it prints the table as Markdown:

    python -m tests.endurance.matrix
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import anyio

from lib.local.faults import Fault, Faults
from lib.server import EXIT_FAILED
from tests.endurance import matrix_clients as clients
from tests.endurance.holdings import Holdings, idle_holdings, until_released, until_status
from tests.endurance.matrix_clients import WORKLOAD, ClientBehaviour, ClientSide
from tests.endurance.sums import Sums, sums_of
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import CONTAINER_ID, System, WorkerProcess, engine_and_model_server, worker_process

# The limits of an impatient worker, in seconds, and the bounds of its clients.
SHORT_S = 0.4
# Added to each bound, since a busy machine may be late; a client that hangs is later than this.
GRACE_S = 20.0
# Bounds in seconds: of an answer that nothing delays, and of those that a limit ends.
PROMPT_S = 5.0
LIMITED_S = SHORT_S * 1.05 + PROMPT_S
# The workload of the request after each case. It is more than all deficits.
NEXT_WORKLOAD = 1000.0

Patience = Literal["patient", "impatient", "hasty"]
Engine = Literal["accepts", "refuses", "loses answers", "is slow", "is gone"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
SETUP = Setup(health="/health")

# The workers' settings: with limits that no case reaches; for clients that read nothing, and a short drain;
# and with limits that end what stalls.
SIZES = {"MAX_JSON_BYTES": "200000", "MAX_REQUEST_BYTES": "200000"}
SETTINGS: dict[Patience, dict[str, str]] = {
    "patient": SIZES,
    "hasty": {**SIZES, "DRAIN_TIMEOUT_S": str(SHORT_S), "CLIENT_STALL_TIMEOUT_S": str(SHORT_S)},
    "impatient": {
        **SIZES,
        "MODEL_TIMEOUT_S": str(SHORT_S),
        "MODEL_STALL_TIMEOUT_S": str(SHORT_S / 2),
        "REQUEST_BODY_TIMEOUT_S": str(SHORT_S),
    },
}


class Outcome(NamedTuple):
    """The message to the engine about a request: its status, and its part of the sums."""

    status: str
    sums: Sums


SERVED = Outcome("Success", Sums(WORKLOAD, 0.0, WORKLOAD))
WITHOUT_WORK = Outcome("Success", Sums(0.0, 0.0, 0.0))
ERRORED = Outcome("Error", Sums(WORKLOAD, 0.0, 0.0))
# It was authenticated, but has no workload.
INVALID = Outcome("Error", Sums(0.0, 0.0, 0.0))
CANCELLED = Outcome("Cancelled", Sums(0.0, 0.0, 0.0))
REJECTED = Outcome("Rejected", Sums(0.0, WORKLOAD, 0.0))


@dataclass(frozen=True)
class Case:
    """A row. `saw` is what the client saw (matrix_clients.py), `told` the outcomes that the engine is told.

    With `is_held`, the model server waits in what it holds until the client lets it go on. `event` happens to
    the worker or the model server while the client waits. `bound_s` is the longest that the client may take.
    `raises`: the author's code does, so the log has a traceback. `is_long`: only in the long form.
    """

    path: str
    client: ClientBehaviour
    saw: str
    told: tuple[Outcome, ...] = ()
    engine: Engine = "accepts"
    event: str = "runs"
    patience: Patience = "patient"
    is_held: bool = False
    bound_s: float = PROMPT_S
    raises: bool = False
    is_long: bool = False

    @property
    def what(self) -> str:
        """The name of what the client does, in words."""
        return self.client.__name__.replace("_", " ")


# The model server's behaviours, for a client that waits: what it sees, and the outcome.
MODEL: dict[str, tuple[str, Outcome]] = {
    "echo": ("200", SERVED),
    "stream": ("200", SERVED),
    "bytewise": ("200", SERVED),
    "gzip": ("200", SERVED),
    "gzip_stream": ("200", SERVED),
    "binary": ("200", SERVED),
    "accepted": ("202", SERVED),
    "empty": ("204", SERVED),
    "redirect": ("307", SERVED),
    "hop": ("200", SERVED),
    "once": ("200", SERVED),
    "missing": ("404", WITHOUT_WORK),
    "error422": ("422", WITHOUT_WORK),
    "error401": ("401", ERRORED),
    "error429": ("429", REJECTED),
    "error500": ("500", ERRORED),
    "close": ("502", ERRORED),
    "half_head": ("502", ERRORED),
    "garbage": ("502", ERRORED),
    "control": ("502", ERRORED),
    "interim": ("502", ERRORED),
    "cut_whole": ("cut", ERRORED),
    "cut_large": ("200 cut", ERRORED),
    "cut_stream": ("200 cut", ERRORED),
    "reset_stream": ("200 cut", ERRORED),
}
# The kinds of handlers that carry each of them.
WAYS = ("", "/single", "/idempotent", "/finish")


def _by_model() -> Iterable[Case]:
    """Every behaviour of the model server, carried in every way."""
    for name, (saw, told) in MODEL.items():
        for way in WAYS:
            yield Case(f"{way}/{name}", clients.waits, saw, (told,))
        yield Case(f"/upload/{name}", clients.uploads, saw, (told,))
        yield Case(f"/{name}", clients.works_in_a_session, f"201, {saw}, 200", (SERVED,))
    for way in WAYS:
        yield Case(f"{way}/echo", clients.finds_no_model, "502", (ERRORED,))
    yield Case("/upload/echo", clients.uploads_to_no_model, "502", (ERRORED,))


def _by_client() -> Iterable[Case]:
    """Every behaviour of a client that interacts with the model server."""
    for way in ("", "/single", "/idempotent", "/beating", "/upload"):
        for behaviour in ("held", "stream"):
            client = clients.uploads_and_leaves if way == "/upload" else clients.leaves
            yield Case(f"{way}/{behaviour}", client, "left", (CANCELLED,), is_held=True)
        if way not in ("/upload", "/beating"):
            yield Case(f"{way}/held", clients.half_closes, "cut", (CANCELLED,), is_held=True)
            yield Case(f"{way}/stream", clients.leaves_in_the_stream, "left", (CANCELLED,), is_held=True)
            yield Case(f"{way}/flood", clients.leaves_in_the_stream, "left", (CANCELLED,))
        if way != "/upload":
            yield Case(f"{way}/echo", clients.leaves_after_the_last_byte, "200", (SERVED,))
            yield Case(f"{way}/binary", clients.reads_slowly, "200", (SERVED,))
    for behaviour in ("held", "stream"):
        client = clients.leaves_what_is_finished
        yield Case(f"/finish/{behaviour}", client, "left", (SERVED,), is_held=True)
    yield Case("/unasked", clients.asks_again, "200, 200", (SERVED, SERVED))
    yield Case("/echo", clients.asks_twice_at_once, "200, 200", (SERVED, SERVED))
    for name, (saw, told) in MODEL.items():
        yield Case(f"/single/{name}", clients.waits_in_the_queue, f"200, {saw}", (SERVED, told), is_held=True)
    yield Case("/single/echo", clients.leaves_the_queue, "200, left", (SERVED, CANCELLED), is_held=True)
    yield Case("/brief/echo", clients.waits_too_long, "200, 429", (SERVED, REJECTED), is_held=True)
    yield Case("/held", clients.leaves_in_a_session, "201, left, 200", (SERVED,), is_held=True)
    yield Case("/held", clients.ends_the_session_meanwhile, "201, 200, 200", (SERVED,), is_held=True)
    yield Case("/echo", clients.lets_the_session_expire, "201, 410", (SERVED,))
    yield Case("/echo", clients.asks_in_no_session, "410")  # its index was the session's


def _by_stranger() -> Iterable[Case]:
    """Cases of refusals: they reach neither the model server nor the engine's sums."""
    for path in ("/echo", "/finish/echo", "/upload/echo"):
        is_upload = path.startswith("/upload")
        yield Case(path, clients.sends_no_json, "422")
        yield Case(path, clients.sends_garbage, "400")
        yield Case(path, clients.sends_a_large_head, "431")
        yield Case(path, clients.sends_an_unknown_coding, "501")
        yield Case(path, clients.expects_too_much, "417")
        yield Case(path, clients.uses_another_method, "405")
        yield Case(path, clients.leaves_in_its_body, "left")
        if not is_upload:
            yield Case(path, clients.sends_an_invalid_chunk, "400")
            yield Case(path, clients.sends_too_much, "413")
            yield Case(path, clients.replays, "200, 401", (SERVED,))
            yield Case(path, clients.sends_garbage_behind_a_request, "200, 400", (SERVED,))
            yield Case(path, clients.sends_nan, "422")
            yield Case(path, clients.forges, "401")
            yield Case(path, clients.signs_for_another_worker, "401")
            yield Case(path, clients.sends_a_wrong_payload, "422", (INVALID,))
            yield Case(path, clients.sends_half_a_body, "408", patience="impatient", bound_s=LIMITED_S)
    yield Case("/upload/echo", clients.uploads_too_much, "413", (INVALID,))
    yield Case("/upload/echo", clients.leaves_in_its_upload, "left", (CANCELLED,))
    yield Case(
        "/upload/echo", clients.uploads_half, "408", (INVALID,), patience="impatient", bound_s=LIMITED_S
    )
    yield Case("/echo", clients.asks_after_a_rotation, "200, 401", (SERVED,), patience="hasty")
    yield Case("/nowhere", clients.asks_for_no_route, "404")
    yield Case("/raising", clients.raises, "500", (ERRORED,), raises=True)


def _by_limit() -> Iterable[Case]:
    """Cases that a limit ends."""
    for way in (*WAYS, "/upload", "/beating"):
        client = clients.uploads if way == "/upload" else clients.waits
        saw = "200" if way == "/beating" else "504"
        yield Case(
            f"{way}/held", client, saw, (ERRORED,), patience="impatient", is_held=True, bound_s=LIMITED_S
        )
    for way in (*WAYS, "/upload"):
        client = clients.uploads if way == "/upload" else clients.waits
        yield Case(
            f"{way}/silent_stream", client, "200 cut", (ERRORED,), patience="impatient", bound_s=LIMITED_S
        )
    for way in ("", "/single"):
        yield Case(
            f"{way}/flood",
            clients.reads_nothing,
            "200 cut",
            (CANCELLED,),
            patience="hasty",
            bound_s=LIMITED_S,
        )


def _by_engine() -> Iterable[Case]:
    """Every behaviour of the engine, for an example of each outcome: it changes nothing for the client."""
    examples = [
        Case("/echo", clients.waits, "200", (SERVED,)),
        Case("/cut_stream", clients.waits, "200 cut", (ERRORED,)),
        Case("/held", clients.leaves, "left", (CANCELLED,), is_held=True),
        Case("/brief/echo", clients.waits_too_long, "200, 429", (SERVED, REJECTED), is_held=True),
        Case("/echo", clients.works_in_a_session, "201, 200, 200", (SERVED,)),
    ]
    for number, engine in enumerate(ENGINES[1:]):
        for position, example in enumerate(examples):
            yield replace(example, engine=engine, is_long=(number + position) % 2 == 1)


def _by_event() -> Iterable[Case]:
    """Cases of the worker and the model server that end or start while a client waits."""
    rows: tuple[tuple[str, str, str, tuple[Outcome, ...], Patience], ...] = (
        ("drains", "200, 503", "200, 503", (SERVED, REJECTED), "patient"),
        ("drains too long", "cut", "200 cut", (ERRORED,), "hasty"),
        ("is stopped twice", "cut", "200 cut", (ERRORED,), "patient"),
        ("is killed", "cut", "200 cut", (ERRORED,), "patient"),
        ("sees the model restart", "502", "200 cut", (ERRORED,), "patient"),
    )
    for event, saw, begun, told, patience in rows:
        # A worker that ends in order waits 10 s for an engine that refuses its last reports.
        case = Case("/held", clients.waits, saw, told, event=event, patience=patience, is_held=True)
        yield case
        yield replace(case, path="/stream", client=clients.reads_the_stream, saw=begun)
        yield replace(case, path="/upload/held", client=clients.uploads)
        if event == "is killed":
            yield replace(case, engine="refuses")
        elif event != "sees the model restart":
            yield replace(case, engine="is gone", is_long=True)


def cases() -> tuple[Case, ...]:
    """The table."""
    parts = (_by_model, _by_client, _by_stranger, _by_limit, _by_engine, _by_event)
    return tuple(case for part in parts for case in part())


@dataclass(frozen=True)
class Row:
    """The result of a case: what the client saw, after how many seconds, and what was wrong, or ""."""

    case: Case
    seen: str
    took_s: float
    problem: str

    def markdown(self) -> str:
        case = self.case
        told = ", ".join(outcome.status for outcome in case.told) or "nothing"
        cells = (
            case.path,
            case.what,
            case.engine,
            case.event,
            self.seen,
            told,
            f"{self.took_s:.2f}",
            self.problem,
        )
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


HEADINGS = ("route", "client", "engine", "worker", "saw", "told", "seconds", "wrong")


@dataclass
class Matrix:
    """Runs cases, one after the other, with one worker process; after an event that ends it, with another."""

    system: System
    folder: Path
    patience: Patience
    carrier: str
    stack: AsyncExitStack
    # What the requests between the cases add to the engine's sums, since the case has begun.
    own: list[Sums] = field(default_factory=list[Sums])
    _before: Holdings | None = None

    @property
    def worker(self) -> WorkerProcess:
        assert self.system.worker is not None
        return self.system.worker

    @property
    def spool(self) -> Path:
        """The worker's folder for bodies."""
        return self.folder / "spool"

    async def start(self) -> None:
        """Start a worker process; return once it is ready and has served a request of each kind."""
        system, reports = self.system, self.system.totals.reports
        self.spool.mkdir(exist_ok=True)
        env = {**SETTINGS[self.patience], "CARRIER": self.carrier, "TMPDIR": str(self.spool)}
        module = "tests.fakes.many_routes"
        process = worker_process(system, self.folder, SETUP, env, module=module)
        system.worker = await self.stack.enter_async_context(process)
        await system.engine.wait_for(
            lambda: system.totals.reports > reports and system.last_report.loadtime > 0, GUARD_S
        )
        assert await clients.uploads(ClientSide(system, "/upload/echo")) == "200"
        self.own.append(SERVED.sums)
        await self._serve_the_next_client()
        self._before = await idle_holdings(system, self.spool)

    async def run(self, case: Case) -> Row:
        """Run a case, and check what it leaves behind."""
        if self.worker.process.returncode is not None:  # the case before has failed
            await self.start()
        system, side = self.system, ClientSide(self.system, case.path)
        self.own.clear()
        if case.is_held:
            system.model.hold()
        else:
            system.model.release()
        told, reports, logged = sums_of([system.totals]), system.totals.reports, len(self.worker.output())
        seen, began_s, took_s = "?", time.monotonic(), 0.0
        try:
            with _engine(system.engine.faults, case.engine):
                with anyio.fail_after(case.bound_s + GRACE_S):
                    seen = await self._seen(case, side)
                took_s = time.monotonic() - began_s
                if self.worker.process.returncode is not None or case.event in ENDS:
                    assert await self.worker.exit_status() == ENDS.get(case.event)
            await self._serve_the_next_client()
            await self._until_told(case, side, told, reports)
            assert self._before is not None
            await until_released(system, self.spool, self._before)
            assert seen == case.saw, f"expected: {case.saw}"
            has_traceback = "Traceback" in self.worker.output()[logged:]
            assert has_traceback == case.raises, self.worker.output()[logged:]
        except (AssertionError, TimeoutError, OSError) as e:
            return Row(case, seen, took_s, f"{type(e).__name__}: {e}")
        return Row(case, seen, took_s, "")

    async def _seen(self, case: Case, side: ClientSide) -> str:
        """Run the case's client, and its event meanwhile; return what was seen."""
        if case.event == "runs":
            return await case.client(side)
        client = asyncio.ensure_future(case.client(side))
        try:
            await side.received()
            if case.client is clients.reads_the_stream:
                await side.begun.wait()
            seen = await EVENTS[case.event](self, side)
            return ", ".join([await client, *seen])
        finally:
            client.cancel()

    async def _serve_the_next_client(self) -> None:
        """Ask for what needs the only slot of `/single`, of a new worker if an event has ended this one."""
        if self.worker.process.returncode is not None:
            await self.start()
            return
        self.system.model.release()
        await until_status(self.system, lambda status: status["state"] == "ready")
        assert await ClientSide(self.system, "/single/echo", workload=NEXT_WORKLOAD).ask() == "200"
        self.own.append(Sums(NEXT_WORKLOAD, 0.0, NEXT_WORKLOAD))

    async def _until_told(self, case: Case, side: ClientSide, before: Sums, reports: int) -> None:
        """Wait until the engine knows the outcomes of the case's requests, and its sums are exact."""
        engine, totals = self.system.engine, self.system.totals
        right = sums_of([*(outcome.sums for outcome in case.told), *self.own])
        statuses: list[str] = []
        told = Sums(0.0, 0.0, 0.0)

        def is_right() -> bool:
            nonlocal statuses, told
            # One that is told twice, since an acknowledgement was lost, is told the same.
            finished = {(f.request.request_idx, f.request.status) for f in engine.finished}
            statuses = sorted(status for index, status in finished if index in side.indices)
            told = sums_of([totals]).less(before)
            new = list(engine.worker(CONTAINER_ID).reports)[reports - totals.reports :]
            # A report whose acknowledgement was lost is made once more: wait for that, or it counts in the
            # next case. The last report of a worker that was stopped at once may be such a one.
            twice = [sums_of([right, received.message]) for received in new[:-1]]
            if case.engine == "loses answers":
                explained = told in twice
            else:
                explained = told == right or (
                    case.event in ("is killed", "is stopped twice") and told in twice
                )
            return explained and statuses == sorted(outcome.status for outcome in case.told)

        try:
            await engine.wait_for(is_right, GUARD_S / 2)
        except TimeoutError as e:
            raise AssertionError(f"told {statuses} {told}, right is {right}") from e


# Events: each returns what other clients saw.


async def _drains(matrix: Matrix, side: ClientSide) -> list[str]:
    matrix.worker.terminate()
    await until_status(matrix.system, lambda status: status["state"] == "draining")
    seen = await side.ask("/echo")
    matrix.system.model.release()
    return [seen]


async def _drains_too_long(matrix: Matrix, side: ClientSide) -> list[str]:
    matrix.worker.terminate()
    return []


async def _is_stopped_twice(matrix: Matrix, side: ClientSide) -> list[str]:
    matrix.worker.terminate()
    await until_status(matrix.system, lambda status: status["state"] == "draining")
    matrix.worker.terminate()
    return []


async def _is_killed(matrix: Matrix, side: ClientSide) -> list[str]:
    matrix.worker.process.kill()
    return []


async def _sees_the_model_restart(matrix: Matrix, side: ClientSide) -> list[str]:
    await matrix.system.model.stop()
    await matrix.system.model.start()
    return []


EVENTS: dict[str, Callable[[Matrix, ClientSide], Awaitable[list[str]]]] = {
    "drains": _drains,
    "drains too long": _drains_too_long,
    "is stopped twice": _is_stopped_twice,
    "is killed": _is_killed,
    "sees the model restart": _sees_the_model_restart,
}
# The exit statuses of workers that an event ends.
ENDS = {"drains": 0, "drains too long": 0, "is stopped twice": EXIT_FAILED, "is killed": -signal.SIGKILL}


@contextmanager
def _engine(faults: Faults, behaviour: Engine) -> Generator[None, None, None]:
    """Let the engine behave so in the block, with everything that a worker sends."""
    fault = {
        "accepts": Fault(),
        "refuses": Fault(refuse=True),
        "loses answers": Fault(lose=True, times=1),
        "is slow": Fault(delay_s=0.1),
        "is gone": Fault(drop=True),
    }[behaviour]
    faults.reports, faults.completions = fault, replace(fault)
    try:
        yield
    finally:
        if fault.times is None:
            faults.clear()


@asynccontextmanager
async def matrix(folder: Path, patience: Patience, carrier: str) -> AsyncGenerator[Matrix, None]:
    """Run a matrix's system, with a worker that is ready."""
    async with engine_and_model_server(folder) as system, AsyncExitStack() as stack:
        made = Matrix(system, folder, patience, carrier, stack)
        await made.start()
        await system.reported(served=sum(sums.cur_perf for sums in made.own))
        yield made


async def run_cases(
    folder: Path, patience: Patience, carrier: str, chosen: Sequence[Case], on_row: Callable[[Row], object]
) -> None:
    """Run those of `chosen` that are for `patience`; call `on_row` with the result of each."""
    async with matrix(folder, patience, carrier) as made:
        for case in chosen:
            if case.patience == patience:
                on_row(await made.run(case))


async def _main() -> int:
    """Run the long form: both carriers, and each case also with one of the engine's behaviours."""
    table, wrong = cases(), 0
    print("| " + " | ".join(("carrier", *HEADINGS)) + " |\n|" + " --- |" * (len(HEADINGS) + 1))

    def note(row: Row) -> None:
        nonlocal wrong
        print(f"| {carrier} {row.markdown()}", flush=True)
        wrong += bool(row.problem)

    for first, carrier in enumerate(("direct", "aiohttp")):
        turned = [
            replace(case, engine=ENGINES[1 + (first + number) % (len(ENGINES) - 1)])
            for number, case in enumerate(table)
            if case.engine == "accepts" and case.event == "runs"
        ]
        for patience in SETTINGS:
            with tempfile.TemporaryDirectory() as folder:
                await run_cases(Path(folder), patience, carrier, (*table, *turned), note)
    print(f"\nwrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
