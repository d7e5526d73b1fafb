"""What a path reaches in Starlette: the handler's name is the body."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


def handler(name):
    async def handle(request):
        return PlainTextResponse(name)

    return handle


app = Starlette(
    routes=[
        Route("/api/login", handler("login")),
        Route("/items/{id}/export", handler("export")),
        Route("/items/{id}", handler("item")),
        Route("/files/{path:path}", handler("files")),
        Route("/health", handler("health")),
        Route("/metrics", handler("metrics")),
        Route("/{path:path}", handler("other")),
    ]
)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
