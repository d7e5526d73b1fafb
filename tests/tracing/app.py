"""A WSGI app with the OpenTelemetry SDK as its documentation sets it up: the default sampler, which follows the caller's decision.

GET /spans responds with the spans recorded so far as JSON, and is not traced itself.
"""
import json
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


traced = OpenTelemetryMiddleware(hello, tracer_provider=provider)


def app(environ, start_response):
    if environ["PATH_INFO"] != "/spans":
        return traced(environ, start_response)
    spans = [
        {
            "method": span.attributes.get("http.method") or span.attributes.get("http.request.method"),
            "trace": f"{span.context.trace_id:032x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        }
        for span in exporter.get_finished_spans()
    ]
    body = json.dumps(spans).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


make_server("127.0.0.1", int(sys.argv[1]), app, handler_class=Quiet).serve_forever()
