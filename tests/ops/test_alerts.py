"""ops/alerts.yaml: each alert fires when it should and only then, by Prometheus's own tool."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import codes, document, table
from tests.ops.queries import ALERTS, OPS, labels_of_metrics, metric_names
from tests.system import ROOT, with_worker_task

pytestmark = pytest.mark.one_python

DOC = document("operating")
CASES = Path(__file__).with_name("alerts_test.yaml")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing: it is in Debian's package prometheus",
)


def promtool(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@needs_promtool
def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    for kind, name in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        status, output = promtool("check", kind, OPS / name)
        assert status == 0, output


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    status, output = promtool("test", "rules", CASES)
    assert status == 0, output


@needs_promtool
@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_a_changed_rule_fails_the_cases(alert: str, tmp_path: Path) -> None:
    """An alert that never fires, and one that always does, are both found."""
    for expression in ("vector(1) > 2", "vector(1)"):
        rules = yaml.safe_load((OPS / "alerts.yaml").read_text())
        (rule,) = [rule for rule in rules["groups"][0]["rules"] if rule["alert"] == alert]
        rule["expr"] = expression
        (tmp_path / "alerts.yaml").write_text(json.dumps(rules))
        cases = CASES.read_text().replace("../../ops/alerts.yaml", "alerts.yaml")
        (tmp_path / CASES.name).write_text(cases)
        status, output = promtool("test", "rules", tmp_path / CASES.name)
        assert status != 0
        assert alert in output


def test_each_alert_has_cases_in_which_it_fires_and_does_not() -> None:
    cases: Counter[tuple[str, bool]] = Counter()
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        cases.update((case["alertname"], bool(case.get("exp_alerts"))) for case in group["alert_rule_test"])
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    assert set(cases) == {(name, fires) for name in names for fires in (True, False)}


async def test_their_metrics_are_those_of_a_worker(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo")
        await system.reported(served=1.0)
        assert system.backend is not None
        known = labels_of_metrics(system.backend)
    tested: list[dict[str, Any]] = yaml.safe_load(CASES.read_text())["tests"]
    series = [s["series"] for group in tested for s in group["input_series"]]
    for text in [*(alert["expr"] for alert in ALERTS), *(s for s in series if not s.startswith("up{"))]:
        names = metric_names(text)
        assert names <= set(known), text
        assert names or text == 'up{job="pyworker"} == 0'


def test_the_documentation_has_each() -> None:
    documented = [codes(row[0])[0] for row in table(DOC.section("### Dashboard and alerts"))]
    assert documented == [alert["alert"] for alert in ALERTS]


def test_each_says_what_to_look_at() -> None:
    for alert in ALERTS:
        assert alert["alert"].startswith("PyWorker")
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert "{{ $labels.instance }}" in alert["annotations"]["summary"]


def test_the_scrape_configuration_names_the_job_of_the_alerts_and_the_loopback_port() -> None:
    config = yaml.safe_load((OPS / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert f'job="{job["job_name"]}"' in (OPS / "alerts.yaml").read_text()
    assert job["static_configs"] == [{"targets": ["127.0.0.1:3001"]}]
    assert [(ROOT / "ops" / name).is_file() for name in config["rule_files"]] == [True]
