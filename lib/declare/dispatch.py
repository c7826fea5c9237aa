"""Handler classes that compute their answers here, by the fields of another implementation.

Owns when such a class does so, and the call in place of one of the model server. How a function runs is in
functions.py; the fields are those of `lib.data_types.EndpointHandler`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from lib.data_types import EndpointHandler
from lib.declare.functions import FunctionAnswer, RemoteFunction
from lib.fields.callables import accepts
from lib.fields.unknown_fields import unknown_fields_refused

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller

_NAME = "call_remote_dispatch_function"


def attach_dispatch(handler: EndpointHandler[Any]) -> None:
    """Let `handler` answer by its function, if it has one, unless its class has a `call_model` of its own."""
    own = type(handler)
    overridden = dispatches_itself(own)
    if (handler.remote_function is None and not overridden) or overrides(own, "call_model"):
        return
    function = handler.call_remote_dispatch_function if overridden else handler.remote_function
    dispatch = _Dispatch(handler, cast("Callable[..., Any]", function), by_params=overridden)
    for name in ("call_model", "on_cut"):
        setattr(handler, name, getattr(dispatch, name))


def dispatch_problems(handler: EndpointHandler[Any]) -> list[str]:
    """One line for each reason why the function of `handler` can't be called."""
    own = type(handler)
    if dispatches_itself(own):
        if overrides(own, "call_model"):
            return [f"{_NAME} is overridden, but so is call_model: call it there"]
        if not accepts(handler.call_remote_dispatch_function, 0, "params"):
            return [f"{_NAME} can't be called with params= alone"]
    elif handler.remote_function is not None and (
        problem := RemoteFunction(handler.remote_function).problem(
            receives_uploads=False, has_heartbeat=bool(handler.keepalive_s)
        )
    ):
        return [f"remote_function {problem}"]
    return []


def dispatches_itself(handler_class: type[Any]) -> bool:
    """Whether the class overrides `call_remote_dispatch_function` with code that computes something."""
    return overrides(handler_class, _NAME) and not is_stub(getattr(handler_class, _NAME))


def overrides(handler_class: type[Any], name: str) -> bool:
    """Whether the class has its own `name`, not that of `EndpointHandler`."""
    return getattr(handler_class, name) is not getattr(EndpointHandler, name)


class _Dispatch:
    """The `call_model` and `on_cut` of a handler whose answers `function` computes.

    `by_params`: it is called with the payload as `params`, else with the payload's fields as keywords.
    """

    def __init__(self, handler: EndpointHandler[Any], function: Callable[..., Any], by_params: bool) -> None:
        self._handler = handler
        self._function = RemoteFunction(function)
        self._by_params = by_params
        self._on_cut = handler.on_cut

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: Any
    ) -> AsyncGenerator[FunctionAnswer | web.StreamResponse, None]:
        """Answer `{"result": …}`, a stream, or the response that the function returns.

        Only a stream passes `generate_client_response`, as with a `remote_function` of another
        implementation. Raises `JsonDataException` (422) for missing and wrong parameters.
        """
        params: dict[str, Any] = self._handler.generate_payload_json(payload)
        if self._by_params:
            params = {"params": params}
        else:
            with unknown_fields_refused() if self._handler.extra == "forbid" else nullcontext():
                params = self._function.arguments.read(params)
        async with self._function.call(params) as answer:
            if isinstance(answer, FunctionAnswer) and answer.content_length is not None:
                kind = answer.content_type
                # After the newlines of `keepalive_s`, only a body in memory can follow.
                if answer.content.is_in_memory or self._handler.keepalive_s:
                    yield web.Response(body=await answer.read(), headers={"Content-Type": kind})
                else:
                    headers = {"Content-Type": kind, "Content-Length": str(answer.content_length)}
                    yield web.Response(body=answer.content.iter_any(), headers=headers)
            else:
                yield answer

    def on_cut(self) -> None:
        """Abandon the threads in which the function still runs, and do what the handler does."""
        self._function.threads.leave_behind()
        self._on_cut()


def is_stub(function: Any) -> bool:
    """Whether a function only raises or returns a constant; False if its source is not known."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    definition = tree.body[0]
    return isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)) and all(
        isinstance(node, (ast.Pass, ast.Raise))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Return) and isinstance(node.value, (ast.Constant, type(None))))
        for node in definition.body
    )
