"""aiohttp's server, of which this worker needs the classes that aiohttp has, not those of an author.

Owns the warning about classes that author code has replaced in `aiohttp.web`, which has no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType

from aiohttp import web, web_app, web_runner

log = logging.getLogger(__name__)

# The classes that workers have replaced, by the module in which aiohttp defines them.
_CLASSES: tuple[tuple[ModuleType, str], ...] = (
    (web_runner, "AppRunner"),
    (web_runner, "TCPSite"),
    (web_app, "Application"),
)


def replaced_classes(module: ModuleType = web) -> Iterator[str]:
    """Yield a line for each class of aiohttp's server that author code has replaced in `module`."""
    for home, name in _CLASSES:
        found = getattr(module, name, None)
        if found is not getattr(home, name):
            where = (
                f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', type(found).__name__)}"
            )
            yield (
                f"web.{name} was replaced by {where}, which has no effect: the worker serves with aiohttp's "
                "own. Use start_server's middlewares and arguments, and settings such as MAX_JSON_BYTES"
            )


def warn_of_replaced_classes() -> None:
    """Log a warning for each class of aiohttp's server that author code has replaced."""
    for line in replaced_classes():
        log.warning("%s", line)
