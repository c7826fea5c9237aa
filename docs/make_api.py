"""Write docs/api.md, the reference of the documented modules, from their docstrings and annotations.

    python docs/make_api.py            writes the page
    python docs/make_api.py --check    exits with status 1 if the page is not current

Owns which modules are documented, and the page's form. Which names of a module are public is its `__all__`;
of a class's methods and properties, those with a docstring are listed. The sources are read, not imported.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/make_api.py"

# A name that several of them export is described at the first.
MODULES = (
    "lib.worker",
    "lib.data_types",
    "lib.backend",
    "lib.server",
    "lib.uploads",
    "lib.files",
    "lib.forms",
    "lib.fetch",
    "lib.errors",
    "lib.metrics",
    "lib.model_settings",
    "lib.words",
    "lib.testing",
    "lib.client",
    "lib.test_utils",
    "lib.test_harness",
)

INTRODUCTION = f"""\
<!-- Generated: change the docstrings, then run `{COMMAND}`. -->
# API reference

The modules that workers are written with, and the names in each that are public. Other modules and names may
change at any time. [writing-a-worker.md](writing-a-worker.md) shows how they are used.

| module | names |
| --- | --- |
"""

# The longest signature that stays on one line, in characters.
LINE_LENGTH = 100

SHOWN_DECORATORS = {
    "abstractmethod",
    "asynccontextmanager",
    "classmethod",
    "contextmanager",
    "property",
    "staticmethod",
}
# Classes derived from these have the constructor of a dataclass, without its decorator
# (lib/declare/config_fields.py, and msgspec's structures).
DECLARED = ("DeclaredConfig", "msgspec.Struct")
HIDDEN_BASES = ("ABC", "Generic", "Enum", *DECLARED)


@dataclass
class Anchors:
    """The anchors of the page's headings: `of` maps the path of a module or a name to that of its heading.

    They are those that GitHub makes: a heading that reads like an earlier one gets a number.
    """

    of: dict[str, str] = field(default_factory=dict[str, str])
    _seen: Counter[str] = field(default_factory=Counter[str])

    def add(self, path: str, heading: str) -> None:
        slug = re.sub(r"[^a-z0-9_-]", "", heading.lower())
        self.of[path] = f"{slug}-{self._seen[slug]}" if self._seen[slug] else slug
        self._seen[slug] += 1

    def link(self, target: griffe.Object | griffe.Alias) -> str:
        """A link to the heading of `target`."""
        name = target.path if target.is_module else target.name
        return f"[`{name}`](#{self.of[target.canonical_path]})"


def make_page() -> str:
    """The text of docs/api.md."""
    loader = griffe.GriffeLoader(search_paths=[ROOT], allow_inspection=False)
    loader.load("lib")
    loader.resolve_aliases(implicit=False, external=False)
    modules = [loader.modules_collection[name] for name in MODULES]
    anchors = Anchors()
    sections = [section for module in modules for section in _module(module, anchors)]
    contents = [
        f"| {anchors.link(module)} | {', '.join(anchors.link(member) for member in _exports(module))} |"
        for module in modules
    ]
    return INTRODUCTION + "\n".join(contents) + "\n\n" + "\n\n".join(sections) + "\n"


def _exports(module: griffe.Module) -> list[griffe.Object | griffe.Alias]:
    """The members that `module` exports, in the order of its `__all__`."""
    if module.exports is None:
        raise SystemExit(f"{module.filepath}: add an __all__ with the module's public names")
    return [module[str(name)] for name in module.exports]


def _module(module: griffe.Module, anchors: Anchors) -> Iterator[str]:
    """The sections about one module, whose headings are added to `anchors`."""
    anchors.add(module.path, module.path)
    yield f"## {module.path}"
    yield from _docstring(module)
    for member in _exports(module):
        if member.canonical_path in anchors.of:
            yield f"{anchors.link(member)} is described above."
            continue
        anchors.add(member.canonical_path, member.name)
        yield f"### {member.name}"
        yield from _object(member.final_target if isinstance(member, griffe.Alias) else member, anchors)


def _object(target: griffe.Object, anchors: Anchors) -> Iterator[str]:
    if isinstance(target, griffe.Class):
        yield from _class(target, anchors)
    elif isinstance(target, griffe.Function):
        yield _code(_function(target))
        yield from _aliases(target, target.parameters, target.returns)
        yield from _docstring(target)
    else:
        yield _code(_attribute(cast(griffe.Attribute, target)))
        yield from _docstring(target)


def _class(cls: griffe.Class, anchors: Anchors) -> Iterator[str]:
    bases = [str(base) for base in cls.bases if not str(base).startswith(HIDDEN_BASES)]
    parameters = _constructor(cls)
    if "Enum" in map(str, cls.bases):
        values = [member for member in cls.attributes.values() if "class-attribute" in member.labels]
        yield _code("\n".join([f"class {cls.name}(Enum):", *(f"    {_attribute(v)}" for v in values)]))
    elif parameters:
        yield _code(_signature(cls.name, parameters))
        if bases:
            yield f"A subclass of {', '.join(f'`{base}`' for base in bases)}."
        yield from _aliases(cls, parameters)
    else:
        yield _code(f"class {cls.name}" + (f"({', '.join(bases)})" if bases else ""))
    yield from _docstring(cls)
    if _is_declared(cls):
        return  # it is its fields: its methods serve the declaration's checks
    for member in cls.members.values():
        if member.is_public and not member.is_alias and member.docstring and member.name != "__init__":
            anchors.add(member.path, f"{cls.name}.{member.name}")
            yield f"#### {cls.name}.{member.name}"
            if isinstance(member, griffe.Function):
                yield _code(_function(member))
                yield from _aliases(member, member.parameters, member.returns)
            else:
                yield _code(_property(cast(griffe.Attribute, member)))
            yield from _docstring(member)


def _is_declared(cls: griffe.Class) -> bool:
    return any(str(base) in DECLARED for base in cls.bases)


def _constructor(cls: griffe.Class) -> list[griffe.Parameter]:
    """The constructor's parameters: those of `__init__`, or the fields of a dataclass."""
    if not _is_declared(cls):
        return [parameter for parameter in cls.parameters if parameter.name != "self"]
    return [
        griffe.Parameter(
            name, annotation=each.annotation, kind=_kind(each.value), default=_default(each.value)
        )
        for name, each in cls.members.items()
        if isinstance(each, griffe.Attribute) and each.annotation and "property" not in each.labels
    ]


def _kind(value: str | griffe.Expr | None) -> griffe.ParameterKind:
    """The kind of a dataclass's parameter whose class attribute has this value."""
    if _field_options(value).get("kw_only") == "True":
        return cast(griffe.ParameterKind, griffe.ParameterKind.keyword_only)
    return cast(griffe.ParameterKind, griffe.ParameterKind.positional_or_keyword)


def _default(value: str | griffe.Expr | None) -> str | griffe.Expr | None:
    options = _field_options(value)
    if "default_factory" in options:
        name, _, _ = options["default_factory"].partition("[")
        return {"list": "[]", "dict": "{}"}.get(name, f"{name}()")
    return options.get("default") if options else value


def _field_options(value: str | griffe.Expr | None) -> dict[str, str]:
    """The keyword arguments of a call of `dataclasses.field`; empty for another value."""
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "field":
        return {}
    return {a.name: str(a.value) for a in value.arguments if isinstance(a, griffe.ExprKeyword)}


def _function(function: griffe.Function) -> str:
    """A function's decorators and signature, as in its source."""
    decorators = [str(d.value) for d in function.decorators if str(d.value) in SHOWN_DECORATORS]
    prefix = "async def " if "async" in function.labels else "def "
    signature = _signature(prefix + function.name, list(function.parameters), function.returns)
    return "\n".join([*(f"@{name}" for name in decorators), signature])


def _property(attribute: griffe.Attribute) -> str:
    if "property" not in attribute.labels:
        return _attribute(attribute)
    return f"@property\ndef {attribute.name}(self) -> {_expression(attribute.annotation)}"


def _attribute(attribute: griffe.Attribute) -> str:
    annotation = f": {_expression(attribute.annotation)}" if attribute.annotation is not None else ""
    value = f" = {_expression(attribute.value)}" if attribute.value is not None else ""
    return f"{attribute.name}{annotation}{value}"


def _signature(
    name: str, parameters: list[griffe.Parameter], returns: str | griffe.Expr | None = None
) -> str:
    """`name` with its parameters, on one line or with a line for each parameter."""
    kind = griffe.ParameterKind
    written: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is kind.keyword_only and not starred:
            written.append("*")
        starred = starred or parameter.kind in (kind.keyword_only, kind.var_positional)
        written.append(_parameter(parameter))
    result = f" -> {_expression(returns)}" if returns is not None else ""
    line = f"{name}({', '.join(written)}){result}"
    if len(line) <= LINE_LENGTH or not written:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in written), f"){result}"])


def _parameter(parameter: griffe.Parameter) -> str:
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    text = stars.get(cast(griffe.ParameterKind, parameter.kind), "") + parameter.name
    if parameter.annotation is not None:
        text += f": {_expression(parameter.annotation)}"
    if parameter.default is not None and not text.startswith("*"):
        equals = " = " if parameter.annotation is not None else "="
        text += f"{equals}{_expression(parameter.default)}"
    return text


def _expression(expression: str | griffe.Expr | None) -> str:
    """An expression's source, with its strings in double quotes."""
    return re.sub(r"'([^'\"]*)'", r'"\1"', str(expression))


def _aliases(
    scope: griffe.Object,
    parameters: griffe.Parameters | list[griffe.Parameter],
    returns: str | griffe.Expr | None = None,
) -> Iterator[str]:
    """The meaning of the project's own type aliases in a signature."""
    annotations = [*(parameter.annotation for parameter in parameters), returns]
    expressions = [expression for expression in annotations if isinstance(expression, griffe.Expr)]
    paths = {
        name.canonical_path: name.name
        for expression in expressions
        for name in expression.iterate(flat=True)
        if isinstance(name, griffe.ExprName)
    }
    meanings = [f"`{name}` is `{text}`." for path, name in paths.items() if (text := _meaning(scope, path))]
    if meanings:
        yield "\n".join(meanings)


def _meaning(scope: griffe.Object, path: str) -> str:
    """The types that the alias at `path` stands for; "" if it is no alias of this project's."""
    if not path.startswith("lib."):
        return ""
    found = scope.modules_collection[path]
    if not isinstance(found, griffe.Attribute) or not isinstance(found.value, griffe.ExprSubscript):
        return ""
    return _expression(found.value)


def _docstring(documented: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The text of a docstring, safe in Markdown: a `<` outside of code would begin a tag."""
    if documented.docstring is None:
        return
    parts = re.split(r"(`[^`]*`)", documented.docstring.value)
    yield "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not current")
    page = make_page()
    if not parser.parse_args().check:
        PAGE.write_text(page)
        return 0
    if PAGE.exists() and PAGE.read_text() == page:
        return 0
    print(f"docs/api.md is not current: run `{COMMAND}`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
