"""The application: API, events, metrics and explorer over one `Query` (docs/spec/api.md)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from chain.errors import BlyanError
from node import explorer
from node.api import light, routes, writes
from node.api.errors import error_body, status_of
from node.api.events import EventHub
from node.api.guard import Guard
from node.query import Query
from node.seam import NodeSeam
from node.version import version

log = logging.getLogger("blyan.api")
_MACHINE = ("/api/", "/metrics", "/openapi.json")


def create_app(node: NodeSeam, names: Iterable[str] = ()) -> FastAPI:
    """The ASGI application of one node. `names`: host names it answers to besides localhost."""
    app = FastAPI(
        title="Blyan node",
        version=version(),
        description="What the chain says, and how to check it. See docs/spec/api.md.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    query = Query(node)
    app.state.node, app.state.query = node, query
    app.state.hub = EventHub(node, query)
    app.include_router(routes.router)
    app.include_router(light.router)
    app.include_router(routes.metrics_router)
    app.include_router(writes.router)
    explorer.install(app, query)
    _install_errors(app)
    app.add_middleware(Guard, names=tuple(names))
    return app


def _install_errors(app: FastAPI) -> None:
    def answer(request: Request, status: int, code: str, text: str) -> Response:
        if request.url.path.startswith(_MACHINE):
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            return JSONResponse(error_body(code, text), status_code=status, headers=headers)
        return explorer.error_page(request, status, code, text)

    async def ours(request: Request, error: Exception) -> Response:
        status = status_of(error) if isinstance(error, BlyanError) else 500
        code = error.code if isinstance(error, BlyanError) else "internal"
        if status >= 500 and status != 503:
            log.error("%s %s: %s", request.method, request.url.path, error)
        return answer(request, status, code, str(error))

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        texts = {
            404: ("not_found", f"there is nothing at {request.url.path}; see /openapi.json"),
            405: ("bad_method", f"{request.method} does not go with {request.url.path}"),
        }
        code, text = texts.get(status, ("error", f"HTTP {status}"))
        return answer(request, status, code, text)

    async def misread(request: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        text = "; ".join(f"{'.'.join(map(str, p['loc'][1:]))}: {p['msg']}" for p in problems)
        return answer(request, 400, "bad_query", text)

    async def broken(request: Request, error: Exception) -> Response:
        """A bug of ours. Starlette raises it again after this answer, so it is logged whole."""
        text = "the node made a mistake; its log says what"
        return answer(request, 500, "internal", text)

    handlers: tuple[
        tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]], ...
    ]
    handlers = (
        (BlyanError, ours),
        (HTTPException, refused),
        (RequestValidationError, misread),
        (Exception, broken),
    )
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
