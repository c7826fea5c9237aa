"""The line of an author's code that raised an exception, and the request's field that it was reading.

Owns finding both in the traceback. The exception's message is not used: it may have parts of a payload.
"""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

# payload["name"], payload.get("name"), and attributes that are not called: self.name.
_FIELD = re.compile(r"""(?:\[|\.get\(|\.pop\()\s*["'](\w+)["']|\.([a-z_]\w*)\b(?!\s*[(.])""")


def raised_at(error: BaseException) -> str:
    """The place in the author's code, in brackets, with the field if its line names one; "" if unknown."""
    place = ""
    for frame, line_number in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).split(".")[0] == "lib":
            continue
        file = frame.f_code.co_filename
        line = linecache.getline(file, line_number, frame.f_globals)
        at = f"{Path(file).name}:{line_number}"
        if fields := [name for pair in _FIELD.findall(line) for name in pair if name]:
            return f" (at {at}, reading {', '.join(dict.fromkeys(fields))})"
        place = place or f" (at {at})"
    return place
