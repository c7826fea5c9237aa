"""Calls of a deployment's functions, in the format of Vast.ai's SDK.

Owns the payload of a request, `{"kwargs": {name: value}}` or `{"args": [value]}` with serialized values, and
its answer, `{"ok": value}` or `{"err": exception}`. How values are serialized is the SDK's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from lib.deployment.sdk import Json, RegisteredFunction, Sdk
from lib.errors import result_or_error
from lib.fields.json_fields import JsonDataException
from lib.metrics import DEFAULT_WORKLOAD


@dataclass(frozen=True)
class RemoteCall:
    """The arguments of one call. Without a `workload_calculator`, it counts as `DEFAULT_WORKLOAD`."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    workload_calculator: Callable[..., float] | None = None

    def count_workload(self) -> float:
        if self.workload_calculator is None:
            return DEFAULT_WORKLOAD
        return float(self.workload_calculator(*self.args, **self.kwargs))


class CallFormat:
    """Reads and writes the calls of one function, and writes its answers.

    A call has all arguments, those left to their defaults too, as the SDK's client sends them. A variadic
    parameter's value is a tuple (`*args`) or a dict (`**kwargs`) under the parameter's own name.
    """

    def __init__(self, sdk: Sdk, function: RegisteredFunction, root_module: str) -> None:
        self._sdk = sdk
        self._root_module = root_module
        self._names = function.globals
        self._signature = inspect.signature(function.func)
        kinds = {name: parameter.kind for name, parameter in self._signature.parameters.items()}
        self._parameters = frozenset(kinds)
        self._any_name = next((n for n, kind in kinds.items() if kind is inspect.Parameter.VAR_KEYWORD), None)

    def write_call(self, *args: Any, **kwargs: Any) -> Json:
        """The payload of a call with these arguments.

        Raises `TypeError` if the function doesn't accept them, or what the serializer raises.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {"kwargs": {name: self._serialize(value) for name, value in bound.arguments.items()}}

    def read_call(self, payload: Mapping[str, Any]) -> RemoteCall:
        """The call in `payload`. Raises `JsonDataException` (422) naming each wrong argument."""
        given, named = payload.get("args", []), payload.get("kwargs", {})
        problems: dict[str, Any] = {}
        if not isinstance(given, list):
            problems["args"] = "must be a list of serialized arguments"
        if not isinstance(named, dict):
            problems["kwargs"] = "must be an object of serialized arguments"
        if problems:
            raise JsonDataException(problems)
        by_position = {str(i): json for i, json in enumerate(cast("list[Json]", given))}
        args = self._read_all(by_position, "args")
        kwargs = self._read_all(cast("dict[str, Json]", named), "kwargs")
        try:
            bound = self._bind(tuple(args.values()), kwargs)
        except TypeError as e:
            raise JsonDataException({"kwargs": str(e)}) from e
        return RemoteCall(bound.args, bound.kwargs)

    def write_result(self, result: Any) -> Json:
        """The answer with `result`. Raises what the serializer raises, such as `TypeError`."""
        return self._sdk.serialize_ok(result, self._root_module)

    def write_error(self, error: Exception) -> Json:
        """The answer with `error`, which the SDK's client raises.

        The serializer leaves out an exception's `args`, and so its message; they are added. An exception that
        can't be serialized, or whose class no client finds by its name, is a `RuntimeError` with its text.
        """
        written = result_or_error(partial(self._sdk.serialize_err, error, self._root_module))
        if isinstance(written, Exception) or "." in type(error).__qualname__:
            error = RuntimeError(f"{type(error).__qualname__}: {error}")
            written = self._sdk.serialize_err(error, self._root_module)
        args = result_or_error(partial(self._serialize, error.args))
        if isinstance(args, Exception):
            args = self._serialize((str(error),))
        written["err"]["contents"]["args"] = args
        return written

    def _serialize(self, value: Any) -> Json:
        return self._sdk.serialize(value, self._root_module)

    def _read_all(self, values: Mapping[str, Json], where: str) -> dict[str, Any]:
        """Deserialize `values`. Raises `JsonDataException` (422) naming each one that can't be."""
        read = self._sdk.deserialize
        found = {
            name: result_or_error(partial(_noted, read, json, self._root_module, self._names))
            for name, json in values.items()
        }
        problems = {
            name: f"is not a value that vastai has serialized ({value!r})"
            for name, value in found.items()
            if isinstance(value, Exception)
        }
        if problems:
            raise JsonDataException({where: problems})
        return {name: cast("tuple[Any]", value)[0] for name, value in found.items()}

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """Bind the arguments to the function's parameters. Raises `TypeError` if they don't fit."""
        bound = self._signature.bind_partial(*args)
        unknown = {name: value for name, value in kwargs.items() if name not in self._parameters}
        twice = bound.arguments.keys() & kwargs.keys()
        if twice:
            raise TypeError(f"multiple values for argument {min(twice)!r}")
        bound.arguments.update({name: kwargs[name] for name in kwargs.keys() - unknown.keys()})
        if self._any_name is not None:
            bound.arguments[self._any_name] = {**bound.arguments.get(self._any_name, {}), **unknown}
        elif unknown:
            raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
        bound.apply_defaults()  # without them, what follows a missing parameter counts as a keyword
        return self._signature.bind(*bound.args, **bound.kwargs)


def _noted(read: Callable[..., Any], *arguments: Any) -> tuple[Any]:
    """Call `read`; return the result in a tuple, since it may be an exception, which is a value here."""
    return (read(*arguments),)
