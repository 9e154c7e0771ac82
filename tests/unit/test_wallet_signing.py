"""What the wallet signs is what the chain verifies, each under its own context."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import decode, encode
from chain.crypto import verify
from chain.errors import InputError
from chain.hashes import BLOCK, ZERO_HASH
from chain.transactions import (
    Stamp,
    Transaction,
    Transfer,
    announce_digest,
    stamp_digest,
)
from chain.types import (
    ChainId,
    Epoch,
    Grains,
    Height,
    View,
    VoteKind,
    proposal_digest,
    vote_digest,
)
from wallet.keys import Keys
from wallet.signing import make_stamp, sign_announce, sign_proposal, sign_transaction, sign_vote

CHAIN = ChainId(b"\x07" * 32)
KEYS = Keys.from_seeds(*(bytes([i]) * 32 for i in range(4)))
BLOCK_HASH = BLOCK.hash(b"a block")
PAYLOAD = Transfer(KEYS.node.public, Grains(5))


def test_transaction() -> None:
    tx = sign_transaction(
        KEYS.account,
        chain_id=CHAIN,
        nonce=3,
        payload=PAYLOAD,
        fee=Grains(7),
        stamp=Stamp(Height(1), 2),
    )
    assert decode(Transaction, encode(tx)) == tx
    assert tx.sender == tx.signer == KEYS.account.public
    assert verify(tx.signer, tx.digest(), tx.signature)
    for other in (
        replace(tx, nonce=4),
        replace(tx, fee=Grains(8)),
        replace(tx, stamp=None),
        replace(tx, chain_id=ChainId(bytes(32))),
        replace(tx, sender=KEYS.node.public),
        replace(tx, payload=Transfer(KEYS.node.public, Grains(6))),
    ):
        assert not verify(other.signer, other.digest(), other.signature)


def test_transaction_by_node_key_for_its_account() -> None:
    tx = sign_transaction(
        KEYS.node, chain_id=CHAIN, nonce=0, payload=PAYLOAD, sender=KEYS.account.public
    )
    assert (tx.sender, tx.signer) == (KEYS.account.public, KEYS.node.public)
    assert verify(tx.signer, tx.digest(), tx.signature)


def test_votes_and_proposals_hold_for_one_thing_only() -> None:
    at = {"chain_id": CHAIN, "epoch": Epoch(1), "view": View(9)}
    seen = set()
    for kind in VoteKind:
        vote = sign_vote(KEYS.consensus, kind=kind, block_hash=BLOCK_HASH, **at)
        digest = vote_digest(CHAIN, kind, Epoch(1), View(9), BLOCK_HASH)
        assert verify(vote.signer, digest, vote.signature)
        seen.add(vote.signature)
    seal = sign_proposal(KEYS.consensus, block_hash=BLOCK_HASH, **at)
    digest = proposal_digest(CHAIN, Epoch(1), View(9), BLOCK_HASH)
    assert verify(seal.signer, digest, seal.signature)
    assert len(seen | {seal.signature}) == 4
    assert sign_vote(KEYS.consensus, kind=VoteKind.NULLIFY, **at).block_hash == ZERO_HASH


def test_announce_is_agreed_to_by_its_keys() -> None:
    announce = sign_announce(
        KEYS, chain_id=CHAIN, roles=3, capacity_tiles=8, node_id="12D3Koo", addresses=("/ip4/1",)
    )
    digest = announce_digest(CHAIN, KEYS.account.public, announce)
    assert verify(announce.node_key, digest, announce.node_signature)
    assert verify(announce.consensus_key, digest, announce.consensus_signature)
    stolen = announce_digest(CHAIN, KEYS.vrf.public, announce)
    assert not verify(announce.node_key, stolen, announce.node_signature)


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 12])
def test_stamp_has_its_leading_zeros(bits: int) -> None:
    stamp = make_stamp(
        chain_id=CHAIN,
        sender=KEYS.account.public,
        nonce=1,
        height=Height(10),
        block_hash=BLOCK_HASH,
        payload=PAYLOAD,
        difficulty=1 << bits,
    )
    digest = stamp_digest(CHAIN, KEYS.account.public, 1, BLOCK_HASH, PAYLOAD, stamp.work)
    assert int.from_bytes(digest, "big") >> 256 - bits == 0
    assert stamp.height == 10
    for work in range(stamp.work):  # the search skips nothing
        early = stamp_digest(CHAIN, KEYS.account.public, 1, BLOCK_HASH, PAYLOAD, work)
        assert int.from_bytes(early, "big") >> 256 - bits != 0


def test_stamp_reports_progress_and_can_be_cancelled() -> None:
    seen: list[int] = []

    class Enough(Exception):
        pass

    def progress(tries: int) -> None:
        seen.append(tries)
        if len(seen) == 3:
            raise Enough

    arguments = {
        "chain_id": CHAIN,
        "sender": KEYS.account.public,
        "nonce": 1,
        "height": Height(10),
        "block_hash": BLOCK_HASH,
        "payload": PAYLOAD,
    }
    with pytest.raises(Enough):
        make_stamp(**arguments, difficulty=1 << 64, on_progress=progress)
    assert seen == [1 << 14, 2 << 14, 3 << 14]
    with pytest.raises(InputError):
        make_stamp(**arguments, difficulty=(1 << 64) + 1)
