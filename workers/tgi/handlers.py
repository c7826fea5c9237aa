"""The two routes of the TGI worker. Answers, streams and errors are passed on as TGI gives them."""

from __future__ import annotations

from dataclasses import dataclass

from lib.data_types import EndpointHandler
from workers.tgi.data_types import InputData


@dataclass(kw_only=True)
class GenerateHandler(EndpointHandler[InputData]):
    """The whole answer at once."""

    health: str | None = None

    @property
    def endpoint(self) -> str:
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> str | None:
        return self.health

    @classmethod
    def payload_cls(cls) -> type[InputData]:
        return InputData


@dataclass(kw_only=True)
class GenerateStreamHandler(GenerateHandler):
    """The same, one token an event."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"
