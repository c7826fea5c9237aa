"""The engine's page of an API in a real browser, with a worker process that is tried from it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Locator, Page, expect

from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from lib.local.worker_watch import watched_workers
from tests.e2e.test_page import CHROMIUM, WAIT_MS, opened
from tests.fakes.reports import READY
from tests.lib.local.test_descriptions import OPERATION, document, loopback_port
from tests.lib.local.test_tried_requests import raw_worker, trying
from tests.system import CONTAINER_ID, System, engine_key, with_worker_process

WORKER = "tests.fakes.tried_worker"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, nor named by CHROMIUM"),
    pytest.mark.one_python,
]


def route(page: Page, path: str) -> Locator:
    """The section of a route."""
    return page.locator("section.route", has=page.locator(f'form[data-path="{path}"]'))


async def sent(page: Page, path: str, text: str, payload: str | None = None) -> Locator:
    """Send the form of `path`; return the place of its answer once its first line has `text`."""
    section = route(page, path)
    if payload is not None:
        await section.locator("textarea").fill(payload)
    await section.get_by_role("button", name="Send").click()
    await expect(section.locator(".answer .result")).to_contain_text(text)
    return section.locator(".answer")


async def ended(system: System) -> None:
    await system.engine.wait_for(lambda: not len(system.engine.open_requests))


async def test_every_kind_of_answer_is_shown(tmp_path: Path) -> None:
    expect.set_options(timeout=WAIT_MS)
    async with (
        with_worker_process(tmp_path, module=WORKER) as system,
        opened(f"{system.engine_url}/docs") as (page, complaints),
    ):
        await expect(route(page, "/shout")).to_contain_text("Say it loudly. <b>Really</b>.")
        answer = await sent(page, "/shout", "200 OK in")
        await expect(answer.locator("pre").first).to_have_text('{\n  "result": "HI <B> HI <B>"\n}')
        await expect(answer).to_contain_text("Content-Type: application/json")
        envelope = json.loads(await page.locator("#envelope-sent").inner_text())
        assert envelope["payload"] == {"text": "hi <b>", "times": 2}
        assert envelope["auth_data"]["url"] == system.url
        assert envelope["auth_data"]["signature"]

        answer = await sent(page, "/draw", "200 OK in")
        await expect(answer.locator("img")).to_have_js_property("naturalWidth", 1)
        answer = await sent(page, "/unknown", "200 OK in")
        await expect(answer.locator("a[download]")).to_contain_text("3 bytes, application/x-unknown")
        answer = await sent(page, "/markup", "200 OK in")
        await expect(answer.locator("pre").first).to_have_text("<script>document.title = 'taken'</script>")
        await expect(page).to_have_title("API - local engine")

        section = route(page, "/receive")
        await section.locator("input[type=file]").set_input_files(
            {"name": "a.bin", "mimeType": "application/x-a", "buffer": b"12345"}
        )
        await section.locator(".file-field").fill("")
        answer = await sent(page, "/receive", "200 OK in")
        await expect(answer.locator("pre").first).to_contain_text('"size": 5,')
        await section.locator(".file-field").fill("file")
        answer = await sent(page, "/receive", "200 OK in")
        await expect(answer.locator("pre").first).to_contain_text('"is_form": true')
        await expect(page.locator("#envelope-note")).to_contain_text("X-Vast-Auth")

        section = route(page, "/voices/{id}")
        await section.locator("[data-name=id]").fill("a/b")
        await section.locator("[data-name=limit]").fill("3")
        answer = await sent(page, "/voices/{id}", "200 OK in")
        await expect(answer.locator("pre").first).to_contain_text('"id": "a/b",\n    "limit": 3')
        await ended(system)
        assert complaints == []


async def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    expect.set_options(timeout=WAIT_MS)
    async with (
        with_worker_process(tmp_path, module=WORKER) as system,
        watched_workers(system.engine),
        opened(f"{system.engine_url}/e/local/docs") as (page, complaints),
    ):
        for payload, problem in (
            ("{", "The payload is not JSON"),
            ("[1]", "The payload is not a JSON object"),
        ):
            answer = await sent(page, "/shout", problem, payload)
            await expect(answer).to_contain_text("Nothing was sent.")
        answer = await sent(page, "/shout", "422", '{"times": "many"}')
        await expect(answer.locator("pre").first).to_contain_text('"text": "missing parameter"')

        section = route(page, "/wait")
        await section.locator("textarea").fill('{"word": "once"}')
        await section.get_by_role("button", name="Send").click()
        answer = section.locator(".answer")
        await expect(answer.locator("pre").first).to_contain_text("once")  # as it comes
        await section.get_by_role("button", name="Stop").click()
        await expect(answer.locator(".result")).to_contain_text("Stopped after")
        await expect(section.get_by_role("button", name="Stop")).to_be_hidden()
        await ended(system)
        await system.engine.wait_for(
            lambda: [f.request.status for f in system.engine.finished][-1:] == ["Cancelled"]
        )

        assert complaints == []
        await section.get_by_role("button", name="Send").click()
        await expect(answer.locator("pre").first).to_contain_text("once")
        assert system.worker is not None
        system.worker.process.kill()
        await expect(answer.locator(".result")).to_contain_text("The answer broke off after")
        await system.engine.wait_for(lambda: system.engine.worker(CONTAINER_ID).state == "stopped")
        answer = await sent(page, "/shout", "Not answered: no worker of 'local' is ready: 1 stopped", "{}")
        await expect(answer).to_contain_text("The engine answered 503")
        await page.reload()
        await expect(page.locator("#undescribed")).to_contain_text("is stopped: can't be reached")


BIG = "18446744073709551615"  # more than JavaScript's numbers hold


async def test_numbers_stay_as_they_are() -> None:
    """Send what is typed, and show what was sent and answered."""
    expect.set_options(timeout=WAIT_MS)
    async with trying() as here:
        schema: dict[str, Any] = {"properties": {"seed": {}}, "examples": [{"seed": int(BIG), "scale": 7.0}]}
        tell: dict[str, Any] = {
            **OPERATION,
            "requestBody": {"content": {"application/json": {"schema": schema}}},
        }
        query: dict[str, Any] = {"name": "seeds", "in": "query", "required": False, "schema": {}}
        here.port.body = document(here.worker.url, tell=tell)
        here.port.body["paths"]["/list"] = {"get": {**OPERATION, "parameters": [query], "requestBody": {}}}
        here.port.body["components"]["schemas"]["Envelope"] = {}
        async with opened(f"{here.url}/docs") as (page, complaints):
            body = f'{{"seed":{BIG},"scale":7.0,"2":[],"1":{{}}}}'
            received: list[str] = []
            here.worker.answer = partial(noted, received, body)
            answer = await sent(page, "/tell", "200 OK in")
            shown = f'{{\n  "seed": {BIG},\n  "scale": 7.0,\n  "2": [],\n  "1": {{}}\n}}'
            await expect(answer.locator("pre").first).to_have_text(shown)
            assert f'{{"seed": {BIG}, "scale": 7.0}}' in received[-1]
            assert f'"seed": {BIG},\n    "scale": 7.0' in await page.locator("#envelope-sent").inner_text()
            await route(page, "/list").locator("[data-name=seeds]").fill(f"[{BIG}, 7.0]")
            await sent(page, "/list", "200 OK in")
            assert received[-1] == f"/list?seeds={BIG}&seeds=7.0"
            assert complaints == []


async def test_an_answer_is_shown_by_its_type() -> None:
    expect.set_options(timeout=WAIT_MS)
    async with trying() as here, opened(f"{here.url}/docs") as (page, complaints):
        for kind, body, place, text in (
            ("constructor/x", b"ok", "a[download]", "2 bytes, constructor/x"),
            ("text/plain; charset=iso-8859-1", b"\xe9\xe8", "pre", "\xe9\xe8"),
            ('text/plain; x=y; Charset="Shift_JIS"', b"\x82\xa0", "pre", "\u3042"),
            ("text/plain; charset=unheard-of", "\xe9".encode(), "pre", "\xe9"),
        ):
            here.worker.answer = partial(answered, body, {"Content-Type": kind})
            answer = await sent(page, "/tell", "200 OK in")
            await expect(answer.locator(place).first).to_contain_text(text)
        assert complaints == []


@pytest.mark.parametrize(
    ("answer", "arrived"),
    [
        (b"Content-Length: 20\r\n\r\nhello", "5 bytes had arrived"),
        (b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", "0 bytes had arrived"),
    ],
)
async def test_that_an_answer_broke_off_is_said(answer: bytes, arrived: str) -> None:
    expect.set_options(timeout=WAIT_MS)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    async with raw_worker(head + answer) as here, opened(f"{here.url}/docs") as (page, complaints):
        shown = await sent(page, "/tell", "The answer broke off after")
        await expect(shown).to_contain_text(f"200 OK; {arrived}. The reason: the worker's answer ended early")
        assert complaints == []


async def noted(received: list[str], body: str, request: web.Request) -> web.Response:
    received.append(await request.text() or request.raw_path)
    return web.Response(text=body, content_type="application/json")


async def answered(body: bytes, headers: dict[str, str], _: web.Request) -> web.Response:
    return web.Response(body=body, headers=headers)


async def test_the_worker_and_the_engine_link_to_the_page(tmp_path: Path) -> None:
    expect.set_options(timeout=WAIT_MS)
    async with (
        with_worker_process(tmp_path, module=WORKER) as system,
        opened(f"{system.loopback_url}/docs") as (page, complaints),
    ):
        await page.get_by_role("link", name="the page of the local engine").click()
        await expect(page).to_have_url(f"{system.engine_url}/docs")
        await page.get_by_role("link", name="Workers and requests").click()
        await page.get_by_role("link", name="API of the workers").click()
        await expect(page.locator("h1")).to_have_text("API of the endpoint local")
        system.engine.take_report("others", READY)
        await page.reload()
        await page.locator("#endpoint").select_option("others")
        await expect(page).to_have_url(f"{system.engine_url}/e/others/docs")
        await expect(page.locator("#undescribed")).to_contain_text("its reports name no loopback port")
        await page.locator("#endpoint").select_option("local")
        await expect(route(page, "/shout")).to_be_visible()
        assert complaints == []


async def test_nothing_is_wider_than_the_window() -> None:
    """Also with long names of endpoints, routes and fields."""
    expect.set_options(timeout=WAIT_MS)
    engine, long = LocalEngine(key=engine_key()), "x" * 120
    schema = {"properties": {long: {"enum": [long]}}, "required": [long], "examples": [{long: long}]}
    body = {"content": {"application/json": {"schema": schema}, "*/*": {}}}
    parameter = {"name": long, "in": "path", "required": True, "schema": {"type": "string"}}
    operation = {"summary": long, "parameters": [parameter], "requestBody": body}
    async with loopback_port(document(READY.url, **{long: operation})) as port, serve_engine(engine) as url:
        engine.take_report(long, READY, port.url)
        for path in (f"{long}/docs", "nope/docs"):
            async with opened(f"{url}/e/{path}") as (page, complaints):
                await page.locator("summary").evaluate_all("all => all.forEach((each) => each.click())")
                for width in (320, 390, 768, 1400):
                    await page.set_viewport_size({"width": width, "height": 900})
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width
                assert complaints == []
