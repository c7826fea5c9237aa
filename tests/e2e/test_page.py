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
from playwright.async_api import Locator, Page, async_playwright, expect

from lib.local.engine import AutoscaleStatus, LocalEngine
from lib.local.messages import RouteQuery
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
async def opened(
    url: str, scheme: str = "light", width: int = 1400
) -> AsyncGenerator[tuple[Page, list[str]], None]:
    """Open the page at `url`; fail if its console has messages."""
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            page = await browser.new_page(
                color_scheme="dark" if scheme == "dark" else "light",
                viewport={"width": width, "height": 900},
                locale="en-US",
                timezone_id="UTC",
            )
            page.on("console", lambda said: complaints.append(said.text))  # no messages
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(url)
            yield page, complaints
        finally:
            await browser.close()


def report(engine: LocalEngine, **fields: Any) -> None:
    """Have the engine take a report of worker 7 with these `fields`."""
    engine.take_report("local", replace(STATUS, **fields))


# The times, by a clock of 24 hours, of two reports in these tests: the manual clock begins at 22:13:20.
ERROR_AT = "22:13:28"
SERVED_AT = "22:13:52"
UNKNOWN = "\N{EN DASH}"
READY: dict[str, Any] = {"loadtime": 5.0, "max_perf": 200.0}


def figure(page: Page, tile: str) -> Locator:
    """The value of the tile with this name."""
    return page.locator("#tiles > div", has=page.get_by_text(tile, exact=True)).locator("dd").first


async def chart_says(page: Page, chart: str, text: str) -> None:
    """Wait until the chart's text alternative has these values."""
    await expect(page.locator(f"#chart-{chart}")).to_have_attribute("aria-label", re.compile(re.escape(text)))


async def test_the_page_shows_a_worker_its_load_and_its_death() -> None:
    expect.set_options(timeout=WAIT_MS)
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        state = page.locator("#workers .state")
        clock.advance(1.0)
        report(engine)
        await expect(state).to_have_text("loading")
        await expect(page.locator("#verdict")).to_have_text("No worker is ready: 1 loading.")
        await expect(page.locator("figure .empty:visible")).to_have_count(4)
        await expect(page.locator("figure .uplot:visible")).to_have_count(0)
        clock.advance(5.0)
        report(engine, **READY)
        await expect(state).to_have_text("ready")
        await expect(page.locator("#no-workers")).to_be_hidden()
        await expect(figure(page, "Workers ready")).to_have_text("1 of 1")

        for load in (100.0, 300.0):
            clock.advance(1.0)
            report(engine, **READY, new_load=300.0, cur_load=load, cur_perf=150.0, num_requests_working=3)
            await chart_says(page, "queue", f"Now: queued {load / 200:.2f} s.")
        await expect(page.locator("figure .uplot:visible")).to_have_count(2)
        await chart_says(page, "utilisation", "Now: arriving 60 %, served 30 %.")  # twice within 5 s
        await expect(figure(page, "Work queued")).to_have_text("1.50 s")
        await expect(figure(page, "Utilisation")).to_have_text("20 %")  # twice 300 within 15 s
        await expect(figure(page, "In flight")).to_have_text("3")
        per_minute = page.locator("#workers tbody td").nth(5)
        await expect(per_minute).to_have_text("5/s")  # twice 150 within 60 s

        clock.advance(0.5)
        report(engine, **READY, error_msg="CUDA error: <b>device-side assert</b>")
        await expect(state).to_have_text("error")
        error = "CUDA error: <b>device-side assert</b>"
        await expect(page.locator("#problems")).to_contain_text(
            f"Worker 7: error since {ERROR_AT} (0 s): {error}"
        )
        await expect(page.locator("#workers .why")).to_have_text(error)
        await expect(page.locator("#events")).to_contain_text(f"worker 7 is error: {error}")
        clock.advance(31.0)
        await expect(state).to_have_text("stopped")
        await expect(page.locator("#problems")).to_contain_text("stopped since")
        await expect(page.locator("#workers .why")).to_have_text("no report for 30 s")
        life = page.locator("#workers .state-history")
        expected = "loading for 5 s, then ready for 3 s, then error for 30 s, then stopped for 1 s"
        await expect(life).to_have_attribute("aria-label", expected)
        dead = page.locator("#workers .dead .number")
        await expect(dead).to_have_text([UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, "0", "31 s ago"])
        for tile in ("Work queued", "Utilisation", "Capacity"):
            await expect(figure(page, tile)).to_have_text(UNKNOWN)
        await expect(figure(page, "In flight")).to_have_text("0")
        assert complaints == []


async def test_the_page_shows_what_requests_went_through() -> None:
    expect.set_options(timeout=WAIT_MS)
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        number = engine.route(RouteQuery("local", 60.0, 0))["request_idx"]
        routing = engine.open_requests.routing(number)
        assert routing is not None
        routing.route, routing.status = "POST /v1/<i>chat</i>", 200  # as the OpenAI gateway sets them
        clock.advance(2.0)
        report(engine, **READY)
        engine.route(RouteQuery("local", 60.0, number))
        clock.advance(30.0)
        report(engine, **READY)
        now = clock.wall()
        served = FinishedRequest(number, True, "Success", now - 5.0, now - 3.0, now)
        rejected = FinishedRequest(99, False, "Rejected", now, 0.0, 0.0)
        engine.take_finished(DeleteRequests(7, "", (served, rejected)))
        rows = page.locator("#requests tbody tr")
        await expect(rows).to_have_count(2)
        await expect(rows.nth(1).locator("td")).to_have_text(
            [
                SERVED_AT,
                "1",
                "7",
                "servedPOST /v1/<i>chat</i> 200",
                "60",
                "2.00 s",
                "2.00 s",
                "3.00 s",
                "7.00 s",
            ]
        )
        await expect(rows.nth(0).locator("td").nth(3)).to_contain_text("rejectedanswered with 429 or 503")
        await expect(rows.nth(0).locator("td").nth(8)).to_have_text(UNKNOWN)
        await chart_says(page, "latency", "Now: p50 7.00 s, p95 7.00 s, p99 7.00 s.")
        await expect(figure(page, "Latency p50")).to_have_text("7.00 s")
        await expect(figure(page, "Not served")).to_have_text("1")
        await expect(page.locator("#problems")).to_contain_text("1 request rejected in the last 10 min")
        assert complaints == []


async def test_an_empty_page_says_what_to_do() -> None:
    expect.set_options(timeout=WAIT_MS)
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        await expect(page.locator("#connection")).to_contain_text("live")
        await expect(page.locator("#no-workers")).to_contain_text("pyworker engine --autoscale 1")
        await expect(page.locator("#report-addr")).to_have_text(f"REPORT_ADDR={url}")
        await expect(page.locator("#try-request code")).to_contain_text(
            f"pyworker request --engine {url} -e local"
        )
        for place in ("#no-charts", "#no-requests", "#no-events"):
            await expect(page.locator(place)).to_be_visible()
        for place in ("#charts", "#requests", "#workers"):
            await expect(page.locator(place)).to_be_hidden()
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
                await expect(page.locator("#lost")).to_be_hidden()
            await expect(page.locator("#lost")).to_contain_text("No connection to the engine since")
            await expect(page.locator("main")).to_have_css("opacity", "0.4")
            async with serve_engine(LocalEngine(key=engine_key()), port=lease.port):
                await expect(page.locator("#connection")).to_contain_text("live")
                await expect(page.locator("#lost")).to_be_hidden()
                await expect(page.locator("main")).to_have_css("opacity", "1")
                await expect(page.locator("#no-workers")).to_be_visible()
                await expect(page.locator("#events li")).to_have_count(0)
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
        await expect(page.locator("#verdict.bad")).to_contain_text("250 % of their capacity is asked for")
        engine.autoscale = AutoscaleStatus("local", 8, 2, 3)
        await expect(plan).to_contain_text("2 / 8")
        engine.retire(7)
        await expect(page.locator("#workers .state")).to_have_text("stopped")
        await expect(page.locator("#workers .why")).to_have_text("stopped by --autoscale")
        await expect(page.locator("#problems li")).to_have_count(0)
        assert complaints == []


async def test_the_page_shows_one_endpoint_at_a_time() -> None:
    expect.set_options(timeout=WAIT_MS)
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url, opened(url) as (page, complaints):
        await expect(page.locator("#endpoint-choice")).to_be_hidden()
        engine.take_report("images", replace(STATUS, **READY, id=1))
        worker = page.locator("#workers tbody th")
        await expect(worker).to_contain_text("1 ")  # the first endpoint that a worker joins
        engine.take_report("local", replace(STATUS, **READY, id=2))
        await page.locator("#endpoint").select_option("local")
        await expect(worker).to_contain_text("2 ")
        await expect(page.locator("#plans tbody tr")).to_have_count(2)
        assert complaints == []


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1400])
async def test_nothing_is_wider_than_the_window(width: int) -> None:
    """Also with a long error message and with ids and loads of many digits."""
    expect.set_options(timeout=WAIT_MS)
    engine = LocalEngine(key=engine_key())
    error = "x" * 300 + " https://" + "y" * 200
    report(engine, **READY, cur_load=1e9, new_load=1e9)
    engine.take_report("local", replace(STATUS, **READY, id=2**53, error_msg=error))
    number = engine.route(RouteQuery("local", 1e12, 0))["request_idx"]
    finished = FinishedRequest(number, True, "Success", 1.0, 2.0, 86_400.0)
    engine.take_finished(DeleteRequests(7, "", (finished,)))
    async with serve_engine(engine) as url, opened(url, width=width) as (page, complaints):
        await expect(page.locator("#workers tbody tr")).to_have_count(2)
        await expect(page.locator("#requests tbody tr")).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
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


COLOURS = """() => Object.fromEntries(["--ground", "--text", "--muted", "--first", "--second", "--third",
  "--loading", "--ready", "--error", "--stopped"].map((name) =>
  [name, getComputedStyle(document.documentElement).getPropertyValue(name).trim()]))"""


def luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb`, 0 to 1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
