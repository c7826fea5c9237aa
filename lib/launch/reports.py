"""Status reports of a worker that could not start or has crashed (docs/protocol.md, "Worker status").

Owns their content and sending. A running worker makes its own: lib/engine/reports.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress

from lib.launch.settings import LaunchSettings

REPORT_LIMIT_S = 10


def report(settings: LaunchSettings, error: str, say: Callable[[str], None]) -> None:
    """Send a status report with this error to every report address, in parallel.

    The JSON goes through a pipe: every user can read a command's arguments, and it has a token. Without curl,
    nothing is sent.
    """
    if shutil.which("curl") is None:
        return
    body = json.dumps(worker_status(settings, error)).encode()
    posts: list[tuple[str, subprocess.Popen[bytes]]] = []
    for address in settings.report_addrs:
        posts.append((address, _post(f"{address}/worker_status/", body)))
    for address, post in posts:
        if post.wait():
            say(f"the error could not be reported to {address}: check REPORT_ADDR and the network")


def worker_status(settings: LaunchSettings, error: str) -> dict[str, object]:
    """Return a status report of a worker that does nothing."""
    return {
        "id": settings.container_id,
        "mtoken": settings.master_token,
        "version": "1.1.0",
        "loadtime": 0.0,
        "new_load": 0.0,
        "cur_load": 0.0,
        "rej_load": 0.0,
        "cur_perf": 0.0,
        "max_perf": 0.0,
        "error_msg": error,
        "num_requests_working": 0,
        "num_requests_recieved": 0,
        "working_request_idxs": [],
        "additional_disk_usage": 0.0,
        "disk_usage": round(shutil.disk_usage("/").used / 1024**3, 3),
        "cur_capacity": 0.0,
        "max_capacity": 0.0,
        "url": settings.public_url,
    }


def _post(url: str, body: bytes) -> subprocess.Popen[bytes]:
    """Start a curl that posts `body`; it has all of it, and sends it without further help."""
    options = ("-fsS", "-o", "/dev/null", "-m", str(REPORT_LIMIT_S), "--data-binary", "@-")
    post = subprocess.Popen(
        ["curl", *options, "-H", "Content-Type: application/json", url],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert post.stdin is not None
    with suppress(BrokenPipeError), post.stdin as pipe:  # a curl that has ended is noticed by its status
        pipe.write(body)
    return post
