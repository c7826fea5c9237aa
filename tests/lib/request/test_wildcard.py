"""Which paths a wildcard has, and what the model server gets of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from lib.errors import Invalid
from lib.model.messages import fill_path
from lib.request.wildcard import is_rest, is_wildcard, rest_of, wildcard


async def answer(request: web.Request) -> web.StreamResponse:
    return web.Response()


def router_of(*routes: web.AbstractRouteDef) -> web.UrlDispatcher:
    router = web.UrlDispatcher()
    router.add_routes(routes)
    return router


async def matched(target: str, method: str = "GET", route: str = "/v1/{path}") -> str | None:
    """The rest of the path of `target`, as it stands in a request; None if the wildcard hasn't it."""
    request = make_mocked_request(method, target)
    found = await router_of(*wildcard(["GET", "POST"], route, answer)).resolve(request)
    found.add_app(web.Application())
    as_any: Any = request
    as_any._match_info = found
    return rest_of(request) if found.http_exception is None else None


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ("/v1/models", "models"),
        ("/v1/audio/speech", "audio/speech"),
        ("/v1/responses/resp_1-a.b~c/cancel?x=/../y", "responses/resp_1-a.b~c/cancel"),
        ("/v1/%6dodels", "models"),
        ("/v1/%6Dodels", "models"),
        ("/%76%31/models", "models"),
        ("/v1/caf%C3%A9%20a", "café a"),
        ("/v1/...", "..."),
        ("/v1/.hidden/a..b", ".hidden/a..b"),
        ("/v1/a;b=1", "a;b=1"),
        ("/v1/a%3Fb%23c", "a?b#c"),
        ("/v1/a+b", "a+b"),
    ],
)
async def test_paths_below_the_route(target: str, rest: str) -> None:
    assert await matched(target) == rest
    assert await matched(target, "POST") == rest
    assert await matched(target, "DELETE") is None


@pytest.mark.parametrize(
    "target",
    [
        *("/v1", "/v1/", "/", "/v2/models", "/V1/models", "/v1models", "/other/v1/models"),
        *("/v1//models", "//v1/models", "/v1/a//b", "/v1/models/", "/v1/a/b/"),
        *(
            "/v1/.",
            "/v1/..",
            "/v1/../x",
            "/v1/a/../b",
            "/v1/a/./b",
            "/v1/a/..",
            "/v1/..;/x",
            "/v1/..;a=b",
            "/v1/.;",
        ),
        *("/v1/%2e%2e/x", "/v1/%2E%2E", "/v1/.%2e/x", "/v1/a/%2e/b", "/v1/%2e%2e%2fx", "/v1/%2e%2e;/x"),
        *("/v1/a%2Fb", "/v1/a%2fb", "/v1/..%2fx", "/v1/%2Fx", "/v1%2Fmodels", "/v1/a%252Fb", "/v1/a%25252Fb"),
        *("/v1/%252e%252e/x", "/v1/%25", "/v1/100%25", "/v1/a%5Cb", "/v1/a\\b", "/v1/..%5cx", "/v1/%5c..%5c"),
        *(
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/%u002e",
            "/v1/%c0%ae%c0%ae/x",
            "/v1/%c0%af",
            "/v1/%ff",
            "/v1/%ed%a0%80",
        ),
        *("/v1/a%00", "/v1/a%0a", "/v1/a%0d%0aHost:b", "/v1/%09", "/v1/a%7f", "/v1/a%C2%85", "/v1/\udcff"),
    ],
)
async def test_paths_that_are_in_no_wildcard(target: str) -> None:
    assert await matched(target) is None


def texts(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), max_size=12)


TRICKY = texts("ab./\\;%25efEFcC0\x00\n") | st.text(max_size=8)


@given(TRICKY)
@example("..%2f")
async def test_what_is_compared_is_what_is_sent(raw: str) -> None:
    """The path that is sent is one that any server reads as the path that was compared."""
    rest = await matched("/v1/" + quote(raw, safe="/;%\\", errors="surrogatepass"))
    if rest is None:
        return
    sent = fill_path("/v1/{path}", {"path": rest}, has_rest=True)
    assert unquote(sent) == f"/v1/{rest}"
    assert "%" not in unquote(sent)  # a second decoding changes nothing
    assert unquote(URL(f"http://m{sent}").raw_path) == unquote(sent)  # nor does the removal of dots
    assert not {"", ".", ".."} & set(unquote(sent).split("/")[1:])
    assert "%2F" not in sent.upper()
    assert "\\" not in unquote(sent)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1), min_size=1))
async def test_every_ordinary_path_is_there(segments: list[str]) -> None:
    if any(not is_rest(segment) or "/" in segment for segment in segments):
        return
    target = "/v1/" + "/".join(quote(segment, safe="") for segment in segments)
    assert await matched(target) == "/".join(segments)


@pytest.mark.parametrize("rest", ["", "/", "a//b", "..", "a/../b", ".", "a%2Fb", "a\\b", "a\nb"])
def test_a_rest_that_another_route_or_the_benchmark_gives_is_checked_too(rest: str) -> None:
    with pytest.raises(Invalid):
        fill_path("/v1/{path}", {"path": rest}, has_rest=True)


def test_only_a_wildcards_path_has_slashes() -> None:
    assert fill_path("/v1/{path}", {"path": "a/b c"}, has_rest=True) == "/v1/a/b%20c"
    assert fill_path("/v1/{path}", {"path": "a/b c"}) == "/v1/a%2Fb%20c"
    assert fill_path("/{path}/v1", {"path": "a/b"}, has_rest=True) == "/a%2Fb/v1"
    assert fill_path("/{id}/{path}", {"path": "a/b", "id": "c/d"}, has_rest=True) == "/c%2Fd/a/b"


async def test_a_more_exact_route_comes_first() -> None:
    router = router_of(*wildcard(["POST"], "/v1/{path}", answer), web.post("/v1/models", answer))
    for target, canonical in (("/v1/models", "/v1/models"), ("/v1/models/a", "/v1/{path}")):
        found = await router.resolve(make_mocked_request("POST", target))
        assert found.route.resource is not None
        assert found.route.resource.canonical == canonical
    found = await router.resolve(make_mocked_request("GET", "/v1/models/a"))
    assert isinstance(found.http_exception, web.HTTPMethodNotAllowed)


def test_a_route_without_the_parameter_is_no_wildcard() -> None:
    assert not is_wildcard("/v1/{path}/x")
    assert not is_wildcard("/v1/{id}")
    with pytest.raises(ValueError, match=r"has no /\{path\} at its end"):
        wildcard(["GET"], "/v1/{id}", answer)


def test_another_request_has_no_rest() -> None:
    assert rest_of(object()) is None
    assert rest_of(make_mocked_request("GET", "/v1/a", match_info={"path": "a"})) is None
