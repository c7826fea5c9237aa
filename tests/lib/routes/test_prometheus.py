"""Names and units of `/metrics`, and the metrics that the manifests of docs/kubernetes.md use."""

from __future__ import annotations

import asyncio
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lib import __version__
from lib.backend import Backend
from lib.gpu.health import STALE_S, GpuHealth
from lib.gpu.nvml import Xid
from lib.routes.prometheus import exposition, process_exposition
from tests.fakes.gpus import health_of_gpus
from tests.manual_clock import ManualClock
from tests.system import with_worker_task

ROOT = Path(__file__).parents[3]
KUBERNETES = (ROOT / "docs" / "kubernetes.md").read_text()
SUFFIXES = ("_total", "_bucket", "_count", "_sum")

# Run in a process of its own: fails if prometheus_client is imported on the event loop's thread.
FIRST_SCRAPE = """
import asyncio, sys, threading
from lib.routes.management import _import_prometheus
from anyio.to_thread import run_sync

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("prometheus_client"):
            assert threading.current_thread() is not threading.main_thread(), name
        return None

sys.meta_path.insert(0, Watch())
assert "prometheus_client" not in sys.modules
asyncio.run(run_sync(_import_prometheus))
assert "prometheus_client" in sys.modules
"""


async def scraped(tmp_path: Path) -> str:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo", 3.0)
        await system.call("/error500", 4.0)
        await system.reported(served=3.0)
        assert system.backend is not None
        return exposition(system.backend, health_of_gpus()).decode()


def samples_of(text: str) -> dict[str, list[Any]]:
    families = list(text_string_to_metric_families(text))
    return {
        s.name: [t for f in families for t in f.samples if t.name == s.name]
        for f in families
        for s in f.samples
    }


async def test_every_metric_has_its_unit_in_its_name_and_a_description(tmp_path: Path) -> None:
    for family in text_string_to_metric_families(await scraped(tmp_path)):
        assert family.name.startswith("pyworker_")
        assert family.documentation
        assert not re.search(r"_(ms|mib|gib|percent|minutes)$", family.name)
        assert {s.name.endswith("_total") for s in family.samples} == {family.type == "counter"}


async def test_metrics_of_times_reports_and_gpus(tmp_path: Path) -> None:
    samples = samples_of(await scraped(tmp_path))
    for name in ("queue", "first_byte", "duration"):
        counts = samples[f"pyworker_request_{name}_seconds_count"]
        assert {s.labels["route"]: s.value for s in counts} == {"POST /echo": 1.0, "POST /error500": 1.0}
        buckets = [
            b for b in samples[f"pyworker_request_{name}_seconds_bucket"] if b.labels["route"] == "POST /echo"
        ]
        assert buckets[-1].labels == {"le": "+Inf", "route": "POST /echo"}
        assert [b.value for b in buckets] == sorted(b.value for b in buckets)
    delivered = {
        s.labels["path"]: s.value
        for s in samples["pyworker_reports_total"]
        if s.labels["result"] == "delivered"
    }
    assert delivered["/worker_status/"] >= 1
    assert [(s.labels["gpu"], s.value) for s in samples["pyworker_gpu_utilization_ratio"]] == [("0", 0.75)]
    assert [s.value for s in samples["pyworker_gpu_memory_used_bytes"]] == [1000.0, 1.0]


async def test_the_build(tmp_path: Path) -> None:
    (build,) = samples_of(await scraped(tmp_path))["pyworker_build_info"]
    assert (build.labels, build.value) == (
        {"version": __version__, "python": platform.python_version()},
        1.0,
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_the_process_has_the_names_of_prometheus_client_libraries() -> None:
    samples = samples_of(process_exposition().decode())
    assert set(samples) == {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    }
    assert all(sample.value > 0 for (sample,) in samples.values())


async def test_a_scrape_has_the_worker_and_its_process(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path) as system,
        system.http.get(system.loopback_url + "/metrics") as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/plain")
        names = set(samples_of(await answer.text()))
    assert {"pyworker_build_info", "process_cpu_seconds_total"} <= names


def gpu_values(health: GpuHealth, backend: Backend) -> dict[str, dict[tuple[str, ...], float]]:
    """The metrics of GPUs without their prefix, by their labels' values."""
    samples = samples_of(exposition(backend, health).decode())
    return {
        name.removeprefix("pyworker_gpu_"): {tuple(s.labels.values()): s.value for s in found}
        for name, found in samples.items()
        if name.startswith("pyworker_gpu_")
    }


async def test_metrics_of_faults_of_gpus(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.backend is not None
        clock = ManualClock()
        health = health_of_gpus(clock)
        first, second = ("0", "NVIDIA H200"), ("1", 'a "slice"')
        values = gpu_values(health, system.backend)
        assert values["failed"] == {first: 0.0, second: 1.0}
        assert values["slowdown"] == {first: 1.0}
        assert values["remap_pending"] == {first: 1.0}
        assert values["uncorrectable_ecc_errors_total"] == {first: 2.0}
        assert values["xid_events_total"] == {(*first, "31"): 2.0, (*second, "79"): 1.0}

        health.note_xid(Xid(79, None))
        clock.jump(STALE_S + 1)
        stale = gpu_values(health, system.backend)
        assert set(stale) == {"failed", "uncorrectable_ecc_errors_total", "xid_events_total"}
        assert stale["failed"] == {first: 0.0, second: 1.0, ("", ""): 1.0}
        assert stale["xid_events_total"]["", "", "79"] == 1.0
        assert not gpu_values(GpuHealth(clock, print), system.backend)


async def test_the_manifests_are_yaml_and_use_existing_metrics(tmp_path: Path) -> None:
    names = set(samples_of(await scraped(tmp_path)))
    families = names | {n.removesuffix(s) for n in names for s in SUFFIXES if n.endswith(s)}
    blocks = re.findall(r"<!-- test: manifests -->\n```yaml\n(.*?)```", KUBERNETES, re.DOTALL)
    manifests: list[Any] = [m for block in blocks for m in yaml.safe_load_all(block)]
    kinds = {m["kind"]: m for m in manifests}
    assert {"StatefulSet", "PodMonitor", "ScaledObject"} <= set(kinds)
    queries = [t["metadata"]["query"] for t in kinds["ScaledObject"]["spec"]["triggers"]]
    asked = [re.findall(r"pyworker_\w+", query) for query in queries]
    assert len(asked) == 2
    assert all(asked)
    assert {name for names in asked for name in names} <= names
    assert set(re.findall(r"pyworker_\w+", KUBERNETES)) <= families


async def test_the_first_scrape_does_not_block_the_event_loop() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FIRST_SCRAPE, cwd=ROOT)
    assert await process.wait() == 0
