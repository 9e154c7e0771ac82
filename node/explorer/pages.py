"""The pages of the explorer."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from node.query import Query


def install(app: FastAPI, query: Query) -> None:
    """Add the explorer's pages and files to the application."""


def error_page(request: Request, status: int, code: str, text: str) -> Response:
    """A page that says what was wrong and where to go on."""
    return HTMLResponse(text, status_code=status)
