"""Reports to the engine, as a worker sends them."""

from __future__ import annotations

from lib.wire import WorkerStatus

READY = WorkerStatus(
    id=7,
    mtoken="",
    url="http://127.0.0.1:3000",
    loadtime=4.0,
    new_load=0.0,
    cur_load=0.0,
    rej_load=0.0,
    cur_perf=0.0,
    max_perf=10.0,
    error_msg="",
    num_requests_working=0,
    num_requests_received=0,
    working_request_idxs=(),
    additional_disk_usage=0.0,
    disk_usage=1.0,
)
