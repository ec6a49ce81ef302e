"""OpenTelemetry tracing, by setting: a span per request, in the caller's trace, with a child span per phase."""

import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from serving.telemetry.timing import Timings

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)
NS = 10**9

parent: ContextVar[str] = ContextVar("traceparent", default="")
"""W3C traceparent of the current span, for requests to other processes. "" without tracing."""


class RequestTrace(Protocol):
    """The trace of one request in progress."""

    def end(self, name: str, took_s: float, attributes: Mapping[str, str | int], searches: Sequence[Timings] = ()) -> None: ...


class Tracing(Protocol):
    """Starts a trace per request."""

    def begin(self, headers: Mapping[str, str], began_s: float) -> RequestTrace:
        """Starts a request's trace from its `headers`, and sets `parent`. A trace that is never ended is not exported."""
        ...

    def close(self) -> None: ...


class NoTracing:
    """Disabled tracing."""

    def begin(self, *_: object) -> "NoTracing":
        return self

    def end(self, *_: object) -> None:
        return

    def close(self) -> None:
        return


class RequestSpan:
    """A request's open span."""

    def __init__(self, tracer: "Tracer", span: "Span", began_s: float) -> None:
        self.tracer, self.span, self.began_s = tracer, span, began_s

    def end(self, name: str, took_s: float, attributes: Mapping[str, str | int], searches: Sequence[Timings] = ()) -> None:
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(self.span)
        for phase in (p for s in searches for p in s.done):
            part = self.tracer.start_span(phase.name, below, start_time=round(NS * phase.began_s))
            part.end(round(NS * (phase.began_s + phase.took_s)))
        self.span.update_name(name)
        self.span.set_attributes(dict(attributes))
        self.span.end(round(NS * (self.began_s + took_s)))


class OpenTelemetry:
    """Exports spans in the background to an OTLP/HTTP collector such as http://127.0.0.1:4318/v1/traces. Needs the extra `otel`."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = TracerProvider(resource=Resource.create({"service.name": "vitrine-serving"}), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=5)))
        self.tracer = self.provider.get_tracer("vitrine.serving")
        self.wire = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str], began_s: float) -> RequestSpan:
        from opentelemetry.trace import SpanKind, set_span_in_context

        callers = self.wire.extract(dict(headers))
        span = self.tracer.start_span("request", callers, SpanKind.SERVER, start_time=round(NS * began_s))
        carrier: dict[str, str] = {}
        self.wire.inject(carrier, set_span_in_context(span))
        parent.set(carrier.get("traceparent", ""))
        return RequestSpan(self.tracer, span, began_s)

    def close(self) -> None:
        """Flushes pending spans, for a few seconds at most."""
        self.provider.force_flush(3_000)
        self.provider.shutdown()


def make_tracing(endpoint: str) -> Tracing:
    """Tracing to a collector, or none where no endpoint is set. Raises ValueError when the extra is not installed."""
    if not endpoint:
        return NoTracing()
    try:
        return OpenTelemetry(endpoint)
    except ImportError:
        raise ValueError(
            "VITRINE_OTEL_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'vitrine[otel]'"
        ) from None
