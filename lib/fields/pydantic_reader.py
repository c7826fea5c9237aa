"""Readers of pydantic's types: models, its dataclasses, and annotations with its `Field`.

Owns pydantic's errors in this project's words. pydantic itself is never imported here: where no module of the
worker's author has, no annotation is of its types. Its models decide themselves how strict they are.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, cast

from lib.fields.json_error import WrongValue
from lib.fields.readers import Reader
from lib.fields.schemas import REFERENCE, Definitions, Schema
from lib.fields.unknown_fields import UnknownFields

# "List should have at most 2 items after validation, not 3"
_RULE = re.compile(r"\w+ should (.*?)(?: after validation, not .*)?", re.DOTALL)
_WORDS: Mapping[str, str] = {
    "missing": "missing parameter",
    "extra_forbidden": "unknown parameter",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "none_required": "must be null",
}


class PydanticReader(Reader):
    """Reads a value by a pydantic validator.

    `plain` reads the annotation without pydantic's notes: it has the fields; None for a class of fields.
    """

    def __init__(
        self,
        description: str,
        validate: Callable[[Any], Any],
        make_schema: Callable[..., dict[str, Any]],
        names: Collection[str] = (),
        unknown: UnknownFields | None = None,
        plain: Reader | None = None,
    ) -> None:
        self.description = description
        self.has_fields = plain is None or plain.has_fields
        self._validate = validate
        self._make_schema = make_schema
        self._names = names
        self._unknown = unknown
        self._plain = plain

    def has_field(self, name: str) -> bool:
        return name in self._names if self._plain is None else self._plain.has_field(name)

    def schema(self, definitions: Definitions) -> Schema:
        schema = self._make_schema(ref_template=REFERENCE + "{model}")
        definitions.adopt(schema.pop("$defs", {}))
        if definitions.refuses_unknown and self._unknown is not None:
            schema["additionalProperties"] = False
        return schema

    def read(self, value: Any) -> Any:
        problems: dict[str, Any] = {}
        if self._unknown is not None and isinstance(value, dict):
            names = [name for name in cast("dict[str, Any]", value) if name not in self._names]
            problems = self._unknown.problems(names) if names else {}
        try:
            result = self._validate(value)
        except ValueError as e:
            found = _problem_of(e)
            raise WrongValue({**problems, **found} if isinstance(found, dict) else found) from e
        if problems:
            raise WrongValue(problems)
        return result


def pydantic_reader(annotation: Any, reader_of: Callable[[Any], Reader]) -> PydanticReader | None:
    """The reader of an annotation of pydantic's; None for any other. `reader_of` makes that of a part."""
    module: Any = sys.modules.get("pydantic")
    if module is None:
        return None
    if typing.get_origin(annotation) is Annotated:
        notes = annotation.__metadata__
        if not any(type(note).__module__.startswith(("pydantic", "annotated_types")) for note in notes):
            return None
        adapter = module.TypeAdapter(annotation)
        plain = reader_of(typing.get_args(annotation)[0])
        return PydanticReader("valid", adapter.validate_python, adapter.json_schema, plain=plain)
    if not isinstance(annotation, type) or not hasattr(annotation, "__pydantic_validator__"):
        return None
    cls = cast(Any, annotation)
    is_model = hasattr(cls, "model_validate")
    adapter = None if is_model else module.TypeAdapter(cls)
    validate = cls.model_validate if adapter is None else adapter.validate_python
    make_schema = cls.model_json_schema if adapter is None else adapter.json_schema
    names = _names_of(cls)
    unknown = UnknownFields(cls.__name__, names) if _ignores_unknown(cls) else None
    return PydanticReader("an object", validate, make_schema, names, unknown)


def _names_of(cls: Any) -> frozenset[str]:
    """The names that a value may give to the fields of `cls`."""
    fields: Mapping[str, Any] = cls.__pydantic_fields__
    return frozenset({*fields, *(alias for field in fields.values() for alias in _aliases(field))})


def _ignores_unknown(cls: Any) -> bool:
    """Whether `cls` neither refuses unknown fields nor keeps them, and its names are all known."""
    config: Mapping[str, Any] = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", {})
    aliases = (field.validation_alias for field in cls.__pydantic_fields__.values())
    has_plain_names = all(isinstance(alias, (str, type(None))) for alias in aliases)
    return has_plain_names and config.get("extra", "ignore") == "ignore"


def _aliases(field: Any) -> list[str]:
    return [alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str)]


def _problem_of(error: ValueError) -> Any:
    """The problems of pydantic's `ValidationError` by field; of any other error, its text."""
    list_errors: Any = getattr(error, "errors", None)
    if list_errors is None:
        return str(error)
    problems: dict[str, Any] = {}
    for found in list_errors(include_url=False, include_input=False):
        path: Sequence[str | int] = found["loc"]
        line = _words(found)
        if not path:
            return line
        _put(problems, [str(part) for part in path], line)
    return problems


def _put(problems: dict[str, Any], path: Sequence[str], line: str) -> None:
    """Put `line` at `path` into `problems`, unless there is one already, or one of an object around it."""
    for part in path[:-1]:
        problems = problems.setdefault(part, {})
        if not isinstance(problems, dict):  # pyright: ignore[reportUnnecessaryIsInstance] - any depth
            return
    problems.setdefault(path[-1], line)


def _words(found: Mapping[str, Any]) -> str:
    if found["type"] in _WORDS:
        return _WORDS[found["type"]]
    if found["type"] in ("literal_error", "enum"):
        return f"must be one of {found['ctx']['expected'].replace(' or ', ', ')}"
    text: str = found["msg"]
    for begin in ("Value error, ", "Assertion failed, "):
        if text.startswith(begin):
            return text[len(begin) :]
    if rule := _RULE.fullmatch(text):
        return f"must {rule[1]}"
    return text[:1].lower() + text[1:]
