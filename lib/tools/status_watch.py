"""A worker's `/status` again and again, for `pyworker status --watch`.

Owns the interval and how the page is redrawn. The page itself is made in lib/tools/status_page.py.
"""

from __future__ import annotations

import io
import json
import time
from typing import TextIO

import anyio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lib.local.screen import Screen
from lib.runtime.clock import Clock, SystemClock, sleep
from lib.tools.interrupts import on_ctrl_c
from lib.tools.status_page import NoStatus, fetch, show


async def watch(
    url: str,
    interval_s: float,
    *,
    as_json: bool = False,
    out: TextIO | None = None,
    clock: Clock | None = None,
) -> None:
    """Show the status of the worker whose loopback port is at `url` every `interval_s` seconds, until Ctrl-C.

    On a terminal the page is redrawn; elsewhere, on `out` or standard output, each is printed after the one
    before. `as_json` prints one JSON object per line instead: the worker's `/status`, or the `problem` that
    no worker answers.
    """
    console = Console(file=out, highlight=False)
    with anyio.CancelScope() as scope, on_ctrl_c(scope.cancel):
        if as_json or not console.is_terminal or console.is_dumb_terminal:
            await _print_each(url, interval_s, as_json, console, clock or SystemClock())
        else:
            await _redraw(url, interval_s, console, clock or SystemClock())


async def _print_each(url: str, interval_s: float, as_json: bool, console: Console, clock: Clock) -> None:
    while True:
        text = await _json_line(url) if as_json else await _page(url, console)
        print(text, file=console.file, flush=True)
        await sleep(clock, interval_s)


async def _redraw(url: str, interval_s: float, console: Console, clock: Clock) -> None:
    # A page that is taller than the terminal loses its end, which has the least important part.
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(Text.from_ansi(await _page(url, console)), refresh=True)
            await sleep(clock, interval_s)


async def _page(url: str, console: Console) -> str:
    """The page, or the reason why there is none, with the time and in the colours of `console`."""
    text = io.StringIO()
    page = Console(
        file=text,
        highlight=False,
        force_terminal=console.is_terminal,
        width=console.width,
        legacy_windows=False,
    )
    screen = Screen(page)
    try:
        show(await fetch(url), screen)
    except NoStatus as e:
        screen.line(str(e))
    return f"{time.strftime('%H:%M:%S')}\n{text.getvalue().rstrip()}\n"


async def _json_line(url: str) -> str:
    try:
        return json.dumps(await fetch(url))
    except NoStatus as e:
        return json.dumps({"problem": str(e)})
