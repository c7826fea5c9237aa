"""A name that stays the same across restarts, also for code in `__main__`.

Owns the names of classes and functions in saved files. Where they are saved: lib/model/benchmark_store.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def stable_name(named: Any) -> str:
    """The module and name of `named`, a class or a function, however its module was started.

    For a file that was run by its path, the absolute path replaces the module's name.
    """
    module: str = named.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec, file = main.__spec__, getattr(main, "__file__", None)
        module = spec.name if spec else os.path.abspath(file) if file else module
    return f"{module}.{named.__qualname__}"
