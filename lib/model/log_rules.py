"""LogAction: the meaning of a line in the model server's log.

Owns the meanings only, so that lib/model doesn't import lib/data_types.py. Matching lines against rules is in
watch.py.
"""

from __future__ import annotations

from enum import Enum


class LogAction(Enum):
    """The meaning of a line of the model server's log."""

    ModelLoaded = 1
    ModelError = 2
    Info = 3
