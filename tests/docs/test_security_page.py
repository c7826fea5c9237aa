"""Checks docs/security.md against the code: routes, headers, files, settings, and the numbers of limits."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import hdrs, web
from multidict import istr

from lib import fetch
from lib.access import arriving, body, payload, scanner, signatures, spool, turns
from lib.backend import Backend
from lib.engine import key
from lib.front import connection, front
from lib.http import chunked, shares
from lib.launch import log
from lib.local import authority, openai_gateway, request_reading, tried_requests
from lib.local.api import EngineApi
from lib.local.engine import LocalEngine
from lib.metrics import SAMPLES_AT_MOST, SECONDS_AT_MOST
from lib.model import benchmark_store, checked_connector, direct
from lib.request import sessions
from lib.routes.management import loopback_routes, public_routes
from lib.routes.sessions import end_route, session_routes
from lib.runtime import logs
from lib.runtime.settings import Settings
from lib.worker import WorkerConfig
from tests.docs.blocks import ROOT, codes, document, table, tables
from tests.docs.test_operating import INSTANCE, RecordingEnviron
from tests.system import engine_key

DOC = document("security")
KIB, MIB = 1024, 1024 * 1024

# Routes


def documented_routes(heading: str) -> list[str]:
    return [codes(row[0])[0] for row in table(DOC.section(heading))]


def named(routes: list[web.RouteDef]) -> list[str]:
    return [f"{route.method} {route.path}" for route in routes]


def test_it_has_every_route_of_the_workers_ports() -> None:
    backend = Backend(None)
    assert documented_routes("### Public port") == named([*public_routes(backend), *session_routes(backend)])
    loopback = named([*loopback_routes(backend, []), end_route(backend)])
    assert sorted(documented_routes("### Loopback port")) == sorted(loopback)


def test_it_has_every_route_of_the_local_engine() -> None:
    app = EngineApi(LocalEngine(key=engine_key())).app()
    routes = [
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    ]
    below = "/e/{endpoint}"
    documented = documented_routes("### Local engine")
    assert documented == [route for route in routes if below not in route]
    before_the_page = documented[: documented.index("GET /")]
    assert [r.replace(below, "") for r in routes if below in r] == before_the_page


# Headers

# Words in lib/ that could be header fields, and are not.
NO_HEADERS = {"warning": "a level", "x-gzip": "a content coding"}
# What runs in no server.
NOT_SERVING = ("lib/tools/", "lib/client.py", "lib/test_harness.py", "lib/testing.py")
# Fields that aiohttp has no name for.
UNREGISTERED = {"proxy-connection"}
FIELDS = {value.lower() for value in vars(hdrs).values() if isinstance(value, istr)} | UNREGISTERED


def texts(source: str) -> Iterator[str]:
    """The string and bytes constants in Python code, without its docstrings."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


def fields_in(text: str) -> set[str]:
    """The header fields that a constant names: it is one, or has lines that begin with one."""
    words = {text, *re.findall(r"(?:^|\r\n)([A-Za-z][A-Za-z0-9-]*):", text)}
    return {w.lower() for w in words if w.lower() in FIELDS or re.fullmatch(r"(?i)x-[a-z][a-z-]*", w)}


def headers_of_the_code() -> set[str]:
    found: set[str] = set()
    for path in sorted((ROOT / "lib").rglob("*.py")):
        if not str(path.relative_to(ROOT)).startswith(NOT_SERVING):
            for text in texts(path.read_text()):
                found |= fields_in(text)
    return found - set(NO_HEADERS)


def test_it_has_every_header_that_the_code_names() -> None:
    rows = [row for rows in tables(DOC.section("## Headers")) for row in rows]
    documented = [name.lower() for row in rows for name in codes(row[0])]
    assert sorted(documented) == sorted(headers_of_the_code())


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("X-Vast-Auth", {"x-vast-auth"}),
        ("x-new-one", {"x-new-one"}),
        ("Content-Length: ", {"content-length"}),
        ("HTTP/1.1 200\r\nETag: 1\r\nConnection: close\r\n", {"etag", "connection"}),
        ("the Host of a request", set[str]()),
    ],
)
def test_headers_are_found_in_constants(text: str, fields: set[str]) -> None:
    assert fields_in(text) == fields


# Files


def documented_files() -> list[str]:
    return [codes(row[0])[0] for row in table(DOC.section("## Files")) if codes(row[0])]


def test_it_has_every_file_that_a_setting_names() -> None:
    named_by_settings = {f.name.upper() for f in dataclasses.fields(Settings) if f.type == "Path"}
    assert {"SSL_KEY", "WORKSPACE_DIR"} <= named_by_settings
    documented = {name.partition("/")[0] for name in documented_files()}
    assert documented == named_by_settings | {"MODEL_LOG", "TMPDIR"}


def test_it_has_the_names_of_the_workers_files() -> None:
    own = (benchmark_store.FILE_NAME, benchmark_store.OLD_FILE_NAME, spool.PREFIX, spool.NEW_PREFIX)
    documented = {name.partition("/")[2].rstrip("…") for name in documented_files()}
    assert {*own, "pyworker-journal-"} <= documented


def test_it_has_the_files_of_start_server() -> None:
    script = (ROOT / "start_server.sh").read_text()
    launcher = "".join(file.read_text() for file in sorted((ROOT / "lib" / "launch").glob("*.py")))
    named = set(re.findall(r"\$workspace/(\.?[\w-]+(?:\.\w+)?)", script.replace(".XXXXXX", "")))
    named |= set(re.findall(r'workspace / f?"(\.?[\w.-]+)', launcher))
    documented = {name.partition("/")[2].rstrip("….") for name in documented_files() if "WORKSPACE" in name}
    assert documented == named | {"pyworker-journal-", ""}  # the last is the folder of the repository's name
    assert f"{log.LOG_BYTES // MIB} MiB it becomes `pyworker.log.old`" in DOC.text


# Settings


def test_its_settings_exist_and_their_defaults_are_right() -> None:
    environ = RecordingEnviron(INSTANCE)
    defaults = Settings.from_env(environ)
    rows = table(DOC.section("## Settings for production"))
    for row in rows:
        for name in codes(row[0]):
            assert name in environ.read, name
        found = re.match(r"`?([\w.]+)`?, the default", row[1])
        if found is not None:
            (name,) = codes(row[0])
            value = getattr(defaults, name.lower())
            assert found[1] == (str(value).lower() if isinstance(value, bool) else value), name
    assert len(rows) > 10


# Limits


def kib(size_bytes: int) -> str:
    return f"{size_bytes // KIB} KiB"


def mib(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB"


def limits(heading: str) -> list[str]:
    return [row[1] for row in table(DOC.section(heading))]


def test_the_limits_on_strangers() -> None:
    assert limits("## What a stranger can cause") == [
        mib(shares.STRANGERS_BYTES),
        kib(front.CONNECTION_BYTES),
        kib(front.TLS_BYTES),
        f"{kib(front.HTTP_BYTES)} more",
        "`MAX_SPOOL_BYTES`, less the uploads",
        kib(arriving.KEPT_BYTES),
        kib(connection.MAX_HEAD_BYTES),
        f"{front.HEAD_LIMIT_S:g} s",
        str(front.MAX_HEADS),
        str(front.MAX_WAITING),
        f"{front.IDLE_LIMIT_S:g} s",
        str(front.MAX_LINGERING),
        f"{front.LINGER_LIMIT_S:g} s",
        kib(connection.MAX_PIPELINED_BYTES),
        f"{kib(body.FLOOR_BYTES_S)}/s, after {body.FLOOR_AFTER_S:g} s",
        kib(scanner.AUTH_DATA_BYTES),
        str(scanner.MAX_KEYS),
        f"{scanner.MAX_DEPTH} levels",
        f"{scanner.MAX_VALUES:,}",
        mib(payload.SMALL_OBJECT_BYTES),
        f"{payload.SMALL_OBJECT_VALUES:,}",
        f"{chunked.MAX_LINE_BYTES} bytes",
        kib(chunked.MAX_TRAILER_BYTES),
        "4 verifications of RSA",  # benchmarks/targets.py
        f"one in {key.LOOK_AGAIN_S:g} s",
        f"{mib(logs.MAX_HELD_BYTES)} wait",
    ]
    assert f"{turns.AT_ONCE} strangers have their turn" in DOC.text


def test_the_limits_on_clients() -> None:
    (max_sessions,) = [f.default for f in dataclasses.fields(WorkerConfig) if f.name == "max_sessions"]
    assert limits("## What a client can cause") == [
        f"`max_workload`, otherwise {SAMPLES_AT_MOST:g} payloads of the benchmark, or {SECONDS_AT_MOST:g} s "
        "of work, whichever is larger",
        "the most that one request may count",
        f"`max_sessions`, {max_sessions} by default",
        f"{sessions.MAX_LIFETIME_S / 3600:g} h",
        kib(sessions.MAX_CLOSE_PAYLOAD_BYTES),
        kib(sessions.MAX_AUTH_BYTES),
        f"{sessions.MAX_CLOSE_ROUTE_CHARS} characters, below the model server's base path",
        "`MAX_JSON_BYTES`",
        "`MAX_BODY_MEMORY_BYTES`",
        "`MAX_REQUEST_BYTES`, together `MAX_SPOOL_BYTES`",
        f"`INPUT_MAX_BYTES`, `INPUT_TIMEOUT_S`, {fetch.MAX_REDIRECTS} redirects, "
        "public addresses and those in `INPUT_NETWORKS` only",
        "`CLIENT_STALL_TIMEOUT_S`",
        str(signatures.WINDOW),
    ]


def test_the_limits_on_the_model_server_and_at_the_local_engine() -> None:
    model = f"{kib(direct.MAX_HEAD_BYTES)} of head or {checked_connector.MAX_INTERIM_ANSWERS} interim answers"
    assert model in DOC.text
    engine = (
        f"{mib(request_reading.MAX_BODY_BYTES)}, requests for certificates {kib(authority.MAX_REQUEST_BYTES)}"
    )
    gateway = f"JSON for the gateway {mib(openai_gateway.MAX_JSON_BYTES)} and for `/local/try` as much"
    assert tried_requests.MAX_TRIED_BYTES == openai_gateway.MAX_JSON_BYTES
    section = " ".join(DOC.section("### Local engine").split())
    assert engine in section
    assert gateway in section


def test_it_is_linked() -> None:
    for path, link in (("README.md", "docs/security.md"), ("docs/operating.md", "security.md")):
        assert f"({link})" in Path(ROOT / path).read_text()
