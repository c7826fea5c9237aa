"""Which handler classes compute their answers by an override of `call_remote_dispatch_function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lib.declare.dispatch import dispatches_itself
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
