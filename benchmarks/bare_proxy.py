"""The baseline of the proxy benchmark: an aiohttp handler that forwards a body and does nothing else.

usage: MODEL_SERVER_URL=… python -m benchmarks.bare_proxy

It listens on a free port, and prints it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os

import aiohttp
import anyio
from aiohttp import web

HTTP = web.AppKey("HTTP", aiohttp.ClientSession)


async def pass_on(request: web.Request) -> web.StreamResponse:
    url = os.environ["MODEL_SERVER_URL"] + request.path
    async with request.app[HTTP].post(url, data=await request.read()) as answer:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def main() -> None:
    app = web.Application()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        app[HTTP] = http
        app.add_routes([web.post("/json", pass_on), web.post("/stream", pass_on)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uses_uvloop = importlib.util.find_spec("uvloop") is not None
    anyio.run(main, backend_options={"use_uvloop": uses_uvloop})
