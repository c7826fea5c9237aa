"""Exit statuses of a worker's process (docs/operating.md, "Stopping, and exit statuses").

Owns the numbers. lib/server.py decides which one a worker ends with; the command line's other statuses are in
lib/tools/command.py.
"""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_PORT_TAKEN = 3
