"""What a path reaches in WSGI, and the variables that it makes of headers."""

import re
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

ROUTES = [
    (r"/api/login", "login"),
    (r"/items/[^/]+/export", "export"),
    (r"/items/[^/]+", "item"),
    (r"/files/.*", "files"),
    (r"/health", "health"),
    (r"/metrics", "metrics"),
]


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = next((name for pattern, name in ROUTES if re.fullmatch(pattern, path, re.DOTALL)), "other")
    if path == "/variables":
        body = "".join(f"{name}={value}\n" for name, value in environ.items() if name.startswith("HTTP_"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


make_server("127.0.0.1", int(sys.argv[1]), app, handler_class=Handler).serve_forever()
