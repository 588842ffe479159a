"""OpenTelemetry traces across gateway, policy and critic; without an endpoint, the caller's trace is only passed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from irlops_serving.tracing import exporting_processor, provider_with

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

_passed_on: ContextVar[dict[str, str] | None] = ContextVar("irlops_trace_headers", default=None)


class Tracer:
    """Spans when tracing is on; otherwise as good as nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("irlops.gateway") if provider else None

    def enter_request(self, headers: dict[str, str]) -> None:
        """Take over what goes on to policy and critic (``traceparent``, ``tracestate``, ``x-request-id``)."""
        _passed_on.set(headers)

    def span(
        self, name: str, attributes: dict[str, Any] | None = None
    ) -> AbstractContextManager[dict[str, str] | None]:
        """A span around a piece of work; yields the headers that carry the trace to the server called in it."""
        if self._tracer is None:
            return nullcontext(_passed_on.get())
        return self._span(self._tracer, name, attributes)

    @contextmanager
    def _span(
        self, tracer: trace.Tracer, name: str, attributes: dict[str, Any] | None
    ) -> Iterator[dict[str, str] | None]:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = propagator.extract(_passed_on.get() or {})
        kind = trace.SpanKind.SERVER if name.startswith("gateway.") else trace.SpanKind.CLIENT
        with tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes):
            carrier = dict(_passed_on.get() or {})
            propagator.inject(carrier)
            yield carrier

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Add attributes to the current span."""
        if self._tracer is not None:
            from opentelemetry import trace

            trace.get_current_span().set_attributes(attributes)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def make_tracer(otlp_endpoint: str | None) -> Tracer:
    """A tracer that sends to ``{otlp_endpoint}/v1/traces`` or OpenTelemetry's own endpoint, or one that does nothing."""
    processor = exporting_processor(otlp_endpoint)
    return Tracer() if processor is None else traced_with(processor)


def traced_with(processor: SpanProcessor) -> Tracer:
    """A tracer whose spans go to ``processor``."""
    return Tracer(provider_with(processor, "irlops-gateway"))
