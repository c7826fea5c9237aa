"""Readings of GPUs, with a fake of NVIDIA's library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lib.routes.gpu import Gpu, Gpus


class Nvml:
    """Two GPUs: the second is a slice, which has no utilization; those in `lost` can't be read."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.driver = True
        self.loads = 0

    def load(self) -> Nvml:
        self.loads += 1
        return self

    def nvmlDeviceGetCount(self) -> int:
        if not self.driver:
            raise RuntimeError("Driver Not Loaded")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise RuntimeError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, device: int) -> str | bytes:
        return b"NVIDIA H200" if device == 0 else "NVIDIA H200 MIG 1g.18gb"

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(used=1000 + device, total=2000)

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        if device == 1:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=75, memory=10)


def test_each_gpu_that_can_be_read_is_returned() -> None:
    nvml = Nvml()
    gpus = Gpus(nvml.load)
    assert gpus.read() == [
        Gpu(0, "NVIDIA H200", 0.75, 1000, 2000),
        Gpu(1, "NVIDIA H200 MIG 1g.18gb", None, 1001, 2000),
    ]
    nvml.lost.add(0)
    assert [gpu.index for gpu in gpus.read()] == [1]
    assert nvml.loads == 1


@pytest.mark.parametrize("error", [ImportError("pynvml"), RuntimeError("NVML Shared Library Not Found")])
def test_without_library_or_driver_there_are_no_gpus_and_it_is_not_loaded_again(error: Exception) -> None:
    tries: list[int] = []

    def load() -> Any:
        tries.append(1)
        raise error

    gpus = Gpus(load)
    assert gpus.read() == gpus.read() == []
    assert len(tries) == 1


def test_without_its_driver_no_gpu_is_returned() -> None:
    nvml = Nvml()
    gpus = Gpus(nvml.load)
    assert len(gpus.read()) == 2
    nvml.driver = False
    assert gpus.read() == []
