"""The JSON Schema of an annotation agrees with its reader about values, as far as schemas can say it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from lib.fields.arguments import Arguments
from lib.fields.json_fields import reader_of
from lib.fields.schemas import REFERENCE, Definitions, Schema
from tests.lib.fields import typed_examples as examples


def whole_schema(annotation: Any) -> Schema:
    """The schema of `annotation` with the definitions that it refers to."""
    definitions = Definitions()
    schema = reader_of(annotation).schema(definitions)
    text = json.dumps({**schema, "$defs": definitions.schemas})
    return json.loads(text.replace(REFERENCE, "#/$defs/"))


def is_json(value: Any) -> bool:
    """Whether `value` could have come as JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(annotation, value) for annotation, value, _ in examples.ACCEPTED if is_json(value)],
)
def test_what_is_read_is_valid(annotation: Any, value: Any) -> None:
    schema = whole_schema(annotation)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "3"),
        (int, True),
        (int, 3.5),
        (float, "3"),
        (str, 3),
        (bool, 1),
        (list[int], [1, "2"]),
        (tuple[int, str], [1]),
        (tuple[int, str], [1, 2]),
        (dict[str, int], {"a": "1"}),
        (int | None, "3"),
        (list[str | None], [1]),
    ],
)
def test_what_is_refused_is_not_valid(annotation: Any, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, whole_schema(annotation), jsonschema.Draft202012Validator)


def of_text_or_tree(prompt: str | examples.Tree) -> None: ...


def of_tree(tree: examples.Tree | None) -> None: ...


@pytest.mark.parametrize("payload", [{"prompt": "a"}, {"prompt": {"name": "a"}}, {"name": "a"}])
def test_the_value_of_an_only_parameter_is_described_under_its_name(payload: Any) -> None:
    arguments, definitions = Arguments("function", of_text_or_tree), Definitions()
    arguments.read(payload)
    text = json.dumps({**arguments.schema(definitions), "$defs": definitions.schemas})
    schema = json.loads(text.replace(REFERENCE, "#/$defs/"))
    jsonschema.validate(payload, schema, jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": 3}, schema, jsonschema.Draft202012Validator)


def test_a_class_as_the_only_parameter_is_described_as_the_payload() -> None:
    schema = Arguments("function", of_tree).schema(Definitions())
    assert schema == reader_of(examples.Tree | None).schema(Definitions())


def test_a_class_that_refers_to_itself_is_defined_once() -> None:
    definitions = Definitions()
    assert reader_of(examples.Tree).schema(definitions) == {"$ref": f"{REFERENCE}Tree"}
    assert reader_of(list[examples.Tree]).schema(definitions)["items"] == {"$ref": f"{REFERENCE}Tree"}
    assert list(definitions.schemas) == ["Tree"]


def test_two_classes_of_one_name_have_two_definitions() -> None:
    definitions = Definitions()
    one, other = (type("Same", (), {}) for _ in range(2))
    assert definitions.reference(one, lambda: {"type": "object"}) == {"$ref": f"{REFERENCE}Same"}
    assert definitions.reference(other, lambda: {"type": "array"}) == {"$ref": f"{REFERENCE}Same2"}
    assert definitions.schemas == {"Same": {"type": "object"}, "Same2": {"type": "array"}}
