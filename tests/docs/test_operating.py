"""docs/operating.md against what is: variables, states, metrics, statuses, texts, log lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import lib.errors
from lib import server
from lib.model.readiness import State
from lib.model_settings import ModelSettings
from lib.routes.gpu import Gpu
from lib.routes.prometheus import exposition
from lib.runtime.settings import Settings
from tests.docs.blocks import ROOT, codes, document, table, tables
from tests.fakes.worker import Setup
from tests.system import with_worker_process, with_worker_task

DOC = document("operating")
INSTANCE = {"CONTAINER_ID": "1", "PUBLIC_IPADDR": "127.0.0.1", "VAST_TCP_PORT_3000": "3000"}
VARIABLES = tables(DOC.section("## Environment"))
# The router's, a bare exception's, and what the log gives for a client that has left.
OTHER_STATUSES = {404, 405, 500, 499}


class Watched(dict[str, str]):
    """An environment that notes which variables are asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def settings_with(**variables: str) -> Settings:
    return Settings.from_env({**INSTANCE, **variables})


def names(rows: list[list[str]]) -> list[str]:
    return [codes(row[0])[0] for row in rows]


def test_it_tells_every_variable_and_no_other() -> None:
    environ = Watched(INSTANCE)
    Settings.from_env(environ)
    read = {"VAST_TCP_PORT_<WORKER_PORT>" if n.startswith("VAST_TCP_PORT_") else n for n in environ.asked}
    told = names(VARIABLES[0])
    assert sorted(told) == sorted(read)

    environ = Watched()
    ModelSettings.from_env(environ, server_url="http://127.0.0.1", log="")
    assert sorted(names(VARIABLES[1])) == sorted(environ.asked)


@pytest.mark.parametrize("row", VARIABLES[0], ids=names(VARIABLES[0]))
def test_a_variables_default_is_what_holds_without_it(row: list[str]) -> None:
    (name,), default = codes(row[0]), row[1]
    if default == "required":
        own = name.replace("<WORKER_PORT>", "3000")
        with pytest.raises(lib.errors.SettingsError, match=f"{own}: missing"):
            Settings.from_env({k: v for k, v in INSTANCE.items() if k != own})
    elif name == "WORKER_HTTP_PORT":
        assert default == "`WORKER_PORT` + 1"
        assert settings_with(WORKER_PORT="4000", VAST_TCP_PORT_4000="1").worker_http_port == 4001
    elif default == "none":
        assert settings_with(**{name: ""}) == settings_with()
        assert settings_with(**{name: "7"}) != settings_with()
    else:
        assert settings_with(**{name: codes(default)[0]}) == settings_with()


def test_it_tells_every_state() -> None:
    assert names(table(DOC.section("## States"))) == [state.value for state in State]


def test_it_tells_every_exit_status() -> None:
    told = [int(row[0]) for row in table(DOC.section("## Stopping, and exit statuses"))]
    assert told == [0, server.EXIT_FAILED, server.EXIT_SETTINGS, server.EXIT_PORT_TAKEN]


def test_it_tells_every_http_status() -> None:
    told = {
        int(s)
        for row in table(DOC.section("## When clients are refused"))
        for s in re.findall(r"\d{3}", row[0])
    }
    assert told == own_statuses() | OTHER_STATUSES


def own_statuses() -> set[int]:
    """The statuses of the worker's own errors."""
    of_errors = (c for c in vars(lib.errors).values() if isinstance(c, type))
    return {c.status for c in of_errors if issubclass(c, lib.errors.WorkerError)}


def sources() -> str:
    """What the worker says, with texts that are broken in two lines in one."""
    files = [p for p in sorted((ROOT / "lib").rglob("*.py")) if "local" not in p.parts]
    return re.sub(r'"\n\s*f?"', "", "\n".join(path.read_text() for path in files))


def texts() -> Iterator[str]:
    """Every text that the tables of symptoms give."""
    for heading in ("## When clients are refused", "## When the engine is told of an error"):
        for row in table(DOC.section(heading)):
            yield from codes(row[-2])
    for row in table(DOC.section("## When it does not become ready")):
        yield from codes(row[0])


def test_every_text_is_one_that_the_worker_says() -> None:
    source, told = sources(), list(texts())
    assert len(told) > 25
    # Of texts that are put together: a log's trouble, the router's words, a task's name.
    elsewhere = {"not found", "method not allowed", "does not exist"}
    for text in told:
        for part in filter(None, (p.strip(" :,") for p in text.split("…"))):
            assert part in source or part in elsewhere, (text, part)


async def test_the_texts_of_the_router(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        said: list[str] = []
        for method, path in (("POST", "/nowhere"), ("DELETE", "/echo")):
            async with here.http.request(method, here.url + path) as answer:
                said.append((await answer.json())["error"])
        assert [text.split(": ")[1] for text in said] == ["not found", "method not allowed"]


async def test_it_tells_every_metric_and_its_labels(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        await here.call("/echo")
        await here.told(served=1.0)
        assert here.backend is not None
        text = exposition(here.backend, [Gpu(0, "NVIDIA H200", 0.5, 1, 2)]).decode()
        is_now: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            is_now[name] = {label for sample in family.samples for label in sample.labels}
        rows = table(DOC.section("## `/metrics`"))
        assert {codes(row[0])[0]: set(codes(row[1])) for row in rows} == is_now
        for outcome in codes(next(row[2] for row in rows if "`pyworker_requests_total`" in row[0])):
            assert f'outcome="{outcome}"' in text


async def test_it_tells_every_field_of_status(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, here.http.get(here.loopback_url + "/status") as answer:
        rows = table(DOC.section("## `/status`"))
        told = [name for row in rows for name in codes(row[0])]
        assert sorted(told) == sorted(await answer.json())


def masked(line: str) -> str:
    """A request's line without its date, its id and its times."""
    line = re.sub(r"^\S+ \S+", "DATE", line)
    line = re.sub(r"lib.access: [0-9a-f]{16} ", "lib.access: ID ", line)
    return re.sub(r"_s=\d+\.\d{3}", "_s=TIME", line)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_log_lines_look_so(tmp_path: Path, form: str) -> None:
    sample = DOC.block("log", form)
    env = {"LOG_FORMAT": form, "UNSECURED": "true"}
    async with with_worker_process(tmp_path, Setup(health="/health"), env) as here:
        assert (await here.call("/echo", 7.0))[0] == 200
        await here.told(served=7.0)
        assert here.worker is not None
        lines = here.worker.output().splitlines()
    if form == "text":
        assert masked(sample.strip()) in [masked(line) for line in lines]
        return
    told: dict[str, Any] = json.loads(sample)
    (is_now,) = [each for each in map(json.loads, lines) if "→ ready" in each["message"]]
    assert {**told, "time": 0} == {**is_now, "time": 0}
    assert type(told["time"]) is type(is_now["time"])
