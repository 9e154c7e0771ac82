"""The signatures on which verifiers differ: one verdict, wherever the protocol asks for one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chain.admission import check_transaction
from chain.crypto import is_prime_order_point, verify
from chain.errors import TxError
from chain.ledger import announce
from chain.state import State
from chain.transactions import Announce, Transfer
from chain.tree import StateTree
from chain.types import Grains, PubKey, Signature
from tests.kit.machine import Machine, key, keys
from tests.reference import ed25519_ref as reference
from wallet.signing import sign_announce

CASES: list[dict[str, Any]] = json.loads(reference.SIGNATURES.read_text())
FORGED = [c for c in CASES if not c["valid"] and len(c["public_key"]) == 64]


def parts(case: dict[str, Any]) -> tuple[PubKey, bytes, Signature]:
    public, message, signature = (
        bytes.fromhex(case[name]) for name in ("public_key", "message", "signature")
    )
    return PubKey(public), message, Signature(signature)


def name(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_verdict_is_the_vectors(case: dict[str, Any]) -> None:
    assert verify(*parts(case)) is case["valid"]


def test_the_vectors_are_what_the_reference_says() -> None:
    """Both directions: nothing was left out, and no verdict was taken from what it judges."""
    assert reference.signatures() == CASES
    made = json.loads(reference.REFUSED_PROOFS.read_text())
    assert reference.refused_proofs() == made


def test_the_vectors_hold_what_verifiers_differ_on() -> None:
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)
    valid = {case["name"] for case in CASES if case["valid"]}
    assert "A of mixed order, h mod q = 0 mod 8" in valid  # the equation holds: no rule is broken
    assert "A of mixed order, neither" not in valid  # those that take the cofactor in accept it
    assert "A of mixed order, h = 0 mod 8, h mod q is not" not in valid  # h is reduced first
    assert not any(n.startswith(("A of order", "R of order", "A of y", "R of y")) for n in valid)


@pytest.mark.parametrize("case", FORGED, ids=name)
def test_no_path_into_the_state_takes_what_is_no_signature(case: dict[str, Any]) -> None:
    """As a sender's, and as the keys of an announcement."""
    public, _, signature = parts(case)
    machine = Machine(funded=("ann",))
    tx = machine.tx(key("ann"), Transfer(key("ben").public, Grains(1)))
    forged = replace(tx, sender=public, signer=public, nonce=0, signature=signature)
    with pytest.raises(TxError) as refused:
        check_transaction(machine.state, machine.genesis, forged)
    assert refused.value.code == "bad_signature"
    owner, chain_id = keys("ann"), machine.genesis.chain_id
    good: Announce = sign_announce(
        owner, chain_id=chain_id, roles=2, capacity_tiles=0, node_id="x", addresses=()
    )
    for bad in (
        replace(good, node_key=public, node_signature=signature),
        replace(good, consensus_key=public, consensus_signature=signature),
    ):
        with pytest.raises(TxError) as refused:
            announce(State(StateTree.empty()), chain_id, owner.account.public, bad)
        assert refused.value.code == "bad_signature"


@pytest.mark.parametrize(("says", "point"), list(reference.small_order()))
def test_no_vrf_key_has_small_order(says: str, point: bytes) -> None:
    assert not is_prime_order_point(point), says
