"""The launcher runs on a bare Python: it imports the standard library and itself only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "lib" / "launch"
# Modules outside it that it may import; they are held to the same rule here.
SHARED = ("lib.runtime.exit_status", "lib.runtime.intervals")


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_it_imports_the_standard_library_only() -> None:
    shared = [ROOT / f"{name.replace('.', '/')}.py" for name in SHARED]
    for file in [*LAUNCHER.glob("*.py"), *shared]:
        for name in imported(file):
            is_own = name == "lib.launch" or name.startswith("lib.launch.") or name in SHARED
            assert is_own or name.partition(".")[0] in sys.stdlib_module_names, (file, name)


def test_it_can_be_imported_without_any_installed_package() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lib.launch.launcher"
    subprocess.run([sys.executable, "-ISc", code, ROOT], check=True)
