"""Readers: JSON values into values of annotated types, with every problem named at once.

Owns what an annotation accepts, and what a message calls it. A value is checked strictly: text is no number,
a boolean is no number, and 3.0 is no integer; an integer given for a float is converted. Numbers are finite.
Built-in types are converted by msgspec, pydantic's by pydantic (pydantic_reader.py), and objects field by
field in json_fields.py, which `reader_of` is given. A type that has no reader here accepts every value.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import typing
import uuid
from abc import ABC, abstractmethod
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, cast

import msgspec

from lib.fields.annotations import LISTS, QUALIFIERS, named_type, union_members
from lib.fields.json_error import OutsideLimits, Problem, WrongValue
from lib.fields.limits import is_finite
from lib.fields.schemas import Definitions, Schema
from lib.fields.url_parameters import converted
from lib.fields.value_limits import Limits

# What msgspec raises for a value that it can't convert.
_REFUSALS = (msgspec.ValidationError, TypeError, ValueError, OverflowError)

# Wrong items of one list or object that are named: an answer shall not be much longer than its request.
MAX_PROBLEMS = 100
_NO_ITEM_OF_A_SET = "must be neither a list nor an object"

# The types that msgspec converts, with their names in messages.
_BUILT_IN: Mapping[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    bytes: "a string in Base64",
    bytearray: "a string in Base64",
    datetime.datetime: "a date and time (RFC 3339)",
    datetime.date: "a date (RFC 3339)",
    datetime.time: "a time of day (RFC 3339)",
    datetime.timedelta: "a duration (ISO 8601)",
    uuid.UUID: "a UUID",
    decimal.Decimal: "a decimal number",
}
# The types whose values are the same in JSON and in Python.
_UNCHANGED = frozenset({str, int, bool, type(None), list, dict})
_CAN_BE_INFINITE = frozenset({float, decimal.Decimal})
_CONTAINERS: Mapping[Any, Any] = {**LISTS, dict: dict, abc.Mapping: dict, abc.MutableMapping: dict}


class Reader(ABC):
    """Reads the values of one annotation. `description` completes "must be …"; it ends with `detail`, the
    words about a container's items.

    Values of a type in `exact` are passed without a call of `read`. `has_fields`: it reads objects of fields
    that have types of their own. `accepts_floats`: a finite float is passed as it is.
    """

    description: str
    detail: str = ""
    exact: frozenset[Any] = frozenset()
    has_fields: bool = False
    accepts_floats: bool = False

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Convert `value`, as JSON has it or already of the type. Raises `WrongValue`."""

    @abstractmethod
    def schema(self, definitions: Definitions) -> Schema:
        """The JSON Schema of what it reads. That of a class goes to `definitions`."""

    def has_field(self, name: str) -> bool:
        """Whether the objects that it reads have a field `name`."""
        return False

    @property
    def embedded(self) -> str:
        """The description inside of another one."""
        return f"({self.description})" if self.detail else self.description

    def refused(self) -> WrongValue:
        """The error for a value of another type."""
        return WrongValue(f"must be {self.description}")


class AnyReader(Reader):
    """Accepts every value."""

    description = "any value"

    def read(self, value: Any) -> Any:
        return value

    def schema(self, definitions: Definitions) -> Schema:
        return {}


class NumberReader(Reader):
    """Reads a float."""

    description = _BUILT_IN[float]
    accepts_floats = True

    def read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refused()
        try:
            number = float(value)
        except OverflowError:  # an integer larger than every float
            number = math.inf
        if not math.isfinite(number):
            raise WrongValue("must be finite")
        return value if type(value) is float else number

    def schema(self, definitions: Definitions) -> Schema:
        return {"type": "number"}


class BuiltInReader(Reader):
    """Reads a type that msgspec converts, alone or in containers; such a container is checked as a whole.

    `parts` is the reader of a container, or of a type with limits, that would read it part by part. It says
    what is wrong with a value that msgspec refuses.
    """

    def __init__(self, annotation: Any, description: str, parts: Reader | None = None) -> None:
        self.description = description
        self.detail = "" if parts is None else parts.detail
        self._annotation = annotation
        self._parts = parts
        self._is_unchanged = _is_json(annotation)
        self._can_be_infinite = not _CAN_BE_INFINITE.isdisjoint(_leaves(annotation))
        kind = {list[Any]: list, dict[str, Any]: dict}.get(annotation, annotation)
        if kind in _UNCHANGED:
            self.exact = frozenset({kind})

    def read(self, value: Any) -> Any:
        try:
            result = msgspec.convert(value, self._annotation, str_keys=True)
        except _REFUSALS as e:
            raise self._problem_of(value) or self.refused() from e
        if self._can_be_infinite and not is_finite(result):
            raise self._problem_of(value) or WrongValue("must be finite")
        return value if self._is_unchanged else result

    def schema(self, definitions: Definitions) -> Schema:
        return (
            msgspec.json.schema(self._annotation) if self._parts is None else self._parts.schema(definitions)
        )

    def _problem_of(self, value: Any) -> WrongValue | None:
        """The error that `parts` raises for a value that was refused, if any."""
        try:
            if self._parts is not None:
                self._parts.read(value)
        except WrongValue as e:
            return e
        return None


class LimitedReader(Reader):
    """Reads what `plain` reads, within `limits`. `annotation`, of both, makes the schema if msgspec can."""

    def __init__(self, plain: Reader, limits: Limits, annotation: Any) -> None:
        kind = typing.get_args(annotation)[0]
        kind = typing.get_origin(kind) or kind
        said = limits.after(kind if isinstance(kind, type) else object)
        self.description = f"{plain.description.removesuffix(plain.detail)} {said}".rstrip() + plain.detail
        self.detail = plain.detail
        self.has_fields = plain.has_fields
        self._plain = plain
        self._limits = limits
        self._annotation = annotation

    def has_field(self, name: str) -> bool:
        return self._plain.has_field(name)

    def read(self, value: Any) -> Any:
        # A list that is too long is refused before its items are read.
        is_container = isinstance(value, (list, tuple, set, frozenset, dict))
        result = None if is_container and self._limits.problem(value) else self._plain.read(value)
        problem = self._limits.problem(value if is_container else result)
        if problem is not None:
            raise OutsideLimits(problem)
        return result

    def schema(self, definitions: Definitions) -> Schema:
        if _is_built_in(self._annotation):
            return msgspec.json.schema(self._annotation)
        plain = self._plain.schema(definitions)
        return {**plain, **self._limits.schema(plain.get("type") == "object")}


class ChoiceReader(Reader):
    """Reads a literal's values: those that are equal to a choice and of its type."""

    def __init__(self, choices: Sequence[Any]) -> None:
        # A literal may name a member of an enumeration.
        self._choices = [(c.value if isinstance(c, enum.Enum) else c, c) for c in choices]
        self.description = "one of " + ", ".join(repr(said) for said, _ in self._choices)

    def read(self, value: Any) -> Any:
        for said, choice in self._choices:
            if value is choice or (type(said) is type(value) and said == value):
                return choice
        raise self.refused()

    def schema(self, definitions: Definitions) -> Schema:
        return {"enum": [said for said, _ in self._choices]}


class EnumReader(Reader):
    """Reads an enumeration by its members' values, and as the class's own `_missing_` says."""

    def __init__(self, cls: type[enum.Enum]) -> None:
        self.description = "one of " + ", ".join(repr(member.value) for member in cls)
        self._cls = cls

    def read(self, value: Any) -> enum.Enum:
        if isinstance(value, self._cls):
            return value
        try:
            member = self._cls(value)
        except (ValueError, TypeError, KeyError) as e:
            raise self.refused() from e
        # True, 1 and 1.0 are equal, and of one hash.
        if member.value == value and type(member.value) is not type(value):
            raise self.refused()
        return member

    def schema(self, definitions: Definitions) -> Schema:
        return {"enum": [member.value for member in self._cls]}


class UnionReader(Reader):
    """Reads a value by the first member that accepts it.

    Members of whose own type it is come first, then those with fields, and last those that accept all.
    """

    def __init__(self, members: Sequence[Reader]) -> None:
        self.description = " or ".join(dict.fromkeys(member.embedded for member in members))
        self.has_fields = any(member.has_fields for member in members)
        self.accepts_floats = any(member.accepts_floats for member in members)
        exact = {kind for member in members for kind in member.exact}
        self.exact = frozenset(exact - {dict} if self.has_fields else exact)
        self._members = sorted(members, key=lambda m: (isinstance(m, AnyReader), not m.has_fields))

    def has_field(self, name: str) -> bool:
        return any(member.has_field(name) for member in self._members)

    def read(self, value: Any) -> Any:
        if type(value) in self.exact:
            return value
        if type(value) is float and self.accepts_floats:
            return NumberReader().read(value)
        inside: list[dict[str, Any]] = []
        outside: list[OutsideLimits] = []
        for member in self._members:
            try:
                return member.read(value)
            except OutsideLimits as e:
                outside.append(e)
            except WrongValue as e:
                if isinstance(e.problem, dict):
                    inside.append(e.problem)
        if len(outside) == 1:
            raise outside[0]
        if len(inside) == 1 or (inside and self.has_fields):
            raise WrongValue(min(inside, key=len))  # of the member that was most likely meant
        raise self.refused()

    def schema(self, definitions: Definitions) -> Schema:
        return {"anyOf": [member.schema(definitions) for member in self._members]}


class ListReader(Reader):
    """Reads a list's items one by one, into a `kind` of container."""

    def __init__(self, kind: Callable[[list[Any]], Any], item: Reader) -> None:
        self.detail = "" if isinstance(item, AnyReader) else f", each item {item.description}"
        self.description = f"a list{self.detail}"
        self._kind = kind
        self._item = item

    def read(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise self.refused()
        given = cast("Sequence[Any]", value)
        items = _read_each((str(i), self._item, item) for i, item in enumerate(given))
        try:
            return self._kind(list(items.values()))
        except TypeError as e:  # a list or an object is no item of a set
            wrong = (i for i, item in items.items() if not isinstance(item, abc.Hashable))
            raise WrongValue(dict.fromkeys(islice(wrong, MAX_PROBLEMS), _NO_ITEM_OF_A_SET)) from e

    def schema(self, definitions: Definitions) -> Schema:
        return {"type": "array", "items": self._item.schema(definitions)}


class TupleReader(Reader):
    """Reads a list of a fixed length whose items have types of their own."""

    def __init__(self, items: Sequence[Reader]) -> None:
        self.detail = ": " + ", ".join(item.embedded for item in items)
        self.description = f"a list of {len(items)}{self.detail}"
        self._items = items

    def read(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(cast("Sequence[Any]", value)) != len(self._items):
            raise self.refused()
        pairs = zip(self._items, cast("Sequence[Any]", value), strict=True)
        return tuple(_read_each((str(i), *pair) for i, pair in enumerate(pairs)).values())

    def schema(self, definitions: Definitions) -> Schema:
        items = [item.schema(definitions) for item in self._items]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


class DictReader(Reader):
    """Reads an object whose values are all of one type."""

    def __init__(self, key_annotation: Any, key: Reader, item: Reader) -> None:
        self.detail = "" if isinstance(item, AnyReader) else f", each value {item.description}"
        self.description = f"an object{self.detail}"
        self._key_annotation = key_annotation
        self._key = key
        self._item = item

    def read(self, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise self.refused()
        given = cast("dict[Any, Any]", value)
        keys = self._read_keys(given)
        values = _read_each((key, self._item, item) for key, item in given.items())
        return {keys[key]: item for key, item in values.items()}

    def schema(self, definitions: Definitions) -> Schema:
        return {"type": "object", "additionalProperties": self._item.schema(definitions)}

    def _read_keys(self, keys: abc.Iterable[Any]) -> dict[Any, Any]:
        """The keys in their type, which JSON has as strings. Raises `WrongValue` for wrong ones."""
        read: dict[Any, Any] = {}
        problems: dict[str, Problem] = {}
        for key in keys:
            try:
                read[key] = self._key.read(
                    converted(self._key_annotation, key) if isinstance(key, str) else key
                )
            except WrongValue as e:
                problems[str(key)] = f"its name {e.problem}"
                if len(problems) == MAX_PROBLEMS:
                    break
        if problems:
            raise WrongValue(problems)
        return read


class ReaderFactory:
    """Makes the reader of an annotation. `objects` makes that of a class with fields, or returns None."""

    def __init__(self, objects: Callable[[Any], Reader | None]) -> None:
        self._objects = objects
        self._open: set[Any] = set()

    def reader_of(self, annotation: Any) -> Reader:
        """Make the reader of `annotation`; one that accepts every value if it is of an unknown type."""
        if not isinstance(annotation, abc.Hashable):
            return AnyReader()
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if getattr(origin, "_name", None) in QUALIFIERS:
            return self.reader_of(arguments[0])
        if (reader := self._objects(annotation)) is not None:
            return reader
        if (named := named_type(annotation)) is not None:
            return self._of_name(annotation, named)
        if annotation is float:
            return NumberReader()
        if origin is Annotated:
            return self._annotated(annotation, arguments)
        if origin is Literal:
            return ChoiceReader(arguments)
        if len(members := union_members(annotation)) > 1:
            return UnionReader([self.reader_of(member) for member in members])
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            return EnumReader(annotation)
        if annotation is None:
            annotation = type(None)
        if annotation in _BUILT_IN:
            return BuiltInReader(annotation, _BUILT_IN[annotation])
        kind = _CONTAINERS.get(origin or annotation)
        return AnyReader() if kind is None else self._container(kind, arguments)

    def _of_name(self, name: Any, named: Any) -> Reader:
        """The reader of a `NewType` or an alias; one that accepts every value for an alias inside itself."""
        if name in self._open:
            return AnyReader()
        self._open.add(name)
        try:
            return self.reader_of(named)
        finally:
            self._open.discard(name)

    def _annotated(self, annotation: Any, arguments: tuple[Any, ...]) -> Reader:
        """The reader of `Annotated[…]`; msgspec's `Meta` is checked, other metadata is not."""
        plain = self.reader_of(arguments[0])
        if not any(isinstance(note, msgspec.Meta) for note in arguments[1:]) or isinstance(plain, AnyReader):
            return plain
        limited = LimitedReader(plain, Limits.in_notes(arguments[1:]), annotation)
        return (
            BuiltInReader(annotation, limited.description, limited) if _is_built_in(annotation) else limited
        )

    def _container(self, kind: Any, arguments: tuple[Any, ...]) -> Reader:
        own = self._own_container(kind, arguments)
        annotation = kind[arguments] if arguments else kind
        return BuiltInReader(annotation, own.description, own) if _is_built_in(annotation) else own

    def _own_container(self, kind: Any, arguments: tuple[Any, ...]) -> Reader:
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            return TupleReader([self.reader_of(argument) for argument in arguments])
        if kind is dict:
            key, value = arguments or (Any, Any)
            return DictReader(key, self.reader_of(key), self.reader_of(value))
        return ListReader(kind, self.reader_of(arguments[0] if arguments else Any))


def _read_each(parts: abc.Iterable[tuple[Any, Reader, Any]]) -> dict[Any, Any]:
    """Read the values of `parts`, each with its name and its reader. Raises `WrongValue` for all wrong
    ones, or for the first `MAX_PROBLEMS`.
    """
    values: dict[Any, Any] = {}
    problems: dict[str, Problem] = {}
    for name, reader, value in parts:
        try:
            values[name] = value if type(value) in reader.exact else reader.read(value)
        except WrongValue as e:
            problems[str(name)] = e.problem
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise WrongValue(problems)
    return values


def _leaves(annotation: Any) -> abc.Iterator[Any]:
    """Yield the types in `annotation` that are no containers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        yield from (type(choice) for choice in arguments)
    elif origin is Annotated and all(isinstance(note, msgspec.Meta) for note in arguments[1:]):
        yield from _leaves(arguments[0])
    elif arguments and origin is not Annotated:
        yield from (leaf for argument in arguments if argument is not ... for leaf in _leaves(argument))
    elif annotation is not Any:
        yield annotation


def _is_built_in(annotation: Any) -> bool:
    """Whether msgspec converts all of `annotation`."""
    if not all(leaf in _BUILT_IN or leaf in _CONTAINERS for leaf in _leaves(annotation)):
        return False
    try:
        msgspec.inspect.type_info(annotation)
    except TypeError:
        return False
    return True


def _is_json(annotation: Any) -> bool:
    """Whether the values of `annotation`, which msgspec converts, are the same in JSON and in Python."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (set, frozenset, tuple) or (origin is dict and arguments[0] not in (str, Any)):
        return False
    if origin in (list, dict) or len(union_members(annotation)) > 1:
        return all(_is_json(argument) for argument in arguments)
    return annotation is Any or origin is Literal or annotation in _UNCHANGED
