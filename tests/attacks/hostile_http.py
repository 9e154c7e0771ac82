"""Attacks by clients of the HTTP API: what they send, and what they do not read."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Any
from urllib.parse import quote

import httpx

from chain import limits
from chain.codec import encode
from chain.hashes import Hash32
from chain.transactions import DatasetSubmit
from chain.types import BlobId, Grains
from tests.kit.victims import Victim, Victims
from tests.kit.waiting import paused, reached
from wallet.signing import sign_transaction

OCTETS = {"content-type": "application/octet-stream"}
TRAVERSALS = (
    "/static/../../../../etc/passwd",
    "/static/..%2f..%2f..%2fapi-token",
    "/static/%2e%2e/%2e%2e/api-token",
    "/static//etc/passwd",
    "/static/..\\..\\api-token",
    "/static/%00",
    "/../api-token",
    "/api/v1/blobs/..%2f..%2fapi-token",
    "/api/v1/checkpoints/..%2f..%2fapi-token",
)
NUMBERS = ("-1", "0", "9" * 30, "-" + "9" * 30, str(2**63), str(2**64), "1e9", "NaN", "0x10", "١")
TEXTS = (
    "",
    "%00",
    "%ff%fe",
    "..%2f",
    "<script>alert(1)</script>",
    "'%20OR%201=1--",
    "%25%25s%25n",
    "a" * 5000,
    "%f0%9f%98%80",
    "%ed%a0%80",
    "ff" * 32,
    "00" * 32,
)
LARGE_REQUEST = 100_000  # bytes of headers


def raw(node: Victim, data: bytes, wait_s: float = 3.0) -> bytes:
    """Bytes on a socket, and what comes back until the node closes or says nothing."""
    with socket.create_connection(node.api, timeout=wait_s) as sock:
        answer = b""
        with contextlib.suppress(OSError):
            sock.sendall(data)
            while part := sock.recv(65536):
                answer += part
                if len(answer) > 1 << 20:
                    break
    return answer


def client(node: Victim) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.founded.config.api_url, timeout=20, trust_env=False)


async def wrong_bodies(victims: Victims, chance: random.Random) -> None:
    node = victims.nodes[0]
    nested = b"\x91" * 60_000 + b"\x90"
    bodies = (b"", b"\x00", chance.randbytes(500), nested, b"[" * 60_000, b"\xc1" * 100)
    async with client(node) as http:
        for body in bodies:
            answer = await http.post("/api/v1/txs", content=body, headers=OCTETS)
            assert 400 <= answer.status_code < 500, answer.text
        huge = bytes(limits.MAX_OPENING_TX_BYTES + 1)
        assert (await http.post("/api/v1/txs", content=huge, headers=OCTETS)).status_code == 413
        for path in ("/api/v1/blobs", "/api/v1/checkpoints/" + "00" * 32):
            for token in ({}, {"authorization": "Bearer x"}, {"authorization": "Bearer é"}):
                head = {**OCTETS, **{k: v.encode("latin-1") for k, v in token.items()}}
                answer = await http.post(path, content=b"data", headers=head)
                assert answer.status_code == 401, (path, token, answer.status_code)
        for kind in ("application/json", "text/plain", ""):
            head = {"content-type": kind}
            answer = await http.post("/api/v1/txs", content=b"{}", headers=head)
            assert answer.status_code == 415
        for host in ("evil.example", "evil.example:31000", "localhost.evil", "a" * 3000):
            answer = await http.get("/api/v1/status", headers={"host": host})
            assert answer.status_code == 403, host

        async def endless() -> Any:
            for _ in range(4096):
                yield bytes(65536)

        with contextlib.suppress(httpx.HTTPError):
            answer = await http.post("/api/v1/txs", content=endless(), headers=OCTETS)
            assert answer.status_code == 413
    for data in (
        b"\x16\x03\x01\x02\x00" + chance.randbytes(100),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * LARGE_REQUEST + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * LARGE_REQUEST + b"\r\n\r\n",
        b"POST /api/v1/txs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/txs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
        b"\x00" * 1000,
    ):
        await asyncio.to_thread(raw, node, data)


async def paths_and_parameters(victims: Victims, chance: random.Random) -> None:
    """Every route of the OpenAPI description with every number and text in every place."""
    node = victims.nodes[0]
    async with client(node) as http:
        routes = (await http.get("/openapi.json")).json()["paths"]
        asked = 0
        for path in TRAVERSALS:
            answer = await asyncio.to_thread(
                raw,
                node,
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
            )
            status = int(answer.split()[1])
            assert 400 <= status < 500, f"{path}: {status}"
            assert node.home.token().encode() not in answer
            assert b"root:" not in answer
        for route, methods in sorted(routes.items()):
            if "get" not in methods or route.endswith("/events"):
                continue
            wanted = methods["get"].get("parameters", [])
            for value in chance.sample(NUMBERS + TEXTS, 12):
                path, query = route, []
                for parameter in wanted:
                    name = parameter["name"]
                    if parameter["in"] == "path":
                        path = path.replace("{" + name + "}", value or "x")
                    else:
                        query.append(f"{name}={value}")
                url = path + ("?" + "&".join(query) if query else "")
                answer = await http.get(url)
                assert answer.status_code < 500 or answer.status_code == 503, (
                    f"{url[:200]}: {answer.status_code}"
                )
                assert (
                    value != TEXTS[4]
                    or value not in answer.text
                    or "json" in (answer.headers["content-type"])
                )
                asked += 1
                page = await http.get(url.removeprefix("/api/v1"))
                assert page.status_code < 500 or page.status_code == 503, f"{url}: page"
                assert TEXTS[4] not in page.text, f"{url}: not escaped"
        assert asked > 100


async def clients_that_do_not_read(victims: Victims, chance: random.Random) -> None:
    """200 event streams and 100 slow requests are open; others are served."""
    node = victims.nodes[0]
    event = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            sock = stack.enter_context(socket.create_connection(node.api, timeout=5))
            sock.sendall(event)
        for i in range(100):
            sock = stack.enter_context(socket.create_connection(node.api, timeout=5))
            sock.sendall((b"GET / HT", b"POST /api/v1/txs HTTP/1.1\r\nHost: localhost\r\n")[i % 2])
        await paused(3)
        assert node.status(), "others are not served while streams are open"


async def slowloris(victims: Victims, chance: random.Random) -> None:
    """600 connections that never finish a request: they are closed, and others get in."""
    node = victims.nodes[0]
    head = b"POST /api/v1/txs HTTP/1.1\r\nHost: localhost\r\n"
    body = head + b"Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        for i in range(600):
            with contextlib.suppress(OSError):
                sock = stack.enter_context(socket.create_connection(node.api, timeout=5))
                sock.sendall((b"", b"GET /", head, body)[i % 4])
        await reached(node.status, 30, "others are served although slow clients hold on")


async def markup_in_names(victims: Victims, chance: random.Random) -> None:
    """A dataset whose title and licence are HTML, and searches for it: escaped on every page."""
    node = victims.nodes[0]
    key = victims.validators[1].founded.keys.account
    mark = f"<img src=x onerror=alert({chance.randrange(10**6)})>"
    dataset = Hash32(chance.randbytes(32))
    payload = DatasetSubmit(
        dataset, BlobId(chance.randbytes(32)), 100, 1000, 1, '"><svg onload=a>', mark + "\u202e"
    )
    nonce = node.get(f"accounts/{key.public.hex()}")["next_nonce"]
    tx = sign_transaction(
        key, chain_id=victims.genesis.chain_id, nonce=nonce, payload=payload, fee=Grains(10**6)
    )
    async with client(node) as http:
        answer = await http.post("/api/v1/txs", content=encode(tx), headers=OCTETS)
        pages = ["/", "/txs", "/mempool", "/search?q=" + quote(mark), "/search?q=onerror"]
        if answer.status_code == 202:
            tx_id = answer.json()["id"]
            await reached(
                lambda: (node.get(f"txs/{tx_id}") or {}).get("status") != "pending",
                30 * victims.slack,
                "the dataset is judged",
            )
            pages += [f"/txs/{tx_id}", "/datasets", f"/datasets/{dataset.hex()}"]
        else:
            assert answer.status_code == 422, answer.text
        for page in pages:
            got = await http.get(page)
            assert got.status_code < 500, page
            assert mark not in got.text, f"{page}: not escaped"
            assert "<svg onload" not in got.text, f"{page}: not escaped"
            assert "script-src 'self'" in got.headers["content-security-policy"]
