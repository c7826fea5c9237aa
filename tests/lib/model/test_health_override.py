"""A load rule that never matches: the health check and one request decide. Virtual time, real sockets."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.life.running_worker import RunningWorker
from lib.model.benchmark import FIRST_ANSWER_LIMIT_S
from lib.model.benchmark_store import FILE_NAME
from lib.model.health_override import RETRY_S, WARN_EVERY_S, WELL_FOR_S, HealthOverride
from lib.model.readiness import State
from lib.routes.management import status_of
from lib.runtime.clock import Clock, sleep
from lib.runtime.settings import Settings
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.plain_handler import PlainHandler
from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup, build
from tests.system import PortLease
from tests.virtual_time import in_virtual_time

NONE = Settings(container_id=1, public_url="http://127.0.0.1:3000", engine="none")
WELL = "the health check has answered 2xx for 30 s"
# More than the pause between two checks, and between two looks at them.
MARGIN_S = 3.0


@dataclass
class Loading:
    """A worker whose model loads, without the task that measures it; `facts` are its `/status`."""

    model: MaliciousModel
    running: RunningWorker
    clock: Clock
    log: Path
    facts: Callable[[], dict[str, Any]]

    async def wait(self, seconds: float) -> None:
        await sleep(self.clock, seconds)

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)

    @property
    def state(self) -> State:
        return self.running.readiness.state

    @property
    def problem(self) -> str:
        return self.facts()["log"]["override_problem"]


@asynccontextmanager
async def loading(
    tmp_path: Path,
    clock: Clock,
    settings: Settings = NONE,
    handler: PlainHandler | None = None,
    is_elsewhere: bool = False,
    **setup: Any,
) -> AsyncGenerator[Loading, None]:
    """Run the tasks of a worker with a load rule, a health check and, by default, a benchmark.

    It also has `handler`. With `is_elsewhere`, the health check is that of another server than the model's,
    which takes no connections.
    """
    log = tmp_path / "model.log"
    with_log: dict[str, Any] = {"log": str(log), "health": "/health", "benchmark": "/echo", **setup}
    with closing(PortLease()) as closed:
        async with malicious_model() as model:
            url = model.url
            if is_elsewhere:
                url, with_log["health"] = f"http://127.0.0.1:{closed.port}", f"{model.url}/health"
            backend, _ = build(url, Setup(**with_log, backend={"clock": clock}))
            if handler is not None:
                backend.create_handler(handler)
            async with (
                backend.run_with(settings, tmp_path, spawn=lambda call: None) as running,
                anyio.create_task_group() as group,
            ):
                for name, task in running.tasks().items():
                    if name != "benchmark":
                        group.start_soon(_run, task)
                yield Loading(model, running, clock, log, lambda: status_of(backend))
                group.cancel_scope.cancel()


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def scenario(
    tmp_path: Path, steps: Callable[[Loading], Awaitable[None]], settings: Settings = NONE, **options: Any
) -> None:
    """Run `steps` with a worker that loads; `options` are those of `loading`."""

    async def run(clock: Clock) -> None:
        async with loading(tmp_path, clock, settings, **options) as here:
            await steps(here)

    in_virtual_time(run)


@pytest.mark.parametrize(
    ("lines", "described"),
    [
        (
            ["loading\n", "llama_server: listening on http://[::]:1\n"],
            "model.log: loading | llama_server: listening on http://[::]:1",
        ),
        ([""], "model.log is empty"),
        ([], "model.log does not exist"),
    ],
)
def test_a_model_that_works_is_loaded_though_no_rule_matches(
    tmp_path: Path, lines: list[str], described: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        for line in lines:
            here.write(line)
        await here.wait(WELL_FOR_S - 1)
        assert (here.state, here.model.requests) == (State.LOADING, [])
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING
        assert len(here.model.requests) == 1
        assert here.problem == ""
        (change,) = here.facts()["timeline"][1:]
        assert change["reason"].startswith(f"{WELL}, and a benchmark request succeeded")

    scenario(tmp_path, steps)
    assert not (tmp_path / FILE_NAME).exists()
    (warning,) = [r.getMessage() for r in caplog.records if "counts as loaded" in r.getMessage()]
    assert f"no load rule has matched ({READY_LINE!r})" in warning
    assert described in warning
    assert "MODEL_LOAD_LOG_MSG" in warning


def test_lines_are_shown_without_secrets_and_control_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        here.write("\x1b[31margs: --api-key abc123 hf_0123456789abcdef\x07\x1b[0m" + "x" * 5000 + "\n")
        await here.wait(WELL_FOR_S + MARGIN_S)

    scenario(tmp_path, steps)
    (warning,) = [r.getMessage() for r in caplog.records if "counts as loaded" in r.getMessage()]
    assert "args: --api-key *** hf_***" in warning
    assert warning.isprintable()
    assert len(warning) < 1000


def test_a_health_check_that_is_well_too_early_leads_to_loading_until_a_request_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's health is well while its weights load; 4 requests in 2 minutes find out."""

    async def steps(here: Loading) -> None:
        here.model.fail_status = 503
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert here.state is State.LOADING
        assert here.problem.startswith(f"{WELL}, but a benchmark request failed: POST {here.model.url}/echo")
        assert '503: {"error": "broken GPU"}' in here.problem
        await here.wait(3 * RETRY_S + MARGIN_S)
        assert len(here.model.requests) == 4
        here.model.fail_status = None
        await here.wait(RETRY_S + MARGIN_S)
        assert (here.state, here.problem) == (State.BENCHMARKING, "")

    scenario(tmp_path, steps)
    assert not (tmp_path / FILE_NAME).exists()
    warnings = [r for r in caplog.records if "a benchmark request failed" in r.getMessage()]
    assert len(warnings) == 2  # in 90 s
    assert WARN_EVERY_S == 60.0


def test_another_reason_is_logged_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def steps(here: Loading) -> None:
        here.model.fail_status = 503
        await here.wait(WELL_FOR_S + MARGIN_S)
        here.model.fail_status = 500
        await here.wait(RETRY_S + MARGIN_S)
        assert len(here.model.requests) == 2

    scenario(tmp_path, steps)
    warnings = [r.getMessage() for r in caplog.records if "a benchmark request failed" in r.getMessage()]
    assert ["answered 503" in w for w in warnings] == [True, False]
    assert ["answered 500" in w for w in warnings] == [False, True]


def test_a_health_check_that_fails_starts_the_time_again(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(WELL_FOR_S - 1)
        here.model.health_status = 503
        await here.wait(MARGIN_S)
        here.model.health_status = 200
        await here.wait(WELL_FOR_S - 1)
        assert (here.state, here.model.requests) == (State.LOADING, [])
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING

    scenario(tmp_path, steps)


def test_the_problem_ends_when_the_health_check_fails(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        here.model.fail_status = 503
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert here.problem
        here.model.health_status = 503
        await here.wait(MARGIN_S)
        assert here.problem == ""

    scenario(tmp_path, steps)


def test_a_log_that_begins_anew_starts_the_time_again(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        here.write("loading, of the first start\n")
        await here.wait(WELL_FOR_S - 5)
        here.log.write_text("loading\n")
        await here.wait(WELL_FOR_S - 1)
        assert (here.state, here.model.requests) == (State.LOADING, [])
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING

    scenario(tmp_path, steps)


def test_a_request_without_an_answer_is_given_up(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert len(here.model.requests) == 1
        await here.wait(310.0)  # a cold model's first answer takes long
        assert (here.problem, here.model.cancelled) == ("", 0)
        await here.wait(FIRST_ANSWER_LIMIT_S - 310.0)
        assert here.problem == f"{WELL}, but a benchmark request had no answer within 1800 s"
        assert here.model.cancelled == 1

    scenario(tmp_path, steps, benchmark="/held")


def test_a_line_that_matches_meanwhile_cancels_the_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert len(here.model.requests) == 1
        here.write(f"{READY_LINE}\n")
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING
        assert here.model.cancelled == 1

    scenario(tmp_path, steps, benchmark="/held")
    assert "counts as loaded" not in caplog.text


def test_an_error_rule_still_errs_until_the_server_was_restarted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert here.state is State.BENCHMARKING
        here.running.readiness.set_max_perf(1.0, "measured")
        here.write(f"{ERROR_LINE}\n")
        await here.wait(3 * WELL_FOR_S)
        assert (here.state, len(here.model.requests)) == (State.ERRORED, 1)
        here.model.health_status = 503
        await here.wait(2 * WELL_FOR_S)
        here.model.health_status = 200
        await here.wait(WELL_FOR_S)
        assert here.state is State.ERRORED
        await here.wait(10.0 + MARGIN_S)  # checks are 10 s apart now
        assert (here.state, len(here.model.requests)) == (State.READY, 2)

    scenario(tmp_path, steps)
    assert "no load rule has matched since the error" in caplog.text


def test_an_error_before_the_model_is_loaded_is_not_overridden(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(MARGIN_S)
        here.write(f"{ERROR_LINE}\n")
        await here.wait(2 * WELL_FOR_S)
        assert (here.state, here.model.requests) == (State.ERRORED, [])
        here.write(f"{READY_LINE}\n")
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING

    scenario(tmp_path, steps)


def test_a_worker_without_a_benchmark_stays_loading_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(2 * WELL_FOR_S)
        assert (here.state, here.model.requests) == (State.LOADING, [])
        assert here.problem.startswith(f"{WELL}, but the worker has no benchmark")
        here.write(f"{READY_LINE}\n")
        await here.wait(MARGIN_S)
        assert (here.state, here.problem) == (State.READY, "")

    scenario(tmp_path, steps, benchmark=None)
    assert caplog.text.count("has no benchmark") == 1


def test_a_payload_that_cannot_be_made_is_the_reason(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        override = here.running.health_override
        assert isinstance(override, HealthOverride)
        assert override.request is not None
        override.request.handler.make_benchmark_payload = _raise  # type: ignore[method-assign]
        await here.wait(WELL_FOR_S + MARGIN_S)
        assert "a benchmark request can't be made: make_benchmark_payload raised" in here.problem

    scenario(tmp_path, steps)


def _raise() -> Any:
    raise ValueError("no prompts")


@pytest.mark.parametrize(
    ("settings", "setup"),
    [
        (replace(NONE, health_overrides_log=False), {}),
        (NONE, {"health": None}),
        (NONE, {"health": "/missing"}),  # the server has no such check
    ],
)
def test_without_a_health_check_or_with_the_setting_off_only_a_line_counts(
    tmp_path: Path, settings: Settings, setup: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(4 * WELL_FOR_S)
        assert (here.state, here.problem) == (State.LOADING, "")
        assert [r for r in here.model.requests if r.method == "POST"] == []
        here.write(f"{READY_LINE}\n")
        await here.wait(MARGIN_S)
        assert here.state is State.BENCHMARKING

    with caplog.at_level(logging.INFO):
        scenario(tmp_path, steps, settings, **setup)
    assert "benchmark request" not in caplog.text


def test_a_worker_that_drains_tries_no_request(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        here.running.drain()
        await here.wait(2 * WELL_FOR_S)
        assert (here.model.requests, here.problem) == ([], "")

    scenario(tmp_path, steps)


class WaitingHandler(PlainHandler):
    """Needs something that is there once `entered` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = anyio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        await self.entered.wait()
        yield


def test_nothing_is_tried_while_more_than_a_line_is_missing(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        await here.wait(2 * WELL_FOR_S)
        assert (here.model.requests, here.problem) == ([], "")
        handler.entered.set()
        await here.wait(MARGIN_S)
        assert len(here.model.requests) == 1
        assert here.state is State.BENCHMARKING

    handler = WaitingHandler()
    scenario(tmp_path, steps, handler=handler)


def test_nothing_is_tried_after_a_loaded_line_whose_server_takes_no_connections(tmp_path: Path) -> None:
    async def steps(here: Loading) -> None:
        here.write(f"{READY_LINE}\n")
        await here.wait(2 * WELL_FOR_S)
        assert here.facts()["log"]["awaiting_connection"]
        assert (here.state, here.problem) == (State.LOADING, "")

    scenario(tmp_path, steps, is_elsewhere=True)
