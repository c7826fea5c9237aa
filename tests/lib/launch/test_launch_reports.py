"""The launcher's reports have the fields of the worker's own."""

from __future__ import annotations

from lib.launch.reports import worker_status
from lib.wire import WorkerStatus
from tests.lib.launch.test_launch_settings import read


def test_a_report_is_a_worker_status_of_a_worker_that_does_nothing() -> None:
    message = worker_status(read(MASTER_TOKEN="secret"), "an error")
    own = WorkerStatus(
        id=7,
        mtoken="secret",
        url="https://192.0.2.1:41000",
        loadtime=0.0,
        new_load=0.0,
        cur_load=0.0,
        rej_load=0.0,
        cur_perf=0.0,
        max_perf=0.0,
        error_msg="an error",
        num_requests_working=0,
        num_requests_received=0,
        working_request_idxs=(),
        additional_disk_usage=0.0,
        disk_usage=0.0,
    ).to_json()
    assert message.pop("disk_usage") != own.pop("disk_usage")
    assert message == own
