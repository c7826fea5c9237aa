"""The classes of aiohttp's server that author code has replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiohttp import web

from lib.life.own_aiohttp import replaced_classes


def test_aiohttps_own_classes_are_no_replacement() -> None:
    assert list(replaced_classes()) == []
    without: Any = SimpleNamespace(AppRunner=web.AppRunner, TCPSite=object(), Application=web.Application)
    (line,) = replaced_classes(without)
    assert line.startswith("web.TCPSite was replaced by ")
