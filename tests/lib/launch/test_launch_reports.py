"""The launcher's reports: they have the fields of the worker's own, and are sent in parallel."""

from __future__ import annotations

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.launch.reports import report, worker_status
from tests.fakes.reports import READY
from tests.guard import GUARD_S
from tests.lib.launch.test_launch_settings import read


def test_a_report_is_a_worker_status_of_a_worker_that_does_nothing() -> None:
    message = worker_status(read(MASTER_TOKEN="secret"), "an error")
    own = replace(
        READY,
        mtoken="secret",
        url="https://192.0.2.1:41000",
        loadtime=0.0,
        max_perf=0.0,
        error_msg="an error",
        disk_usage=0.0,
    ).to_json()
    assert message.pop("disk_usage") != own.pop("disk_usage")
    assert message == own


class TogetherHandler(BaseHTTPRequestHandler):
    """Answers no report before both are complete."""

    both: threading.Barrier

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.both.wait(GUARD_S)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.process
def test_no_report_waits_for_another_addresss_answer() -> None:
    TogetherHandler.both = threading.Barrier(2)
    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), TogetherHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        report(read(REPORT_ADDR=f"{address}/a,{address}/b"), "an error", said.append)
        TogetherHandler.both.abort()
        server.shutdown()
        thread.join()
    assert said == []
