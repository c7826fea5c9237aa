"""Unknown fields of a request: ignored and named once in the log, or refused.

Owns that one rule for functions and for payload classes. What is unknown is found where objects are read.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import zip_longest
from typing import Any, Literal

from lib.runtime.excerpt import excerpt

log = logging.getLogger(__name__)

Extra = Literal["ignore", "forbid"]

# Names are logged once for each owner, and no more than so many: clients choose them.
MAX_LOGGED = 20
MAX_NAME_LENGTH = 60
# Unknown fields of one object for which the name that was meant is looked for, which takes long.
MAX_HINTS = 20
_refuses: ContextVar[bool] = ContextVar("refuses", default=False)


@contextmanager
def unknown_fields_refused() -> Generator[None, None, None]:
    """Refuse the unknown fields of all that is read inside the block; elsewhere they are ignored."""
    token = _refuses.set(True)
    try:
        yield
    finally:
        _refuses.reset(token)


class UnknownFields:
    """Judges the unknown fields of `owner`, a class or a function whose fields are `known`."""

    def __init__(self, owner: str, known: Collection[str]) -> None:
        self._owner = owner
        self._known = known
        self._logged: set[str] = set()

    def problems(self, names: Iterable[Any]) -> dict[str, Any]:
        """The problems of the unknown fields `names` where they are refused; elsewhere, log them.

        Both name the field that was probably meant.
        """
        if _refuses.get():
            texts = [str(name) for name in names]
            hints = [self._hint(text) for text in texts[:MAX_HINTS]]
            return {
                text: "unknown parameter" + hint for text, hint in zip_longest(texts, hints, fillvalue="")
            }
        for name in map(str, names):
            if name not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(name)
                said = excerpt(name, MAX_NAME_LENGTH)
                log.info("%s: the unknown field %r is ignored%s", self._owner, said, self._hint(name))
        return {}

    def _hint(self, name: str) -> str:
        close = difflib.get_close_matches(name[:MAX_NAME_LENGTH], self._known, 1)
        return f": did you mean {close[0]!r}?" if close else ""
