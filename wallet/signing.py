"""Everything a key signs, each under its own context (docs/spec/wallet.md).

The digests come from `chain`, so a verifier and a signer cannot disagree about them. There is
no way to have a key sign bytes of a caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from blake3 import blake3

from chain.codec import encode
from chain.errors import InputError
from chain.hashes import STAMP, ZERO_HASH, Hash32
from chain.transactions import Announce, Payload, Stamp, Transaction, announce_digest, tx_digest
from chain.types import (
    ChainId,
    Epoch,
    Grains,
    Height,
    ProposalSeal,
    PubKey,
    Signature,
    View,
    Vote,
    VoteKind,
    proposal_digest,
    u64_be,
    vote_digest,
)
from wallet.keys import KeyPair, Keys

NO_FEE = Grains(0)
_UNSIGNED = Signature(bytes(64))
_STAMP_BATCH = 1 << 14  # tries between two calls of `on_progress`; about 20 ms
MAX_DIFFICULTY = 1 << 64  # beyond it no work of 64 bits need exist


def sign_transaction(
    key: KeyPair,
    *,
    chain_id: ChainId,
    nonce: int,
    payload: Payload,
    fee: Grains = NO_FEE,
    stamp: Stamp | None = None,
    sender: PubKey | None = None,
) -> Transaction:
    """A transaction signed by `key`. `sender` is the account if `key` is its node key."""
    tx = Transaction(
        chain_id=chain_id,
        sender=key.public if sender is None else sender,
        signer=key.public,
        nonce=nonce,
        fee=fee,
        stamp=stamp,
        payload=payload,
        signature=_UNSIGNED,
    )
    return replace(tx, signature=key.sign(tx_digest(tx)))


def make_stamp(
    *,
    chain_id: ChainId,
    sender: PubKey,
    nonce: int,
    height: Height,
    block_hash: Hash32,
    payload: Payload,
    difficulty: int,
    on_progress: Callable[[int], None] | None = None,
) -> Stamp:
    """Proof of work over `chain.transactions.stamp_digest`: as an integer, times `difficulty`, it
    stays below 2**256.

    Takes `difficulty` tries on average, about a microsecond each. `on_progress` gets the number of
    tries so far every few milliseconds; it cancels the search by raising.
    """
    if not 1 <= difficulty <= MAX_DIFFICULTY:
        raise InputError(f"a difficulty of {difficulty} tries is outside 1 to 2**64")
    prefix = blake3(derive_key_context=STAMP.name)
    for part in (chain_id, sender, u64_be(nonce), block_hash, encode(payload)):
        prefix.update(part)
    # Big-endian bytes compare like integers.
    bound = (-(-(1 << 256) // difficulty)).to_bytes(33, "big")[1:] if difficulty > 1 else None
    for start in range(0, 1 << 64, _STAMP_BATCH):
        for work in range(start, start + _STAMP_BATCH):
            hasher = prefix.copy()
            hasher.update(work.to_bytes(8, "big"))
            if bound is None or hasher.digest() < bound:
                return Stamp(height=height, work=work)
        if on_progress is not None:
            on_progress(start + _STAMP_BATCH)
    raise InputError("no stamp exists for this transaction; change its nonce or payload")


def sign_announce(
    keys: Keys,
    *,
    chain_id: ChainId,
    roles: int,
    capacity_tiles: int,
    node_id: str,
    addresses: tuple[str, ...],
) -> Announce:
    """The payload by which an account authorises its node's keys; each key shows it agrees."""
    draft = Announce(
        roles=roles,
        capacity_tiles=capacity_tiles,
        node_key=keys.node.public,
        consensus_key=keys.consensus.public,
        vrf_key=keys.vrf.public,
        node_id=node_id,
        addresses=addresses,
        node_signature=_UNSIGNED,
        consensus_signature=_UNSIGNED,
    )
    digest = announce_digest(chain_id, keys.account.public, draft)
    return replace(
        draft,
        node_signature=keys.node.sign(digest),
        consensus_signature=keys.consensus.sign(digest),
    )


def sign_vote(
    key: KeyPair,
    *,
    chain_id: ChainId,
    kind: VoteKind,
    epoch: Epoch,
    view: View,
    block_hash: Hash32 = ZERO_HASH,
) -> Vote:
    """A consensus vote; `block_hash` stays zero for nullify."""
    digest = vote_digest(chain_id, kind, epoch, view, block_hash)
    return Vote(int(kind), epoch, view, block_hash, key.public, key.sign(digest))


def sign_proposal(
    key: KeyPair, *, chain_id: ChainId, epoch: Epoch, view: View, block_hash: Hash32
) -> ProposalSeal:
    """A leader's seal: 'in (epoch, view) I propose this block'."""
    digest = proposal_digest(chain_id, epoch, view, block_hash)
    return ProposalSeal(epoch, view, block_hash, key.public, key.sign(digest))
