"""A custom observer: each request as an OpenTelemetry span, with an event for each step."""

from __future__ import annotations

from opentelemetry.trace import Span, Status, StatusCode, Tracer

from lib.backend import Exchange, Observer


class Tracing(Observer):
    """Makes spans with `tracer`, with the attributes of OpenTelemetry's semantic conventions for HTTP."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._spans: dict[str, Span] = {}

    def admitted(self, exchange: Exchange) -> None:
        request = exchange.request
        attributes = {"http.request.method": request.method, "http.route": request.path}
        self._spans[exchange.id] = self._tracer.start_span(
            f"{request.method} {request.path}", attributes=attributes
        )

    def accepted(self, exchange: Exchange) -> None:
        self._spans[exchange.id].add_event("accepted", {"workload": exchange.workload})

    def started(self, exchange: Exchange) -> None:
        self._spans[exchange.id].add_event("started")

    def first_byte(self, exchange: Exchange) -> None:
        self._spans[exchange.id].add_event("first byte")

    def ended(self, exchange: Exchange) -> None:
        span = self._spans.pop(exchange.id, None)
        if span is None:  # it was never admitted
            return
        span.set_attribute("http.response.status_code", exchange.status)
        if exchange.outcome is not None and not exchange.outcome.success:
            span.set_status(Status(StatusCode.ERROR, exchange.outcome.status))
        span.end()
