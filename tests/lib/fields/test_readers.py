"""JSON values into values of annotated types, of every supported kind."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.errors import result_or_error
from lib.fields.arguments import Arguments
from lib.fields.json_error import JsonDataException, WrongValue
from lib.fields.json_fields import reader_of
from lib.fields.readers import MAX_PROBLEMS
from tests.lib.fields import typed_examples as examples

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
# Values that are close to those that are accepted.
LIKELY = st.sampled_from([given for _, given, _ in (*examples.ACCEPTED, *examples.REFUSED)])


@pytest.mark.parametrize(("annotation", "given", "value"), examples.ACCEPTED)
def test_a_value_is_converted_to_the_annotated_type(annotation: Any, given: Any, value: Any) -> None:
    read = reader_of(annotation).read(given)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(("annotation", "given", "problem"), examples.REFUSED)
def test_a_wrong_value_is_refused_in_words(annotation: Any, given: Any, problem: Any) -> None:
    with pytest.raises(WrongValue) as refused:
        reader_of(annotation).read(given)
    assert refused.value.problem == problem


@pytest.mark.parametrize(("annotation", "value"), [(a, v) for a, _, v in examples.ACCEPTED if a is not bytes])
def test_a_value_that_is_of_the_type_already_stays(annotation: Any, value: Any) -> None:
    assert reader_of(annotation).read(value) == value


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has the type statement")
def test_an_alias_by_a_type_statement_is_what_it_stands_for() -> None:
    names: dict[str, Any] = {}
    exec("type Whole = int\ntype Pair[T] = tuple[T, T]\ntype Tree = dict[str, Tree] | Whole", names)
    assert reader_of(names["Pair"][float]).read([1, 2]) == (1.0, 2.0)
    tree = reader_of(names["Tree"])
    assert tree.read({"a": {"b": 1}}) == {"a": {"b": 1}}
    assert tree.read(3) == 3
    for annotation, value in ((names["Whole"], "3"), (names["Pair"][int], [1, "2"]), (names["Tree"], "a")):
        with pytest.raises(WrongValue):
            reader_of(annotation).read(value)


def test_so_many_items_of_a_list_are_named() -> None:
    with pytest.raises(WrongValue) as refused:
        reader_of(list[examples.Voice]).read([{}] * 2 * MAX_PROBLEMS)
    wrong = {"name": "missing parameter"}
    assert refused.value.problem == {str(number): wrong for number in range(MAX_PROBLEMS)}


def test_values_of_json_are_not_copied() -> None:
    for annotation, value in ((list[str], ["a"]), (dict[str, list[int]], {"a": [1]}), (list[Any], [object])):
        assert reader_of(annotation).read(value) is value


def test_what_is_nested_too_deeply_is_refused() -> None:
    tree: dict[str, Any] = {"name": "leaf"}
    for _ in range(sys.getrecursionlimit()):
        tree = {"name": "branch", "children": [tree]}
    with pytest.raises(WrongValue):
        reader_of(examples.Tree).read(tree)


def is_of(annotation: Any, value: Any) -> bool:
    """Whether msgspec, or pydantic, says that `value` is of the type `annotation`."""
    try:
        examples.pydantic.TypeAdapter(annotation).validate_python(value)
    except examples.pydantic.ValidationError:
        return False
    return True


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("annotation", [annotation for annotation, _, _ in examples.ACCEPTED])
@given(value=LIKELY | JSON)
def test_any_value_becomes_one_of_the_type_or_names_the_parameter(annotation: Any, value: Any) -> None:
    def function(n: Any) -> None: ...

    function.__annotations__ = {"n": annotation}
    arguments = Arguments("function", function)
    read = result_or_error(lambda: arguments.read({"n": value}))
    if isinstance(read, Exception):
        assert isinstance(read, JsonDataException)
        assert set(read.message) == {"n"} or (read.message and arguments.whole is not None)
        return
    assert set(read) == {"n"}
    assert is_of(annotation, read["n"])
    assert not (isinstance(read["n"], float) and math.isnan(read["n"])) or annotation in (Any, object)


def test_what_is_read_can_be_described() -> None:
    annotations = [a for a, _, _ in examples.ACCEPTED if a not in (Any, object, examples.Mixed)]
    described = 0
    for annotation in annotations:
        try:
            msgspec.json.schema(annotation, schema_hook=lambda cls: cast(Any, cls).model_json_schema())
        except TypeError:  # such as a union that msgspec doesn't know
            continue
        described += 1
    assert described > 30


def test_pydantic_is_not_imported_for_reading() -> None:
    heavy = ("pydantic", "numpy", "torch", "PIL")
    code = f"import sys, lib.worker; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
