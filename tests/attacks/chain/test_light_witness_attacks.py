"""A light client among liars: other chains, false proofs, and witnesses of all kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.codec import decode, encode
from chain.hashes import TX, Hash32
from chain.light import LightBlock
from chain.light_proofs import HeaderRange, TxProof
from chain.types import (
    CertifiedBlock,
    Height,
)
from node.cli.blyan import program
from node.cli.session import run_program
from tests.kit.commands import runner
from tests.kit.liar import Answer, Lie
from tests.kit.lies import PAID, TIP, WHO, Run, checkpoint, only, own_set, with_field
from tests.kit.local_chain import LocalChain
from tests.kit.site import Site

# --- another chain -----------------------------------------------------------------------


def test_a_node_of_another_network(honest: Site, blyan: Run, lying: Callable[[Lie], str]) -> None:
    document = dict(honest.chain.genesis.document) | {"network": "other"}
    lie = only("genesis", lambda b: json.dumps(document).encode())
    code, said = blyan(lying(lie), *WHO, trust=checkpoint(honest, 3))
    assert (code, "is of another chain than the trusted block" in said) == (65, True), said
    renamed = only("headers/0/0", lambda b: with_chain(b, bytes(32)))
    code, said = blyan(lying(renamed), *WHO)
    assert (code, "a node of another network" in said) == (65, True), said


def with_chain(body: bytes, chain_id: bytes) -> bytes:
    found: HeaderRange = decode(HeaderRange, body)
    made = [replace(header, chain_id=chain_id) for header in found.headers]
    return encode(HeaderRange(tuple(made)))  # type: ignore[arg-type]


def test_a_genesis_with_a_longer_trust_period(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    def lie(body: bytes) -> bytes:
        document = json.loads(body)
        document["params"]["evidence_ms"] = 10**11
        document["params"]["unbonding_ms"] = 10**11 + 1
        return json.dumps(document).encode()

    code, said = blyan(lying(only("genesis", lie)), *WHO, trust=checkpoint(honest, 3))
    assert (code, "is of another chain" in said) == (65, True), said


def test_a_first_header_with_other_validators(blyan: Run, lying: Callable[[Lie], str]) -> None:
    def lie(body: bytes) -> bytes:
        found: HeaderRange = decode(HeaderRange, body)
        made = replace(found.headers[0], next_validators_hash=Hash32(bytes(32)))
        return encode(HeaderRange((made,)))

    code, said = blyan(lying(only("headers/0/0", lie)), *WHO)
    assert (code, "not what follows from the genesis file" in said) == (65, True), said


# --- transactions and tiles -----------------------------------------------------------------


def paid(chain: LocalChain) -> list[str]:
    return [row.id.hex() for row in chain.store.txs_in(Height(PAID))]


def test_wrong_proofs_of_a_transaction(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    first, second = honest.run(paid)
    other = honest.run(lambda chain: chain.store.block(Height(PAID)))
    assert other is not None

    def twist(**changes: Any) -> Callable[[bytes], bytes]:
        return lambda body: encode(replace(decode(TxProof, body), **changes))

    index = other.txs.index(next(t for t in other.txs if TX.hash(t).hex() == second))
    for lie, text in (
        (twist(tx=other.txs[index]), "another transaction"),
        (twist(index=1 - next(i for i, t in enumerate(other.txs) if TX.hash(t).hex() == first)),
         "does not lead to the transactions"),
        (twist(count=3), "does not lead to the transactions"),
        (twist(siblings=()), "does not lead to the transactions"),
        (twist(height=PAID + 1), "does not lead to the transactions"),
    ):  # fmt: skip
        code, said = blyan(lying(only(f"txs/{first}", lie)), "tx", first)
        assert (code, text in said) == (65, True), said


def test_an_outcome_is_not_taken_from_the_node(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    first, _ = honest.run(paid)
    code, said = blyan(honest.url, "tx", first)
    assert code == 0
    assert "outcome   executed" in said

    def emptied(body: bytes) -> bytes:
        """Without the transaction that may have another of its sender and nonce beside it."""
        found: CertifiedBlock = decode(CertifiedBlock, body)
        return encode(replace(found, block=replace(found.block, txs=found.block.txs[:1])))

    code, said = blyan(lying(only(f"blocks/{PAID}", emptied)), "tx", first)
    assert (code, "not the transactions of block" in said) == (65, True), said
    older = only("state/", lambda b: with_field(b, "header", json.loads(b)["header"][:-2] + "ff"))
    assert blyan(lying(older), "tx", first)[0] == 65


def test_wrong_bytes_of_a_tile(blyan: Run, lying: Callable[[Lie], str]) -> None:
    def flip(body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1])

    for lie in (flip, lambda body: body[:-1], lambda body: b""):
        code, said = blyan(lying(only("tiles/", lie)), "tile", "1:0", "--data")
        assert (code, "do not have the root" in said) == (65, True), said


# --- witnesses -------------------------------------------------------------------------------


def test_a_second_history_is_written_down_and_punished(
    honest: Site,
    forked: Site,
    blyan: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = blyan(honest.url, *WHO, "--witness", forked.url)
    assert code == 65
    assert f"two final blocks of height {PAID}" in said  # where the histories part
    file = tmp_path / f"blyan-attack-{PAID}.json"
    assert f"`blyan evidence submit {file.name}`" in said
    blocks = [decode(LightBlock, bytes.fromhex(b)) for b in json.loads(file.read_text())["blocks"]]
    assert {b.header.hash() for b in blocks} == {
        bytes.fromhex(checkpoint(site, PAID).partition(":")[2]) for site in (honest, forked)
    }
    judge_home = tmp_path / "judge"
    judge_home.mkdir()
    with LocalChain(judge_home) as judge:
        judge.blocks(2)
        accounts = [k.account.public for k in judge.validators]
        bonded = [judge.state.account(a).bonded for a in accounts]
        payer = replace(judge.validators[3], account=judge.learners[0])
        evidence = runner("evidence", judge, lambda: payer, judge_home, monkeypatch, capsys)
        code, told = evidence("submit", file.name, "--yes", "--json")
        assert (code, len(told["signers"])) == (0, 3)
        lost = [
            a for a, b in zip(accounts, bonded, strict=True) if judge.state.account(a).bonded < b
        ]
        assert lost == accounts[:3]  # who has signed both


def test_evidence_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.json"
    texts = ("", "[]", "{}", '{"evidence": 5}', '{"evidence": "zz"}', '{"evidence": "9117"}')
    for text in (*texts, "[" * 100_000, '{"evidence": null}'):
        file.write_text(text)
        assert run_program(program, "blyan", ["evidence", "submit", str(file)]) == 2
        said = capsys.readouterr().err
        assert "no file that `blyan verify` wrote" in said or "no rule punishes" in said
    assert run_program(program, "blyan", ["evidence", "submit", str(tmp_path / "none")]) == 2


def test_a_witness_that_cries_wolf(
    honest: Site, blyan: Run, lying: Callable[[Lie], str], tmp_path: Path
) -> None:
    """With validators of its own making it shows another block: that is no second history."""

    def lie(body: bytes) -> bytes:
        return encode(own_set(decode(LightBlock, body)))

    wolf = lying(only("light/", lie))
    code, said = blyan(honest.url, *WHO, "--witness", wolf)
    assert code == 3
    assert f"no witness confirms block {TIP}" in said
    assert "names another validator set" in said
    assert not list(tmp_path.glob("*.json*attack*"))
    code, said = blyan(honest.url, *WHO, "--witness", wolf, "--witness", honest.url)
    assert code == 0
    assert "does not count" in said
    assert f"witness {honest.url} shows the same block {TIP}" in said


def test_a_witness_that_is_behind_or_silent(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    behind = lying(only(f"light/{TIP}", lambda b: Answer(b"{}", 404)))
    code, said = blyan(honest.url, *WHO, "--witness", behind, "--witness", "http://127.0.0.1:1")
    assert code == 3
    assert "no witness confirms" in said
