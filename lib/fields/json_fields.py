"""JSON objects into dataclasses, TypedDicts and the parameters of functions, field by field.

Owns finding every wrong, missing and unknown field of an object at once. How the value of one field is read
is in readers.py; `reader_of` puts the two together. The names `JsonDataException` and `Parameters` are here
for those that read messages.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Optional, TypeVar, cast

from lib.errors import result_or_error
from lib.fields.hints import resolved_hints
from lib.fields.json_error import JsonDataException, Problem, WrongValue
from lib.fields.json_values import to_json
from lib.fields.pydantic_reader import pydantic_reader
from lib.fields.readers import AnyReader, Reader, ReaderFactory
from lib.fields.schemas import Definitions, Schema
from lib.fields.unknown_fields import UnknownFields
from lib.fields.url_parameters import Parameters, converted

__all__ = [
    "Field",
    "JsonDataException",
    "ObjectFields",
    "Parameters",
    "make_field",
    "read_dataclass",
    "read_fields",
    "read_typed",
    "reader_of",
]

T = TypeVar("T")

_type_of: Callable[[object], type[object]] = type
_TOO_DEEP = "is nested too deeply"
# Of the default of a field, in bytes of JSON: nobody would read a longer one.
MAX_DEFAULT = 1000
# Factories of defaults that are the same each time.
_EMPTY = (list, dict, set, frozenset, tuple)


def read_dataclass(cls: type[T], message: Mapping[str, Any]) -> T:
    """Make an instance of the dataclass `cls` from `message`; unknown fields are ignored or refused.

    Raises `JsonDataException`, also for a `ValueError` of the class's own code.
    """
    values = fields_of(cls).read(message)
    try:
        return cls(**values)
    except ValueError as e:
        raise JsonDataException({cls.__name__: str(e) or "is invalid"}) from e


def read_typed(cls: Any, message: Mapping[str, Any]) -> Any:
    """Make an instance of `cls`: by its own `from_json_msg` or, without one, as `reader_of` reads it.

    Raises `JsonDataException`.
    """
    if (own := getattr(cls, "from_json_msg", None)) is not None:
        return own(message)
    try:
        return reader_of(cls).read(message)
    except WrongValue as e:
        raise e.of_request(cls.__name__) from e


def read_fields(cls: type[Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """The values in `message` for the fields of the dataclass `cls`; unknown keys are ignored.

    Raises `JsonDataException`: for each wrong field "missing parameter" or the type that it must have.
    """
    return fields_of(cls).read(message, judges_unknown=False)


class Field(NamedTuple):
    """A field of an object, or a parameter of a function.

    Values of a type in `exact` need no reading; of floats, only finite ones. None: no value needs any.
    `default` is `MISSING` where there is none, or it is made for each object.
    """

    name: str
    annotation: Any
    required: bool
    reader: Reader
    exact: frozenset[Any] | None
    default: Any


def make_field(name: str, annotation: Any, required: bool, default: Any = MISSING) -> Field:
    """Make a field. One whose default is None accepts null, also where its annotation has forgotten it."""
    if not required and default is None:
        annotation = Optional[annotation]  # noqa: UP045 - of an object, not of a type expression
    reader = reader_of(annotation)
    exact = None if isinstance(reader, AnyReader) else reader.exact
    if exact is not None and reader.accepts_floats:
        exact |= {float}
    return Field(name, annotation, required, reader, exact, MISSING if required else default)


class ObjectFields:
    """The fields of `owner`. `rest` reads all others; without it, they are unknown."""

    def __init__(self, owner: str, fields: Sequence[Field], rest: Reader | None = None) -> None:
        self.owner = owner
        self.fields = fields
        self._rest = rest
        self.names = frozenset(field.name for field in fields)
        self._unknown = UnknownFields(owner, self.names)

    def read(self, message: Mapping[str, Any], judges_unknown: bool = True) -> dict[str, Any]:
        """The values in `message`, by name. Raises `JsonDataException` for all wrong fields."""
        values: dict[str, Any] = {}
        problems: dict[str, Problem] = {}
        from_url = isinstance(message, Parameters)
        for name, annotation, required, reader, exact, _ in self.fields:
            if name not in message:
                if required:
                    problems[name] = "missing parameter"
                continue
            given = message[name]
            kind = _type_of(given)
            if exact is None or (
                kind in exact and not from_url and (kind is not float or math.isfinite(given))
            ):
                values[name] = given
                continue
            try:
                values[name] = reader.read(converted(annotation, given) if from_url else given)
            except WrongValue as e:
                problems[name] = e.problem
            except RecursionError:
                problems[name] = _TOO_DEEP
        if judges_unknown and len(values) < len(message):
            self._read_rest(message, values, problems)
        if problems:
            raise JsonDataException(problems)
        return values

    def schema(self, definitions: Definitions) -> Schema:
        """The JSON Schema of an object with these fields."""
        properties = {
            field.name: {**field.reader.schema(definitions), **_default_schema(field.default)}
            for field in self.fields
        }
        required = [field.name for field in self.fields if field.required]
        schema: Schema = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        if self._rest is not None:
            schema["additionalProperties"] = self._rest.schema(definitions)
        elif definitions.refuses_unknown:
            schema["additionalProperties"] = False
        return schema

    def _read_rest(
        self, message: Mapping[str, Any], values: dict[str, Any], problems: dict[str, Problem]
    ) -> None:
        names = [name for name in message if name not in self.names]
        if self._rest is None:
            if names:
                problems.update(self._unknown.problems(names))
            return
        for name in names:
            try:
                values[name] = self._rest.read(message[name])
            except WrongValue as e:
                problems[name] = e.problem


def _default_schema(default: Any) -> Schema:
    """A default as a part of a JSON Schema; none for one that JSON hasn't, or a long one."""
    text = b"" if default is MISSING else result_or_error(lambda: to_json(default))
    return {"default": json.loads(text)} if isinstance(text, bytes) and 0 < len(text) <= MAX_DEFAULT else {}


class DataclassReader(Reader):
    """Reads a dataclass, by its own `from_json_msg` if it has one. `ValueError` of its code refuses."""

    description = "an object"
    has_fields = True

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._cls: type[Any] = typing.get_origin(annotation) or annotation  # of a generic class
        self._own: Callable[[Any], Any] | None = getattr(self._cls, "from_json_msg", None)

    def has_field(self, name: str) -> bool:
        return name in fields_of(self._annotation).names

    def read(self, value: Any) -> Any:
        if isinstance(value, self._cls):
            return value
        if not isinstance(value, dict):
            raise self.refused()
        try:
            if self._own is not None:
                return self._own(value)
            return self._cls(**fields_of(self._annotation).read(cast("dict[str, Any]", value)))
        except JsonDataException as e:
            raise WrongValue(e.message) from e
        except ValueError as e:
            raise WrongValue(str(e) or "is invalid") from e

    def schema(self, definitions: Definitions) -> Schema:
        return definitions.reference(
            self._annotation, lambda: fields_of(self._annotation).schema(definitions)
        )


class TypedDictReader(Reader):
    """Reads a TypedDict."""

    description = "an object"
    has_fields = True

    def __init__(self, cls: Any) -> None:
        self._cls = cls

    @cached_property
    def _fields(self) -> ObjectFields:
        owner: str = self._cls.__name__
        hints = resolved_hints(owner, self._cls, self._cls.__annotations__)
        fields = [make_field(name, hint, self._requires(name, hint)) for name, hint in hints.items()]
        return ObjectFields(owner, fields)

    def has_field(self, name: str) -> bool:
        return name in self._fields.names

    def read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.refused()
        try:
            return self._fields.read(cast("dict[str, Any]", value))
        except JsonDataException as e:
            raise WrongValue(e.message) from e

    def schema(self, definitions: Definitions) -> Schema:
        return definitions.reference(self._cls, lambda: self._fields.schema(definitions))

    def _requires(self, name: str, hint: Any) -> bool:
        # `__required_keys__` does not know of qualifiers in quotes, or with annotations from __future__.
        qualifier = getattr(typing.get_origin(hint), "_name", None)
        if qualifier in ("Required", "NotRequired"):
            return qualifier == "Required"
        return name in self._cls.__required_keys__


@lru_cache(maxsize=256)
def fields_of(annotation: Any) -> ObjectFields:
    """The fields that the constructor of a dataclass takes, also of a generic one with its arguments.

    Raises `TypeError` for another class.
    """
    cls: Any = typing.get_origin(annotation) or annotation
    owner: str = cls.__name__
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{owner} is not a dataclass: define its from_json_msg")
    declared = [*(field for field in dataclasses.fields(cls) if field.init), *_init_only(cls)]
    hints = resolved_hints(owner, cls, [field.name for field in declared])
    types = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(annotation), strict=False))
    fields = [_dataclass_field(field, _substituted(hints[field.name], types)) for field in declared]
    return ObjectFields(owner, fields)


def _substituted(hint: Any, types: Mapping[Any, Any]) -> Any:
    """Return `hint` with its type variables replaced by `types`."""
    if isinstance(hint, TypeVar):
        return types.get(hint, hint)
    variables = getattr(hint, "__parameters__", ()) if types and typing.get_origin(hint) is not None else ()
    return hint[tuple(types.get(variable, variable) for variable in variables)] if variables else hint


def _init_only(cls: Any) -> list[dataclasses.Field[Any]]:
    """The `InitVar`s of a dataclass: parameters of its constructor that are no fields."""
    stored = {field.name for field in dataclasses.fields(cls)}
    parameters = inspect.signature(cls.__init__).parameters
    pseudo: Mapping[str, dataclasses.Field[Any]] = cls.__dataclass_fields__
    return [field for name, field in pseudo.items() if name in parameters and name not in stored]


def _dataclass_field(field: dataclasses.Field[Any], annotation: Any) -> Field:
    if isinstance(annotation, dataclasses.InitVar):
        annotation = cast(Any, annotation).type
    required = field.default is MISSING and field.default_factory is MISSING
    default, factory = field.default, field.default_factory
    if (typing.get_origin(factory) or factory) in _EMPTY:
        default = cast("Callable[[], Any]", factory)()
    return make_field(field.name, annotation, required, default)


def _object_reader(annotation: Any) -> Reader | None:
    """The reader of a class with fields; None for any other annotation."""
    if (reader := pydantic_reader(annotation, reader_of)) is not None:
        return reader
    cls: Any = typing.get_origin(annotation) or annotation  # of a generic class
    if not isinstance(cls, type):
        return None
    kind = cast("type[Any]", cls)
    bases = kind.__mro__
    if dict in bases and hasattr(annotation, "__total__"):
        return TypedDictReader(kind)
    is_enum = enum.Enum in bases  # it may be made of a dataclass
    return DataclassReader(annotation) if dataclasses.is_dataclass(kind) and not is_enum else None


reader_of = ReaderFactory(_object_reader).reader_of
