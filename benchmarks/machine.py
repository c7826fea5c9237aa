"""The description of a run's machine, with the versions of everything that is measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import psutil

PACKAGES = ("aiohttp", "uvloop", "cryptography", "pycryptodome", "vastai")
_CPUINFO = Path("/proc/cpuinfo")


def describe_machine() -> Mapping[str, str]:
    """Names and values for the report. Blocks while `nginx -v` runs."""
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {psutil.cpu_count() or '?'} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load average before the run": load,
        "Python": platform.python_version(),
        "pyworker": _version("pyworker"),
        **{name: _version(name) for name in PACKAGES},
        "nginx": _nginx_version(),
    }


def _processor() -> str:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _nginx_version() -> str:
    if not shutil.which("nginx"):
        return "not installed"
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    return said.partition("nginx/")[2].strip() or "unknown"
