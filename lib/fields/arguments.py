"""A payload's fields into a function's keyword arguments.

Owns which parameters a function has for that, and the one that may be the whole payload. `Arguments.fields`
has each parameter's name and annotation, for a description of the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lib.fields.annotations import union_members
from lib.fields.callables import parameters_of, without_partials
from lib.fields.hints import resolved_hints
from lib.fields.json_error import WrongValue
from lib.fields.json_fields import Field, ObjectFields, make_field, reader_of
from lib.fields.schemas import Definitions, Schema
from lib.fields.url_parameters import Parameters, converted

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Arguments:
    """Reads the arguments of `function`, which messages call `owner`; `returned` annotates its result."""

    def __init__(self, owner: str, function: Callable[..., Any]) -> None:
        parameters = parameters_of(function) or ()  # without a signature, it can't be called
        named = [p for p in parameters if p.kind in _NAMED]
        rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
        annotated = [p.name for p in parameters if p.annotation is not p.empty]
        hints = resolved_hints(owner, _annotated_part(function), annotated)
        self.fields: Sequence[Field] = [
            make_field(p.name, hints.get(p.name, Any), p.default is p.empty, p.default) for p in named
        ]
        self.accepts_any = rest is not None
        self.returned: Any = hints.get("return", Any)
        self._reader = ObjectFields(
            owner, self.fields, reader_of(hints.get(rest.name, Any)) if rest else None
        )

    @property
    def whole(self) -> Field | None:
        """The only parameter, if it has fields of its own: the payload may be its value."""
        is_whole = len(self.fields) == 1 and not self.accepts_any and self.fields[0].reader.has_fields
        return self.fields[0] if is_whole else None

    def of_instance(self, value: Any) -> dict[str, Any]:
        """The keyword arguments if `value` is of the class of the only parameter; otherwise none."""
        whole, kind = self.whole, cast("type[Any]", type(value))
        if whole is None or kind is dict or kind not in union_members(whole.annotation):
            return {}
        return {whole.name: value}

    def schema(self, definitions: Definitions) -> Schema:
        """The JSON Schema of the payload."""
        whole = self.whole
        if whole is None:
            return self._reader.schema(definitions)
        payload = whole.reader.schema(definitions)
        return {"anyOf": [payload, self._reader.schema(definitions)]} if _has_plain_member(whole) else payload

    def read(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments in `payload`. Raises `JsonDataException` for all wrong fields.

        The only parameter, if it has fields, is the payload itself, or the value under its name, unless that
        is the name of one of these fields.
        """
        whole = self.whole
        if whole is None or _holds(payload, whole):
            return self._reader.read(payload)
        if not payload and not whole.required:
            return {}
        try:
            return {whole.name: whole.reader.read(payload)}
        except WrongValue as e:
            raise e.of_request(whole.name) from e


def _holds(payload: Mapping[str, Any], field: Field) -> bool:
    """Whether the value of `field` is in `payload` by its name.

    An object, null, or an author's own value is. Any other is only if the annotation accepts it.
    """
    if field.name not in payload or field.reader.has_field(field.name):
        return False
    value = payload[field.name]
    if not isinstance(value, (str, int, float, list)):
        return True
    if isinstance(payload, Parameters):
        value = converted(field.annotation, value)
    try:
        field.reader.read(value)
    except (WrongValue, RecursionError):
        return False
    return True


def _has_plain_member(field: Field) -> bool:
    """Whether the annotation of `field` accepts values without fields too, other than null."""
    members = [member for member in union_members(field.annotation) if member is not type(None)]
    return not all(reader_of(member).has_fields for member in members)


def _annotated_part(function: Any) -> Any:
    """The function, class or method in `function` whose annotations are those of its parameters."""
    function = inspect.unwrap(without_partials(function))
    if isinstance(function, type):
        return function.__init__
    return function if inspect.isroutine(function) else type(function).__call__
