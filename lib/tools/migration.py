"""One Python file with imports of the package `vastai`, as PyWorker needs it.

Owns the rewriting of imports and of the names used through them, and the notes on what needs a hand. Where
PyWorker has a name is in migration_names.py, files are in migration_files.py.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from lib.tools.migration_names import (
    COUNTERPARTS,
    RENAMED_FIELDS,
    ROOT,
    home_of,
    is_module,
    public_names,
    upstream,
)
from lib.tools.source_edits import SourceEdits
from lib.worker import BenchmarkConfig, HandlerConfig, LogActionConfig, WorkerConfig

_MODULE_OF_FROM = re.compile(r"from(?P<module>(?:[.\w\s]|\\)+?)\bimport\b")
_IN_A_STRING = re.compile(r"\bvastai(?:_sdk)?\.serverless\.server\b")
_CONFIGS = {cls.__name__: cls for cls in (WorkerConfig, HandlerConfig, BenchmarkConfig, LogActionConfig)}
# The parts of the syntax tree with names of their own.
_BODIES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_OUR_MODULES = frozenset(COUNTERPARTS.values())


@dataclass(frozen=True, order=True)
class Note:
    """Something in a file that needs a hand. `breaks`: the worker can't run before it is changed."""

    line: int
    text: str
    breaks: bool = True


@dataclass(frozen=True)
class Migrated:
    """A file's text after its migration, and what needs a hand, in the order of lines."""

    text: str
    notes: list[Note]


def migrate(text: str) -> Migrated:
    """Rewrite the imports in a Python file. Raises `SyntaxError` or `ValueError` if it can't be parsed."""
    tree = ast.parse(text)
    migration = _Migration(SourceEdits(text), tree)
    migration.run()
    return Migrated(migration.edits.result(), sorted(set(migration.notes)))


@dataclass(frozen=True)
class _Comments:
    """The comments around one name in a block of imports."""

    above: list[str] = field(default_factory=list[str])
    beside: list[str] = field(default_factory=list[str])
    below: list[str] = field(default_factory=list[str])

    def around(self, name: str) -> list[str]:
        """The lines of the name with its comments."""
        return [*self.above, "  ".join([f"{name},", *self.beside]), *self.below]


@dataclass(frozen=True)
class _Uses:
    """The uses of names below an imported module, once those that PyWorker has are rewritten.

    `modules` are PyWorker's that have them. `complete`: no other name is used.
    """

    modules: list[str]
    complete: bool


class _Migration:
    """The migration of one file: collects edits and notes."""

    def __init__(self, edits: SourceEdits, tree: ast.Module) -> None:
        self.edits = edits
        self.notes: list[Note] = []
        self._tree = tree
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def run(self) -> None:
        """Rewrite all imports, and note what else needs a hand."""
        concerned = False
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                concerned |= self._import(node)
            elif isinstance(node, ast.ImportFrom):
                concerned |= self._from_import(node)
        if concerned:
            self.notes += _field_notes(self._tree)
        self.notes += _string_notes(self._tree)

    def _from_import(self, node: ast.ImportFrom) -> bool:
        """Rewrite a `from` import; return whether it concerns one of the two packages."""
        module = node.module or ""
        if not node.level and module in _OUR_MODULES:
            absent = [a.name for a in node.names if a.name != "*" and not _has(module, a.name)]
            self.notes += [Note(node.lineno, f"{module} has no {name}") for name in absent]
            return True
        source = upstream(module, node.level)
        if source is None:
            return False
        if node.names[0].name == "*":
            self._star(node, source)
            return True
        groups: dict[str | None, list[ast.alias]] = {}
        packages: list[str] = []
        for alias in node.names:
            home, imports = self._home(node, source, alias)
            packages += imports
            if home or not imports:
                groups.setdefault(home, []).append(alias)
        if node.level and None in groups:  # the author's own module of this name
            return True
        if packages or groups.keys() != {None}:
            self._write(node, groups, packages)
        return True

    def _home(self, node: ast.ImportFrom, source: str, alias: ast.alias) -> tuple[str | None, list[str]]:
        """Find the module that has an imported name, or the imports that replace that of a package."""
        inner = f"{source}.{alias.name}"
        home = home_of(source, alias.name)
        local = alias.asname or alias.name
        if home == "lib":
            self._note_missing(local, COUNTERPARTS[inner])
        elif home is None and is_module(inner):
            uses = self._rewrite_uses(local, inner)
            imports = [f"import {module}" for module in uses.modules]
            return None, imports if uses.complete else []
        elif home is None:
            self._note_absent(node.lineno, source, alias.name, is_sure=not node.level)
        return home, []

    def _star(self, node: ast.ImportFrom, source: str) -> None:
        home = COUNTERPARTS.get(source)
        if home is None or source == ROOT:
            self.notes.append(
                Note(node.lineno, f"import * of {source}: name what is used, and run this again")
            )
            return
        self._write(node, {home: node.names}, [])
        text = f"import *: what {home} lacks of {source} is missing now"
        self.notes.append(Note(node.lineno, text, breaks=False))

    def _write(
        self, node: ast.ImportFrom, groups: Mapping[str | None, list[ast.alias]], packages: list[str]
    ) -> None:
        """Replace a `from` import: only its module, if all names come from one, else the whole statement."""
        begin, end = self.edits.span(node)
        text = self.edits.text[begin:end]
        found = _MODULE_OF_FROM.match(text)
        if len(groups) == 1 and not packages and found:
            self.edits.replace(
                begin + found.start("module"), begin + found.end("module"), f" {next(iter(groups))} "
            )
            return
        indent, line_end = self.edits.indent(node), self.edits.line_end
        is_block = indent is not None and len(text.splitlines()) > 1
        comments = _comments(text, node.names, node.lineno) if is_block else {}
        statements = list(packages)
        for home, aliases in groups.items():
            names = ", ".join(map(ast.unparse, aliases))
            if is_block and text.endswith(")"):
                lines = [line for alias in aliases for line in comments[alias].around(ast.unparse(alias))]
                body = "".join(f"{indent}    {line}{line_end}" for line in lines)
                names = f"({line_end}{body}{indent})"
            statements.append(f"from {home or node.module} import {names}")
        joint = "; " if indent is None else f"{line_end}{indent}"
        self.edits.replace(begin, end, joint.join(statements))

    def _import(self, node: ast.Import) -> bool:
        """Rewrite an `import`; return whether it concerns the other package."""
        written: list[str] = []
        sources = [upstream(alias.name) for alias in node.names]
        for alias, source in zip(node.names, sources, strict=True):
            written += [ast.unparse(alias)] if source is None else self._imports(alias, source)
        if any(sources):
            self.edits.replace(*self.edits.span(node), f"import {', '.join(dict.fromkeys(written))}")
        return any(sources)

    def _imports(self, alias: ast.alias, source: str) -> list[str]:
        """The modules to import in place of one of the other package."""
        home = None if source == ROOT else COUNTERPARTS.get(source)
        if alias.asname and home and self._all_in(alias.asname, home):
            return [f"{home} as {alias.asname}"]
        uses = self._rewrite_uses(
            alias.asname or alias.name.partition(".")[0], source if alias.asname else ROOT
        )
        modules = [home, *uses.modules] if home and not alias.asname else uses.modules
        if not modules and uses.complete:
            self.notes.append(Note(alias.lineno, f"{alias.name} is imported and not used: remove that"))
        return modules if modules and uses.complete else [ast.unparse(alias), *modules]

    # Names used through an imported module

    def _chains(self, local: str) -> Iterator[list[ast.Name | ast.Attribute]]:
        """Yield each use of the imported name `local` with the attributes that follow it.

        A use in a scope that binds the name to something else is noted instead.
        """
        bindings = self._bindings(local)
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Name) or node.id != local:
                continue
            chain: list[ast.Name | ast.Attribute] = [node]
            while isinstance(parent := self._parents.get(chain[-1]), ast.Attribute):
                chain.append(parent)
            if not self._is_shadowed(node, bindings):
                yield chain
            elif len(chain) > 1:
                text = f"{local} means something else here: {ast.unparse(chain[-1])} is left as it is"
                self.notes.append(Note(node.lineno, text, breaks=False))

    def _bindings(self, local: str) -> dict[ast.AST, set[bool]]:
        """The scopes that bind `local`: by an import of the other package (True), otherwise (False)."""
        found: dict[ast.AST, set[bool]] = {}
        for node in ast.walk(self._tree):
            is_below = isinstance(node, ast.alias) and not node.asname and node.name.startswith(f"{local}.")
            if is_below or _binds(node, local):
                found.setdefault(next(self._scopes(node)), set()).add(self._is_of_upstream(node))
        return found

    def _is_of_upstream(self, node: ast.AST) -> bool:
        """Whether `node` is an import of the other package."""
        statement = self._parents.get(node)
        if isinstance(statement, ast.ImportFrom):
            return upstream(statement.module or "", statement.level) is not None
        return isinstance(node, ast.alias) and upstream(node.name) is not None

    def _is_shadowed(self, use: ast.Name, bindings: Mapping[ast.AST, set[bool]]) -> bool:
        """Whether the scope that gives the name of `use` its meaning has no import of the other package."""
        innermost, *outer = self._scopes(use)
        visible = [innermost, *(scope for scope in outer if not isinstance(scope, ast.ClassDef))]
        return True not in next((bindings[scope] for scope in visible if scope in bindings), {True})

    def _scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the scopes that `node` is in, from the innermost to the module."""
        child = node
        while (parent := self._parents.get(child)) is not None:
            # Annotations, defaults, decorators and bases are evaluated outside; parameters are inside.
            if isinstance(parent, _BODIES):
                body = [parent.body] if isinstance(parent, ast.Lambda) else parent.body
                if child in body or (isinstance(node, ast.arg) and isinstance(child, ast.arguments)):
                    yield parent
            elif isinstance(parent, (*_COMPREHENSIONS, ast.Module)):
                yield parent
            child = parent

    def _rewrite_uses(self, local: str, bound: str) -> _Uses:
        """Rewrite all that is used below `local`, which stands for the upstream module or package `bound`."""
        modules: dict[str, None] = {}
        named = list(_annotation_notes(self._tree, local))
        self.notes += named
        complete = not named
        is_rebound = {True, False} in self._bindings(local).values()
        for chain in self._chains(local):
            current, home = bound, None
            for node in chain[1:]:
                assert isinstance(node, ast.Attribute)
                if is_module(f"{current}.{node.attr}"):
                    current = f"{current}.{node.attr}"
                    continue
                home = home_of(current, node.attr)
                begin, end = self.edits.span(chain[0])[0], self.edits.span(node)[1]
                if not self.edits.text.startswith(local, begin):  # Python 3.11 has no positions in f-strings
                    home = None
                    self.notes.append(Note(node.lineno, f"{current}.{node.attr} is used in an f-string"))
                elif home is None:
                    self._note_absent(node.lineno, current, node.attr)
                elif is_rebound:
                    home = None
                    text = f"{local} is also assigned: {local}.{node.attr} is left as it is"
                    self.notes.append(Note(node.lineno, text))
                else:
                    modules[home] = None
                    self.edits.replace(begin, end, f"{home}.{node.attr}")
                break
            else:
                self.notes.append(Note(chain[0].lineno, f"{current} is used as a value"))
            complete = complete and home is not None
        if modules and any(_binds(node, "lib") for node in ast.walk(self._tree)):
            self.notes.append(Note(1, "the name lib means something else in this file: rename that"))
        return _Uses(list(modules), complete)

    def _all_in(self, local: str, home: str) -> bool:
        """Whether all that is used of `local` is in the module `home`."""
        firsts = [chain[1] for chain in self._chains(local) if len(chain) > 1]
        return all(isinstance(first, ast.Attribute) and _has(home, first.attr) for first in firsts)

    def _note_missing(self, local: str, home: str) -> None:
        """Note what is used of the module `local`, and `home`, which replaces it, lacks."""
        for chain in self._chains(local):
            if len(chain) > 1 and isinstance(node := chain[1], ast.Attribute) and not _has(home, node.attr):
                self.notes.append(Note(node.lineno, f"{home} has no {node.attr}"))

    def _note_absent(self, line: int, source: str, name: str, is_sure: bool = True) -> None:
        if source == ROOT:
            text = f"{name} comes from {ROOT} itself: it stays, and so must the package"
            self.notes.append(Note(line, text, breaks=False))
        elif is_sure:
            self.notes.append(Note(line, f"{name} of {source} has no counterpart in PyWorker"))
        else:
            text = f"{name} is not in PyWorker, so the import of {source.rpartition('.')[2]} is left as it is"
            self.notes.append(Note(line, text, breaks=False))


def _has(module: str, name: str) -> bool:
    return name in public_names(module) or hasattr(importlib.import_module(module), name)


def _comments(text: str, aliases: Sequence[ast.alias], first_line: int) -> dict[ast.alias, _Comments]:
    """The comments in a `from` import, by the names that they stand above, beside or, at the end, below."""
    found = {alias: _Comments() for alias in aliases}
    lines = {alias: alias.lineno - first_line + 1 for alias in aliases}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        at = token.start[0]
        same = [alias for alias in aliases if lines[alias] == at]
        later = [alias for alias in aliases if lines[alias] > at]
        if same:
            found[same[-1]].beside.append(token.string)
        elif later:
            found[later[0]].above.append(token.string)
        else:
            found[aliases[-1]].below.append(token.string)
    return found


def _binds(node: ast.AST, name: str) -> bool:
    """Whether `node` gives `name` a meaning; the import of a module below a package of that name doesn't."""
    if isinstance(node, ast.Name):
        return node.id == name and isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.alias):
        return (node.asname or node.name) == name
    return getattr(node, "arg" if isinstance(node, ast.arg) else "name", None) == name


def _annotation_notes(tree: ast.Module, local: str) -> Iterator[Note]:
    """Yield a note for each annotation that is a string and names something below `local`."""
    named = re.compile(rf"(?<![\w.]){re.escape(local)}\.[\w.]+")
    for node in ast.walk(tree):
        annotations = (getattr(node, "annotation", None), getattr(node, "returns", None))
        for part in (part for annotation in annotations if annotation for part in ast.walk(annotation)):
            text = part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""
            if isinstance(part, ast.Constant) and (found := named.search(text)):
                yield Note(part.lineno, f"an annotation in quotes names {found[0]}")


def _field_notes(tree: ast.Module) -> Iterator[Note]:
    """Yield a note for each field of a declaration that PyWorker's configurations lack."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function not in _CONFIGS:
            continue
        known = [f.name for f in fields(_CONFIGS[function])]
        for keyword in node.keywords:
            name = keyword.arg
            if name is not None and name not in known:
                similar = difflib.get_close_matches(name, known, 1)
                hint = RENAMED_FIELDS.get(name) or (similar[0] if similar else None)
                text = f"{function} has no field {name}" + (f": see {hint}" if hint else "")
                yield Note(keyword.value.lineno, text)


def _string_notes(tree: ast.Module) -> Iterator[Note]:
    """Yield a note for each string that names a module of the other package."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if isinstance(node, ast.Constant) and (found := _IN_A_STRING.search(text)):
            yield Note(node.lineno, f"a string names {found[0]}", breaks=False)
