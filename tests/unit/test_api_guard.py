"""What the API refuses, what keeps strangers out, its events, and the server around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chain import limits
from chain.codec import encode
from chain.errors import ConfigError
from chain.records import RoundPhase
from chain.transactions import Transfer
from chain.types import Grains
from node.api.app import create_app
from node.api.events import MAX_CLIENTS, MAX_QUEUED
from node.api.server import ApiServer
from node.client import Client
from tests.kit.http import BYTES, ask, client_of
from tests.kit.local_chain import LocalChain, key


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        made.learn(stop_in=RoundPhase.TRAIN)
        yield made


@pytest.fixture(scope="module")
def app(chain: LocalChain) -> FastAPI:
    return create_app(chain)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(tmp_path) as made:
        yield made


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("blocks/999999", 404, "this node has 0 to"),
        ("blocks/" + "ab" * 32, 404, "no final block"),
        ("blocks/-1", 400, "expected a number"),
        ("blocks?limit=0", 400, "greater than or equal"),
        ("blocks?limit=100000", 400, "less than or equal"),
        ("txs/" + "00" * 32, 404, "knows no transaction"),
        ("txs/xyz", 400, "64 hexadecimal"),
        ("accounts/bly1qqqq", 400, "address"),
        ("rounds/77", 404, "round 0 is in progress"),
        ("rounds/x", 400, "current"),
        ("deltas/" + "00" * 32, 404, "delta_commit"),
        ("datasets/" + "00" * 32, 404, "the chain holds 1"),
        ("updates/" + "00" * 32, 404, "tile_update"),
        ("shards/99", 404, "for example"),
        ("tiles/embed/9", 404, "tiles 0 to 0"),
        ("tiles/embed/0/data?root=" + "00" * 32, 404, "never had"),
        ("model?height=999999", 404, "is not final"),
        ("state/zz/proof", 400, "state key"),
        ("blobs/" + "00" * 32, 503, "is not here"),
        ("checkpoints/" + "00" * 32, 503, "is not here"),
        ("nothing", 404, "openapi"),
    ],
)
def test_what_does_not_exist_is_told_clearly(
    app: FastAPI, path: str, status: int, text: str
) -> None:
    response = ask(app, "GET", f"/api/v1/{path}")
    assert response.status_code == status
    error = response.json()["error"]
    assert text in error["message"]
    assert error["code"]


def test_refused_transactions(app: FastAPI, chain: LocalChain) -> None:
    sender = chain.learners[0]
    good = chain.sign(Transfer(key("x").public, Grains(1)), sender)
    wrong_signature = bytearray(good)
    wrong_signature[-1] ^= 1
    cheap = chain.sign(Transfer(key("x").public, Grains(1)), sender, fee=1)
    cases = [
        (b"garbage", 400, "bad_encoding"),
        (b"", 400, "bad_encoding"),
        (bytes(wrong_signature), 422, "bad_signature"),
        (cheap, 422, "fee_too_low"),
        (bytes(limits.MAX_OPENING_TX_BYTES + 1), 413, "too_large"),
    ]
    for raw, status, code in cases:
        response = ask(app, "POST", "/api/v1/txs", content=raw, headers=BYTES)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    text = ask(app, "POST", "/api/v1/txs", content=good, headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
    assert chain.pool.size == 0


def test_a_body_without_length_is_cut_off_at_the_limit(app: FastAPI) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    response = ask(app, "POST", "/api/v1/txs", content=endless(), headers=BYTES)
    assert response.status_code == 413


@pytest.mark.parametrize("token", ["", "Bearer ", "Bearer wrong", "Basic kit-token", "kit-token"])
def test_writing_blobs_needs_the_token(app: FastAPI, token: str) -> None:
    headers = {**BYTES, **({"Authorization": token} if token else {})}
    for path in ("blobs", "checkpoints/" + "11" * 32):
        response = ask(app, "POST", f"/api/v1/{path}", content=b"data", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "api-token" in response.json()["error"]["message"]


def test_blobs_and_checkpoints_with_the_token(app: FastAPI) -> None:
    headers = {**BYTES, "Authorization": "Bearer kit-token"}
    put = ask(app, "POST", "/api/v1/blobs", content=b"payload", headers=headers)
    assert put.status_code == 201
    assert ask(app, "GET", f"/api/v1/blobs/{put.json()['id']}").content == b"payload"
    name = "22" * 32
    put = ask(app, "POST", f"/api/v1/checkpoints/{name}", content=b"state", headers=headers)
    assert put.json() == {"id": name}
    assert ask(app, "GET", f"/api/v1/checkpoints/{name}").content == b"state"


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("127.0.0.1:8645", True),
        ("localhost:8645", True),
        ("localhost", True),
        ("[::1]:8645", True),
        ("192.168.0.7:8645", True),
        ("evil.example", False),
        ("evil.example:8645", False),
        ("127.0.0.1.evil.example:8645", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_names_of_other_sites_are_refused(app: FastAPI, host: str, served: bool) -> None:
    response = ask(app, "GET", "/api/v1/status", headers={"Host": host})
    assert (response.status_code == 200) is served
    if not served:
        assert response.json()["error"]["code"] == "bad_host"


def test_a_configured_name_is_served(chain: LocalChain) -> None:
    app = create_app(chain, names=("node.example",))
    assert ask(app, "GET", "/api/v1/status", headers={"Host": "node.example"}).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/nothing", "/", "/metrics", "/nothing"])
def test_every_answer_carries_the_policy(app: FastAPI, path: str) -> None:
    headers = ask(app, "GET", path, headers={"Origin": "https://evil.example"}).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_metrics_are_prometheus_text(app: FastAPI, chain: LocalChain) -> None:
    response = ask(app, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert f"blyan_height {chain.chain.tip.height}" in lines
    assert "# TYPE blyan_transactions_total counter" in lines
    assert all(line.startswith("#") or len(line.split()) == 2 for line in lines)


# --- events --------------------------------------------------------------------------------


def parse(frames: list[bytes]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for frame in frames:
        lines = frame.decode().splitlines()
        if lines and lines[0].startswith("event: "):
            found.append((lines[0][7:], json.loads(lines[1][6:])))
    return found


def test_events_tell_blocks_transactions_phases_and_rounds(fresh: LocalChain) -> None:
    app = create_app(fresh)

    async def take() -> list[bytes]:
        stream = await app.state.hub.stream()
        frames = [await anext(stream), await anext(stream)]
        fresh.learn()
        assert app.state.hub.clients == 1
        queue = next(iter(app.state.hub._clients))
        frames += [queue.get_nowait() for _ in range(queue.qsize())]
        app.state.hub.close()
        assert [frame async for frame in stream] == []
        return frames

    events = parse(asyncio.run(take()))
    names = [name for name, _ in events]
    assert names[0] == "block"
    assert names.count("block") == fresh.chain.tip.height + 1
    heights = [data["height"] for name, data in events if name == "block"]
    assert heights == list(range(fresh.chain.tip.height + 1))
    phases = [data["phase"] for name, data in events if name == "phase"]
    assert phases[-1] == "done"
    assert {"delta", "update", "model", "loss"} <= {
        data["what"] for name, data in events if name == "round"
    }
    assert "tile_update" in {data["kind"] for name, data in events if name == "tx"}
    assert [data["count"] for name, data in events if name == "peers"] == [3]


def test_a_client_that_does_not_read_is_dropped(fresh: LocalChain) -> None:
    app = create_app(fresh)
    hub = app.state.hub

    async def slow() -> list[bytes]:
        stream = await hub.stream()
        await anext(stream)
        for number in range(MAX_QUEUED + 1):
            hub.publish("block", {"height": number})
        assert hub.clients == 0
        return [frame async for frame in stream]

    rest = asyncio.run(slow())
    assert len(rest) <= 1  # the tip it was owed, and then the end
    assert hub.dropped_total == 1


def test_streams_are_limited_in_number(fresh: LocalChain) -> None:
    app = create_app(fresh)

    async def many() -> int:
        for _ in range(MAX_CLIENTS):
            await app.state.hub.stream()
        async with client_of(app) as client:
            return (await client.get("/api/v1/events")).status_code

    assert asyncio.run(many()) == 503


# --- the server ----------------------------------------------------------------------------


def test_the_server_serves_stops_quickly_and_names_a_taken_port(fresh: LocalChain) -> None:
    async def run() -> tuple[int, float]:
        server = ApiServer(fresh, "127.0.0.1", 0)
        await server.start()
        rival = ApiServer(fresh, "127.0.0.1", server.port)
        with pytest.raises(ConfigError, match=f"port {server.port} on 127.0.0.1 is in use"):
            await rival.start()
        async with Client(server.url) as client:
            height = (await client.status())["height"]
            events = client.events()
            first = await anext(events)
            assert first.name == "block"
            loop = asyncio.get_running_loop()
            began = loop.time()
            await server.stop()
            took = loop.time() - began
            await events.aclose()
        await server.stop()
        return height, took

    height, took = asyncio.run(run())
    assert height == 0
    assert took < 2.0


def test_the_client_and_the_api_agree(fresh: LocalChain) -> None:
    """The one client of the command line, over the real application in process."""
    app = create_app(fresh)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with Client("http://127.0.0.1:8645", "kit-token", transport) as client:
            genesis = await client.genesis()
            assert genesis.chain_id == fresh.genesis.chain_id
            raw = fresh.sign(Transfer(key("y").public, Grains(7)), fresh.learners[1])
            tx_id = await client.post_tx(raw)
            fresh.block()
            assert (await client.wait_tx(tx_id, 1.0))["code"] == "ok"
            two = [fresh.sign(Transfer(key("z").public, Grains(1)), k) for k in fresh.learners[1:]]
            assert [row["code"] for row in await client.post_txs(two)] == ["ok", "ok"]
            blob = await client.put_blob(b"bytes")
            assert await client.blob(blob) == b"bytes"
            assert encode((await client.raw_block(1)).block) == encode(fresh.store.block(1))  # type: ignore[arg-type]

    asyncio.run(run())
