"""The API over a real chain: every route's form, its errors, and what keeps strangers out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from chain import limits
from chain.address import format_address
from chain.codec import decode, encode
from chain.records import MODEL, RoundPhase
from chain.transactions import Transfer
from chain.tree import StateProof, verify_state_proof
from chain.types import CertifiedBlock, Grains, Header
from consensus.certificates import verify_certificate
from node.api import resources as res
from node.api.app import create_app
from node.api.events import MAX_CLIENTS, MAX_QUEUED
from node.api.server import ApiServer
from node.client import Client
from tests.kit.local_chain import LocalChain, key
from tiles import merkle

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """A finished round with a harmful delta, and a second one that is being screened."""
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        made.learn(learners=3, garbage=1)
        made.learn(stop_in=RoundPhase.SCREEN_REVEAL)
        yield made


@pytest.fixture(scope="module")
def app(chain: LocalChain) -> FastAPI:
    return create_app(chain)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(tmp_path) as made:
        yield made


def client_of(app: FastAPI, base: str = "http://127.0.0.1:8645") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base)


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def get(app: FastAPI, path: str) -> Any:
    response = ask(app, "GET", f"/api/v1/{path}")
    assert response.status_code == 200, response.text
    return response.json()


def ids(app: FastAPI) -> dict[str, str]:
    """One id of each kind that the chain holds."""
    done = get(app, "rounds/0")
    return {
        "block": get(app, "blocks")["blocks"][0]["hash"],
        "tx": get(app, "txs")["txs"][0]["id"],
        "account": done["joined"][0],
        "delta": done["accepted"][0],
        "update": done["update_list"][0]["id"],
        "dataset": done["datasets"][0],
        "root": done["result_root"],
    }


# --- forms ---------------------------------------------------------------------------------

ROUTES: list[tuple[str, Any]] = [
    ("status", res.Status),
    ("genesis", dict[str, Any]),
    ("peers", res.Peers),
    ("mempool", res.Mempool),
    ("blocks", res.Blocks),
    ("blocks/0", res.Block),
    ("blocks/17", res.Block),
    ("blocks/{block}", res.Block),
    ("txs", res.Txs),
    ("txs/{tx}", res.Tx),
    ("txs/{update}", res.Tx),
    ("accounts/{account}", res.Account),
    ("validators", res.Validators),
    ("shards", res.Shards),
    ("shards/0", res.Shard),
    ("shards/layers.0.experts.1", res.Shard),
    ("tiles/layers.0.experts.1/0", res.Tile),
    ("election/0/0", res.Election),
    ("model", res.Model),
    ("model?height=0", res.Model),
    ("rounds", res.Rounds),
    ("rounds/current", res.Round),
    ("rounds/0", res.Round),
    ("deltas", res.Deltas),
    ("deltas/{delta}", res.Delta),
    ("updates/{update}", res.Update),
    ("losses", res.Losses),
    ("evals", res.Evals),
    ("evals?root={root}", res.Evals),
    ("datasets", res.Datasets),
    ("datasets/{dataset}", res.Dataset),
    ("search?q=17", list[res.Hit]),
    ("state/6865616400/proof", res.StateProof),
]


@pytest.mark.parametrize(("path", "form"), ROUTES)
def test_every_route_has_the_form_it_documents(app: FastAPI, path: str, form: Any) -> None:
    found = get(app, path.format(**ids(app)))
    TypeAdapter(form).validate_python(found, strict=True)


def test_openapi_names_every_tested_route(app: FastAPI) -> None:
    document = ask(app, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.")
    paths = {p for p in document["paths"] if p.startswith("/api/v1/")}
    gets = {p for p in paths if "get" in document["paths"][p]}
    raw = {"/api/v1/blocks/{which}/raw", "/api/v1/tiles/{shard}/{tile}/data", "/api/v1/events"}
    tested = {"/api/v1/" + path.partition("?")[0] for path, _ in ROUTES}
    for path in gets - raw - {"/api/v1/blobs/{blob}", "/api/v1/checkpoints/{state_hash}"}:
        prefix = path.partition("{")[0]
        assert any(t.startswith(prefix) for t in tested), path


# --- content -------------------------------------------------------------------------------


def test_the_status_agrees_with_the_tip(app: FastAPI, chain: LocalChain) -> None:
    status = get(app, "status")
    assert status["height"] == chain.chain.tip.height
    assert status["block_hash"] == chain.chain.tip_hash.hex()
    assert status["state_root"] == chain.chain.tip.state_root.hex()
    assert status["account"] == format_address(chain.account)
    assert (status["round"], status["phase"]) == (1, "screen_reveal")
    assert status["peers"] == 3


def test_pages_of_blocks_join_without_a_gap(app: FastAPI, chain: LocalChain) -> None:
    heights: list[int] = []
    path = "blocks?limit=7"
    while path:
        page = get(app, path)
        heights += [b["height"] for b in page["blocks"]]
        path = f"blocks?limit=7&before={page['next']}" if page["next"] is not None else ""
    assert heights == list(range(chain.chain.tip.height, -1, -1))


def test_pages_of_transactions_join_without_a_gap(app: FastAPI, chain: LocalChain) -> None:
    numbers: list[int] = []
    path = "txs?limit=9"
    while path:
        page = get(app, path)
        numbers += [t["number"] for t in page["txs"]]
        path = f"txs?limit=9&before={page['next']}" if page["next"] is not None else ""
    assert numbers == list(range(chain.store.tx_total(), 0, -1))


def test_a_raw_block_is_the_block_and_its_certificate_holds(
    app: FastAPI, chain: LocalChain
) -> None:
    response = ask(app, "GET", "/api/v1/blocks/5/raw")
    assert response.headers["content-type"] == "application/octet-stream"
    certified: CertifiedBlock = decode(CertifiedBlock, response.content)
    assert certified.block.hash().hex() == get(app, "blocks/5")["hash"]
    assert certified.finalization is not None
    validators = chain.genesis.validator_set
    verify_certificate(chain.genesis.chain_id, validators, certified.finalization)
    shown = get(app, "blocks/5")["certificate"]
    assert 3 * shown["weight"] > 2 * shown["total"]
    assert len(shown["signers"]) == 3


def test_a_block_without_certificate_is_final_by_its_descendant(fresh: LocalChain) -> None:
    fresh.block(certify=False)
    fresh.block()
    shown = get(create_app(fresh), "blocks/1")
    assert shown["final_by"] == 2
    assert shown["certificate"]["block_hash"] == fresh.chain.tip_hash.hex()


def test_a_transaction_from_the_pool_to_a_block(fresh: LocalChain) -> None:
    app = create_app(fresh)
    to = key("somebody").public
    raw = fresh.sign(Transfer(to, Grains(5 * 10**8)), fresh.learners[0])
    answer = ask(app, "POST", "/api/v1/txs", content=raw, headers=BYTES)
    assert answer.status_code == 202
    tx_id = answer.json()["id"]
    waiting = get(app, f"txs/{tx_id}")
    assert (waiting["status"], waiting["height"], waiting["kind"]) == ("pending", None, "transfer")
    assert get(app, "mempool")["txs"][0]["id"] == tx_id
    assert get(app, f"accounts/{fresh.learners[0].public.hex()}")["next_nonce"] == 1
    fresh.block()
    final = get(app, f"txs/{tx_id}")
    assert (final["status"], final["code"], final["height"]) == ("final", "ok", 1)
    assert final["payload"] == {"to": format_address(to), "amount": 5 * 10**8}
    account = get(app, f"accounts/{format_address(to)}")
    assert account["balance"] == 5 * 10**8
    assert [t["id"] for t in account["txs"]] == [tx_id]
    again = ask(app, "POST", "/api/v1/txs", content=raw, headers=BYTES)
    assert again.json() == {"id": tx_id}


def test_a_failed_transaction_is_final_with_its_reason(fresh: LocalChain) -> None:
    raw = fresh.sign(Transfer(key("x").public, Grains(10**18)), fresh.learners[0])
    (receipt,) = fresh.block(raw)
    found = get(create_app(fresh), f"txs/{receipt.tx_id.hex()}")
    assert (found["status"], found["code"]) == ("final", "insufficient_funds")
    assert "grains" in found["reason"]


def test_an_account_is_told_what_its_next_stamp_needs(app: FastAPI, chain: LocalChain) -> None:
    account = get(app, f"accounts/{key('nobody yet').public.hex()}")
    params = chain.genesis.params
    assert not account["known"]
    assert account["stamp_bits"] == params.stamp_bits + params.stamp_new_account_bits
    height = chain.chain.tip.height - 3
    block = chain.store.block(height)
    assert block is not None
    assert account["stamp"] == {"height": height, "hash": block.hash().hex()}


def test_a_finished_round_tells_its_whole_story(app: FastAPI) -> None:
    done = get(app, "rounds/0")
    assert [p["state"] for p in done["phases"]] == ["done"] * 10
    assert [d["status"] for d in done["delta_list"]] == ["merged", "merged", "harmful"]
    assert done["accepted_count"] == 2
    assert done["loss_after_nats"] < done["loss_before_nats"]
    assert all(u["provisional"] for u in done["update_list"])
    assert [entry["delta"] for entry in done["learners"]] == done["deltas"]
    audited = get(app, f"deltas/{done['audited']}")["audit"]
    assert {v["verdict"] for v in audited["votes"]} == {"yes"}


def test_the_round_in_progress_shows_where_it_is(app: FastAPI) -> None:
    now = get(app, "rounds/current")
    states = {p["phase"]: p["state"] for p in now["phases"]}
    assert states["screen_reveal"] == "now"
    assert states["aggregate"] == "todo"
    assert states["train"] == "done"
    votes = get(app, f"deltas/{now['deltas'][0]}")["votes"]
    assert all(v["verdict"] is None and not v["revealed"] for v in votes)


def test_lineage_both_ways(app: FastAPI) -> None:
    known = ids(app)
    dataset = get(app, f"datasets/{known['dataset']}")
    assert {r["number"] for r in dataset["rounds"]} == {0, 1}
    assert known["delta"] in {d["id"] for d in dataset["deltas"]}
    newest = get(app, "tiles/embed/0")["versions"][0]
    assert newest["round"] == 0
    assert known["delta"] in newest["deltas"]
    assert known["dataset"] in get(app, f"deltas/{known['delta']}")["manifest"]["datasets"]


def test_updates_name_tiles_and_weights(app: FastAPI) -> None:
    done = get(app, "rounds/0")
    tiles = set()
    for row in done["update_list"]:
        update = get(app, f"updates/{row['id']}")
        assert update["deltas"] == done["accepted"]
        for change in update["changes"]:
            tiles.add((change["name"], change["tile"]))
            assert len(change["weights"]) == 2
            assert sum(change["weights"]) <= change["weight_one"]
    assert len(tiles) == len(get(app, "shards")["shards"])


def test_the_model_at_both_heights(app: FastAPI, chain: LocalChain) -> None:
    first, newest = get(app, "model?height=0"), get(app, "model")
    assert first["version"] == 0
    assert newest["version"] == 1
    assert newest["root"] == get(app, "status")["model_root"]
    assert first["root"] == get(app, "rounds/0")["base_root"]
    for model in (first, newest):
        roots = [bytes.fromhex(s["root"]) for s in model["shards"]]
        assert merkle.model_root(roots).hex() == model["root"]  # type: ignore[arg-type]


# --- proofs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed", "layers.0.router", "final"])
def test_tile_bytes_lead_to_the_header(app: FastAPI, name: str) -> None:
    """A reader who trusts nothing but the tip's header can check every byte of a tile."""
    tile = get(app, f"tiles/{name}/0")
    data = ask(app, "GET", f"/api/v1/tiles/{name}/0/data").content
    root = merkle.tile_root(data)
    assert root.hex() == tile["root"]
    below, above = tile["path"]["tile"], tile["path"]["shard"]
    siblings = tuple(bytes.fromhex(s) for s in below["siblings"])
    proof = merkle.TileProof(below["index"], tile["shard_bytes"], siblings)  # type: ignore[arg-type]
    shard_root = bytes.fromhex(tile["shard_root"])
    merkle.verify_tile(shard_root, proof, root)  # type: ignore[arg-type]
    siblings = tuple(bytes.fromhex(s) for s in above["siblings"])
    outer = merkle.ShardProof(above["index"], above["count"], siblings)  # type: ignore[arg-type]
    merkle.verify_shard(bytes.fromhex(tile["model_root"]), outer, shard_root)  # type: ignore[arg-type]
    state = tile["state"]
    assert bytes.fromhex(tile["model_root"]) in bytes.fromhex(state["value"])
    header: Header = decode(Header, bytes.fromhex(state["header"]))
    assert header.hash().hex() == state["block_hash"]
    assert verify_state_proof(
        header.state_root,
        MODEL,
        bytes.fromhex(state["value"]),
        decode(StateProof, bytes.fromhex(state["proof"])),
    )


def test_absence_is_proven_as_well(app: FastAPI) -> None:
    found = get(app, f"state/{b'delt/nothing'.hex()}/proof")
    assert found["value"] is None
    assert verify_state_proof(
        bytes.fromhex(found["state_root"]),  # type: ignore[arg-type]
        b"delt/nothing",
        None,
        decode(StateProof, bytes.fromhex(found["proof"])),
    )


def test_an_older_version_of_a_tile_can_be_had(app: FastAPI) -> None:
    versions = get(app, "tiles/embed/0")["versions"]
    old = versions[-1]
    path = f"/api/v1/tiles/embed/0/data?root={old['shard_root']}"
    assert merkle.tile_root(ask(app, "GET", path).content).hex() == old["root"]
    assert old["root"] != versions[0]["root"]


# --- search --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "url"),
    [
        ("17", "/blocks/17"),
        ("{block}", "/blocks/{height}"),
        ("{tx}", "/txs/{tx}"),
        ("{account}", "/accounts/{account}"),
        ("{delta}", "/deltas/{delta}"),
        ("{dataset}", "/datasets/{dataset}"),
        ("{update}", "/updates/{update}"),
        ("layers.0.experts.1", "/shards/4"),
        ("experts.1:0", "/tiles/4/0"),
        ("standard lib", "/datasets/{dataset}"),
        ("{prefix}", "/deltas/{delta}"),
    ],
)
def test_search_finds(app: FastAPI, query: str, url: str) -> None:
    known = {**ids(app), "height": str(get(app, "status")["height"])}
    known["prefix"] = known["delta"][:9]
    hits = get(app, f"search?q={query.format(**known)}")
    assert url.format(**known) in {hit["url"] for hit in hits}


def test_search_for_nothing_finds_nothing(app: FastAPI) -> None:
    assert get(app, "search?q=zzzz") == []


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
        ("rounds/77", 404, "round 1 is in progress"),
        ("rounds/x", 400, "current"),
        ("deltas/" + "00" * 32, 404, "delta_commit"),
        ("datasets/" + "00" * 32, 404, "the chain holds 1"),
        ("updates/" + "00" * 32, 404, "tile_update"),
        ("shards/99", 404, "for example"),
        ("tiles/embed/9", 404, "tiles 0 to 0"),
        ("tiles/embed/0/data?root=" + "00" * 32, 404, "never had"),
        ("model?height=999999", 404, "is not final"),
        ("state/zz/proof", 400, "state key"),
        ("blobs/" + "00" * 32, 503, "connected peers"),
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
        (bytes(limits.MAX_TX_BYTES + 1), 413, "too_large"),
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
    from chain.errors import ConfigError

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
            blob = await client.put_blob(b"bytes")
            assert await client.blob(blob) == b"bytes"
            assert encode((await client.raw_block(1)).block) == encode(fresh.store.block(1))  # type: ignore[arg-type]

    asyncio.run(run())
