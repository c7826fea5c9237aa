"""ops/grafana.json: it fits Grafana's types, and each metric and label in it is one of `/metrics`."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.custom_kinds import NODE_MODULES, InvalidManifest, check_dashboard
from tests.ops.queries import DASHBOARD, OWN_LABELS, labels_of_metrics, metric_names, panels
from tests.system import with_worker_task

pytestmark = pytest.mark.one_python

needs_types = pytest.mark.skipif(
    not (NODE_MODULES / "@grafana").is_dir(),
    reason="tests/docs/manifests/node_modules is missing: .ci/run installs it, from npm",
)


@needs_types
def test_it_fits_grafanas_types(tmp_path: Path) -> None:
    check_dashboard(DASHBOARD, tmp_path)


@needs_types
@pytest.mark.parametrize("name", ["gridPos", "fieldConfig", "targets"])
def test_a_misspelt_field_is_found(name: str, tmp_path: Path) -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    panel = next(panel for panel in dashboard["panels"] if name in panel)
    panel[f"{name}x"] = panel.pop(name)
    with pytest.raises(InvalidManifest, match=f"{name}x"):
        check_dashboard(dashboard, tmp_path)


async def test_its_metrics_and_labels_are_those_of_a_worker(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo")
        await system.reported(served=1.0)
        assert system.backend is not None
        known = labels_of_metrics(system.backend)
    targets = [target for panel in panels() for target in panel["targets"]]
    variables = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    for query in [*(target["expr"] for target in targets), *variables]:
        names = metric_names(query)
        assert names
        assert names <= set(known)
        labels = set[str]().union(*(known[name] for name in names))
        grouped = [name for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(", ")]
        matched = re.findall(r"(\w+)=~?\"|(\w+)!=\"", query)
        assert {*grouped, *itertools.chain(*matched)} - {""} <= labels, query
    for target in targets:
        names = metric_names(target["expr"])
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        groups = re.findall(r"by \(([^)]*)\)", target["expr"])
        left = set(groups[-1].split(", ")) if groups else set[str]().union(*(known[n] for n in names))
        assert shown <= left, target


def test_every_query_is_of_the_chosen_workers() -> None:
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(r"(?:pyworker|process)_\w+(\{[^}]*\})?", target["expr"])
            assert all('job=~"$job", instance=~"$instance"' in s for s in selectors), target["expr"]


def test_its_panels_lie_beside_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position: dict[str, Any] = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        own = set(
            itertools.product(
                range(position["x"], position["x"] + position["w"]),
                range(position["y"], position["y"] + position["h"]),
            )
        )
        assert not own & cells, panel["title"]
        cells |= own


def test_it_shows_what_an_operator_asks_for() -> None:
    asked = metric_names(str(DASHBOARD))
    assert {v["name"] for v in DASHBOARD["templating"]["list"]} >= OWN_LABELS
    for subject in ("state", "http_requests", "request_duration", "request_queue", "gpu_failed", "reports"):
        assert any(subject in name for name in asked), subject
