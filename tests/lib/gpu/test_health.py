"""What readings and events show: errors until a restart, and warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.gpu.health import SLOWDOWNS, GpuHealth
from lib.gpu.nvml import Gpu, Readings, Trouble, Xid
from lib.gpu.watch import POLL_S
from lib.gpu.xids import XIDS, Severity
from tests.manual_clock import ManualClock

H100 = "NVIDIA H100 80GB HBM3"
WELL = Gpu(
    index=0,
    name=H100,
    utilization=0.98,
    memory_used_bytes=1,
    memory_total_bytes=2,
    clock_reasons=4,
    uncorrectable_ecc_errors=0,
    remap_pending=False,
    remap_failed=False,
    tells_xids=True,
)
ERRORS = (48, 64, 74, 79, 95, 119, 120)
WARNINGS = (13, 31, 43, 45, 94)
# Idle, set clocks, the power cap, sync boost, display clocks.
NORMAL_REASONS = (0x0, 0x1, 0x2, 0x4, 0x10, 0x100)


class Machine:
    """A `GpuHealth` on a manual clock; `errors` are the messages it told."""

    def __init__(self, count: int = 1) -> None:
        self.clock = ManualClock()
        self.errors: list[str] = []
        self.health = GpuHealth(self.clock, self.errors.append)
        self.gpus = [replace(WELL, index=index) for index in range(count)]
        self.read()

    def read(self, gpu: int = 0, *, missing: int = 0, **changed: Any) -> None:
        """Take a reading, in which `gpu` has `changed`, as from now on."""
        self.gpus[gpu] = replace(self.gpus[gpu], **changed)
        self.health.note_readings(Readings(tuple(self.gpus), missing))

    def read_for(self, seconds: float, gpu: int = 0, **changed: Any) -> None:
        """Read every `POLL_S` seconds, now and at the end as well."""
        self.read(gpu, **changed)
        for _ in range(round(seconds / POLL_S)):
            self.clock.advance(POLL_S)
            self.read()

    @property
    def findings(self) -> list[tuple[Severity, int | None, int, bool]]:
        return [(f.severity, f.gpu, f.count, f.is_over) for f in self.health.findings]


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def test_the_table_of_xids_is_complete() -> None:
    assert {x for x, m in XIDS.items() if m.severity is Severity.ERROR} == set(ERRORS)
    assert {x for x, m in XIDS.items() if m.severity is Severity.WARNING} == set(WARNINGS)


def test_a_gpu_that_is_well_has_no_findings() -> None:
    machine = Machine(2)
    machine.read_for(600)
    assert machine.findings == []
    assert not machine.errors
    assert not machine.health.has_error(0)


@pytest.mark.parametrize("xid", ERRORS)
def test_an_xid_that_is_an_error_is_told_once(xid: int, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(2)
    for _ in range(3):
        machine.health.note_xid(Xid(xid, 1))
    machine.read_for(300)
    assert machine.errors == [f"GPU 1 ({H100}): XID {xid}: {XIDS[xid].words}. {XIDS[xid].advice}"]
    assert machine.findings == [(Severity.ERROR, 1, 3, False)]
    assert lines(caplog, logging.ERROR) == machine.errors
    assert [machine.health.has_error(gpu) for gpu in (0, 1, None)] == [False, True, False]
    assert machine.health.history_of(1).xid_events == {xid: 3}


@pytest.mark.parametrize("xid", [*WARNINGS, 63, 154, 9999])
def test_another_xid_is_a_warning(xid: int, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.health.note_xid(Xid(xid, 0))
    assert machine.findings == [(Severity.WARNING, 0, 1, False)]
    assert not machine.errors
    (line,) = lines(caplog, logging.WARNING)
    assert line.startswith(f"GPU 0 ({H100}): XID {xid}: ")


def test_an_event_may_name_a_slice_or_no_gpu() -> None:
    machine = Machine()
    machine.health.note_xid(Xid(31, 0, 3))
    machine.health.note_xid(Xid(79, None))
    texts = [f.text for f in machine.health.findings]
    assert texts[0].startswith(f"GPU 0 ({H100}): XID 31 in MIG instance 3: ")
    assert texts[1].startswith("XID 79 of a GPU that NVML doesn't name: ")
    assert len(machine.errors) == 1
    assert machine.health.has_error(None)


def test_several_errors_are_told_together() -> None:
    machine = Machine(2)
    machine.health.note_xid(Xid(74, 1))
    machine.read(0, remap_failed=True)
    assert machine.errors[1].startswith(machine.errors[0] + "; GPU 0 ")


def test_warnings_that_repeat_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    for _ in range(100):
        machine.health.note_xid(Xid(31, 0))
    assert len(lines(caplog, logging.WARNING)) == 1
    machine.health.note_xid(Xid(13, 0))
    assert len(lines(caplog, logging.WARNING)) == 2
    machine.clock.advance(60)
    machine.health.note_xid(Xid(31, 0))
    first, _, last = lines(caplog, logging.WARNING)
    assert last == f"{first} (99 more since the last line)"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"trouble": Trouble.LOST}, "the GPU is gone: the driver has lost it"),
        ({"trouble": Trouble.RESET_REQUIRED}, "the GPU can't be used before a reset"),
        ({"trouble": Trouble.UNUSABLE}, "the driver counts the GPU and can't open it"),
        ({"remap_failed": True}, "memory that failed could not be replaced (row remap)"),
    ],
)
def test_an_error_of_a_reading_is_told_once_and_stays(
    changed: dict[str, object], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(2)
    machine.read_for(300, gpu=1, **changed)
    machine.read(1, trouble=None, remap_failed=False)
    (told,) = machine.errors
    assert told.startswith(f"GPU 1 ({H100}): {text}")
    assert lines(caplog, logging.ERROR) == [told]
    assert machine.health.has_error(1)


def test_gpus_that_are_missing() -> None:
    machine = Machine(4)
    for missing in (1, 1, 2, 1, 0):
        machine.read(missing=missing)
    texts = [f.text for f in machine.health.findings]
    assert texts == [f"GPUs that the driver has lost: {lost} of 4. Restart the machine" for lost in (1, 2)]
    assert len(machine.errors) == 2


def test_a_gpu_that_is_gone_is_not_told_as_missing_too() -> None:
    machine = Machine(4)
    machine.read(2, missing=1, trouble=Trouble.LOST)
    assert machine.findings == [(Severity.ERROR, 2, 1, False)]


def test_a_lost_gpu_that_is_not_named() -> None:
    machine = Machine(2)
    machine.health.note_readings(Readings(tuple(machine.gpus), is_any_lost=True))
    assert machine.errors == ["GPUs that the driver has lost: 1 of 2. Restart the machine"]
    machine = Machine(2)
    gpus = (replace(WELL, trouble=Trouble.LOST), machine.gpus[1])
    machine.health.note_readings(Readings(gpus, is_any_lost=True))
    assert len(machine.errors) == 1


def test_ecc_errors_count_from_the_start() -> None:
    machine = Machine()
    machine.gpus = [replace(WELL, uncorrectable_ecc_errors=7)]
    machine.health = GpuHealth(machine.clock, machine.errors.append)
    machine.read()
    assert not machine.findings
    machine.read(uncorrectable_ecc_errors=8)
    assert [f.text for f in machine.health.findings] == [
        f"GPU 0 ({H100}): 1 uncorrectable ECC error since the worker's start"
    ]
    machine.read(uncorrectable_ecc_errors=None)
    machine.read(uncorrectable_ecc_errors=2)  # it was reset
    machine.read(uncorrectable_ecc_errors=3)
    assert machine.findings == [(Severity.WARNING, 0, 2, False)]
    assert not machine.errors


@given(st.lists(st.none() | st.integers(0, 50), min_size=1))
def test_the_growth_of_the_counter_is_the_sum_of_its_steps_up(counters: Sequence[int | None]) -> None:
    machine = Machine()
    for counter in counters:
        machine.read(uncorrectable_ecc_errors=counter)
    known = [0, *(c for c in counters if c is not None)]
    growth = sum(max(0, after - before) for before, after in pairwise(known))
    assert machine.health.history_of(0).ecc_errors == growth
    assert sum(f.count for f in machine.health.findings) == growth


def test_a_pending_remap_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine()
    machine.read_for(300, remap_pending=True)
    machine.read(remap_pending=None)
    assert machine.findings == [(Severity.WARNING, 0, 1, False)]
    assert len(lines(caplog, logging.WARNING)) == 1
    machine.read_for(10, remap_pending=False)
    assert machine.findings == [(Severity.WARNING, 0, 1, True)]
    assert lines(caplog, logging.INFO) == [f"GPU 0 ({H100}): no memory waits for its replacement any more"]


def test_a_gpu_that_can_not_be_read_any_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(2)
    machine.gpus[1] = Gpu(index=1, name=H100)
    machine.read_for(300)
    assert machine.findings == [(Severity.WARNING, 1, 1, False)]
    assert len(lines(caplog, logging.WARNING)) == 1
    machine.read_for(10, gpu=1, memory_total_bytes=1)
    assert machine.findings == [(Severity.WARNING, 1, 1, True)]
    assert lines(caplog, logging.INFO) == [f"GPU 1 ({H100}): NVML can read it again"]


def test_a_gpu_that_could_never_be_read_is_no_finding() -> None:
    machine = Machine()
    machine.health = GpuHealth(machine.clock, machine.errors.append)
    machine.gpus = [Gpu(index=0, name="unknown")]
    machine.read_for(300)
    assert not machine.findings


@pytest.mark.parametrize("reasons", SLOWDOWNS)
def test_a_slowdown_is_told_after_a_minute_and_its_end_too(
    reasons: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine()
    machine.read_for(55, clock_reasons=reasons | 0x4)
    assert not machine.findings
    assert machine.health.history_of(0).slowdowns == (SLOWDOWNS[reasons],)
    machine.read_for(300)
    assert machine.findings == [(Severity.WARNING, 0, 1, False)]
    (line,) = lines(caplog, logging.WARNING)
    assert line.startswith(f"GPU 0 ({H100}): {SLOWDOWNS[reasons]} for over a minute")
    machine.read_for(10, clock_reasons=0x4)
    assert machine.findings == [(Severity.WARNING, 0, 1, True)]
    assert lines(caplog, logging.INFO) == [f"GPU 0 ({H100}): the slowdown has ended"]
    assert not machine.errors
    machine.read_for(60, clock_reasons=reasons)
    assert machine.findings == [(Severity.WARNING, 0, 2, False)]


@pytest.mark.parametrize("reasons", NORMAL_REASONS)
def test_clocks_that_are_held_for_another_reason_are_normal(reasons: int) -> None:
    machine = Machine()
    machine.read_for(600, clock_reasons=reasons)
    assert not machine.findings


@pytest.mark.parametrize("between", [0x4, None])
def test_a_slowdown_must_be_in_every_reading_of_the_minute(between: int | None) -> None:
    machine = Machine()
    for _ in range(10):
        machine.read_for(55, clock_reasons=0x40)
        machine.read(clock_reasons=between)
    assert not machine.findings


def test_two_readings_far_apart_are_no_minute_of_slowdown() -> None:
    machine = Machine()
    machine.read(clock_reasons=0x40)
    machine.clock.advance(120)
    machine.read()
    assert not machine.findings
    machine.read_for(60)
    assert len(machine.findings) == 1


def test_the_reasons_of_a_slowdown_may_change() -> None:
    machine = Machine()
    machine.read_for(30, clock_reasons=0x40)
    machine.read_for(30, clock_reasons=0x88)
    (finding,) = machine.health.findings
    assert "hardware slowdown, hardware power brake for over a minute" in finding.text


def test_a_driver_that_hangs_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine()
    machine.clock.advance(60)
    machine.health.note_time()
    assert not machine.health.is_stale
    assert not machine.findings
    for _ in range(3):
        machine.clock.advance(5)
        machine.health.note_time()
    assert machine.health.is_stale
    assert machine.findings == [(Severity.WARNING, None, 1, False)]
    machine.read()
    assert not machine.health.is_stale
    assert machine.findings == [(Severity.WARNING, None, 1, True)]
    assert lines(caplog, logging.INFO) == ["NVML answers again"]


def test_the_facts_of_status() -> None:
    machine = Machine()
    assert GpuHealth(machine.clock, machine.errors.append).facts() is None
    machine.read(uncorrectable_ecc_errors=2, clock_reasons=0x20)
    machine.health.note_xid(Xid(31, 0))
    facts = machine.health.facts()
    assert facts is not None
    assert facts["at"] == machine.clock.wall()
    assert facts["gpus"] == [
        {
            "index": 0,
            "name": H100,
            "utilization": 0.98,
            "memory_used_bytes": 1,
            "memory_total_bytes": 2,
            "slowdowns": ["software thermal slowdown"],
            "uncorrectable_ecc_errors": 2,
            "remap_pending": False,
            "xid_events": {"31": 1},
            "tells_xids": True,
        }
    ]
    assert [(f["severity"], f["gpu"], f["count"], f["is_over"]) for f in facts["findings"]] == [
        ("warning", 0, 2, False),
        ("warning", 0, 1, False),
    ]
