"""The manifests of docs/kubernetes.md: each fits its kind, and they fit each other."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.backend import Backend
from lib.routes.management import public_routes
from lib.runtime.settings import Settings
from tests.docs.blocks import document
from tests.docs.custom_kinds import MODULES, NODE_MODULES, InvalidManifest, check_custom_kind
from tests.docs.test_operating import RecordingEnviron

KUBERNETES_VERSION = "1.34"
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for block in document("kubernetes").blocks
    if block.kind == "manifests"
    for manifest in yaml.safe_load_all(block.text)
]
# A field of each kind, in whose place a misspelt one must be found.
FIELDS = {
    "ResourceClaimTemplate": "spec.spec.devices.requests.0.exactly.deviceClassName",
    "StatefulSet": "spec.template.spec.containers.0.readinessProbe.periodSeconds",
    "Service": "spec.ports.0.targetPort",
    "NetworkPolicy": "spec.ingress.0.from.0.namespaceSelector.matchLabels",
    "PodMonitor": "spec.podMetricsEndpoints.0.interval",
    "ScaledObject": "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown",
}

pytestmark = pytest.mark.one_python


def name_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def by_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS if manifest["kind"] == kind]


def check(manifest: dict[str, Any], folder: Path) -> None:
    """Return if `manifest` fits its kind; raises `InvalidManifest`."""
    if manifest["kind"] in MODULES:
        if not NODE_MODULES.is_dir():
            pytest.skip("tests/docs/manifests/node_modules is missing: .ci/run installs it, from npm")
        check_custom_kind(manifest, folder)
        return
    kubernetes_validate: Any = importlib.import_module("kubernetes_validate")  # it has no annotations
    try:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as e:
        raise InvalidManifest(str(e)) from e


def worker_container() -> dict[str, Any]:
    (pods,) = by_kind("StatefulSet")
    (worker,) = pods["spec"]["template"]["spec"]["containers"]
    return worker


def worker_env() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in worker_container()["env"]}


def misspelt(manifest: dict[str, Any], field: str) -> dict[str, Any]:
    """A copy of `manifest` with an `x` at the end of the name of `field`, a path with dots."""
    changed = copy.deepcopy(manifest)
    parent: Any = changed
    *path, name = field.split(".")
    for key in path:
        parent = parent[int(key) if isinstance(parent, list) else key]
    parent[f"{name}x"] = parent.pop(name)
    return changed


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_fits_its_kind(manifest: dict[str, Any], tmp_path: Path) -> None:
    check(manifest, tmp_path)


@pytest.mark.parametrize("kind", sorted({manifest["kind"] for manifest in MANIFESTS}))
def test_a_misspelt_field_is_found(kind: str, tmp_path: Path) -> None:
    field = FIELDS[kind]
    with pytest.raises(InvalidManifest, match=f"{field.rpartition('.')[2]}x"):
        check(misspelt(by_kind(kind)[0], field), tmp_path)


def test_the_manifests_fit_each_other() -> None:
    (pods,) = by_kind("StatefulSet")
    labels = pods["spec"]["template"]["metadata"]["labels"]
    services = {service["metadata"]["name"]: service["spec"] for service in by_kind("Service")}
    (policy,), (monitor,), (scaled,) = map(by_kind, ("NetworkPolicy", "PodMonitor", "ScaledObject"))
    assert services[pods["spec"]["serviceName"]]["clusterIP"] == "None"
    assert scaled["spec"]["scaleTargetRef"] == {"kind": "StatefulSet", "name": pods["metadata"]["name"]}
    selectors = [
        pods["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
        monitor["spec"]["selector"]["matchLabels"],
        *(service["selector"] for service in services.values()),
    ]
    assert all(selector == labels for selector in selectors)
    ports = {port["name"] for port in pods["spec"]["template"]["spec"]["containers"][0]["ports"]}
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    served = {port["targetPort"] for service in services.values() for port in service["ports"]}
    assert opened == ports == scraped | served


def test_the_worker_starts_with_its_variables() -> None:
    environ = RecordingEnviron(worker_env())
    Settings.from_env(environ)
    assert set(environ) <= environ.read


def test_a_pod_is_given_time_to_drain() -> None:
    (pods,) = by_kind("StatefulSet")
    pod = pods["spec"]["template"]["spec"]
    before_s = worker_container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    stopping_s = before_s + float(worker_env()["DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] > stopping_s


def test_the_probes_are_routes_of_the_public_port() -> None:
    probes = [worker_container()[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")]
    assert {probe["port"] for probe in probes} == {"http"}
    assert {probe["path"] for probe in probes} <= {route.path for route in public_routes(Backend(None))}
