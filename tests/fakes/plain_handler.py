"""A handler that overrides nothing, for tests in which no payload class or model server matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lib.data_types import EndpointHandler


@dataclass
class PlainHandler(EndpointHandler[Any]):
    """Its payload is any JSON object; it calls `/x` of the model server."""

    @property
    def endpoint(self) -> str:
        return "/x"

    @classmethod
    def payload_cls(cls) -> type[Any]:
        return dict
