"""OpenTelemetry for gateway, policy and critic: where spans go, and one span for each request that a server answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own variable: an OTLP/HTTP collector, such as http://otel-collector.monitoring:4318."""
_TRACES_ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"

Facts = dict[str, Any]
"""Attributes that become known while a request is answered."""


def traces_url(environment: Mapping[str, str]) -> str | None:
    """Where OpenTelemetry's variables send spans; None when they say nothing."""
    if url := environment.get(_TRACES_ENDPOINT_VARIABLE):
        return url
    base = environment.get(ENDPOINT_VARIABLE)
    return f"{base.rstrip('/')}/v1/traces" if base else None


def exporting_processor(endpoint: str | None = None) -> SpanProcessor | None:
    """Sends spans to ``{endpoint}/v1/traces``, else where OpenTelemetry's variables say; None when nothing does."""
    if endpoint is None and traces_url(os.environ) is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint and f"{endpoint.rstrip('/')}/v1/traces"))


def provider_with(processor: SpanProcessor, service_name: str) -> TracerProvider:
    """Makes spans of ``service_name`` and hands them to ``processor``."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(processor)
    return provider


class ServerTracer:
    """One server span for each request, in its caller's trace; without a provider as good as nothing.

    Example: ``with tracer.request("score critic", headers, {...}) as facts: facts["gen_ai.usage.input_tokens"] = 7``.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("irlops.server") if provider else None

    def request(self, name: str, headers: Mapping[str, str], attributes: Facts) -> AbstractContextManager[Facts]:
        """A span around the answer to one request; what is put into the yielded dictionary becomes attributes."""
        return nullcontext({}) if self._tracer is None else _server_span(self._tracer, name, headers, attributes)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


@contextmanager
def _server_span(tracer: trace.Tracer, name: str, headers: Mapping[str, str], attributes: Facts) -> Iterator[Facts]:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({key.lower(): value for key, value in headers.items()}, Context())
    # Never made the current one: an answer that streams may end in another task than it began in.
    span = tracer.start_span(name, context=parent, kind=trace.SpanKind.SERVER, attributes=attributes)
    facts: Facts = {}
    try:
        yield facts
    except Exception as error:
        span.set_status(trace.StatusCode.ERROR, str(error))
        span.set_attribute("error.type", type(error).__name__)
        raise
    except BaseException:  # the caller has left: the task is cancelled, or its generator closed
        span.set_attribute("error.type", "cancelled")
        raise
    finally:
        span.set_attributes(facts)
        span.end()


def make_server_tracer(service_name: str) -> ServerTracer:
    """A tracer that sends where OpenTelemetry's variables say, or one that does nothing."""
    processor = exporting_processor()
    return ServerTracer(processor and provider_with(processor, service_name))
