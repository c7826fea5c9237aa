"""The routes that are passed on by families, beside those of handlers.py, and those of `MODEL_PASS_ROUTES`.

Owns which routes of a model server are open: those of families that only compute answers. All others are
closed. Servers have routes that load models and adapters, write files or make the server sleep, and their
next versions will have more of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aiohttp import web
from aiohttp.typedefs import Handler

from lib.server import wildcard
from workers.openai.data_types import (
    EmbeddingRequest,
    GeneratingRequest,
    LookupRequest,
    OpenAIRequest,
    PassedRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)
from workers.openai.handlers import StreamingHandler

# The end of a route that is for all paths below it.
BELOW = "/{path}"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DEFAULT_METHODS = ("GET", "POST")
# An entry of MODEL_PASS_ROUTES: perhaps methods, separated by |, and a path.
_ENTRY = re.compile(r"(?:([A-Z|]+)[ \t]+)?(/\S*)")
_SEGMENT = re.compile(r"(?!\.\.?$)[\w.~:@+=!$&'()-]+")


@dataclass(kw_only=True)
class PassHandler(StreamingHandler):
    """A route of a family, which the model server has at the same path."""

    route: str

    @property
    def endpoint(self) -> str:
        return self.route


class GenerationPassHandler(PassHandler):
    payload: ClassVar[type[OpenAIRequest]] = GeneratingRequest


class ReadingPassHandler(PassHandler):
    payload: ClassVar[type[OpenAIRequest]] = EmbeddingRequest


class RerankPassHandler(PassHandler):
    payload: ClassVar[type[OpenAIRequest]] = RerankRequest


class ScorePassHandler(PassHandler):
    payload: ClassVar[type[OpenAIRequest]] = ScoreRequest


class TokenizePassHandler(PassHandler):
    payload: ClassVar[type[OpenAIRequest]] = TokenizeRequest


class UnchangedPassHandler(PassHandler):
    """A route whose requests get no model either: it may be of any kind."""

    payload: ClassVar[type[OpenAIRequest]] = PassedRequest

    def generate_payload_json(self, payload: OpenAIRequest) -> dict[str, Any]:
        return payload.generate_payload_json()


class LookupPassHandler(UnchangedPassHandler):
    payload: ClassVar[type[OpenAIRequest]] = LookupRequest


@dataclass(frozen=True)
class Passed:
    """A route that is passed on: its methods, and the kind of its handler."""

    route: str
    handler: type[PassHandler]
    methods: tuple[str, ...] = ("POST",)


def _family(name: str, handler: type[PassHandler], *versions: str) -> tuple[Passed, ...]:
    """POST to `/v1/name`, to `/name`, and to all paths below them."""
    roots = [f"{version}/{name}" for version in ("/v1", *versions, "")]
    return (
        *(Passed(root, handler) for root in roots),
        *(Passed(root + BELOW, UnchangedPassHandler) for root in roots),
    )


def _lookups(name: str) -> tuple[Passed, ...]:
    """GET of `/v1/name`, of `/name`, and of all paths below them."""
    routes = (f"/v1/{name}", f"/{name}", f"/v1/{name}{BELOW}", f"/{name}{BELOW}")
    return tuple(Passed(route, LookupPassHandler, ("GET",)) for route in routes)


FAMILIES: tuple[Passed, ...] = (
    *_family("completions", GenerationPassHandler),
    *_family("chat/completions", GenerationPassHandler),
    *_family("chat", UnchangedPassHandler),
    *_family("responses", GenerationPassHandler),
    *_family("messages", GenerationPassHandler),
    *_family("embeddings", ReadingPassHandler),
    *_family("rerank", RerankPassHandler, "/v2"),
    *_family("score", ScorePassHandler),
    *_family("pooling", ReadingPassHandler),
    *_family("classify", ReadingPassHandler),
    *_family("tokenize", TokenizePassHandler),
    *_family("detokenize", TokenizePassHandler),
    *_family("audio", UnchangedPassHandler),
    *_family("images", UnchangedPassHandler),
    *_lookups("responses"),
    *_lookups("audio"),
    *_lookups("models"),
    # llama-server's own
    Passed("/completion", GenerationPassHandler),
    Passed("/infill", GenerationPassHandler),
    Passed("/slots", LookupPassHandler, ("GET",)),
    Passed("/props", LookupPassHandler, ("GET",)),
)


def pass_routes(raw: str) -> tuple[Passed, ...]:
    """Read `MODEL_PASS_ROUTES`: entries like `GET|POST /path`, separated by commas or lines.

    An entry without methods is for GET and POST. A path may end in `/{path}`, for all paths below it. Raises
    `ValueError`, which names the first wrong entry.
    """
    entries = [entry.strip() for entry in re.split(r"[,\n]", raw)]
    return tuple(_pass_route(entry) for entry in entries if entry)


def _pass_route(entry: str) -> Passed:
    found = _ENTRY.fullmatch(entry)
    methods = tuple(found[1].split("|")) if found and found[1] else DEFAULT_METHODS
    if found is None or not set(methods) <= set(METHODS) or not _is_route(found[2]):
        raise ValueError(
            f"has the entry {entry!r}, which is not like 'GET|POST /v1/name', 'POST /name{BELOW}' or '/name'"
        )
    return Passed(found[2], UnchangedPassHandler, methods)


def _is_route(path: str) -> bool:
    """Whether `path` is a plain path, which may end in `/{path}`."""
    plain = path.removesuffix(BELOW)
    return (not plain and path == BELOW) or all(map(_SEGMENT.fullmatch, plain.split("/")[1:] or [""]))


def routes_of(
    passed: Sequence[Passed],
    taken: Sequence[web.RouteDef],
    make: Callable[[type[PassHandler], str], Handler],
) -> list[web.RouteDef]:
    """The routes of `passed` that are not `taken`; `make` makes the aiohttp handler of a kind and a route."""
    known = {(route.method, route.path) for route in taken}
    routes: list[web.RouteDef] = []
    for each in passed:
        methods = [method for method in each.methods if (method, each.route) not in known]
        known.update((method, each.route) for method in methods)
        if not methods:
            continue
        handler = make(each.handler, each.route)
        if each.route.endswith(BELOW):
            routes += wildcard(methods, each.route, handler)
        else:
            routes += [web.route(method, each.route, handler) for method in methods]
    return routes
