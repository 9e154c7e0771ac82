"""Requests to an application in process, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

BYTES = {"Content-Type": "application/octet-stream"}


def client_of(app: FastAPI, base: str = "http://127.0.0.1:8645") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base)


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """One request and its answer."""

    async def send() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def get(app: FastAPI, path: str) -> Any:
    """The JSON at a path below /api/v1, which must be there."""
    response = ask(app, "GET", f"/api/v1/{path}")
    assert response.status_code == 200, response.text
    return response.json()
