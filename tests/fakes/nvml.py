"""A stand-in for `pynvml`: answers, errors and events as recorded from one H100 (driver 580).

`library()` makes it for a worker process, where a module `pynvml` on the path passes everything on to it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# NVML's return values, and their texts in pynvml.
UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 1, 2, 3, 4
DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 10, 12, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, UNKNOWN = 15, 16, 18, 999
TEXTS = {
    UNINITIALIZED: "Uninitialized",
    INVALID_ARGUMENT: "Invalid Argument",
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    TIMEOUT: "Timeout",
    LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    FUNCTION_NOT_FOUND: "Function Not Found",
    GPU_IS_LOST: "GPU is lost",
    RESET_REQUIRED: "GPU requires restart",
    VERSION_MISMATCH: "RM has detected an NVML/RM version mismatch.",
    UNKNOWN: "Unknown Error",
}
NO_INSTANCE = 4294967295
# How often a wait looks for the file that tells an event.
LOOK_S = 0.01


class NvmlError(Exception):
    """Has the members of pynvml's `NVMLError`."""

    def __init__(self, value: int) -> None:
        super().__init__(TEXTS[value])
        self.value = value


IDLE: dict[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85520809984, free=85017493504, used=503316480),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0),
    "nvmlDeviceGetCurrentClocksThrottleReasons": 1,
    "nvmlDeviceGetCurrentClocksEventReasons": 1,
    "nvmlDeviceGetTotalEccErrors": 0,
    "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
    "nvmlDeviceGetRetiredPagesPendingStatus": NvmlError(NOT_SUPPORTED),
}
# The power cap holds the clocks.
UNDER_LOAD: dict[str, Any] = {
    **IDLE,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85520809984, free=84091797504, used=1429012480),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=98, memory=30),
    "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
    "nvmlDeviceGetCurrentClocksEventReasons": 4,
}


class _Handle(ctypes.Structure):
    """Opaque, like NVML's."""


_HandlePointer = ctypes.POINTER(_Handle)


def handle_of(index: int) -> Any:
    """A new pointer to the handle of a GPU: those of two calls are not the same object."""
    return ctypes.cast(0x1000 * (index + 1), _HandlePointer)


class FakeNvml:
    """NVML with `count` GPUs. A value in `answers`, by GPU and function, that is an error is raised.

    `failing` has errors of functions, for all GPUs. `calls` counts the calls of each function. A call of a
    function in `hanging` sets `hangs`, and returns once its own event is set.
    """

    def __init__(self, count: int = 1, recorded: dict[str, Any] = IDLE) -> None:
        self.count = count
        self.answers: list[dict[str, Any]] = [dict(recorded) for _ in range(count)]
        self.lost: dict[int, int] = {}
        self.failing: dict[str, Exception] = {}
        self.hanging: dict[str, threading.Event] = {}
        self.hangs = threading.Event()
        self.calls: Counter[str] = Counter()
        self.events: queue.Queue[Any] = queue.Queue()
        self.registered: set[int] = set()
        self._opened = 0

    def load(self) -> FakeNvml:
        """Return itself, as an import does."""
        return self

    def tell_xid(self, xid: int, gpu: int = 0, instance: int = NO_INSTANCE) -> None:
        """Have the next wait return this event."""
        self.events.put(event(xid, gpu, instance))

    @property
    def is_open(self) -> bool:
        """Whether it is initialized."""
        return self._opened > 0

    def nvmlInit(self) -> None:
        self._called("nvmlInit")
        self._opened += 1

    def nvmlShutdown(self) -> None:
        self._called("nvmlShutdown")
        self._opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._called("nvmlDeviceGetCount")
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._called("nvmlDeviceGetHandleByIndex")
        if index in self.lost:
            raise NvmlError(self.lost[index])
        if index >= self.count:
            raise NvmlError(INVALID_ARGUMENT)
        return handle_of(index)

    def nvmlEventSetCreate(self) -> Any:
        self._called("nvmlEventSetCreate")
        return "event set"

    def nvmlDeviceRegisterEvents(self, device: Any, types: int, event_set: Any) -> None:
        assert (types, event_set) == (8, "event set")
        self._called("nvmlDeviceRegisterEvents")
        self.registered.add(_index(device))

    def nvmlEventSetWait_v2(self, event_set: Any, timeout_ms: int) -> Any:
        assert event_set == "event set"
        self._called("nvmlEventSetWait_v2")
        try:
            return self.events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            raise NvmlError(TIMEOUT) from None

    def nvmlEventSetFree(self, event_set: Any) -> None:
        self._called("nvmlEventSetFree")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in IDLE:
            return partial(self._answer, name)
        raise AttributeError(name)

    def _answer(self, name: str, device: Any, *args: int) -> Any:
        if name == "nvmlDeviceGetTotalEccErrors":
            assert args == (1, 0)  # uncorrected, volatile
        self._called(name)
        index = _index(device)
        if index in self.lost:
            raise NvmlError(self.lost[index])
        answer = self.answers[index][name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.hanging:
            self.hangs.set()
            self.hanging[name].wait()
        if name in self.failing:
            raise self.failing[name]
        if name != "nvmlInit" and not self._opened:
            raise NvmlError(UNINITIALIZED)


def event(xid: int, gpu: int, instance: int = NO_INSTANCE) -> Any:
    """An XID event, with the members that were recorded."""
    return SimpleNamespace(
        device=handle_of(gpu),
        eventType=8,
        eventData=xid,
        gpuInstanceId=instance,
        computeInstanceId=NO_INSTANCE,
    )


def _index(device: Any) -> int:
    address = ctypes.cast(device, ctypes.c_void_p).value
    assert address is not None
    return address // 0x1000 - 1


class FileDrivenNvml(FakeNvml):
    """Tells the XID that is written in `file`, once it is there."""

    def __init__(self, file: Path) -> None:
        super().__init__(recorded=UNDER_LOAD)
        self._file = file

    def nvmlEventSetWait_v2(self, event_set: Any, timeout_ms: int) -> Any:
        end_s = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < end_s:
            if self._file.exists():
                xid = int(self._file.read_text())
                self._file.unlink()
                return event(xid, 0)
            time.sleep(LOOK_S)
        raise NvmlError(TIMEOUT)


def library() -> FakeNvml:
    """The stand-in of a worker process, driven by the file that `FAKE_XID_FILE` names.

    Without the variable, there is no driver.
    """
    file = os.environ.get("FAKE_XID_FILE")
    if file:
        return FileDrivenNvml(Path(file))
    nvml = FakeNvml()
    nvml.failing["nvmlInit"] = NvmlError(LIBRARY_NOT_FOUND)
    return nvml
