"""What a class or a function is called from one start of a worker to the next.

Owns the name of what is defined in the file that was run: each such file is `__main__` to itself.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def stable_name(named: Any) -> str:
    """Module and name of `named`, a class or a function, the same whichever way its module was started.

    Of a file that was run by its path, the path stands for the module.
    """
    module: str = named.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec, file = main.__spec__, getattr(main, "__file__", None)
        module = spec.name if spec else os.path.abspath(file) if file else module
    return f"{module}.{named.__qualname__}"
