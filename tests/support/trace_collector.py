"""An OTLP/HTTP collector that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Received = list[tuple[str, str, str]]
"""Service, name of the span, trace id."""


@contextmanager
def trace_collector() -> Iterator[tuple[str, Received]]:
    """Its address, and the spans that have arrived."""
    received: Received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for group in sent.resource_spans:
                service = next(one.value.string_value for one in group.resource.attributes if one.key == "service.name")
                spans = [span for scope in group.scope_spans for span in scope.spans]
                received.extend((service, span.name, span.trace_id.hex()) for span in spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
