"""`blyan verify` against a node that tells the truth: what is said, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chain.address import format_address
from chain.codec import encode
from chain.hashes import TX
from chain.transactions import Transfer
from chain.types import Grains, Height
from node.api.app import create_app
from node.cli import verify as command  # before its Client is replaced
from node.cli.blyan import program
from node.cli.session import run_program
from node.client import Client
from tests.kit.local_chain import START_MS, STEP_MS, LocalChain, key
from wallet.signing import sign_transaction

Verify = Callable[..., tuple[int, Any]]
PAID = 30  # height of the block with transfers
TIP = 40


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Epochs of 8. Block 30 has a transfer, the same transfer again, and one that is refused."""
    with LocalChain(tmp_path_factory.mktemp("chain"), epoch_blocks=8) as made:
        for height in range(1, TIP + 1):
            extra = transfers(made) if height == PAID else ()
            made.block(*extra, certify=height not in (11, 12))
        yield made


def transfers(chain: LocalChain) -> tuple[bytes, ...]:
    def sign(nonce: int, grains: int, name: int) -> bytes:
        return encode(
            sign_transaction(
                chain.learners[name],
                chain_id=chain.genesis.chain_id,
                nonce=nonce,
                payload=Transfer(key("to").public, Grains(grains)),
                fee=Grains(1000),
            )
        )

    paid = sign(0, 5, 0)
    return paid, sign(0, 10**17, 1), paid, sign(1, 7, 0), sign(0, 8, 2), sign(0, 10**17, 2), b"?"


def tx_ids(chain: LocalChain) -> list[str]:
    return [TX.hash(raw).hex() for raw in transfers(chain)]


@pytest.fixture
def verify(
    chain: LocalChain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Verify:
    """Run `blyan verify …` a second after the newest block."""
    app = create_app(chain)

    def client(url: str, token: str | None = None) -> Client:
        return Client(url, token, httpx.ASGITransport(app))

    now = START_MS + (TIP + 1) * STEP_MS
    monkeypatch.setattr("node.client.Client", client)
    monkeypatch.setattr(command, "Client", client)
    monkeypatch.setattr(command, "wall_ms", lambda: now)
    genesis = tmp_path / "genesis.json"
    genesis.write_text(json.dumps(dict(chain.genesis.document)))

    def call(*words: str, anchor: str | None = "genesis") -> tuple[int, Any]:
        trust = ["--genesis", str(genesis)] if anchor == "genesis" else []
        trust += ["--trust", anchor] if anchor not in ("genesis", None) else []
        common = ["--home", str(tmp_path / "none"), "--node", "http://localhost"]
        code = run_program(program, "blyan", ["verify", *words, *trust, *common])
        said = capsys.readouterr()
        text = said.out if code in (0, 1) and said.out else said.err
        return code, json.loads(text) if "--json" in words else text

    return call


def checkpoint(chain: LocalChain, height: int) -> str:
    header = chain.store.header(Height(height))
    assert header is not None
    return f"{height}:{header.hash().hex()}"


def test_an_account_from_a_trusted_block(chain: LocalChain, verify: Verify) -> None:
    name = format_address(key("to").public)
    code, found = verify("account", name, "--json", anchor=checkpoint(chain, 3))
    assert code == 0
    assert found["present"]
    assert found["value"]["balance"] == 5 + 7 + 8
    assert (found["height"], found["steps"]) == (TIP, 1)
    assert found["next_trust"] == checkpoint(chain, TIP)
    assert found["checked"][0] == "block 3 has the hash that you trust"
    assert any("3 of 4 validators" in line and "% of stake" in line for line in found["checked"])
    code, text = verify("account", name)
    assert code == 0
    assert "genesis of 'local': chain id, time and 4 validators computed from the file" in text
    assert "not checked\n  that no second history exists" in text
    assert f"next time: --trust {checkpoint(chain, TIP)}" in text


def test_an_account_at_earlier_blocks(chain: LocalChain, verify: Verify) -> None:
    name = format_address(chain.learners[0].public)
    trust = checkpoint(chain, 20)
    for height, nonce in ((PAID, 2), (PAID - 1, 0), (20, 0), (12, 0)):
        code, found = verify("account", name, "--json", "--height", str(height), anchor=trust)
        assert (code, found["height"], found["value"]["nonce"]) == (0, height, nonce)
    assert any("ancestor of block 20: 8 header(s)" in line for line in found["checked"])
    code, found = verify("account", name, "--json", "--height", "11")
    assert any("by the certificate of its descendant, block 13" in c for c in found["checked"])
    code, found = verify("account", name, "--json", "--height", "0")
    assert (code, found["height"]) == (0, 0)
    code, text = verify("account", name, "--height", "999")
    assert code == 2
    assert "the state after block 999 is not here" in text


def test_what_the_chain_proves_not_to_have(chain: LocalChain, verify: Verify) -> None:
    absent = ("account", format_address(key("nobody").public)), ("dataset", "ab" * 32)
    for kind, name in (*absent, ("delta", "cd" * 32)):
        code, text = verify(kind, name)
        assert code == 1
        assert "the chain has none" in text
        assert "is absent: no such key stands under the state root" in text
        code, found = verify(kind, name, "--json")
        assert (code, found["present"], found["value"]) == (1, False, None)


@pytest.mark.parametrize(
    ("index", "outcome"),
    [(0, "executed"), (1, "refused"), (3, "executed"), (4, "unknown"), (6, "refused")],
)
def test_a_transaction_and_its_outcome(
    chain: LocalChain, verify: Verify, index: int, outcome: str
) -> None:
    """The fifth and sixth have one sender and nonce: one was carried out, and headers alone do
    not tell which. The seventh is no transaction at all."""
    for trust in (checkpoint(chain, 20), checkpoint(chain, TIP)):
        code, found = verify("tx", tx_ids(chain)[index], "--json", anchor=trust)
        assert code == 0
        assert (found["value"]["outcome"], found["height"]) == (outcome, PAID)
        assert any(f"of 7 in block {PAID}" in line for line in found["checked"])
    receipt = next(r for r in chain.store.txs_in(Height(PAID)) if r.position == index)
    assert outcome == "unknown" or (receipt.code == "ok") == (outcome == "executed")


def test_a_transaction_whose_states_are_gone(
    chain: LocalChain, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(chain.chain), "tree_at", lambda self, height: None)
    code, found = verify("tx", tx_ids(chain)[0], "--json")
    assert (code, found["value"]["outcome"]) == (0, "unknown")
    assert any("whether it was carried out or refused" in line for line in found["unchecked"])


def test_a_transaction_that_nobody_sent(verify: Verify) -> None:
    code, text = verify("tx", "00" * 32)
    assert code == 2
    assert "knows no final block with transaction" in text


def test_a_tile_and_its_bytes(chain: LocalChain, verify: Verify) -> None:
    name = chain.specs[1].name
    code, found = verify("tile", f"{name}:0", "--json")
    assert (code, found["value"]["name"], found["value"]["tile"]) == (0, name, 0)
    assert any("--data fetches" in line for line in found["unchecked"])
    code, found = verify("tile", "1:0", "--data", "--json")
    assert code == 0
    assert any("bytes hash to the tile root" in line for line in found["checked"])
    assert verify("tile", "1:99")[0] == 2
    assert verify("tile", "nothing:0")[0] == 2


def test_witnesses_confirm(chain: LocalChain, verify: Verify) -> None:
    name = format_address(key("to").public)
    words = ("account", name, "--witness", "http://127.0.0.1:1", "--witness", "http://127.0.0.1:2")
    code, found = verify(*words, "--json")
    assert code == 0
    assert [w["agrees"] for w in found["witnesses"]] == [True, True]
    assert not any("second history" in line for line in found["unchecked"])
    code, found = verify(*words, "--json", "--height", "5", anchor=checkpoint(chain, 9))
    assert found["witnesses"] == []
    assert any("witnesses were not asked" in line for line in found["unchecked"])


def test_what_is_too_old_to_be_trusted(
    chain: LocalChain, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward no more; but what is below a trusted block hangs on hashes alone."""
    period = 2 * chain.genesis.params.evidence_ms // 3
    now = START_MS + period + 7 * STEP_MS
    monkeypatch.setattr(command, "wall_ms", lambda: now)
    name = format_address(chain.learners[0].public)
    code, text = verify("account", name)
    assert code == 2
    assert "the genesis block is 6 min 47 s old" in text
    assert "trusted for 6 min 40 s" in text
    old = checkpoint(chain, 7)
    code, text = verify("account", name, anchor=old)
    assert code == 2
    assert f"the checkpoint {old} is 6 min 40 s old" in text
    assert verify("account", name, anchor=checkpoint(chain, 8))[0] == 0
    assert verify("account", name, "--height", "3", anchor=old)[0] == 0


@pytest.mark.parametrize(
    "trust",
    [
        "12",
        "12:",
        "12:zz",
        "12:" + "ab" * 31,
        "-1:" + "ab" * 32,
        "x:" + "ab" * 32,
        "٣:" + "ab" * 32,
    ],
)
def test_what_is_no_checkpoint(verify: Verify, trust: str) -> None:
    code, text = verify("account", format_address(key("to").public), anchor=trust)
    assert code == 2
    assert "expected HEIGHT:HASH" in text


def test_nothing_to_trust(verify: Verify) -> None:
    code, text = verify("account", format_address(key("to").public), anchor=None)
    assert code == 2
    assert "nothing to trust" in text


def test_a_wrong_checkpoint(chain: LocalChain, verify: Verify) -> None:
    code, text = verify("account", format_address(key("to").public), anchor="5:" + "ab" * 32)
    assert code == 65
    assert "not the one that you trust" in text
