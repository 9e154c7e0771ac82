"""Blocks, headers and certificates that are wrong somewhere; sums at 2**64; states built deep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from chain import limits
from chain import records as r
from chain.certificates import assemble, is_quorum, verify_certificate
from chain.codec import decode, encode
from chain.errors import BlockError, DecodeError, VerifyError
from chain.execute import Context, Execution, check_and_execute, seal_header
from chain.hashes import STATE_KEY, STATE_LEAF, STATE_NODE, ZERO_HASH, Hash32
from chain.plain import pack
from chain.transactions import Bond, Payload, Transfer, Unbond
from chain.tree import STATE_VALUE, StateProof, StateTree, verify_state_proof
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Grains,
    Header,
    Height,
    PubKey,
    Signature,
    Stake,
    TimeMs,
    View,
    VoteKind,
    tx_root,
)
from tests.kit.machine import Machine, key
from wallet.signing import sign_vote

TOP = 2**64 - 1
ANN, BEN = key("ann"), key("ben")

# --- many bad transactions -----------------------------------------------------------------


def test_ten_thousand_transactions_are_no_block() -> None:
    header = Machine().genesis_header
    tree = [9, _plain(header), [b"x"] * 10_000, []]
    began = time.process_time()
    with pytest.raises(DecodeError, match="10000 items where at most 4096 are allowed"):
        decode(Block, pack(tree))
    assert time.process_time() - began < 0.5
    with pytest.raises(DecodeError, match="at most 4096"):
        encode(Block(header, (b"x",) * 10_000, ()))


def _plain(header: Header) -> list[Any]:
    return [3, *(getattr(header, f.name) for f in fields(header))]


def bad_signatures(machine: Machine, number: int) -> bytes:
    tx = machine.tx(ANN, Transfer(BEN.public, Grains(number + 1)))
    return encode(replace(tx, signature=Signature(bytes(63) + bytes([number % 16]))))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda m, n: Random(n).randbytes(200), "bad_encoding"),
        (lambda m, n: b"\x98" * (n % 100) + b"\xdc\xff\xff" * 100, "bad_encoding"),
        (bad_signatures, "bad_signature"),
        (lambda m, n: encode(m.tx(ANN, Transfer(BEN.public, Grains(1)), nonce=1 + n)), "bad_nonce"),
        (
            lambda m, n: encode(m.tx(ANN, Transfer(BEN.public, Grains(10**18)))),
            "insufficient_funds",
        ),
    ],
    ids=["noise", "nested claims", "bad signatures", "bad nonces", "no funds"],
)
def test_a_full_block_of_what_is_refused_costs_little_and_changes_nothing(
    make: Callable[[Machine, int], bytes], code: str
) -> None:
    machine = Machine(funded=("ann",))
    raws = [make(machine, n) for n in range(limits.MAX_BLOCK_TXS)]
    before = {k: v for k, v in machine.tree.items() if k.startswith(b"acct/")}
    began = time.process_time()
    receipts = machine.block(*raws)
    took = time.process_time() - began
    assert {receipt.code for receipt in receipts} == {code}
    assert len(receipts) == limits.MAX_BLOCK_TXS
    assert {k: v for k, v in machine.tree.items() if k.startswith(b"acct/")} == before
    assert took < 4.0, f"{took:.1f} s of processor time"  # a verification each is 0.2 s


# --- sums at 2**64 -------------------------------------------------------------------------


def rich(balance: int, bonded: int = 0, name: str = "ann") -> Machine:
    machine = Machine(funded=("ann", "ben"), min_bond_grains=1)
    state = machine.state
    state.put_account(key(name).public, balance=balance, bonded=bonded)
    machine.tree = state.commit()
    return machine


@pytest.mark.parametrize(
    ("machine", "payload", "fee"),
    [
        (rich(TOP, name="ben"), Transfer(BEN.public, Grains(5)), 1000),
        (rich(10**6), Transfer(BEN.public, Grains(TOP)), 1000),
        (rich(10**6), Transfer(BEN.public, Grains(TOP)), TOP),
        (rich(10**6), Transfer(BEN.public, Grains(1)), TOP),
        (rich(TOP), Transfer(BEN.public, Grains(TOP - 999)), 1000),
        (rich(10**6, bonded=TOP), Bond(Grains(10)), 1000),
        (rich(10**6), Bond(Grains(TOP)), 1000),
        (rich(10**6, bonded=5), Unbond(Grains(TOP)), 1000),
    ],
)
def test_sums_that_leave_64_bits_are_refused_and_change_nothing(
    machine: Machine, payload: Payload, fee: int
) -> None:
    before = {k: v for k, v in machine.tree.items() if k.startswith((b"acct/", b"unbd/"))}
    (receipt,) = machine.block(encode(machine.tx(ANN, payload, fee=fee)))
    assert receipt.code in ("insufficient_funds", "insufficient_bond", "bad_encoding")
    after = {k: v for k, v in machine.tree.items() if k.startswith((b"acct/", b"unbd/"))}
    assert after == before


def test_a_fee_that_its_proposer_cannot_hold_is_refused() -> None:
    machine = Machine(funded=("ann",))
    state = machine.state
    for validator in machine.validators:
        state.put_account(validator.account.public, balance=TOP)
    machine.tree = state.commit()
    (receipt,) = machine.block(encode(machine.tx(ANN, Transfer(BEN.public, Grains(1)))))
    assert receipt.code == "bad_encoding"
    assert machine.state.account(BEN.public).balance == 0


def test_stakes_are_summed_without_a_bound() -> None:
    total = Stake(512 * TOP)
    assert is_quorum(Stake(342 * TOP), total)
    assert not is_quorum(Stake(total * 2 // 3), total)
    assert is_quorum(Stake(total * 2 // 3 + 1), total)


@pytest.mark.parametrize("name", ["height", "epoch", "view", "time_ms"])
def test_numbers_of_a_header_end_at_64_bits(name: str) -> None:
    header = Machine().genesis_header
    assert decode(Header, encode(replace(header, **{name: TOP})))
    for bad in (TOP + 1, -1):
        with pytest.raises(DecodeError):
            encode(replace(header, **{name: bad}))


# --- headers -------------------------------------------------------------------------------


class Sealed:
    """A valid block after genesis, and what a validator says to others in its place."""

    def __init__(self) -> None:
        self.m = Machine(funded=("ann",))
        genesis = self.m.genesis
        validator = self.m.validators[1]
        ctx = Context(
            Height(1),
            TimeMs(genesis.time_ms + 5),
            Epoch(0),
            View(1),
            self.m.genesis_header.hash(),
            validator.consensus.public,
            b"v" * 64,
        )
        self.txs = (encode(self.m.tx(ANN, Transfer(BEN.public, Grains(1)))),)
        execution = Execution(self.m.tree, genesis, self.m.rules, ctx)
        for raw in self.txs:
            execution.apply(raw)
        done = execution.finish()
        header = seal_header(ctx, genesis, self.txs, (), done, b"p" * 80)
        self.block = Block(header, self.txs, ())

    def check(self, block: Block) -> None:
        m = self.m
        check_and_execute(m.tree, m.genesis, m.rules, m.genesis_header, block)


OTHER = {
    "version": 2,
    "chain_id": b"c" * 32,
    "epoch": 1,
    "view": 2,
    "height": 2,
    "parent": b"p" * 32,
    "time_ms": 0,
    "proposer": key("stranger").public,
    "tx_root": b"t" * 32,
    "state_root": b"s" * 32,
    "validators_hash": b"v" * 32,
    "next_validators_hash": b"n" * 32,
    "vrf_output": b"w" * 64,
    "evidence_root": b"e" * 32,
}


@pytest.mark.parametrize("name", [f.name for f in fields(Header)])
def test_a_header_with_any_field_altered_is_refused(name: str) -> None:
    """The VRF's proof is the one thing that execution does not look at: ChainService does."""
    sealed = Sealed()
    sealed.check(sealed.block)
    if name == "vrf_proof":
        return
    altered = replace(sealed.block.header, **{name: OTHER[name]})
    with pytest.raises(BlockError):
        sealed.check(replace(sealed.block, header=altered))


@pytest.mark.parametrize("time_ms", [0, -1, limits.MAX_TIME_MS + 1, TOP])
def test_times_before_the_parent_and_beyond_the_protocol_are_refused(time_ms: int) -> None:
    sealed = Sealed()
    parent_ms = sealed.m.genesis_header.time_ms
    at = TimeMs(parent_ms + time_ms if time_ms <= 0 else time_ms)
    header = replace(sealed.block.header, time_ms=at)
    with pytest.raises(BlockError, match="time"):
        sealed.check(replace(sealed.block, header=header))


@pytest.mark.parametrize("change", ["twice", "dropped", "added", "swapped"])
def test_a_body_that_is_not_the_headers_is_refused(change: str) -> None:
    sealed = Sealed()
    (raw,) = sealed.txs
    bodies = {"twice": (raw, raw), "dropped": (), "added": (raw, b"x"), "swapped": (raw[:-1],)}
    with pytest.raises(BlockError, match="transactions"):
        sealed.check(replace(sealed.block, txs=bodies[change]))


def test_no_two_lists_of_transactions_share_a_root() -> None:
    """Counts and places are bound: an odd one is not the same as itself twice."""
    a, b, c = b"a", b"b", b"c"
    lists = [(), (a,), (a, a), (a, b), (b, a), (a, b, c), (a, b, c, c), (a, b, b), (a + b,), (b"",)]
    assert len({tx_root(txs) for txs in lists}) == len(lists)


# --- certificates --------------------------------------------------------------------------

MACHINE = Machine(validators=9)
SET, CHAIN = MACHINE.genesis.validator_set, MACHINE.genesis.chain_id
BLOCK = Hash32(b"b" * 32)


def votes(count: int, **changes: Any) -> list[Any]:
    by_key = {k.consensus.public: k.consensus for k in MACHINE.validators}
    at: dict[str, Any] = {"kind": VoteKind.FINALIZE, "epoch": Epoch(2), "view": View(5)}
    at |= {"block_hash": BLOCK} | changes
    keys = [by_key[v.consensus_key] for v in SET.members[:count]]
    return [sign_vote(k, chain_id=CHAIN, **at) for k in keys]


GOOD = assemble(SET, votes(7))
ALL = assemble(SET, votes(9))
BAD: dict[str, Certificate] = {
    "no quorum": assemble(SET, votes(6)),
    "empty": replace(GOOD, signers=bytes(2), signatures=()),
    "no bitmap": replace(GOOD, signers=b"", signatures=()),
    "a bitmap too short": replace(GOOD, signers=GOOD.signers[:1]),
    "a bitmap too long": replace(GOOD, signers=GOOD.signers + b"\0"),
    "signers beyond the set": replace(
        GOOD, signers=b"\x7f\x02", signatures=(*GOOD.signatures, GOOD.signatures[0])
    ),
    "six and one who is unknown": replace(GOOD, signers=b"\x3f\x02", signatures=GOOD.signatures),
    "six signers, the last signature twice": replace(
        GOOD, signatures=(*GOOD.signatures[:6], GOOD.signatures[5])
    ),
    "one signature seven times": replace(GOOD, signatures=GOOD.signatures[:1] * 7),
    "a signature more than signers": replace(
        GOOD, signatures=(*GOOD.signatures, GOOD.signatures[-1])
    ),
    "a signature less than signers": replace(GOOD, signatures=GOOD.signatures[:-1]),
    "signatures in another order": replace(GOOD, signatures=GOOD.signatures[::-1]),
    "another signer for one": replace(GOOD, signers=b"\xbf\x00"),
    "another kind": replace(GOOD, kind=VoteKind.NOTARIZE),
    "an unknown kind": replace(GOOD, kind=4),
    "kind 0": replace(GOOD, kind=0),
    "a nullification of a block": replace(GOOD, kind=VoteKind.NULLIFY),
    "another epoch": replace(GOOD, epoch=Epoch(3)),
    "another view": replace(GOOD, view=View(6)),
    "view 0": assemble(SET, votes(7, view=View(0))),
    "another block": replace(GOOD, block_hash=Hash32(b"c" * 32)),
    "the zero block": assemble(SET, votes(7, block_hash=ZERO_HASH)),
}


def test_the_good_certificates_hold() -> None:
    verify_certificate(CHAIN, SET, GOOD)
    verify_certificate(CHAIN, SET, ALL)


@pytest.mark.parametrize("says", BAD)
def test_a_certificate_that_is_wrong_anywhere_does_not_hold(says: str) -> None:
    with pytest.raises(VerifyError):
        verify_certificate(CHAIN, SET, BAD[says])


def test_a_certificate_holds_for_its_epochs_set_only() -> None:
    strangers = Machine(validators=10).genesis.validator_set
    fewer = replace(SET, members=SET.members[:8])
    shuffled = replace(SET, members=SET.members[::-1])
    for members in (strangers, fewer, shuffled):
        with pytest.raises(VerifyError):
            verify_certificate(CHAIN, members, GOOD)


# --- a state built to be deep --------------------------------------------------------------


def ground(count: int) -> tuple[PubKey, PubKey, int]:
    """Of so many account keys the two whose paths agree longest, and in how many bits."""
    names = [PubKey(n.to_bytes(32, "big")) for n in range(count)]
    paths = sorted((int.from_bytes(STATE_KEY.hash(r.account_key(n)), "big"), n) for n in names)
    near = [(a ^ b).bit_length() for (a, _), (b, _) in pairwise(paths)]
    at = near.index(min(near))
    return paths[at][1], paths[at + 1][1], 256 - near[at]


def test_ground_keys_make_proofs_long_but_not_wrong_or_slow() -> None:
    """Anyone can send grains to keys it has ground: 40,000 tries give two with 24 bits in common.
    Every bit more doubles the work, and costs one hash in the proofs of those two keys alone."""
    one, two, shared = ground(40_000)
    assert shared >= 24
    tree = StateTree.empty().set_many({r.account_key(k): b"grains" for k in (one, two)})
    others = {f"other/{n}".encode(): b"x" for n in range(1000)}
    tree = tree.set_many(others)
    for name in (one, two):
        at = r.account_key(name)
        proof = tree.prove(at)
        assert len(proof.siblings) == shared + 1
        assert len(encode(proof)) < 60 + 34 * (shared + 1)
        assert verify_state_proof(tree.root, at, b"grains", proof)
        assert not verify_state_proof(tree.root, at, b"other", proof)
    assert max(len(tree.prove(k).siblings) for k in others) <= shared + 1
    alone = tree.set_many({r.account_key(two): None})
    assert alone.root == StateTree.empty().set_many(others | {r.account_key(one): b"grains"}).root


def deep_proof(depth: int) -> tuple[Hash32, bytes, StateProof]:
    """The root under which a key lies `depth` branches deep, with siblings of anyone's choice."""
    name = b"acct/deep"
    path = STATE_KEY.hash(name)
    siblings = tuple(Hash32(bytes([1 + i % 255]) * 32) for i in range(depth))
    digest = STATE_LEAF.hash(path, STATE_VALUE.hash(b"value"))
    for i in reversed(range(depth)):
        bit = path[i // 8] >> (7 - i % 8) & 1
        pair = (siblings[i], digest) if bit else (digest, siblings[i])
        digest = STATE_NODE.hash(*pair)
    return digest, name, StateProof(siblings, None)


@pytest.mark.parametrize("depth", [1, 24, 255, 256])
def test_proofs_of_any_depth_there_is_are_read_and_checked(depth: int) -> None:
    root, name, proof = deep_proof(depth)
    raw = encode(proof)
    assert len(raw) < 34 * depth + 16
    began = time.process_time()
    assert verify_state_proof(root, name, b"value", decode(StateProof, raw))
    assert time.process_time() - began < 0.05
    assert not verify_state_proof(root, name, b"other", proof)
    assert not verify_state_proof(root, name, None, proof)
    assert not verify_state_proof(root, name, b"value", StateProof(proof.siblings[1:], None))


def test_there_is_no_depth_beyond_the_paths_bits() -> None:
    root, name, proof = deep_proof(256)
    longer = (*proof.siblings, Hash32(b"\x01" * 32))
    assert not verify_state_proof(root, name, b"value", StateProof(longer, None))
    with pytest.raises(DecodeError, match="257 items where at most 256"):
        decode(StateProof, pack([80, list(longer), []]))
