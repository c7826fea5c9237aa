"""What becomes of the imports of the package `vastai`, and what is said to need a hand."""

from __future__ import annotations

import ast
import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.tools.migration import migrate
from lib.tools.migration_names import COUNTERPARTS, home_of, public_names

BLOCK = """\
import os

from vastai.serverless.server.worker import (
    Worker,  # the worker
    WorkerConfig,
    # its routes
    HandlerConfig as Route,
    # nothing else
)  # noqa: E402


Worker(WorkerConfig(handlers=[Route("/a")])).run()   # as  it  was
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from vastai import Worker, WorkerConfig", "from lib.worker import Worker, WorkerConfig"),
        ("from vastai_sdk import Worker", "from lib.worker import Worker"),
        (
            "from vastai.serverless.server.lib.data_types import ApiPayload as P, LogAction",
            "from lib.data_types import ApiPayload as P, LogAction",
        ),
        ("from vastai.serverless.server.lib.backend import Backend", "from lib.backend import Backend"),
        (
            "from vastai.serverless.server.lib.server import start_server, start_server_async",
            "from lib.server import start_server, start_server_async",
        ),
        ("from vastai.serverless.server.lib.metrics import get_url", "from lib.metrics import get_url"),
        ("from .lib.data_types import ApiPayload", "from lib.data_types import ApiPayload"),
        ("from ..shared.lib.test_utils import test_args", "from lib.test_utils import test_args"),
        ("from vastai.serverless.server import worker as w", "from lib import worker as w"),
        (
            "from vastai.serverless.server.lib import backend, server",
            "from lib import backend, server",
        ),
        ("from vastai.serverless . server.worker import\\\n Worker", "from lib.worker import\\\n Worker"),
        ("from vastai import(Worker)", "from lib.worker import(Worker)"),
        # a name that lives elsewhere here
        (
            "from vastai.serverless.server.worker import Worker, LogAction  # both",
            "from lib.worker import Worker\nfrom lib.data_types import LogAction  # both",
        ),
        (
            "if True:\n\tfrom vastai import Worker, Serverless",
            "if True:\n\tfrom lib.worker import Worker\n\tfrom vastai import Serverless",
        ),
        (
            "try: from vastai import Worker, Serverless\nexcept ImportError: pass",
            "try: from lib.worker import Worker; from vastai import Serverless\nexcept ImportError: pass",
        ),
        (
            "from vastai import (Worker,\n    Serverless)\r\n",
            "from lib.worker import (\n    Worker,\n)\nfrom vastai import (\n    Serverless,\n)\r\n",
        ),
        # imports of modules
        (
            "import os, vastai.serverless.server.worker as w\nw.Worker",
            "import os, lib.worker as w\nw.Worker",
        ),
        (
            "import vastai.serverless.server.worker as w\nw.Worker(w.LogAction)",
            "import lib.worker, lib.data_types\nlib.worker.Worker(lib.data_types.LogAction)",
        ),
        (
            "import vastai.serverless.server as s\nclass A(s.lib.data_types.ApiPayload): x = s.worker.Worker",
            "import lib.data_types, lib.worker\nclass A(lib.data_types.ApiPayload): x = lib.worker.Worker",
        ),
        (
            "import vastai.serverless.server.lib.backend\nvastai.serverless.server.lib.backend.Backend",
            "import lib.backend\nlib.backend.Backend",
        ),
        ("import vastai\nvastai.Worker", "import lib.worker\nlib.worker.Worker"),
        (
            "import vastai as v\nv.Worker(v.Serverless)",
            "import vastai as v, lib.worker\nlib.worker.Worker(v.Serverless)",
        ),
        (
            "from vastai.serverless import server\nserver.worker.Worker(server.lib.backend.Backend)",
            "import lib.worker\nimport lib.backend\nlib.worker.Worker(lib.backend.Backend)",
        ),
        ("é = 1; import vastai as v; ü = v.Worker", "é = 1; import lib.worker; ü = lib.worker.Worker"),
        # as it is
        ("from vastai import Serverless", "from vastai import Serverless"),
        ("from lib.worker import Worker", "from lib.worker import Worker"),
        ("from .lib.strings import title", "from .lib.strings import title"),
        ("from .lib.server import my_own", "from .lib.server import my_own"),
        ("from vastai_other import Worker", "from vastai_other import Worker"),
        ("# from vastai import Worker\nx = 'from vastai import Worker'", None),
        ("", None),
    ],
)
def test_imports_are_rewritten(before: str, after: str | None) -> None:
    assert migrate(before).text == (before if after is None else after)


def test_a_block_keeps_its_comments_and_everything_else_its_form() -> None:
    assert migrate(BLOCK).text == BLOCK.replace("vastai.serverless.server.worker", "lib.worker")


def test_a_block_that_is_divided_keeps_its_comments() -> None:
    before = BLOCK.replace(
        "    WorkerConfig,\n", "    WorkerConfig,  # all\n    LogAction,  # what it says\n"
    )
    head, _, tail = migrate(before).text.partition("from lib.data_types import (\n")
    assert head.endswith(
        "from lib.worker import (\n    Worker,  # the worker\n    WorkerConfig,  # all\n    # its routes\n"
        "    HandlerConfig as Route,\n    # nothing else\n)\n"
    )
    assert tail.startswith("    LogAction,  # what it says\n)  # noqa: E402\n\n\nWorker(")


def test_crlf_stays() -> None:
    before = BLOCK.replace("Worker,  #", "LogAction, Worker,  #").replace("\n", "\r\n")
    after = migrate(before).text
    assert after.count("\n") == after.count("\r\n")
    assert "from lib.data_types import (\r\n    LogAction,\r\n)" in after


@pytest.mark.parametrize(
    ("text", "note", "breaks"),
    [
        (
            "from vastai.serverless.server.lib.data_types import Session",
            "Session of vastai.serverless.server.lib.data_types has no counterpart in PyWorker",
            True,
        ),
        (
            "import vastai.serverless.server.lib.metrics as m\nm.Metrics()",
            "Metrics of vastai.serverless.server.lib.metrics has no counterpart in PyWorker",
            True,
        ),
        (
            "from vastai.serverless.server.templates import vLLM",
            "vLLM of vastai.serverless.server.templates has no counterpart in PyWorker",
            True,
        ),
        (
            "from vastai.serverless.server.lib import server\nserver.beacon()",
            "lib.server has no beacon",
            True,
        ),
        ("from lib.data_types import Session", "lib.data_types has no Session", True),
        (
            "from vastai import Serverless",
            "Serverless comes from vastai itself: it stays, and so must the package",
            False,
        ),
        ("from vastai import *", "import * of vastai: name what is used, and run this again", True),
        (
            "from vastai.serverless.server.worker import *",
            "import *: what lib.worker lacks of vastai.serverless.server.worker is missing now",
            False,
        ),
        ("import vastai", "vastai is imported and not used: remove that", True),
        ("import vastai as v\nf(v)", "vastai is used as a value", True),
        (
            "import vastai.serverless.server as s\nf(s.worker)",
            "vastai.serverless.server.worker is used as a value",
            True,
        ),
        (
            "import vastai\nlib = vastai.Worker",
            "the name lib means something else in this file: rename that",
            True,
        ),
        (
            "x = __import__('vastai.serverless.server.worker')",
            "a string names vastai.serverless.server",
            False,
        ),
        (
            "from vastai import HandlerConfig\nHandlerConfig('/', on_request=f)",
            "HandlerConfig has no field on_request: see request_parser",
            True,
        ),
        (
            "import vastai as v\nv.WorkerConfig(max_session=1)",
            "WorkerConfig has no field max_session: see max_sessions",
            True,
        ),
        (
            "from .lib.server import start_server, my_own",
            "my_own is not in PyWorker, so the import of server is left as it is",
            False,
        ),
    ],
)
def test_what_needs_a_hand_is_noted_with_its_line(text: str, note: str, breaks: bool) -> None:
    (found,) = migrate(text).notes
    assert (found.text, found.breaks) == (note, breaks)
    assert found.line == (1 if "the name lib" in note else text.count("\n") + 1)


@pytest.mark.parametrize(
    "other",
    [
        "def build(v): return v.Worker",
        "def build(*v, **w): return v.Worker",
        "async def build(x, *, v=1):\n    def inner(): return v.Worker",
        "build = lambda v: v.Worker",
        "names = [v.Worker for v in x]",
        "def build():\n    v = x\n    return v.Worker",
        "def build():\n    with x as v: return v.Worker",
        "def build():\n    for v in x: v.Worker",
        "def build():\n    import w as v\n    return v.Worker",
        "def build():\n    try: pass\n    except E as v: v.Worker",
        "def build():\n    def v(): pass\n    return v.Worker",
        "class A:\n    v = x\n    w = v.Worker",
    ],
)
def test_a_use_of_a_name_that_means_something_else_is_left_and_noted(other: str) -> None:
    migrated = migrate(f"import vastai as v\n{other}\nv.Worker\n")
    assert migrated.text == f"import lib.worker\n{other}\nlib.worker.Worker\n"
    (note,) = migrated.notes
    assert note.text == "v means something else here: v.Worker is left as it is"
    assert not note.breaks
    assert "v.Worker" in f"\n{other}".splitlines()[note.line - 1]


@pytest.mark.parametrize(
    "text",
    [
        "def build(v=v.Worker): pass",
        "def build(v: v.Worker): pass",
        "@v.Worker\ndef build(v): pass",
        "class A:\n    v = x\n    def f(self): return v.Worker",
        "def build(w): return v.Worker",
    ],
)
def test_a_use_outside_of_the_scope_with_another_meaning_is_rewritten(text: str) -> None:
    migrated = migrate(f"import vastai as v\n{text}")
    assert migrated.text == f"import lib.worker\n{text.replace('v.Worker', 'lib.worker.Worker')}"
    assert not migrated.notes


def test_an_imported_name_that_is_also_assigned_needs_a_hand() -> None:
    text = "try:\n    import vastai as v\nexcept ImportError:\n    v = None\nv.Worker\n"
    migrated = migrate(text)
    assert migrated.text == text
    assert (5, "v is also assigned: v.Worker is left as it is", True) in [
        (note.line, note.text, note.breaks) for note in migrated.notes
    ]


@pytest.mark.parametrize(
    "annotated",
    [
        "x: 'v.Worker'",
        "def f(x: 'list[v.Worker]'): ...",
        "def f() -> 'v.Worker | None': ...",
        "x: list['v.Worker']",
    ],
)
def test_an_annotation_in_quotes_is_noted_and_keeps_its_import(annotated: str) -> None:
    migrated = migrate(f"import vastai as v\nv.Worker\n{annotated}\n")
    assert migrated.text == f"import vastai as v, lib.worker\nlib.worker.Worker\n{annotated}\n"
    (note,) = migrated.notes
    assert (note.line, note.text) == (3, "an annotation in quotes names v.Worker")


@pytest.mark.parametrize("text", ["def f(:\n", "print 'x'\n", "x = '\0'\n"])
def test_what_cannot_be_parsed_raises(text: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        migrate(text)


KNOWN = sorted(
    (module, name)
    for module, home in COUNTERPARTS.items()
    for name in public_names(home)
    if home_of(module, name)
)


@st.composite
def imports(draw: st.DrawFn) -> str:
    """A `from` import of names that PyWorker has, in one of the forms in which it can be written."""
    module, _ = draw(st.sampled_from(KNOWN))
    own = [name for known, name in KNOWN if known == module]
    names = draw(st.lists(st.sampled_from([*own, "LogAction", "Serverless"]), min_size=1, unique=True))
    written = [f"{name} as n{i}" if draw(st.booleans()) else name for i, name in enumerate(names)]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    if draw(st.booleans()):
        return f"from {module} import {', '.join(written)}{end}"
    comments = draw(st.lists(st.sampled_from(["", "  # é", f"{end}    # own"]), min_size=len(written)))
    lines = [f"    {name},{comment}" for name, comment in zip(written, comments, strict=False)]
    return f"from {module} import ({end}{end.join(lines)}{end}){end}"


@given(imports(), st.sampled_from(["", "    x = 1  # before"]))
def test_every_name_is_imported_once_and_every_comment_stays(text: str, before: str) -> None:
    whole = f"if True:\n{before}\n    pass\n{text}after = 'é'\n"
    migrated = migrate(whole)
    assert migrate(migrated.text).text == migrated.text
    assert migrated.text.count("#") == whole.count("#")
    assert migrated.text.endswith("after = 'é'\n")
    assert _imported(migrated.text) == _imported(whole)
    for module, name in _places(migrated.text):
        if module.startswith("lib"):
            assert hasattr(importlib.import_module(module), name)


def _imported(text: str) -> list[tuple[str, Any]]:
    return sorted((a.name, a.asname) for n in _froms(text) for a in n.names)


def _places(text: str) -> list[tuple[str, str]]:
    return [(n.module or "", a.name) for n in _froms(text) for a in n.names]


def _froms(text: str) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]


def test_the_other_package_has_these_modules_and_names() -> None:
    pytest.importorskip("vastai", reason="the package can't be installed here")
    for module, home in COUNTERPARTS.items():
        if home not in ("lib.test_utils", "lib.test_harness"):  # those of its first generation
            theirs = importlib.import_module(module)
            assert public_names(home) & set(dir(theirs)), module
