"""The memory that a process may use, by the files of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lib.runtime.memory_limit import memory_limit_bytes

MACHINE_BYTES = psutil.virtual_memory().total
MIB = 1024 * 1024
V1 = "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, MACHINE_BYTES),
        ("0::/\n", {}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE_BYTES),
        ("0::/\n", {"memory.max": f"{64 * MIB}\n"}, 64 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": f"{32 * MIB}"}, 32 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{16 * MIB}", "a/memory.max": f"{32 * MIB}"}, 16 * MIB),
        ("0::/../../a\n", {"memory.max": f"{64 * MIB}"}, 64 * MIB),
        ("0::/a\n", {"memory.max": f"{2**62}"}, MACHINE_BYTES),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": f"{16 * MIB}"}, 16 * MIB),
        (V1, {"memory/memory.limit_in_bytes": f"{48 * MIB}\n"}, 48 * MIB),  # the group's own is not mounted
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE_BYTES),
        (V1 + "0::/\n", {"memory.max": f"{64 * MIB}"}, 64 * MIB),
        ("no such line\n", {"memory.max": "nonsense"}, MACHINE_BYTES),
    ],
)
def test_the_lowest_limit_counts(tmp_path: Path, groups: str, limits: dict[str, str], expected: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for path, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit_bytes(tmp_path) == expected


def test_without_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) == MACHINE_BYTES


def test_it_is_that_of_this_process() -> None:
    assert 0 < memory_limit_bytes() <= MACHINE_BYTES
