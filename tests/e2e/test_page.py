"""The local engine's page in a real browser: Debian's chromium, without a screen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from lib.local.engine import AutoscaleStatus, LocalEngine
from lib.local.serving import serve_engine
from lib.wire import DeleteRequests, FinishedRequest
from tests.lib.local.test_overview import STATUS
from tests.manual_clock import ManualClock
from tests.system import PortLease, engine_key

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WAIT_MS = 60_000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, nor named by CHROMIUM"),
    pytest.mark.one_python,
]


@asynccontextmanager
async def opened(url: str, scheme: str = "light") -> AsyncGenerator[tuple[Page, list[str]], None]:
    """Open the page at `url`; fail if its console has messages."""
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            page = await browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
            page.on("console", lambda said: complaints.append(said.text))  # no messages
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(url)
            yield page, complaints
        finally:
            await browser.close()


def report(engine: LocalEngine, **fields: Any) -> None:
    """Have the engine take a report of worker 7 with these `fields`."""
    engine.take_report("local", replace(STATUS, **fields))


READY: dict[str, Any] = {"loadtime": 5.0, "max_perf": 200.0}


async def test_the_page_shows_a_worker_its_load_and_its_death() -> None:
    expect.set_options(timeout=WAIT_MS)
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.locator("#no-workers")).to_be_visible()
        state = page.locator("#workers .state")
        clock.advance(1.0)
        report(engine)
        await expect(state).to_have_text("loading")
        clock.advance(5.0)
        report(engine, **READY)
        await expect(state).to_have_text("ready")
        await expect(page.locator("#no-workers")).to_be_hidden()
        await expect(page.locator("#tiles")).to_contain_text("1 / 1")

        for load in (100.0, 300.0):
            clock.advance(1.0)
            report(engine, **READY, cur_load=load, cur_perf=150.0, num_requests_working=3)
            label = f"Now: load in flight {load:g}, measured capacity 200."
            await expect(page.locator("#chart-load")).to_have_attribute("aria-label", re.compile(label))
        served = re.compile("Now: throughput 60.")  # twice 150 within 5 s
        await expect(page.locator("#chart-throughput")).to_have_attribute("aria-label", served)
        per_minute = page.locator("#workers tbody td").nth(4)
        await expect(per_minute).to_have_text("5")  # twice 150 within 60 s
        clock.advance(0.5)
        now = clock.wall()
        finished = FinishedRequest(3, True, "Success", now - 4, now - 2, now)
        engine.take_finished(DeleteRequests(7, "", (finished,)))
        await expect(page.locator("#requests .Success")).to_have_count(1)
        latency = re.compile("Now: median 4, p95 4.")
        await expect(page.locator("#chart-latency")).to_have_attribute("aria-label", latency)

        clock.advance(0.5)
        report(engine, **READY, error_msg="CUDA error: <b>device-side assert</b>")
        await expect(state).to_have_text("error")
        await expect(page.locator("#errors li")).to_contain_text("CUDA error: <b>device-side assert</b>")
        clock.advance(31.0)
        await expect(state).to_have_text("stopped")
        life = page.locator("#workers .state-history")
        expected = "loading for 5 s, then ready for 3 s, then error for 30 s, then stopped for 1 s"
        await expect(life).to_have_attribute("aria-label", expected)
        assert complaints == []


async def test_the_page_recovers_from_an_engine_restart() -> None:
    expect.set_options(timeout=WAIT_MS)
    first = LocalEngine(key=engine_key())
    report(first, **READY)
    lease = PortLease()
    try:
        async with AsyncExitStack() as stack:
            async with serve_engine(first, port=lease.port) as url:
                page, _ = await stack.enter_async_context(opened(url))
                await expect(page.locator("#workers .state")).to_have_text("ready")
            await expect(page.locator("#connection")).to_contain_text("no connection to the engine")
            async with serve_engine(LocalEngine(key=engine_key()), port=lease.port):
                await expect(page.locator("#connection")).to_have_text("live")
                await expect(page.locator("#no-workers")).to_be_visible()
    finally:
        lease.close()


async def test_the_page_shows_the_plan_and_the_workers_it_started() -> None:
    expect.set_options(timeout=WAIT_MS)
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        plan = page.locator("#plans tbody tr")
        await expect(plan).to_contain_text("no worker is measured yet: 3 wanted for measurement")
        report(engine, **READY, new_load=7500.0)
        await expect(plan).to_contain_text("load 500/s needs capacity 555.6/s: 3 workers x 200/s")
        await expect(plan).to_contain_text("1 / 3")
        engine.autoscale = AutoscaleStatus("local", 8, 2, 3)
        await expect(plan).to_contain_text("2 / 8")
        engine.retire(7)
        await expect(page.locator("#workers .state")).to_have_text("stopped")
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_enough_contrast(scheme: str) -> None:
    """The contrast ratio of WCAG 2.2 must be at least 4.5 for text."""
    expect.set_options(timeout=WAIT_MS)
    engine = LocalEngine(key=engine_key())
    report(engine, **READY, error_msg="broken")
    async with serve_engine(engine) as url, opened(url, scheme) as (page, complaints):
        await expect(page.locator("#workers .state")).to_have_text("error")
        colours: dict[str, str] = await page.evaluate(COLOURS)
        ground = luminance(colours.pop("--ground"))
        assert (ground < 0.5) == (scheme == "dark")
        for name, colour in colours.items():
            light, dark = sorted((luminance(colour), ground), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name
        assert complaints == []


COLOURS = """() => Object.fromEntries(["--ground", "--text", "--muted", "--first", "--second", "--loading",
  "--ready", "--error", "--stopped"].map((name) =>
  [name, getComputedStyle(document.documentElement).getPropertyValue(name).trim()]))"""


def luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb`, 0 to 1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
