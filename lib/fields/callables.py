"""Author's functions before they are called: whether a call can work.

Owns what is read from a function's signature and kind. Running functions is in lib/declare/functions.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling `function` returns a coroutine; it may be an object with an async `__call__`."""
    return any(inspect.iscoroutinefunction(called) for called in _called(function))


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` returns a coroutine or an async generator."""
    return is_coroutine_function(function) or any(inspect.isasyncgenfunction(c) for c in _called(function))


def same_function(one: Any, other: Any) -> bool:
    """Whether both are the same function, each bound to whatever object or class, or to none."""
    return getattr(one, "__func__", one) is getattr(other, "__func__", other)


def accepts(function: Callable[..., Any], arguments: int, *keywords: str) -> bool:
    """Whether `function` accepts this number of positional arguments and these keywords.

    True for a built-in function without a signature: only a call would show.
    """
    try:
        inspect.signature(function).bind(*range(arguments), **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def without_partials(function: Any) -> Any:
    """The callable inside `function`, if that is a `functools.partial`; else `function` itself."""
    while isinstance(function, partial):
        function = cast("partial[Any]", function).func
    return function


def parameters_of(function: Callable[..., Any]) -> Sequence[inspect.Parameter] | None:
    """The parameters of `function`, or None without a signature, as for some built-in functions."""
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def call_problems(
    name: str, function: Callable[..., Any] | None, arguments: int, *, may_be_async: bool = False
) -> Iterator[str]:
    """Yield a line for each reason why `function`, the field `name`, can't be called with `arguments`."""
    if function is None:
        return
    if is_async(function) and not may_be_async:
        yield f"{name} is async: give a plain function"
    if not accepts(function, arguments):
        yield f"{name} can't be called with {arguments} argument{'s' * (arguments != 1)}"


def _called(function: Callable[..., Any]) -> tuple[Any, ...]:
    """`function` and, for an object that is not a class, its `__call__`."""
    return (function, None if isinstance(function, type) else getattr(function, "__call__", None))  # noqa: B004
