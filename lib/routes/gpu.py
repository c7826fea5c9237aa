"""Utilization and memory of the machine's GPUs, read by NVIDIA's library (extra `gpu`).

Owns the reading. Everything here blocks: call it in a thread. The metrics made of it are in prometheus.py.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lib.errors import result_or_error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU. `utilization` is from 0 to 1, or None if the device doesn't report it."""

    index: int
    name: str
    utilization: float | None
    memory_used_bytes: int
    memory_total_bytes: int


class Gpus:
    """Reads the GPUs of this machine. `load` returns the library; it is called once, at the first reading."""

    def __init__(self, load: Callable[[], Any] | None = None) -> None:
        self._load = load or _load
        self._nvml: Any = None
        self._tried = False
        self._lock = threading.Lock()

    def read(self) -> list[Gpu]:
        """Return each GPU that can be read now; none without the library, a driver or a GPU."""
        with self._lock:
            if not self._tried:
                self._tried = True
                loaded = result_or_error(self._load)
                self._nvml = None if isinstance(loaded, Exception) else loaded
                log.debug("GPU metrics: %s", loaded)
            if self._nvml is None:
                return []
            count = result_or_error(self._nvml.nvmlDeviceGetCount)
            if isinstance(count, Exception):
                return []
            read = [result_or_error(lambda index=index: self._one(index)) for index in range(count)]
            return [gpu for gpu in read if isinstance(gpu, Gpu)]

    def _one(self, index: int) -> Gpu:
        nvml = self._nvml
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(device)
        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        # An error for a slice of a GPU (MIG), which has no utilization of its own.
        rates = result_or_error(lambda: nvml.nvmlDeviceGetUtilizationRates(device))
        return Gpu(
            index,
            name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            None if isinstance(rates, Exception) else rates.gpu / 100,
            int(memory.used),
            int(memory.total),
        )


def _load() -> Any:
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    return nvml
