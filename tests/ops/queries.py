"""The files of ops/ that query metrics, and what they query."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from lib.backend import Backend
from lib.routes.prometheus import exposition, process_exposition
from tests.fakes.gpus import health_of_gpus
from tests.system import ROOT

OPS = ROOT / "ops"
DASHBOARD: dict[str, Any] = json.loads((OPS / "grafana.json").read_text())
ALERTS: list[dict[str, Any]] = yaml.safe_load((OPS / "alerts.yaml").read_text())["groups"][0]["rules"]
# Labels that Prometheus adds to each series.
OWN_LABELS = {"job", "instance"}

_NAMES = re.compile(r"\b(?:pyworker|process)_\w+")


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, without the headings of its rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries() -> Iterator[str]:
    """The queries of the dashboard, with values for Grafana's variables."""
    for panel in panels():
        for target in panel["targets"]:
            query = re.sub(r"\$(job|instance|route)\b", ".*", target["expr"])
            yield query.replace("$__rate_interval", "1m")


def queries() -> list[str]:
    """The queries of the dashboard and of the alerts."""
    return [*dashboard_queries(), *(alert["expr"] for alert in ALERTS)]


def metric_names(text: str) -> set[str]:
    """The names of metrics in `text`."""
    return set(_NAMES.findall(text))


def labels_of_metrics(backend: Backend) -> dict[str, set[str]]:
    """The labels of each series in `/metrics` by its name, with those of GPUs."""
    text = (exposition(backend, health_of_gpus()) + process_exposition()).decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels, OWN_LABELS)
    return labels
