"""The API client against a small ASGI application: what it sends, and what failures become."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from chain.codec import decode
from chain.errors import (
    ConfigError,
    DecodeError,
    InputError,
    TxError,
    UnreachableError,
    VerifyError,
)
from chain.hashes import BLOCK, Hash32
from chain.transactions import Transaction, Transfer, stamp_digest
from chain.types import Grains, PubKey
from node.client import Client
from wallet.keys import KeyPair

KEY = KeyPair.from_seed(bytes(range(32)))
TRIES_OF = ("money", "membership", "deltas", "datasets", "governance", "other")
BLOCK_HASH = BLOCK.hash(b"recent")
PARAMS: dict[str, Any] = {
    "epoch_blocks": 100,
    "empty_interval_ms": 1000,
    "delta_floor_ms": 100,
    "delta_cap_ms": 1000,
    "clock_drift_ms": 2000,
    "min_fee_grains": 10,
    "stamp_bits": 6,
    "stamp_new_account_bits": 2,
    "stamp_window_blocks": 100,
    "min_bond_grains": 1,
    "unbonding_blocks": 1000,
    "unbonding_ms": 2000,
    "evidence_blocks": 300,
    "evidence_ms": 1000,
    "evidence_jail": {"blocks": 800, "ms": 8000},
    "downtime_views": 20,
    "downtime_jail": {"blocks": 100, "ms": 1000},
    "slash_permille": 100,
    "seed_blocks": 8,
    "jury_size": 7,
    "auditors": 2,
    "ranks": 3,
    **{
        name: {"blocks": 10, "ms": 1000}
        for name in ("join", "train", "reveal", "screen", "aggregate", "settle")
    },
    "round_reward_grains": 100,
    "dataset_bytes_most": 1 << 26,
    "custody_interval_blocks": 32,
    "custody_tile_bond_grains": 1000,
    "custody_replicas": 3,
    "custody_commit": {"blocks": 4, "ms": 1000},
    "custody_open": {"blocks": 8, "ms": 1000},
    "custody_slash_permille": 10,
    "custody_bond_grains": 1,
}
GENESIS = {
    "network": "test",
    "time_ms": 1,
    "params": PARAMS,
    "accounts": [],
    "validators": [
        {
            "account": "01" * 32,
            "node_key": "02" * 32,
            "consensus_key": "03" * 32,
            "vrf_key": "04" * 32,
            "node_id": "peer",
            "stake": 1,
        }
    ],
    "reward_pool_grains": 0,
    "model": {},
    "training": {},
}


class Node:
    """Answers like a node; `posted` holds what it was sent, `script` the fate of each post."""

    def __init__(self, balance: int, script: list[str]) -> None:
        self.balance, self.script, self.nonce, self.left = balance, script, 4, 20
        self.posted: list[Transaction] = []
        self.headers: list[dict[bytes, bytes]] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/v1/genesis":
            return 200, GENESIS
        if path.startswith("/api/v1/accounts/"):
            recent = {"height": 7, "hash": BLOCK_HASH.hex()}
            return 200, {
                "balance": self.balance,
                "next_nonce": self.nonce,
                "price": {"fee": 10, "tries": dict.fromkeys(TRIES_OF, 64)},
                "quota": {"left": self.left, "limit": 20, "resets": 9, "resets_ms": 10},
                "stamp": recent,
            }
        if (method, path) == ("POST", "/api/v1/txs"):
            tx = decode(Transaction, body)
            self.posted.append(tx)
            if self.script[0] == "bad_nonce":
                self.nonce = 9
                return 422, {"error": {"code": self.script.pop(0), "message": "9 is next"}}
            return 202, {"id": tx.id().hex()}
        if path.startswith("/api/v1/txs/"):
            status, code = self.script.pop(0).split(":")
            return 200, {"status": status, "code": code, "reason": "because", "height": 8}
        errors = {"/api/v1/mempool": 503, "/api/v1/peers": 500, "/api/v1/blobs": 401}
        status = errors.get(path, 404)
        return status, {"error": {"code": "some", "message": f"no {path}"}}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.headers.append(dict(scope["headers"]))
        if scope["path"] == "/api/v1/events":
            status, data = 200, b': hi\n\nevent: block\ndata: {"height": 3}\n\ndata: 1\n\n'
        elif scope["path"] == "/api/v1/status":
            status, data = 200, b"<html>"
        elif scope["path"] == "/api/v1/tiles/0/0/data":
            status, data = 200, bytes(5 * 1024 * 1024)
        else:
            status, plain = self.answer(scope["method"], scope["path"], body)
            data = json.dumps(plain).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": data})


def client(node: Node, token: str | None = None) -> Client:
    return Client("http://node", token, httpx.ASGITransport(node))


PAYLOAD = Transfer(PubKey(bytes(32)), Grains(1))


def test_submit_pays_when_the_account_can() -> None:
    node = Node(10, ["pending:", "final:ok"])
    tx_id, found = asyncio.run(client(node).submit(PAYLOAD, KEY))
    tx = node.posted[0]
    assert (tx.fee, tx.stamp, tx.nonce, tx.id(), found["height"]) == (10, None, 4, tx_id, 8)


def test_submit_stamps_when_it_cannot_pay() -> None:
    node = Node(9, ["final:ok"])
    asyncio.run(client(node).submit(PAYLOAD, KEY))
    tx = node.posted[0]
    assert tx.fee == 0
    assert tx.stamp is not None
    assert tx.stamp.height == 7
    work = tx.stamp.work
    digest = stamp_digest(tx.chain_id, KEY.public, 4, BLOCK_HASH, PAYLOAD, work)
    assert digest[0] >> 2 == 0


def test_submit_signs_again_once_after_a_bad_nonce() -> None:
    node = Node(10, ["bad_nonce", "final:ok"])
    asyncio.run(client(node).submit(PAYLOAD, KEY))
    assert [tx.nonce for tx in node.posted] == [4, 9]
    node = Node(10, ["bad_nonce", "bad_nonce"])
    with pytest.raises(TxError, match="9 is next"):
        asyncio.run(client(node).submit(PAYLOAD, KEY))


@pytest.mark.parametrize("fate", ["final:stale_base", "dropped:stale_base"])
def test_a_refused_transaction_raises_its_code(fate: str) -> None:
    with pytest.raises(TxError, match="because") as caught:
        asyncio.run(client(Node(10, [fate])).submit(PAYLOAD, KEY))
    assert caught.value.code == "stale_base"
    assert caught.value.exit_code == 4


def test_events_are_parsed() -> None:
    async def read() -> list[tuple[str, Any]]:
        return [(e.name, e.data) async for e in client(Node(0, [])).events()]

    assert asyncio.run(read()) == [("block", {"height": 3}), ("message", 1)]


def test_failures_are_errors_of_ours() -> None:
    ask = client(Node(0, []), "secret")
    with pytest.raises(InputError, match="no /api/v1/shards/x"):
        asyncio.run(ask.shard("x"))
    with pytest.raises(UnreachableError):
        asyncio.run(ask.mempool())
    with pytest.raises(DecodeError, match="not JSON"):
        asyncio.run(ask.status())
    with pytest.raises(VerifyError, match="more than"):
        asyncio.run(ask.tile_data(0, 0))


def test_writing_sends_the_token_and_says_what_it_needs() -> None:
    node = Node(0, [])
    with pytest.raises(ConfigError, match="api-token"):
        asyncio.run(client(node, "secret").put_blob(b"x"))
    assert node.headers[-1][b"authorization"] == b"Bearer secret"
    with pytest.raises(InputError):
        asyncio.run(client(node, "secret").blob(Hash32(bytes(32))))  # type: ignore[arg-type]
    assert node.headers[-1][b"authorization"] == b"Bearer secret"  # peers are asked for it alone
    with pytest.raises(UnreachableError):
        asyncio.run(client(node, "secret").mempool())
    assert b"authorization" not in node.headers[-1]


def test_nobody_there() -> None:
    async def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    ask = Client("http://node", transport=httpx.MockTransport(refuse))
    with pytest.raises(UnreachableError, match="is the node running"):
        asyncio.run(ask.status())


@pytest.mark.parametrize("kept", [True, False], ids=["once", "always"])
def test_a_connection_that_ends_as_we_ask_is_opened_anew(kept: bool) -> None:
    """Nodes end idle connections, and the next request may be on its way just then."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1 and kept:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"height":7}')
        writer.close()

    async def run() -> dict[str, Any]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with Client(f"http://127.0.0.1:{port}") as client:
                return await client.status()
        finally:
            server.close()

    if kept:
        assert asyncio.run(run()) == {"height": 7}
    else:
        with pytest.raises(UnreachableError, match="is the node running"):
            asyncio.run(run())
    assert connections == 2
