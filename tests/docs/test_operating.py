"""Checks docs/operating.md against the worker: variables, states, metrics, statuses, texts, log lines."""

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
from lib.gpu.xids import XIDS
from lib.model.readiness import ReadySignal, State
from lib.model_settings import ModelSettings
from lib.routes.prometheus import exposition, process_exposition
from lib.runtime.settings import Settings
from tests.docs.blocks import ROOT, codes, document, table, tables
from tests.fakes.gpus import health_of_gpus
from tests.fakes.worker import Setup
from tests.system import with_worker_process, with_worker_task

DOC = document("operating")
INSTANCE = {"CONTAINER_ID": "1", "PUBLIC_IPADDR": "127.0.0.1", "VAST_TCP_PORT_3000": "3000"}
VARIABLES = tables(DOC.section("## Environment"))
# The router's, those for a head that is no request, that of an unexpected exception, and that in the log for
# a client that has left.
OTHER_STATUSES = {404, 405, 417, 431, 500, 501, 499}


class RecordingEnviron(dict[str, str]):
    """An environment that remembers the names of the variables that were read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def settings_with(**variables: str) -> Settings:
    return Settings.from_env({**INSTANCE, **variables})


def names(rows: list[list[str]]) -> list[str]:
    """The first name in the first cell of each row."""
    return [codes(row[0])[0] for row in rows]


def test_it_has_every_variable_and_no_other() -> None:
    environ = RecordingEnviron(INSTANCE)
    Settings.from_env(environ)
    read = {"VAST_TCP_PORT_<WORKER_PORT>" if n.startswith("VAST_TCP_PORT_") else n for n in environ.read}
    assert sorted(names(VARIABLES[0])) == sorted(read)

    environ = RecordingEnviron()
    ModelSettings.from_env(environ, server_url="http://127.0.0.1", log="")
    assert sorted(names(VARIABLES[1])) == sorted(environ.read)


@pytest.mark.parametrize("row", VARIABLES[0], ids=names(VARIABLES[0]))
def test_a_variables_documented_default_is_its_value_when_unset(row: list[str]) -> None:
    (name,), default = codes(row[0]), row[1]
    if default == "required":
        variable = name.replace("<WORKER_PORT>", "3000")
        with pytest.raises(lib.errors.SettingsError, match=f"{variable}: missing"):
            Settings.from_env({k: v for k, v in INSTANCE.items() if k != variable})
    elif name == "WORKER_HTTP_PORT":
        assert default == "`WORKER_PORT` + 1"
        assert settings_with(WORKER_PORT="4000", VAST_TCP_PORT_4000="1").worker_http_port == 4001
    elif default == "none":
        assert settings_with(**{name: ""}) == settings_with()
        assert settings_with(**{name: "192.0.2.7" if name == "TRUSTED_PROXIES" else "7"}) != settings_with()
    else:
        assert settings_with(**{name: codes(default)[0]}) == settings_with()


def test_without_an_engine_required_variables_are_not() -> None:
    assert Settings.from_env({"ENGINE": "none"}).worker_host == "127.0.0.1"


def test_it_has_every_state_and_every_signal() -> None:
    states, signals, _ = tables(DOC.section("## States"))
    assert names(states) == [state.value for state in State]
    assert names(signals) == [signal.value for signal in ReadySignal]


def test_it_has_every_xid_with_its_words() -> None:
    kinds, xids, _ = tables(DOC.section("## GPU health"))
    assert len(kinds) == 8
    assert xids == [[str(x), m.severity.value, m.words, m.advice] for x, m in XIDS.items()]


def test_it_has_every_exit_status() -> None:
    documented = [int(row[0]) for row in table(DOC.section("## Stopping, and exit statuses"))]
    assert documented == [0, server.EXIT_FAILED, server.EXIT_SETTINGS, server.EXIT_PORT_TAKEN]


def test_it_has_every_http_status() -> None:
    documented = {
        int(s)
        for row in table(DOC.section("## When clients are refused"))
        for s in re.findall(r"\d{3}", row[0])
    }
    assert documented == own_statuses() | OTHER_STATUSES


def own_statuses() -> set[int]:
    """The statuses of the worker's own errors."""
    of_errors = (c for c in vars(lib.errors).values() if isinstance(c, type))
    return {c.status for c in of_errors if issubclass(c, lib.errors.WorkerError)}


def sources() -> str:
    """The sources of lib/ without the local engine, with strings that span two lines joined."""
    files = [p for p in sorted((ROOT / "lib").rglob("*.py")) if "local" not in p.parts]
    return re.sub(r'"\n\s*f?"', "", "\n".join(path.read_text() for path in files))


def texts() -> Iterator[str]:
    """Every text in the tables of errors and remedies."""
    for heading in ("## When clients are refused", "## Errors reported to the engine"):
        for row in table(DOC.section(heading)):
            yield from codes(row[-2])
    for row in tables(DOC.section("## GPU health"))[2]:
        yield from codes(row[0])
    for row in table(DOC.section("## When a worker does not become ready")):
        yield from codes(row[0])


def test_every_text_is_one_of_the_workers() -> None:
    source, documented = sources(), list(texts())
    assert len(documented) > 25
    # Of texts that are assembled: the reason why a log can't be read, the router's texts.
    assembled = {"not found", "method not allowed", "does not exist"}
    for text in documented:
        for part in filter(None, (p.strip(" :,") for p in text.split("…"))):
            assert part in source or part in assembled, (text, part)


async def test_the_texts_of_the_router(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        errors: list[str] = []
        for method, path in (("POST", "/nowhere"), ("DELETE", "/echo")):
            async with system.http.request(method, system.url + path) as answer:
                errors.append((await answer.json())["error"])
        assert [text.split(": ")[1] for text in errors] == ["not found", "method not allowed"]


async def test_it_has_every_metric_and_its_labels(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo")
        await system.reported(served=1.0)
        assert system.backend is not None
        text = (exposition(system.backend, health_of_gpus()) + process_exposition()).decode()
        actual: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            actual[name] = {label for sample in family.samples for label in sample.labels}
        rows = table(DOC.section("## `/metrics`"))
        assert {codes(row[0])[0]: set(codes(row[1])) for row in rows} == actual
        for outcome in codes(next(row[2] for row in rows if "`pyworker_requests_total`" in row[0])):
            assert f'outcome="{outcome}"' in text


async def test_it_has_every_field_of_status(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path) as system,
        system.http.get(system.loopback_url + "/status") as answer,
    ):
        rows = table(DOC.section("## `/status`"))
        documented = [name for row in rows for name in codes(row[0])]
        assert sorted(documented) == sorted(await answer.json())


def masked(line: str) -> str:
    """A request's line without its date, its id and its times."""
    line = re.sub(r"^\S+ \S+", "DATE", line)
    line = re.sub(r"lib.access: [0-9a-f]{8}-[0-9]+ ", "lib.access: ID ", line)
    return re.sub(r"_s=\d+\.\d{3}", "_s=TIME", line)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_log_lines(tmp_path: Path, form: str) -> None:
    sample = DOC.block("log", form)
    env = {"LOG_FORMAT": form, "UNSECURED": "true"}
    async with with_worker_process(tmp_path, Setup(health="/health"), env) as system:
        assert (await system.call("/echo", 7.0))[0] == 200
        await system.reported(served=7.0)
        assert system.worker is not None
        lines = (await system.worker.final_output()).splitlines()
    if form == "text":
        assert masked(sample.strip()) in [masked(line) for line in lines]
        return
    ready, ended = json.loads(sample), json.loads(DOC.block("log", "json of a request"))
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    (actual_ready,) = [record for record in records if "→ ready" in record["message"]]
    (actual_ended,) = [record for record in records if record["message"] == ended["message"]]
    for documented, actual in ((ready, actual_ready), (ended, actual_ended)):
        varying: dict[str, Any] = dict.fromkeys(
            {"time", "request_id", "queue_s", "total_s"} & set(documented)
        )
        assert {**documented, **varying} == {**actual, **varying}
        assert {name: type(documented[name]) for name in varying} == {n: type(actual[n]) for n in varying}
