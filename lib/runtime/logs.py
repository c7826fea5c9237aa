"""Logging of the process: level and format of the log lines (docs/operating.md, "Logs").

Owns the configuration, which only entry points call. Modules log to loggers of their own names.
"""

from __future__ import annotations

import json
import logging
import sys

from aiohttp.http_exceptions import HttpProcessingError

from lib.runtime.settings import LogFormat

# Libraries that log much at DEBUG, with payloads and addresses in their lines.
_QUIET = ("asyncio", "aiohttp", "urllib3", "hypothesis")


def configure_logging(level: str, form: LogFormat) -> None:
    """Log to standard error in the format `form`: libraries from WARNING, everything else from `level`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("aiohttp.server").addFilter(_is_worth_logging)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether to log the record: False for malformed HTTP, which aiohttp logs with the bytes received."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: `time` (Unix seconds), `level`, `logger`, `message`.

    A record with an exception has its `traceback` too.
    """

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
