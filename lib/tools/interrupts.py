"""Ctrl-C as a function call, for commands that end in order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def on_ctrl_c(stop: Callable[[], object]) -> Generator[None, None, None]:
    """Call `stop` on Ctrl-C, instead of raising `KeyboardInterrupt`; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
