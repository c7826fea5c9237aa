"""How log lines look: text for people, JSON for machines. Only an entry point configures logging."""

from __future__ import annotations

import json
import logging
import sys

from aiohttp.http_exceptions import HttpProcessingError

from lib.runtime.settings import LogFormat

# Chatty at DEBUG, and with payloads or addresses in their lines (lessons.md 39).
_QUIET = ("asyncio", "aiohttp", "urllib3", "hypothesis")


def configure_logging(level: str, form: LogFormat) -> None:
    """Log this process's lines at `level` and above to standard error; libraries at WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("aiohttp.server").addFilter(_is_the_workers_own)


def _is_the_workers_own(record: logging.LogRecord) -> bool:
    """False for a client's broken HTTP, which aiohttp logs with a traceback and with what was sent."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (Unix seconds), `level`, `logger`, `message`, and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
