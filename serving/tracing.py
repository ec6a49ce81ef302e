"""OpenTelemetry traces, by setting: a span for each request, joined to the caller's trace, and one for each phase below it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.phases import Phases

log = logging.getLogger(__name__)
NS = 10**9


class Tracing(Protocol):
    """Where finished requests are told."""

    def record(
        self,
        name: str,
        headers: Mapping[str, str],
        began_s: float,
        took_s: float,
        attributes: Mapping[str, str | int],
        searches: Sequence[Phases],
    ) -> None: ...

    def close(self) -> None: ...


class NoTracing:
    """Tells nobody."""

    def record(self, *_: object) -> None:
        return

    def close(self) -> None:
        return


class OpenTelemetry:
    """Sends spans in the background to an OTLP/HTTP collector such as http://127.0.0.1:4318/v1/traces. Needs the extra `otel`."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.provider = TracerProvider(resource=Resource.create({"service.name": "vitrine-serving"}), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=5)))
        self.tracer = self.provider.get_tracer("vitrine.serving")

    def record(
        self,
        name: str,
        headers: Mapping[str, str],
        began_s: float,
        took_s: float,
        attributes: Mapping[str, str | int],
        searches: Sequence[Phases],
    ) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        span = self.tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes), start_time=round(NS * began_s))
        below = set_span_in_context(span)
        for phase in (p for s in searches for p in s.done):
            part = self.tracer.start_span(phase.name, below, start_time=round(NS * phase.began_s))
            part.end(round(NS * (phase.began_s + phase.took_s)))
        span.end(round(NS * (began_s + took_s)))

    def close(self) -> None:
        """Sends what is waiting, for a few seconds at most."""
        self.provider.force_flush(3_000)
        self.provider.shutdown()


def tracing_to(endpoint: str) -> Tracing:
    """Tracing to a collector, or none where no endpoint is set. Raises ValueError when the extra is not installed."""
    if not endpoint:
        return NoTracing()
    try:
        return OpenTelemetry(endpoint)
    except ImportError:
        raise ValueError(
            "VITRINE_OTEL_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'vitrine[otel]'"
        ) from None
