"""The API over a real chain: every route has the form it documents and says what is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from chain.address import format_address
from chain.certificates import verify_certificate
from chain.codec import decode, encode
from chain.errors import QuotaError
from chain.hashes import TX
from chain.records import MODEL, RoundPhase
from chain.transactions import Transfer
from chain.tree import StateProof, verify_state_proof
from chain.types import CertifiedBlock, Grains, Header, TxId
from node.api import resources as res
from node.api import resources_custody as kept
from node.api import resources_governance as gov
from node.api import resources_learning as learn
from node.api import resources_upkeep as upkeep
from node.api.app import create_app
from tests.kit.http import BYTES, ask, get
from tests.kit.local_chain import LocalChain, key
from tiles import merkle
from wallet.signing import sign_transaction


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
    ("shards", learn.Shards),
    ("shards/0", learn.Shard),
    ("shards/layers.0.experts.1", learn.Shard),
    ("tiles/layers.0.experts.1/0", learn.Tile),
    ("tiles/scrub", upkeep.Scrub),
    ("holdings", learn.Holdings),
    ("election/0/0", learn.Election),
    ("model", learn.Model),
    ("model?height=0", learn.Model),
    ("custody", kept.CustodyList),
    ("governance", gov.Governance),
    ("governance/parameters", gov.Parameters),
    ("governance/model", gov.ModelDocuments),
    ("rounds", learn.Rounds),
    ("rounds/current", learn.Round),
    ("rounds/0", learn.Round),
    ("deltas", learn.Deltas),
    ("deltas/{delta}", learn.Delta),
    ("updates/{update}", learn.Update),
    ("losses", learn.Losses),
    ("evals", learn.Evals),
    ("evals?root={root}", learn.Evals),
    ("datasets", learn.Datasets),
    ("datasets/{dataset}", learn.Dataset),
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
    raw |= {"/api/v1/light/{height}", "/api/v1/headers/{first}/{last}"}  # test_light_api.py
    raw.add("/api/v1/custody/{which}")  # tests/unit/test_custody_pages.py
    raw.add("/api/v1/governance/{which}")  # tests/unit/test_governance_cli.py
    tested = {"/api/v1/" + path.partition("?")[0] for path, _ in ROUTES}
    for path in gets - raw - {"/api/v1/blobs/{blob}", "/api/v1/checkpoints/{state_hash}"}:
        prefix = path.partition("{")[0]
        assert any(t.startswith(prefix) for t in tested), path


# --- content -------------------------------------------------------------------------------


def test_holdings_are_shown_everywhere_alike(app: FastAPI, chain: LocalChain) -> None:
    """Those of the kit's node, which keeps everything, as one peer does."""
    holdings = get(app, "holdings")
    assert holdings == get(app, "shards")["holdings"]
    assert holdings["kept_tiles"] == holdings["model_tiles"] == len(chain.tiles.specs)
    assert get(app, "status")["tiles"]["kept"] == holdings["kept_tiles"]
    (row,) = get(app, "shards/0")["tile_list"]
    holders = get(app, "tiles/0/0")["holders"]
    assert row["holders"] == holders["holders"] == 2
    assert holders["held_here"]
    peer = chain.genesis.validators[-1]
    assert holders["peers"] == [{"peer_id": peer.node_id, "account": format_address(peer.account)}]


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


def test_one_that_a_leader_put_in_too_early_still_waits(fresh: LocalChain) -> None:
    app, sender = create_app(fresh), fresh.learners[0]
    to = key("somebody").public
    first = fresh.sign(Transfer(to, Grains(5)), sender)
    fresh.pool.submit(first)
    second = fresh.sign(Transfer(to, Grains(6)), sender)
    tx_id = fresh.pool.submit(second).hex()
    fresh.pool.withdraw(TxId(TX.hash(first)))  # the leader leaves it out
    assert [r.code for r in fresh.block(second)] == ["bad_nonce"]
    assert get(app, f"txs/{tx_id}")["status"] == "pending"  # no wallet should sign it anew
    fresh.pool.submit(first)
    fresh.block()
    assert get(app, f"txs/{tx_id}")["code"] == "ok"


def test_a_full_disk_is_told_to_who_hands_in(
    fresh: LocalChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: object) -> None:
        raise QuotaError("mempool.log: cannot be written (No space left on device); free space")

    monkeypatch.setattr(fresh.pool, "durable", full)
    app = create_app(fresh)
    raw = fresh.sign(Transfer(key("somebody").public, Grains(5)), fresh.learners[0])
    bodies = (("txs", raw), ("txs/batch", msgpack.packb([raw])))
    for path, content in bodies:
        answer = ask(app, "POST", f"/api/v1/{path}", content=content, headers=BYTES)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")
        assert "free space" in answer.json()["error"]["message"]


def test_a_batch_is_answered_one_by_one(fresh: LocalChain) -> None:
    app = create_app(fresh)
    sender = fresh.learners[0]
    good = [
        encode(
            sign_transaction(
                sender,
                chain_id=fresh.genesis.chain_id,
                nonce=nonce,
                payload=Transfer(key("b").public, Grains(1)),
                fee=Grains(1000),
            )
        )
        for nonce in range(40)
    ]
    forged = good[0][:-1] + bytes([good[0][-1] ^ 1])
    batch = [*good, forged, b"garbage"]

    def send(content: bytes) -> Any:
        return ask(app, "POST", "/api/v1/txs/batch", content=content, headers=BYTES)

    answer = send(msgpack.packb(batch))
    assert answer.status_code == 202
    TypeAdapter(res.Taken).validate_python(answer.json(), strict=True)
    found = answer.json()["txs"]
    assert [row["id"] for row in found] == [TX.hash(raw).hex() for raw in batch]
    # 33 of one sender may wait: the next nonce and those up to 32 ahead of it
    assert [row["code"] for row in found] == [
        *["ok"] * 33, *["bad_nonce"] * 7, "bad_signature", "bad_encoding"
    ]  # fmt: skip
    assert all(bool(row["reason"]) is (row["code"] != "ok") for row in found)
    fresh.block()
    assert get(app, f"txs/{found[32]['id']}")["code"] == "ok"
    many = msgpack.packb([i.to_bytes(2, "big") for i in range(1025)])
    for wrong, status, code in (
        (b"", 400, "bad_encoding"),
        (msgpack.packb([b"x", b"x"]), 400, "bad_encoding"),
        (msgpack.packb(["text"]), 400, "bad_encoding"),
        (msgpack.packb({}), 400, "bad_encoding"),
        (many, 400, "bad_encoding"),
        (bytes(1024 * 1024 + 1), 413, "too_large"),
    ):
        refused = send(wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert send(msgpack.packb([])).json() == {"txs": []}


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
    first = 1 << params.stamp_bits + params.stamp_new_account_bits
    assert set(account["price"]["tries"].values()) == {first}
    assert account["price"]["fee"] == params.min_fee_grains
    quota = account["quota"]
    assert (quota["left"], quota["used"], quota["trusted"]) == (params.quota_newcomer, 0, False)
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
