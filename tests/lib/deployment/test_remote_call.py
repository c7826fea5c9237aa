"""Calls of a deployment's functions, in the format of the real SDK."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.deployment.remote_call import CallFormat
from lib.fields.json_fields import JsonDataException
from tests.lib.deployment.registered import SDK, as_client, deployment_with

SCALARS = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=8,
)


def every_kind(
    first: Any, /, second: Any, third: Any = 3, *rest: Any, named: Any = 5, **more: Any
) -> None: ...


def two(a: Any, b: Any = 2) -> None: ...


def none() -> None: ...


def format_of(function: Callable[..., Any]) -> CallFormat:
    (registered,) = deployment_with(function).remote_funcs.values()
    return CallFormat(SDK, registered, __name__)


@given(
    args=st.lists(VALUES, min_size=2, max_size=5),
    kwargs=st.dictionaries(st.sampled_from(["named", "x", "y"]), VALUES),
)
def test_a_call_is_read_as_it_was_written(args: list[Any], kwargs: dict[str, Any]) -> None:
    call_format = format_of(every_kind)
    call = call_format.read_call(json.loads(json.dumps(call_format.write_call(*args, **kwargs))))
    signature = inspect.signature(every_kind)
    expected, found = signature.bind(*args, **kwargs), signature.bind(*call.args, **call.kwargs)
    expected.apply_defaults()
    found.apply_defaults()  # empty ones of variadic parameters
    assert found.arguments == expected.arguments


@given(args=st.lists(SCALARS.filter(lambda value: not isinstance(value, bytes)), min_size=2, max_size=2))
def test_arguments_may_be_sent_by_position(args: list[Any]) -> None:
    call = format_of(two).read_call({"args": args})
    assert (list(call.args), call.kwargs) == (args, {})
    assert format_of(two).read_call({"args": args[:1]}).args == (args[0], 2)


@pytest.mark.parametrize(
    ("function", "payload", "problems"),
    [
        (two, {"args": {}, "kwargs": 3}, {"args": "must be a list", "kwargs": "must be an object"}),
        (two, {}, {"kwargs": "missing a required argument: 'a'"}),
        (two, {"args": [1, 2, 3]}, {"kwargs": "too many positional arguments"}),
        (two, {"args": [1], "kwargs": {"a": 1}}, {"kwargs": "multiple values for argument 'a'"}),
        (two, {"kwargs": {"a": 1, "c": 1}}, {"kwargs": "got an unexpected keyword argument 'c'"}),
        (none, {"args": [1]}, {"kwargs": "too many positional arguments"}),
        (every_kind, {"args": [1, 2], "kwargs": {"rest": 5}}, {"kwargs": ""}),
        (every_kind, {"args": [1, 2], "kwargs": {"more": 5}}, {"kwargs": ""}),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    function: Callable[..., Any], payload: dict[str, Any], problems: dict[str, str]
) -> None:
    with pytest.raises(JsonDataException) as refused:
        format_of(function).read_call(payload)
    assert refused.value.message.keys() == problems.keys()
    for name, problem in problems.items():
        assert refused.value.message[name].startswith(problem)


@pytest.mark.parametrize(
    "value",
    [
        True,
        [1],
        {},
        {"type": "set", "contents": []},
        {"type": "bytes", "contents": 5},
        {"type": "dict", "contents": [[1]]},
        {"type": "obj", "module": {"type": "absolute", "path": ["no_such"]}, "class": "C", "contents": {}},
        {"type": "obj", "module": {"type": "relative", "path": []}, "class": "NoSuch", "contents": {}},
    ],
)
def test_what_is_not_serialized_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(JsonDataException) as refused:
        format_of(two).read_call({"args": [value], "kwargs": {}})
    assert "vastai" in refused.value.message["args"]["0"]
    with pytest.raises(JsonDataException) as refused:
        format_of(two).read_call({"kwargs": {"a": 1, "b": value}})
    assert refused.value.message["kwargs"].keys() == {"b"}


def test_an_exception_is_a_value_where_it_is_an_argument() -> None:
    call_format = format_of(two)
    call = call_format.read_call(call_format.write_call(KeyError()))
    assert type(call.args[0]) is KeyError


class Own(Exception):
    """An exception of the module that has the functions."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Holder:
    """Has an exception that no client finds by its name."""

    class Inner(Exception):
        pass


def raised_by_a_client(error: Exception) -> Exception:
    answer = json.loads(json.dumps(format_of(two).write_error(error)))
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the type is compared below
        as_client(answer)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("text", 2),
        KeyError(("a", 1)),
        OSError(2, "no file"),
        ZeroDivisionError("by zero"),
    ],
)
def test_an_exception_comes_back_with_its_arguments(error: Exception) -> None:
    raised = raised_by_a_client(error)
    assert (type(raised), raised.args) == (type(error), error.args)


def test_arguments_that_cannot_be_sent_are_sent_as_text() -> None:
    raised = raised_by_a_client(ValueError({1}))
    assert (type(raised), raised.args) == (ValueError, ("{1}",))


def test_an_exceptions_attributes_come_back() -> None:
    answer = format_of(two).write_error(Own("text", 3))
    assert answer["err"]["contents"]["code"] == 3


@pytest.mark.parametrize("error", [Holder.Inner("text"), type("Local", (Exception,), {"a": {1}})("text")])
def test_an_exception_that_no_client_can_make_is_a_runtime_error(error: Exception) -> None:
    error.lock = {1}  # pyright: ignore[reportAttributeAccessIssue] - an attribute that can't be sent
    raised = raised_by_a_client(error)
    assert (type(raised), raised.args) == (RuntimeError, (f"{type(error).__qualname__}: text",))
