"""What a leader shows with its proposal counts only when it is signed by a quorum of this epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.hashes import Hash32
from chain.types import Block, Certificate, Epoch, Proposal, Signature, View, VoteKind
from consensus.simplex import messages as m
from tests.kit.core_bench import NULL, Bench, find, said

UNSIGNED: tuple[bytes, tuple[Signature, ...]] = (b"", ())


def forged(epoch: int, kind: int, view: int, named: Hash32) -> Certificate:
    return Certificate(kind, Epoch(epoch), View(view), named, *UNSIGNED)


def finalized_elsewhere() -> tuple[Bench, Block]:
    """A node that has signed finalize for the block of view 1, which is final at its peers."""
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    assert said(effects) == [("FINALIZE", 1)]
    return bench, block


@pytest.mark.parametrize("epoch", [0, 1, 2, 99])
@pytest.mark.parametrize("kind", [1, 2, 3, 9])
def test_r3_a_made_up_proof_gets_no_vote_for_a_sibling(epoch: int, kind: int) -> None:
    """It would be a fork: the sibling of a final block, one view later."""
    bench, _ = finalized_elsewhere()
    sibling = bench.block(bench.genesis.header, 2, (b"sibling",))
    proof = forged(epoch, kind, 1, bench.genesis.hash())
    effects = bench.hear(bench.proposal(sibling, 2, proof), sender=2)
    assert said(bench.validate(effects)) == []
    assert [e.peer for e in find(effects, m.Refuse)] == ["node-2"]


def test_r3_an_unsigned_proof_of_the_right_epoch_gets_no_vote_either() -> None:
    bench, block = finalized_elsewhere()
    signed = bench.certificate(VoteKind.NOTARIZE, 1, block.hash())
    sibling = bench.block(bench.genesis.header, 2, (b"sibling",))
    moved = replace(signed, block_hash=bench.genesis.hash())
    effects = bench.hear(bench.proposal(sibling, 2, moved), sender=2)
    assert said(bench.validate(effects)) == []
    assert find(effects, m.Validate) == []


def test_r3_a_shown_nullification_must_be_one() -> None:
    bench, block = finalized_elsewhere()
    notarized = bench.certificate(VoteKind.NOTARIZE, 1, block.hash())
    child = bench.block(block.header, 2)
    for wrong in (notarized, forged(2, VoteKind.NULLIFY, 1, NULL)):
        effects = bench.hear(bench.proposal(child, 2, notarized, wrong), sender=2)
        assert len(find(effects, m.Refuse)) == 1
    effects = bench.hear(bench.proposal(child, 2, notarized), sender=2)
    assert said(bench.validate(effects)) == [("NOTARIZE", 2)]


def final_at_one() -> tuple[Bench, Block]:
    bench, block = finalized_elsewhere()
    bench.hear(bench.certificate(VoteKind.FINALIZE, 1, block.hash()))
    assert bench.core.tip == block.header
    return bench, block


@pytest.mark.parametrize("epoch", [1, 99])
@pytest.mark.parametrize("view", [1, 2])
def test_a_proposal_that_names_itself_at_a_final_height_halts_nobody(epoch: int, view: int) -> None:
    bench, _ = final_at_one()
    rival = bench.block(bench.genesis.header, 3, (b"rival",))
    bench.hear(bench.certificate(VoteKind.NULLIFY, 2))
    before = len(bench.log)
    effects = bench.hear(
        bench.proposal(rival, 3, forged(epoch, VoteKind.NOTARIZE, view, rival.hash())), sender=3
    )
    assert not find(effects, m.Halt)
    assert not bench.core.is_halted
    assert not find(effects, m.Send)
    assert [r for r in bench.log[before:] if rival.txs[0] in r] == []  # nor is it written down


def test_a_proof_that_names_an_invalid_block_halts_nobody() -> None:
    bench = Bench()
    invalid = bench.block(bench.genesis.header, 1, (b"invalid",))
    bench.validate(bench.hear(bench.proposal(invalid, 1, None)), ok=False)
    bench.hear(bench.certificate(VoteKind.NULLIFY, 1))
    child = bench.block(invalid.header, 2)
    made_up: Proposal = bench.proposal(child, 2, forged(99, 1, 1, invalid.hash()))
    effects = bench.hear(made_up, sender=2)
    assert not find(effects, m.Halt)
    assert len(find(effects, m.Refuse)) == 1
    block = bench.block(bench.genesis.header, 3)
    bench.hear(bench.certificate(VoteKind.NULLIFY, 2))
    assert said(bench.validate(bench.hear(bench.proposal(block, 3, None), sender=3))) == [
        ("NOTARIZE", 3)
    ]
