"""Which routes of a model server the OpenAI workers pass on, and which are closed."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from lib.errors import SettingsError
from tests.workers.openai.fake_server import MODEL
from tests.workers.worker_system import WorkerSystem, worker_system
from workers.openai.passing import FAMILIES, pass_routes
from workers.openai.server import ServerProfile, build

NAMES = (
    *("completions", "chat", "responses", "messages", "embeddings", "rerank", "score", "pooling", "classify"),
    *("tokenize", "detokenize", "audio", "images", "models"),
)


def router_of(**environ: str) -> web.UrlDispatcher:
    router = web.UrlDispatcher()
    router.add_routes(build(environ)[1])
    return router


ROUTER = router_of()


async def status_of(method: str, target: str, router: web.UrlDispatcher = ROUTER) -> int:
    """200 if `target` is open, or else the status of the refusal."""
    path, _, query = target.partition("?")
    url = URL.build(path=path, query_string=query, encoded=True)  # as aiohttp's server does it
    request = make_mocked_request(method, "/").clone(rel_url=url)
    refusal = (await router.resolve(request)).http_exception
    return 200 if refusal is None else refusal.status


OPEN = [
    *(
        ("POST", path)
        for path in ("/v1/completions", "/v1/completions/render", "/completions", "/completion")
    ),
    *(
        ("POST", path)
        for path in ("/v1/chat/completions", "/chat/completions", "/v1/chat/completions/render")
    ),
    *(("POST", path) for path in ("/v1/responses", "/v1/responses/r-1/cancel", "/v1/responses/input_tokens")),
    *(("POST", path) for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings")),
    *(("POST", path) for path in ("/completion", "/infill")),
    *(("POST", path) for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/pooling")),
    *(("POST", path) for path in ("/classify", "/v1/classify", "/tokenize", "/detokenize", "/v1/tokenize")),
    *(("POST", path) for path in ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/images/variations")),
    *(("GET", path) for path in ("/v1/responses/r-1", "/v1/responses/r-1/input_items?limit=2")),
    *(("GET", path) for path in ("/v1/models", "/models", "/v1/models/tiny", "/v1/models/org/name")),
    *(("GET", path) for path in ("/slots", "/props", "/v1/audio/voices", "/v1/%6dodels/tiny")),
]
CLOSED = [
    *(("POST", path) for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters")),
    *(("POST", path) for path in ("/models/load", "/models/unload", "/models", "/v1/models/tiny", "/props")),
    *(("POST", path) for path in ("/slots", "/slots/0?action=save", "/sleep", "/wake_up", "/collective_rpc")),
    *(("POST", path) for path in ("/reset_prefix_cache", "/update_weights", "/update_weights_from_disk")),
    *(("POST", path) for path in ("/start_profile", "/invocations", "/flush_cache", "/pause", "/api/pull")),
    *(("POST", path) for path in ("/v1/load_next_year", "/v1/files", "/v1/fine_tuning/jobs", "/v1", "/v1/x")),
    *(("POST", path) for path in ("/v1/completionsx", "/v1/Completions", "/v3/rerank", "/v1/v1/completions")),
    *(
        ("POST", path)
        for path in ("/v1/completions/", "/v1/completions//x", "//v1/completions", "/x/tokenize")
    ),
    *(("POST", path) for path in ("/v1/chat/../load_lora_adapter", "/v1/audio/%2e%2e/load_lora_adapter")),
    *(("POST", path) for path in ("/v1/audio/..%2fload_lora_adapter", "/v1/audio/..;/load_lora_adapter")),
    *(("POST", path) for path in ("/v1/audio%2f..%2fload_lora_adapter", "/v1/audio/%252e%252e/sleep")),
    *(("POST", path) for path in ("/v1/audio/..%5csleep", "/v1/audio/x%00", "/tokenize;/../sleep")),
    *(("GET", path) for path in ("/metrics", "/v1/files", "/server_info", "/tokenizer_info", "/slots/0")),
    *(
        ("GET", path)
        for path in ("/v1/models/../files", "/v1/models%2ftiny", "/v1/models/a%2fb", "/v1/models/")
    ),
    *(("DELETE", path) for path in ("/v1/models/tiny", "/v1/responses/r-1", "/v1/chat/completions/c-1")),
    *(("PUT", path) for path in ("/v1/models/tiny", "/v1/audio/voices")),
    *(("PATCH", path) for path in ("/v1/models/tiny",)),
]


@pytest.mark.parametrize(("method", "target"), OPEN)
async def test_open_routes(method: str, target: str) -> None:
    assert await status_of(method, target) == 200


@pytest.mark.parametrize(("method", "target"), CLOSED)
async def test_closed_routes(method: str, target: str) -> None:
    assert await status_of(method, target) in (404, 405)


SEGMENTS = st.sampled_from(
    [*NAMES, "v1", "v2", "..", ".", "", "%2e%2e", "..%2f", "%5c", "load_x", "sleep", "a"]
)


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.sampled_from(["GET", "POST", "PUT", "DELETE"]))
async def test_whatever_is_open_is_in_a_family(segments: list[str], method: str) -> None:
    if await status_of(method, "/" + "/".join(segments)) != 200:
        return
    assert method in ("GET", "POST")
    family = next(segment for segment in segments if segment not in ("v1", "v2"))
    assert family in NAMES
    assert segments.index(family) <= 1
    assert method == "POST" or family in ("responses", "audio", "models")
    assert not {"..", ".", "", "%2e%2e", "..%2f", "%5c"} & set(segments)


def test_a_family_has_a_name_that_is_known_to_be_safe() -> None:
    own = {"/completion", "/infill", "/slots", "/props"}
    for passed in FAMILIES:
        assert passed.route in own or re.sub(r"^/v\d", "", passed.route).split("/")[1] in NAMES


# Profiles of other servers

OTHERS = {"ollama": {"MODEL_NAME": MODEL}, "embeddings": {}, "whisper": {}}
CHANGES = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs/sha256:00",
    "/load",
)


@pytest.mark.parametrize("name", OTHERS)
async def test_a_worker_for_another_server_has_its_own_routes_only(name: str) -> None:
    module: Any = importlib.import_module(f"workers.{name}.server")
    profile: ServerProfile = getattr(module, name.upper())
    routes: list[web.RouteDef] = module.build(OTHERS[name])[1]
    assert {route.path for route in routes} == {handler.path for handler in profile.handlers}
    router = web.UrlDispatcher()
    router.add_routes(routes)
    own = {(route.method, route.path) for route in routes}
    for method, target in {*OPEN, *CLOSED, *(("POST", path) for path in CHANGES)} - own:
        assert (target, await status_of(method, target, router)) in ((target, 404), (target, 405))


@pytest.mark.parametrize("name", OTHERS)
async def test_a_worker_for_another_server_passes_on_the_named_routes(name: str) -> None:
    module: Any = importlib.import_module(f"workers.{name}.server")
    router = web.UrlDispatcher()
    router.add_routes(module.build({**OTHERS[name], "MODEL_PASS_ROUTES": "POST /api/x, GET /y/{path}"})[1])
    assert await status_of("POST", "/api/x", router) == 200
    assert await status_of("GET", "/y/a/b", router) == 200
    assert await status_of("POST", "/y/a", router) == 405
    for path in CHANGES:
        for method in ("GET", "POST", "DELETE"):
            assert await status_of(method, path, router) == 404


# MODEL_PASS_ROUTES


async def test_further_routes() -> None:
    router = router_of(
        MODEL_PASS_ROUTES="POST /v1/load_lora_adapter, GET|DELETE /files/{path}\n/tokenizer_info,,"
    )
    for method, target, status in (
        ("POST", "/v1/load_lora_adapter", 200),
        ("GET", "/v1/load_lora_adapter", 405),
        ("POST", "/v1/load_lora_adapter/x", 404),
        ("POST", "/v1/unload_lora_adapter", 404),
        ("GET", "/files/a/b", 200),
        ("DELETE", "/files/a", 200),
        ("POST", "/files/a", 405),
        ("GET", "/files", 404),
        ("GET", "/files/../sleep", 404),
        ("GET", "/tokenizer_info", 200),
        ("POST", "/tokenizer_info", 200),
        ("PUT", "/tokenizer_info", 405),
        ("POST", "/v1/completions", 200),
        ("POST", "/sleep", 404),
    ):
        assert (method, target, await status_of(method, target, router)) == (method, target, status)


def test_all_routes_can_be_named() -> None:
    assert [passed.route for passed in pass_routes("/{path}")] == ["/{path}"]
    assert pass_routes(" ,\n, ") == ()


@pytest.mark.parametrize(
    "entry",
    [
        *("v1/x", "/", "/v1/", "//x", "/v1//x", "/../x", "/v1/.", "/v1/x?y=1", "/v1/x#y", "/v1/%2e", "/a b"),
        *(
            "/v1/{path}/x",
            "/v1/{name}",
            "/v1/{path",
            "/v1/x{path}",
            "/v1/*",
            "get /x",
            "FETCH /x",
            "GET",
            "GET|/x",
        ),
        *("GET| /x", "|GET /x", "GET /x POST", "http://m/x", "/v1;x", "/v1\\x"),
    ],
)
def test_an_entry_that_is_no_route_is_named(entry: str) -> None:
    with pytest.raises(SettingsError, match="MODEL_PASS_ROUTES") as refused:
        build({"MODEL_PASS_ROUTES": f"/well,{entry}"})
    assert repr(entry) in str(refused.value)
    with pytest.raises(ValueError, match="which is not like"):
        pass_routes(entry)


# A worker


async def got(answer: Any) -> str:
    """The path at which the model server was asked."""
    assert answer.status == 200, await answer.text()
    return json.loads(await answer.read())["path"]


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_routes_are_passed_on_with_authentication_and_workload(tmp_path: Path, carrier: str) -> None:
    env = {"CARRIER": carrier, "MODEL_NAME": MODEL, "MODEL_PASS_ROUTES": "POST /v1/load_lora_adapter"}
    async with worker_system(tmp_path, "openai", env=env) as here:
        await check_lookups(here)
        await check_requests(here)
        await check_refusals(here)
        async with here.system.http.get(here.system.loopback_url + "/docs") as answer:
            assert answer.status == 200
        await here.system.reported(1.0 + 7.0 + 9.0 + 1.0 + 1.0 + 9.5)
        assert "Traceback" not in here.worker.output()


async def check_lookups(here: WorkerSystem) -> None:
    """They count nothing."""
    for path in ("/v1/responses/r-1?include=a&include=b", "/v1/models/org/tiny", "/slots", "/props"):
        async with here.system.http.get(here.system.url + path, headers=here.system.header()) as answer:
            assert await got(answer) == path


async def check_requests(here: WorkerSystem) -> None:
    requests: dict[str, dict[str, Any]] = {
        "/tokenize": {"prompt": "Hello"},
        "/v1/messages": {"messages": [], "max_tokens": 7},
        "/completion": {"prompt": "Hello", "n_predict": 9},
    }
    for path, payload in requests.items():
        async with here.post(path, payload) as answer:
            assert await got(answer) == path
        assert await here.last_message() == {**payload, "model": MODEL}
    url = here.system.url + "/v1/responses/r-1/cancel"
    async with here.system.http.post(url, headers=here.system.header()) as answer:
        assert await got(answer) == "/v1/responses/r-1/cancel"
    assert await here.last_message() == {}
    async with here.post("/v1/load_lora_adapter", {"lora_name": "a"}) as answer:
        assert await got(answer) == "/v1/load_lora_adapter"
    assert await here.last_message() == {"lora_name": "a"}
    form = FormData({"name": "alto"}, default_to_multipart=True)
    form.add_field("sample", b"x" * 15_000, filename="a.wav")
    url = here.system.url + "/v1/audio/voices"
    async with here.system.http.post(url, data=form, headers=here.system.header()) as answer:
        assert answer.status == 200
        size = int(answer.request_info.headers.get("Content-Length", "0"))
        parts = (await answer.json())["parts"]
        assert [part["name"] for part in parts] == ["name", "sample"]
        assert size >= 15_000


async def check_refusals(here: WorkerSystem) -> None:
    before = await here.received()
    for method, path in (("POST", "/sleep"), ("POST", "/v1/audio/..%2fsleep"), ("GET", "/v1/files")):
        async with here.system.http.request(
            method, here.system.url + path, headers=here.system.header()
        ) as answer:
            assert answer.status == 404
    for method, path in (("GET", "/v1/models/tiny"), ("POST", "/tokenize"), ("POST", "/v1/audio/voices")):
        async with here.system.http.request(method, here.system.url + path) as answer:
            assert answer.status in (401, 422)
    assert await here.received() == before
