"""The real SDK, and deployments that a test makes with it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lib.deployment.sdk import Sdk

# Typed as Any: the package has no types that a checker could use.
_serve: Any = pytest.importorskip("vastai.serverless.remote.serve", reason="`vastai` can't be installed here")
_serialization: Any = importlib.import_module("vastai.serverless.remote.serialization")

# Not by `load_sdk`, which tells the whole process to serve.
SDK = Sdk(
    _serve.Deployment,
    _serialization.serialize,
    _serialization.serialize_ok,
    _serialization.serialize_err,
    _serialization.deserialize,
)


def deployment_with(function: Any, **options: Any) -> Any:
    """A deployment that has `function`, registered with `options`."""
    deployment: Any = SDK.deployment_class()
    deployment.remote(function, **options)
    return deployment


def as_client(answer: Any) -> Any:
    """Return the value in an answer, or raise the exception in it, as the SDK's client does."""
    return _serialization.deserialize_unwrap_error(answer, __name__, globals())
