"""What a node tells a light client: light blocks, headers, proofs of transactions and state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from chain import limits
from chain import records as r
from chain.codec import decode, encode
from chain.errors import VerifyError
from chain.hashes import ZERO_HASH, Hash32
from chain.light import LightBlock, Terms, Trusted, check_form, check_step
from chain.light_proofs import HeaderRange, TxProof, check_ancestors, prove_tx, verify_tx_proof
from chain.records import Account
from chain.transactions import Transfer
from chain.tree import StateProof, verify_state_proof
from chain.types import Grains, Header, Height, tx_root
from node.api.app import create_app
from tests.kit.http import ask, get
from tests.kit.local_chain import START_MS, LocalChain, key

TIP = 40


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Epochs of 8; blocks 11 to 13 are final by the certificate of block 14."""
    with LocalChain(tmp_path_factory.mktemp("chain"), epoch_blocks=8) as made:
        for height in range(1, TIP + 1):
            if height in (5, 20):
                for amount in range(1, height):
                    made.send(Transfer(key("to").public, Grains(amount)), made.learners[0])
            made.block(certify=not 11 <= height <= 13)
        yield made


@pytest.fixture(scope="module")
def app(chain: LocalChain) -> FastAPI:
    return create_app(chain)


def raw(app: FastAPI, path: str) -> bytes:
    found = ask(app, "GET", f"/api/v1/{path}")
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "application/octet-stream"
    return found.content


def terms(chain: LocalChain) -> Terms:
    return Terms(chain.genesis.chain_id, 10**9, 2000)


def test_light_blocks_lead_from_genesis_to_the_tip(app: FastAPI, chain: LocalChain) -> None:
    genesis = chain.store.header(Height(0))
    assert genesis is not None
    trusted = Trusted(genesis, chain.genesis.validator_set)
    for height in (1, 8, 9, TIP):
        block: LightBlock = decode(LightBlock, raw(app, f"light/{height}"))
        trusted = check_step(terms(chain), trusted, block, START_MS + 10**6)
    assert trusted.header == chain.chain.tip


def test_a_block_without_a_certificate_of_its_own(app: FastAPI, chain: LocalChain) -> None:
    block: LightBlock = decode(LightBlock, raw(app, "light/12"))
    assert [h.height for h in block.headers] == [12, 13, 14]
    check_form(terms(chain), block)


def test_light_blocks_that_are_not_there(app: FastAPI) -> None:
    for height, status in (("0", 404), (str(TIP + 1), 404), ("-1", 400), ("9" * 30, 400)):
        found = ask(app, "GET", f"/api/v1/light/{height}")
        assert found.status_code == status or height == "0", found.text
    assert ask(app, "GET", f"/api/v1/light/{10**18}").status_code == 404


def test_headers_lead_back(app: FastAPI, chain: LocalChain) -> None:
    found: HeaderRange = decode(HeaderRange, raw(app, f"headers/3/{TIP - 1}"))
    assert [h.height for h in found.headers] == list(range(3, TIP))
    check_ancestors(found.headers, chain.chain.tip)
    for wrong in (found.headers[:-1], found.headers[1:3] + found.headers[4:], found.headers[::-1]):
        with pytest.raises(VerifyError, match="does not follow"):
            check_ancestors(wrong, chain.chain.tip)
    for path in ("headers/5/4", f"headers/0/{limits.MAX_HEADERS}", "headers/x/4"):
        assert ask(app, "GET", f"/api/v1/{path}").status_code == 400
    assert ask(app, "GET", f"/api/v1/headers/{TIP}/{TIP + 1}").status_code == 404


def test_every_transaction_has_a_proof(app: FastAPI, chain: LocalChain) -> None:
    for height in (5, 20):
        header = chain.store.header(Height(height))
        rows = chain.store.txs_in(Height(height))
        assert header is not None
        assert len(rows) == height - 1
        for row in rows:
            proof: TxProof = decode(TxProof, raw(app, f"txs/{row.id.hex()}/proof"))
            assert (proof.height, proof.index, proof.count) == (height, row.position, height - 1)
            assert verify_tx_proof(header.tx_root, proof)
    missing = ask(app, "GET", f"/api/v1/txs/{'00' * 32}/proof")
    assert missing.status_code == 404


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 33, 100])
def test_a_proof_shows_one_place_alone(count: int) -> None:
    txs = tuple(bytes([i % 7]) * (i % 50) for i in range(count))
    root = tx_root(txs)
    for index in range(count):
        proof = prove_tx(Height(1), txs, index)
        assert verify_tx_proof(root, proof)
        assert encode(decode(TxProof, encode(proof))) == encode(proof)
        wrong = [
            TxProof(proof.height, proof.index, proof.count, proof.tx + b"x", proof.siblings),
            TxProof(proof.height, proof.index, proof.count + 1, proof.tx, proof.siblings),
            TxProof(proof.height, proof.index + 1, proof.count, proof.tx, proof.siblings),
            TxProof(proof.height, count, count, proof.tx, proof.siblings),
            TxProof(
                proof.height, index, count, proof.tx, (*proof.siblings, Hash32(ZERO_HASH))[-12:]
            ),
        ]
        if proof.siblings:
            fewer = proof.siblings[:-1]
            wrong.append(TxProof(proof.height, index, count, proof.tx, fewer))
        assert not any(verify_tx_proof(root, bad) for bad in wrong)


def test_the_state_of_an_earlier_block(app: FastAPI, chain: LocalChain) -> None:
    account = r.account_key(key("to").public)
    for height, balance in ((19, 10), (20, 200), (TIP, 200)):
        found = get(app, f"state/{account.hex()}/proof?height={height}")
        header: Header = decode(Header, bytes.fromhex(found["header"]))
        proof: StateProof = decode(StateProof, bytes.fromhex(found["proof"]))
        value = bytes.fromhex(found["value"])
        assert header.height == found["height"] == height
        assert verify_state_proof(header.state_root, account, value, proof)
        assert decode(Account, value).balance == balance
    far = ask(app, "GET", f"/api/v1/state/{account.hex()}/proof?height={TIP + 1}")
    assert far.status_code == 404
    assert "recent blocks" in far.json()["error"]["message"]


def test_openapi_says_what_the_bytes_are(app: FastAPI) -> None:
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    for path, struct in (
        ("/api/v1/light/{height}", "LightBlock"),
        ("/api/v1/headers/{first}/{last}", "HeaderRange"),
        ("/api/v1/txs/{tx_id}/proof", "TxProof"),
    ):
        answer = paths[path]["get"]["responses"]["200"]
        assert answer["description"] == f"encode({struct})"
        assert list(answer["content"]) == ["application/octet-stream"]


def test_a_node_that_has_pruned_still_leads_back(tmp_path: Path) -> None:
    """Its headers stay; bodies and the certificates between epochs' ends are gone."""
    with LocalChain(tmp_path, epoch_blocks=8) as chain:
        tx = chain.send(Transfer(key("to").public, Grains(5)), chain.learners[0])
        chain.blocks(100)
        chain.store.prune(Height(90), 10**6, lambda height: height % 8 == 0)
        app = create_app(chain)
        found: HeaderRange = decode(HeaderRange, raw(app, "headers/1/99"))
        check_ancestors(found.headers, chain.chain.tip)
        block: LightBlock = decode(LightBlock, raw(app, "light/60"))
        assert [h.height for h in block.headers] == [60, 61, 62, 63, 64]
        assert ask(app, "GET", f"/api/v1/txs/{tx.hex()}/proof").status_code == 404
