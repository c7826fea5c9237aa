"""JSON Schemas of what readers accept (JSON Schema, draft 2020-12; OpenAPI 3.1, "Schema Object").

Owns the definitions that several schemas share. Each reader makes its own schema.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

Schema = dict[str, Any]

# Where a document has the definitions.
REFERENCE = "#/components/schemas/"


def resolved(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """The schema that `schema` refers to, among the definitions `schemas`; itself if it is no reference."""
    reference: str = schema.get("$ref", "")
    return schemas[reference.removeprefix(REFERENCE)] if reference else schema


class Definitions:
    """The schemas of classes by name, each once: a class may have fields of its own type.

    With `refuses_unknown`, objects have no fields but those that are described.
    """

    def __init__(self) -> None:
        self.refuses_unknown = False
        self.schemas: dict[str, Schema] = {}
        self._names: dict[Hashable, str] = {}

    def reference(self, cls: Any, make: Callable[[], Schema]) -> Schema:
        """A reference to the schema of `cls`, which `make` makes once. Classes of one name are numbered."""
        key = (cls, self.refuses_unknown)
        if key not in self._names:
            name = self._names[key] = self._free_name(cls.__name__)
            self.schemas[name] = {}  # so that the name is taken
            self.schemas[name] = make()
        return {"$ref": REFERENCE + self._names[key]}

    def adopt(self, schemas: Mapping[str, Schema]) -> None:
        """Add schemas that refer to each other by their names; one whose name is taken is left out."""
        for name, schema in schemas.items():
            self.schemas.setdefault(name, schema)

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.schemas:
            number += 1
            name = f"{wanted}{number}"
        return name
