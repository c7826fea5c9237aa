"""Readings and events, with a stand-in that replays what a real H100 answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from lib.gpu.nvml import Gpu, Nvml, NvmlUnavailable, Readings, Trouble, Xid, open_nvml
from tests.fakes.nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    IDLE,
    INVALID_ARGUMENT,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    UNDER_LOAD,
    UNKNOWN,
    VERSION_MISMATCH,
    FakeNvml,
    NvmlError,
)

IDLE_GPU = Gpu(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    utilization=0.0,
    memory_used_bytes=503316480,
    memory_total_bytes=85520809984,
    clock_reasons=1,
    uncorrectable_ecc_errors=0,
    remap_pending=False,
    remap_failed=False,
    tells_xids=True,
)
BUSY_GPU = replace(IDLE_GPU, utilization=0.98, memory_used_bytes=1429012480, clock_reasons=4)
# The fields that each function gives. A GPU that has the first of two names needs no second.
FIELDS_OF = {
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
    "nvmlDeviceGetUtilizationRates": {"utilization"},
    "nvmlDeviceGetCurrentClocksEventReasons": set[str](),
    "nvmlDeviceGetCurrentClocksThrottleReasons": set[str](),
    "nvmlDeviceGetTotalEccErrors": {"uncorrectable_ecc_errors"},
    "nvmlDeviceGetRemappedRows": {"remap_pending", "remap_failed"},
    "nvmlDeviceGetRetiredPagesPendingStatus": set[str](),
}


def opened(fake: FakeNvml) -> Nvml:
    return open_nvml(fake.load)


def next_xid(nvml: Nvml) -> Xid | None:
    return nvml.next_xid(0.001, threading.Event())


@pytest.mark.parametrize(("recorded", "gpu"), [(IDLE, IDLE_GPU), (UNDER_LOAD, BUSY_GPU)])
def test_a_reading_of_a_gpu(recorded: dict[str, Any], gpu: Gpu) -> None:
    assert opened(FakeNvml(recorded=recorded)).read() == Readings((gpu,))


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, UNKNOWN])
@pytest.mark.parametrize("function", sorted(IDLE))
def test_what_is_not_supported_is_none_and_the_rest_is_read(function: str, error: int) -> None:
    fake = FakeNvml()
    fake.answers[0][function] = NvmlError(error)
    (gpu,) = opened(fake).read().gpus
    changed = {f.name for f in fields(gpu) if getattr(gpu, f.name) != getattr(IDLE_GPU, f.name)}
    assert changed == FIELDS_OF[function]
    assert all(getattr(gpu, name) == ("unknown" if name == "name" else None) for name in changed)


def test_an_older_library_lacks_functions() -> None:
    fake = FakeNvml(recorded=UNDER_LOAD)
    fake.answers[0]["nvmlDeviceGetCurrentClocksEventReasons"] = AttributeError("no such function")
    fake.answers[0]["nvmlDeviceGetName"] = b"NVIDIA H100 80GB HBM3"
    assert opened(fake).read().gpus == (BUSY_GPU,)


def test_a_gpu_that_retires_pages_may_have_some_pending() -> None:
    fake = FakeNvml()
    fake.answers[0]["nvmlDeviceGetRemappedRows"] = NvmlError(NOT_SUPPORTED)
    fake.answers[0]["nvmlDeviceGetRetiredPagesPendingStatus"] = 1
    (gpu,) = opened(fake).read().gpus
    assert (gpu.remap_pending, gpu.remap_failed) == (True, None)


@pytest.mark.parametrize(
    ("rows", "flags"),
    [((0, 1, 1, 0), (True, False)), ((3, 2, 0, 1), (False, True)), ((1, 1, 0, 0), (False,) * 2)],
)
def test_a_row_remap(rows: tuple[int, ...], flags: tuple[bool, bool]) -> None:
    fake = FakeNvml()
    fake.answers[0]["nvmlDeviceGetRemappedRows"] = rows
    (gpu,) = opened(fake).read().gpus
    assert (gpu.remap_pending, gpu.remap_failed) == flags


@pytest.mark.parametrize(
    ("value", "trouble"), [(GPU_IS_LOST, Trouble.LOST), (RESET_REQUIRED, Trouble.RESET_REQUIRED)]
)
def test_a_gpu_that_is_lost_is_not_asked_again_and_the_others_are(value: int, trouble: Trouble) -> None:
    fake = FakeNvml(count=2)
    nvml = opened(fake)
    assert [gpu.trouble for gpu in nvml.read().gpus] == [None, None]
    fake.lost[0] = value
    assert [gpu.trouble for gpu in nvml.read().gpus] == [trouble, None]
    fake.calls.clear()
    lost, well = nvml.read().gpus
    assert lost == Gpu(index=0, name=IDLE_GPU.name, trouble=trouble, tells_xids=True)
    assert well == replace(IDLE_GPU, index=1)
    assert fake.calls["nvmlDeviceGetMemoryInfo"] == 1


def test_a_gpu_that_is_lost_at_the_start() -> None:
    fake = FakeNvml(count=2)
    fake.lost[1] = GPU_IS_LOST
    well, lost = opened(fake).read().gpus
    assert well == IDLE_GPU
    assert lost == Gpu(index=1, name="unknown", trouble=Trouble.LOST)


@pytest.mark.parametrize(
    ("value", "trouble"),
    [(UNKNOWN, Trouble.UNUSABLE), (INVALID_ARGUMENT, Trouble.UNUSABLE), (NO_PERMISSION, None)],
)
def test_a_gpu_that_can_not_be_opened(value: int, trouble: Trouble | None) -> None:
    fake = FakeNvml(count=2)
    fake.lost[0] = value
    closed, well = opened(fake).read().gpus
    assert closed == Gpu(index=0, name="unknown", trouble=trouble)
    assert well == replace(IDLE_GPU, index=1)


def test_gpus_that_are_no_longer_counted_are_missing() -> None:
    fake = FakeNvml(count=4)
    nvml = opened(fake)
    assert nvml.read().missing == 0
    fake.count = 3
    assert nvml.read().missing == 1
    fake.failing["nvmlDeviceGetCount"] = NvmlError(UNKNOWN)
    assert nvml.read().missing == 0


def test_an_event_names_its_gpu_and_its_slice() -> None:
    fake = FakeNvml(count=2)
    nvml = opened(fake)
    fake.tell_xid(31, gpu=1)
    fake.tell_xid(13, gpu=0, instance=3)
    fake.tell_xid(79, gpu=7)
    assert [next_xid(nvml) for _ in range(4)] == [Xid(31, 1), Xid(13, 0, 3), Xid(79, None), None]


def test_an_event_of_a_gpu_that_is_lost_by_now_names_it() -> None:
    fake = FakeNvml(count=2)
    nvml = opened(fake)
    fake.lost[1] = GPU_IS_LOST
    nvml.read()
    fake.tell_xid(79, gpu=1)
    assert next_xid(nvml) == Xid(79, 1)


def stop_is_waited_for(nvml: Nvml) -> bool:
    """Whether `next_xid` waits for `stop`: it has all the time there is, and returns."""
    stop = threading.Event()
    stop.set()
    return nvml.next_xid(3600.0, stop) is None


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_without_support_for_events_none_are_waited_for(function: str) -> None:
    fake = FakeNvml()
    fake.failing[function] = NvmlError(NOT_SUPPORTED)
    nvml = opened(fake)
    assert nvml.read().gpus == (replace(IDLE_GPU, tells_xids=False),)
    assert stop_is_waited_for(nvml)
    assert not fake.calls["nvmlEventSetWait_v2"]


def test_a_wait_that_fails_at_once_is_not_repeated_at_once() -> None:
    fake = FakeNvml()
    nvml = opened(fake)
    fake.failing["nvmlEventSetWait_v2"] = NvmlError(UNKNOWN)
    assert stop_is_waited_for(nvml)
    assert not nvml.read().is_any_lost
    fake.failing["nvmlEventSetWait_v2"] = NvmlError(GPU_IS_LOST)
    assert stop_is_waited_for(nvml)
    assert nvml.read().is_any_lost


def test_closing_frees_everything() -> None:
    fake = FakeNvml()
    opened(fake).close()
    assert not fake.is_open
    assert fake.calls["nvmlEventSetFree"] == 1


def raising(error: Exception) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


def failing_init(value: int) -> Callable[[], Any]:
    fake = FakeNvml()
    fake.failing["nvmlInit"] = NvmlError(value)
    return fake.load


@pytest.mark.parametrize(
    ("load", "is_absent"),
    [
        (raising(ImportError("pynvml")), True),
        (raising(RuntimeError("broken module")), False),
        (failing_init(LIBRARY_NOT_FOUND), True),
        (failing_init(DRIVER_NOT_LOADED), True),
        (failing_init(VERSION_MISMATCH), False),
        (FakeNvml(count=0).load, True),
    ],
)
def test_what_is_absent_is_no_fault(load: Callable[[], Any], is_absent: bool) -> None:
    with pytest.raises(NvmlUnavailable) as raised:
        open_nvml(load)
    assert raised.value.is_absent is is_absent


def test_gpus_that_can_not_be_counted_are_a_fault() -> None:
    fake = FakeNvml()
    fake.failing["nvmlDeviceGetCount"] = NvmlError(UNKNOWN)
    with pytest.raises(NvmlUnavailable, match="Unknown Error") as raised:
        opened(fake)
    assert not raised.value.is_absent
    assert not fake.is_open
