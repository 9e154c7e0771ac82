"""What executing, certifying and proving cost on one core, without disk or network."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from bench.measure import Row, at_least, at_most, quantile, seconds
from chain.certificates import assemble, verify_certificate, votes_of
from chain.codec import encode
from chain.crypto import verify
from chain.errors import invariant
from chain.hashes import STATE_NODE, ZERO_HASH, Hash32
from chain.signed import signed
from chain.transactions import Transfer, decode_transaction
from chain.tree import StateTree, verify_state_proof
from chain.types import (
    Certificate,
    ChainId,
    Grains,
    Header,
    Height,
    PubKey,
    Signature,
    TimeMs,
    ValidatorSet,
    View,
    Vote,
    VoteKind,
    vote_digest,
)
from tests.kit.machine import Machine, key
from wallet.keys import KeyPair

TARGET_TRANSFERS = 10_000.0  # a second
TARGET_APPLY_US = 60.0
TARGET_HEADERS_S = 0.5
TARGET_PROOF_BYTES, TARGET_PROOF_US = 1536.0, 100.0
VALIDATORS = 4
Signed = tuple[PubKey, Hash32, Signature]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is executed."""

    senders: int = 256
    block_txs: int = 2048
    blocks: int = 5
    headers: int = 1000
    keys: int = 1_000_000
    proofs: int = 2000


SMALL = Amount(4, 8, 2, 5, 1000, 10)


def transfers(amount: Amount) -> Iterator[Row]:
    """Blocks of transfers between accounts that are hot, from bytes to a state root. The floor is
    nothing but their signatures, verified by PyNaCl in turns with them."""
    names = tuple(f"sender {i}" for i in range(amount.senders))
    machine = Machine(VALIDATORS, funded=names)
    senders = [key(name) for name in names]
    whole, bare, known = [], [], []
    gc.collect()
    gc.freeze()  # as a node does when it has started
    for number in range(amount.blocks):
        raws = _block(machine, senders, amount.block_txs, number)
        bare.append(seconds(partial(_verify, [_signature(raw) for raw in raws])))
        before = (machine.tree, machine.height, machine.time_ms, machine.parent)
        signed.clear()
        whole.append(seconds(partial(machine.ok, *raws)))
        root = machine.tree.root
        machine.tree, machine.height, machine.time_ms, machine.parent = before
        known.append(seconds(partial(machine.ok, *raws)))  # again, signatures known by now
        invariant(machine.tree.root == root, "the same block gives the same root")
    gc.unfreeze()
    signed.clear()
    size = amount.block_txs
    rate, most = size / quantile(whole, 0.5), size / quantile(bare, 0.5)
    yield at_least("transfers_speed", rate, "tx/s", TARGET_TRANSFERS, most)
    us = quantile(known, 0.5) / size * 1e6
    yield at_most("transfers_apply_root", us, "µs", TARGET_APPLY_US)


def _block(machine: Machine, senders: list[KeyPair], count: int, number: int) -> list[bytes]:
    each = count // len(senders)
    raws = []
    for i in range(count):
        sender, to = senders[i % len(senders)], senders[(i * 7 + 1) % len(senders)]
        nonce = number * each + i // len(senders)
        tx = machine.tx(sender, Transfer(to.public, Grains(1)), nonce=nonce)
        raws.append(encode(tx))
    return raws


def _signature(raw: bytes) -> Signed:
    tx = decode_transaction(raw)
    return tx.signer, tx.digest(), tx.signature


def _verify(signatures: list[Signed]) -> None:
    for signature in signatures:
        invariant(verify(*signature), "the signature holds")


def headers(amount: Amount) -> Iterator[Row]:
    """Headers that follow one another, each with a finalization by all four validators. The floor
    is the signatures alone."""
    validators, certified = _certified(amount.headers)
    chain_id = certified[0][0].chain_id
    taken = seconds(lambda: _follow(chain_id, validators, certified))
    signatures = [s for _, c in certified for s in _signatures(chain_id, validators, c)]
    floor = seconds(partial(_verify, signatures))
    yield at_most("headers_verified", taken, "s", TARGET_HEADERS_S, floor)


def _follow(
    chain_id: ChainId, validators: ValidatorSet, certified: list[tuple[Header, Certificate]]
) -> None:
    """What a node or a light client checks of consecutive headers of one epoch."""
    for (parent, _), (header, certificate) in pairwise(certified):
        invariant(header.parent == parent.hash(), "headers follow one another")
        invariant(certificate.block_hash == header.hash(), "a certificate is of its header")
        verify_certificate(chain_id, validators, certificate)


def _signatures(
    chain_id: ChainId, validators: ValidatorSet, certificate: Certificate
) -> Iterator[Signed]:
    for vote in votes_of(validators, certificate):
        digest = vote_digest(chain_id, vote.kind, vote.epoch, vote.view, vote.block_hash)
        yield vote.signer, digest, vote.signature


def _certified(count: int) -> tuple[ValidatorSet, list[tuple[Header, Certificate]]]:
    machine = Machine(VALIDATORS)
    pairs = [keys.consensus for keys in machine.validators]
    validators = machine.genesis.validator_set
    header, found = machine.genesis_header, []
    for number in range(1, count + 1):
        header = Header(
            1,
            header.chain_id,
            header.epoch,
            header.view,
            Height(number),
            header.hash(),
            TimeMs(header.time_ms + 1),
            pairs[0].public,
            header.tx_root,
            header.state_root,
            header.validators_hash,
            header.next_validators_hash,
            bytes(64),
            bytes(80),
            header.evidence_root,
        )
        found.append((header, _finalization(machine.genesis.chain_id, validators, pairs, header)))
    return validators, found


def _finalization(
    chain_id: ChainId, validators: ValidatorSet, pairs: list[KeyPair], header: Header
) -> Certificate:
    kind, epoch, view, block = VoteKind.FINALIZE, header.epoch, View(header.height), header.hash()
    digest = vote_digest(chain_id, kind, epoch, view, block)
    votes = [Vote(kind, epoch, view, block, pair.public, pair.sign(digest)) for pair in pairs]
    return assemble(validators, votes)


def proofs(amount: Amount) -> Iterator[Row]:
    """A key's proof under a state root, as its encoding goes over the wire. The floor of a check
    is its hashes."""
    content = {_key(i): i.to_bytes(32, "big") for i in range(amount.keys)}
    tree = StateTree.empty().set_many(content)
    sizes, taken, floors = [], [], []
    for i in range(amount.proofs):
        name = _key(i * (amount.keys // amount.proofs))
        proof = tree.prove(name)
        raw = encode(proof)
        sizes.append(len(raw))
        check = partial(verify_state_proof, tree.root, name, content[name], proof)
        invariant(check(), "the proof holds")
        taken.append(seconds(check) * 1e6)
        floors.append(seconds(partial(_hashes, len(proof.siblings))) * 1e6)
    yield at_most("proof_size", max(sizes), "bytes", TARGET_PROOF_BYTES)
    yield at_most(
        "proof_checked_p95", quantile(taken, 0.95), "µs", TARGET_PROOF_US, quantile(floors, 0.95)
    )


def _key(number: int) -> bytes:
    return b"acct/" + number.to_bytes(32, "big")


def _hashes(count: int) -> None:
    digest = ZERO_HASH
    for _ in range(count + 3):  # of the path, of the value and of the leaf
        digest = STATE_NODE.hash(digest, digest)
