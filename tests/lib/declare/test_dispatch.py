"""Handler classes that compute their answers: which do, and how files are sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.payload import AsyncIterablePayload

from lib.declare.dispatch import attach_dispatch, dispatches_itself
from lib.model.caller import ModelCaller
from tests.fakes.plain_handler import PlainHandler


class Raises(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        raise NotImplementedError(f"not for {params}")


class Documented(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        """There is no function."""


class Passes(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        pass


class ReturnsNothing(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        """There is no function."""
        return None


class Computes(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return {"n": 2 * params["n"]}


class ComputesPlainly(PlainHandler):
    def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:  # type: ignore[override] - as written
        if not params:
            raise ValueError("nothing to do")
        return params


class Inherits(Computes):
    pass


class Generated(PlainHandler):
    pass


def without_source() -> Callable[..., Any]:
    """A function of which nobody knows the source."""
    return eval("lambda self, params: 1")


setattr(Generated, "call_remote_dispatch_function", without_source())  # noqa: B010 - as a program would


@pytest.mark.parametrize(
    ("handler_class", "computes"),
    [
        (PlainHandler, False),
        (Raises, False),
        (Documented, False),
        (Passes, False),
        (ReturnsNothing, False),
        (Computes, True),
        (ComputesPlainly, True),
        (Inherits, True),
        (Generated, True),
    ],
)
def test_an_override_that_is_only_there_because_it_must_be_computes_nothing(
    handler_class: type[Any], computes: bool
) -> None:
    assert dispatches_itself(handler_class) is computes


class ReturnsFile(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return Path(params["path"])


class KeepsAlive(ReturnsFile):
    keepalive_s = 1.0


async def file_answer(handler: PlainHandler, path: Path) -> tuple[type[Any], dict[str, str]]:
    """The kind of body of the answer with the file at `path`, and the answer's headers."""
    attach_dispatch(handler)
    async with handler.call_model(cast(ModelCaller, None), {"path": str(path)}) as answer:
        assert isinstance(answer, web.Response)
        return type(answer.body), dict(answer.headers)


async def test_a_file_is_sent_in_parts_unless_newlines_may_be_sent_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    kind, headers = await file_answer(ReturnsFile(), path)
    assert (kind, headers) == (AsyncIterablePayload, {"Content-Type": "text/plain", "Content-Length": "3"})
    kind, headers = await file_answer(KeepsAlive(), path)
    assert (kind, headers["Content-Type"]) == (bytes, "text/plain")
