"""A worker without an engine has no task, no report and no key."""

from __future__ import annotations

import pytest

from lib.engine.engine import Engine
from lib.engine.none import NoEngine


def use_key(pem: str) -> None: ...


async def test_there_is_nothing_to_run_or_to_deliver() -> None:
    engine: Engine = NoEngine("http://127.0.0.1:3000")
    assert engine.public_url == "http://127.0.0.1:3000"
    assert dict(engine.tasks(None)) == {}
    engine.state_changed("the model failed")
    await engine.refetch_key()
    assert await engine.finish(0.0) is True
    assert (list(engine.deliveries), dict(engine.attempts)) == ([], {})


def test_an_authenticator_that_needs_a_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="no engine provides a public key"):
        NoEngine("http://127.0.0.1:3000").tasks(use_key)
