"""Readings of this machine's GPUs by NVML, and their XID events (extra `gpu`).

Owns the library and its handles. All of it may block, for ever if the driver hangs: lib/gpu/watch.py uses it
in a thread of its own. What the readings mean is decided in lib/gpu/health.py.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lib.errors import result_or_error

# Return values of NVML (nvml.h); pynvml has them as `value` of its errors.
_NO_PERMISSION = 4
_DRIVER_NOT_LOADED = 9
_TIMEOUT = 10
_LIBRARY_NOT_FOUND = 12
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_XID_EVENT = 0x8
_UNCORRECTED_ERRORS = 1
# Counted since the driver was loaded, or since the GPU's last reset.
_VOLATILE_COUNTER = 0
# The GPU instance of an event that is none of a slice (MIG).
_NO_INSTANCE = 0xFFFF_FFFF


class Trouble(Enum):
    """A reason why a GPU can't be used. `UNUSABLE`: NVML counts it, and can't open it."""

    LOST = _GPU_IS_LOST
    RESET_REQUIRED = _RESET_REQUIRED
    UNUSABLE = "unusable"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A reading of one GPU; a field is None if the GPU doesn't report it, or is in `trouble`.

    `utilization` is from 0 to 1. `clock_reasons` is NVML's bit mask of the reasons for the present clocks.
    `uncorrectable_ecc_errors` is the volatile counter. `remap_pending`: a reset would replace memory that has
    failed; `remap_failed`: it could not be replaced. `tells_xids`: XID events of this GPU are received.
    """

    index: int
    name: str
    trouble: Trouble | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    clock_reasons: int | None = None
    uncorrectable_ecc_errors: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    tells_xids: bool = False


@dataclass(frozen=True)
class Readings:
    """The GPUs that were there at the start, `missing` of which NVML no longer counts.

    `is_any_lost`: NVML said, without naming it, that a GPU is lost.
    """

    gpus: tuple[Gpu, ...]
    missing: int = 0
    is_any_lost: bool = False


@dataclass(frozen=True)
class Xid:
    """An XID event. `gpu` and `instance` (a slice of the GPU, MIG) are None if the event names none."""

    number: int
    gpu: int | None
    instance: int | None = None


class NvmlUnavailable(Exception):
    """NVML can't be used. `is_absent`: there is no library, no driver or no GPU, so that nothing is wrong."""

    def __init__(self, reason: object, is_absent: bool) -> None:
        super().__init__(str(reason))
        self.is_absent = is_absent


def is_installed() -> bool:
    """Whether the extra `gpu` is installed. It is not imported by this."""
    return importlib.util.find_spec("pynvml") is not None


def import_nvml() -> Any:
    """Import and return NVIDIA's library, not yet initialized."""
    return importlib.import_module("pynvml")


class _Device:
    """One GPU of the machine. A GPU in trouble is not asked again: a call may hang in the driver."""

    def __init__(self, library: Any, index: int) -> None:
        self.index = index
        self.name = "unknown"
        self.handle: Any = None
        self.trouble: Trouble | None = None
        self.tells_xids = False
        self._library = library
        handle = self._outcome("nvmlDeviceGetHandleByIndex", index)
        if isinstance(handle, Exception):
            # A container may be denied a GPU that is well.
            if self.trouble is None and _value(handle) not in (None, _NO_PERMISSION):
                self.trouble = Trouble.UNUSABLE
            return
        self.handle = handle
        name = self.ask("nvmlDeviceGetName")
        self.name = name.decode(errors="replace") if isinstance(name, bytes) else str(name or self.name)

    def ask(self, function: str, *args: Any) -> Any:
        """Return what `function` says of this GPU; None if it isn't supported, or fails."""
        if self.handle is None or self.trouble is not None:
            return None
        outcome = self._outcome(function, self.handle, *args)
        return None if isinstance(outcome, Exception) else outcome

    def receive_xids(self, event_set: Any) -> None:
        """Have the XID events of this GPU delivered to `event_set`, if it supports that."""
        if self.handle is not None:
            registered = self._outcome("nvmlDeviceRegisterEvents", self.handle, _XID_EVENT, event_set)
            self.tells_xids = not isinstance(registered, Exception)

    @property
    def address(self) -> int | None:
        """The address that the handle points to: an event has another pointer to the same."""
        return _address(self.handle)

    def _outcome(self, function: str, *args: Any) -> Any:
        # An older library lacks functions, an older driver has them fail.
        outcome = result_or_error(lambda: getattr(self._library, function)(*args))
        if isinstance(outcome, Exception) and _value(outcome) in (_GPU_IS_LOST, _RESET_REQUIRED):
            self.trouble = Trouble(_value(outcome))
        return outcome


def open_nvml(load: Callable[[], Any]) -> Nvml:
    """Initialize the library that `load` returns. Raises `NvmlUnavailable`."""
    library: Any = result_or_error(load)
    if isinstance(library, Exception):
        raise NvmlUnavailable(library, is_absent=isinstance(library, ImportError)) from library
    failure: Any = result_or_error(lambda: library.nvmlInit())
    if isinstance(failure, Exception):
        is_absent = _value(failure) in (_LIBRARY_NOT_FOUND, _DRIVER_NOT_LOADED)
        raise NvmlUnavailable(failure, is_absent) from failure
    count: Any = result_or_error(lambda: library.nvmlDeviceGetCount())
    if isinstance(count, int) and count > 0:
        return Nvml(library, count)
    result_or_error(lambda: library.nvmlShutdown())
    if isinstance(count, Exception):
        raise NvmlUnavailable(count, is_absent=False) from count
    raise NvmlUnavailable("there is no GPU", is_absent=True)


class Nvml:
    """An open NVML with `count` GPUs, for one thread; `open_nvml` makes it."""

    def __init__(self, library: Any, count: int) -> None:
        self._library = library
        self._devices = [_Device(library, index) for index in range(count)]
        self._is_any_lost = False
        self._event_set = self._new_event_set()

    def read(self) -> Readings:
        """Read every GPU."""
        count: Any = result_or_error(lambda: self._library.nvmlDeviceGetCount())
        missing = 0 if isinstance(count, Exception) else max(0, len(self._devices) - count)
        return Readings(tuple(_read(device) for device in self._devices), missing, self._is_any_lost)

    def next_xid(self, limit_s: float, stop: threading.Event) -> Xid | None:
        """Wait for the next XID event; return None without one in `limit_s` seconds.

        Where events can't be waited for, waits for `stop` instead.
        """
        if self._event_set is None:
            stop.wait(limit_s)
            return None
        event: Any = result_or_error(
            lambda: self._library.nvmlEventSetWait_v2(self._event_set, round(limit_s * 1000))
        )
        if not isinstance(event, Exception):
            instance = int(event.gpuInstanceId)
            return Xid(
                int(event.eventData),
                self._index_of(event.device),
                None if instance == _NO_INSTANCE else instance,
            )
        if _value(event) != _TIMEOUT:
            self._is_any_lost |= _value(event) == _GPU_IS_LOST
            stop.wait(limit_s)  # the call has failed at once, and may do so each time
        return None

    def close(self) -> None:
        """Free the library's resources."""
        if self._event_set is not None:
            result_or_error(lambda: self._library.nvmlEventSetFree(self._event_set))
        result_or_error(lambda: self._library.nvmlShutdown())

    def _new_event_set(self) -> Any:
        """An event set that gets the XID events of every GPU that tells them; None if none does."""
        event_set: Any = result_or_error(lambda: self._library.nvmlEventSetCreate())
        if isinstance(event_set, Exception):
            return None
        for device in self._devices:
            device.receive_xids(event_set)
        if any(device.tells_xids for device in self._devices):
            return event_set
        result_or_error(lambda: self._library.nvmlEventSetFree(event_set))
        return None

    def _index_of(self, handle: Any) -> int | None:
        # NVML's own function for this fails for a GPU that is lost.
        address = _address(handle)
        found = [d.index for d in self._devices if d.address == address]
        return found[0] if address is not None and found else None


def _read(device: _Device) -> Gpu:
    memory = device.ask("nvmlDeviceGetMemoryInfo")
    # None for a slice of a GPU (MIG), which has no utilization of its own.
    rates = device.ask("nvmlDeviceGetUtilizationRates")
    reasons = device.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # the name in older drivers
        reasons = device.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    errors = device.ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED_ERRORS, _VOLATILE_COUNTER)
    # Newer GPUs remap rows of memory, those before Ampere retire pages: each supports one of the two.
    rows = device.ask("nvmlDeviceGetRemappedRows")
    pages = device.ask("nvmlDeviceGetRetiredPagesPendingStatus")
    pending = rows[2] if rows is not None else pages
    return Gpu(
        index=device.index,
        name=device.name,
        trouble=device.trouble,
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        clock_reasons=reasons,
        uncorrectable_ecc_errors=errors,
        remap_pending=None if pending is None else bool(pending),
        remap_failed=None if rows is None else bool(rows[3]),
        tells_xids=device.tells_xids,
    )


def _value(error: Exception) -> object:
    """NVML's return value, if `error` is one of NVML's."""
    return getattr(error, "value", None)


def _address(handle: Any) -> int | None:
    return None if handle is None else ctypes.cast(handle, ctypes.c_void_p).value
