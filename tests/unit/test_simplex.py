"""The core's rules one by one, by hand; the simulator tries them together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import decode, encode
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Height,
    Proposal,
    View,
    VoteKind,
)
from consensus.simplex import messages as m
from consensus.simplex.rules import Rule
from tests.kit.core_bench import NULL, Bench, find, said
from tests.sim.ledger import KeySigner, name

# --- R1, R3, R5 -----------------------------------------------------------------------


def test_r1_timers_allow_for_an_idle_leader() -> None:
    timers = {e.timer.kind: e.delay_ms for e in find(Bench().effects, m.StartTimer)}
    assert timers == {
        m.TimerKind.PROPOSAL: 250,
        m.TimerKind.ADVANCE: 350,
        m.TimerKind.RETRANSMIT: 100,
    }


def test_r1_a_proposal_leaves_two_delta_to_advance() -> None:
    """In whichever order the view and its proposal come, and once."""
    hurry = m.StartTimer(m.Timer(m.TimerKind.ADVANCE, Epoch(1), View(1)), 200, at_most=True)
    bench = Bench()
    proposal = bench.proposal(bench.block(bench.genesis.header, 1), 1, None)
    assert find(bench.hear(proposal), m.StartTimer) == [hurry]
    assert find(bench.hear(proposal, sender=2), m.StartTimer) == []

    early = Bench()
    second = early.proposal(early.block(early.genesis.header, 2), 2, None)
    assert find(early.hear(second), m.StartTimer) == []  # not its view's turn
    started = find(early.hear(early.certificate(VoteKind.NULLIFY, 1)), m.StartTimer)
    hurry = replace(hurry, timer=m.Timer(m.TimerKind.ADVANCE, Epoch(1), View(2)))
    doubled = [e for e in started if e.at_most]
    assert [e.timer for e in doubled] == [hurry.timer]


def test_r3_a_vote_follows_execution_and_its_record() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    effects = bench.hear(bench.proposal(block, 1, None))
    assert said(effects) == []
    assert find(effects, m.Validate)[0].parent == bench.genesis.header
    effects = bench.validate(effects)
    assert said(effects) == [("NOTARIZE", 1)]
    assert isinstance(effects[0], m.Persist)
    assert encode(bench.vote(0, VoteKind.NOTARIZE, 1, block.hash())) in effects[0].records


def third_view() -> tuple[Bench, Block, Certificate, Certificate]:
    """A node in view 3 that knows nothing of view 2: the next block there, the notarization of its
    parent, and the nullification between."""
    bench = Bench()
    first = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(first, 1, None)))
    proof = bench.certificate(VoteKind.NOTARIZE, 1, first.hash())
    return bench, bench.block(first.header, 3), proof, bench.certificate(VoteKind.NULLIFY, 2)


def test_r3_a_copy_of_a_proposal_is_as_good_as_the_leader_s_own() -> None:
    """A leader behind a NAT may be unable to reach us: the seal is its own, whoever brings it."""
    bench, block, proof, null = third_view()
    copied = bench.hear(bench.proposal(block, 3, proof, null), sender=2)
    assert ("NOTARIZE", 3) in said(bench.validate(copied))


@pytest.mark.parametrize("stripped", ["proof", "nullification", "both"])
def test_r3_a_copy_does_not_spoil_the_leader_s_own(stripped: str) -> None:
    """The seal does not cover the proof: a forwarder could strip it and have the block rejected."""
    bench, block, proof, null = third_view()
    kept = () if stripped in ("nullification", "both") else (null,)
    if stripped == "nullification":
        bare = bench.proposal(block, 3, proof)
    else:
        bare = bench.proposal(block, 3, None, *kept)
        if stripped == "proof":
            bench.hear(null)
    copied = bench.hear(bare, sender=2)
    assert not find(copied, m.Rejected)
    assert not find(copied, m.Refuse)
    assert said(bench.validate(copied)) in ([], [("FINALIZE", 1)])
    own = bench.hear(bench.proposal(block, 3, proof, null), sender=3)
    assert ("NOTARIZE", 3) in said(bench.validate(own))


def test_r3_a_bare_copy_counts_once_what_it_rests_on_is_held() -> None:
    bench, block, proof, null = third_view()
    bench.hear(proof)
    bench.hear(null)
    copied = bench.hear(bench.proposal(block, 3, None), sender=1)
    assert ("NOTARIZE", 3) in said(bench.validate(copied))


def test_r3_a_later_copy_may_show_what_the_first_did_not() -> None:
    bench, block, proof, null = third_view()
    bench.hear(bench.proposal(block, 3, None), sender=2)
    effects = bench.hear(bench.proposal(block, 3, proof, null), sender=1)
    assert ("NOTARIZE", 3) in said(bench.validate(effects))


def test_r3_a_proof_that_is_not_of_the_parent_is_held_against_the_leader_alone() -> None:
    for sender, is_rejected in ((1, False), (3, True)):
        bench, block, _, null = third_view()
        other = bench.certificate(VoteKind.NOTARIZE, 1, b"o" * 32)
        effects = bench.hear(bench.proposal(block, 3, other, null), sender=sender)
        assert bool(find(effects, m.Rejected)) is is_rejected
        assert not find(effects, m.Refuse)
        assert ("NOTARIZE", 3) not in said(bench.validate(effects))


def test_r3_a_copy_with_another_body_is_refused_and_stands_for_nothing() -> None:
    bench, block, proof, null = third_view()
    smuggled = replace(block, txs=(b"smuggled",))
    effects = bench.hear(bench.proposal(smuggled, 3, proof, null), sender=1)
    assert [e.peer for e in find(effects, m.Refuse)] == ["node-1"]
    own = bench.hear(bench.proposal(block, 3, proof, null), sender=3)
    assert ("NOTARIZE", 3) in said(bench.validate(own))


def test_dl_a_view_given_up_too_soon_doubles_delta_although_it_was_notarized() -> None:
    """Proposals that always come just after 2Δ are notarized and never finalized: if that did not
    count, a network slower than Δ would notarize for ever and make nothing final."""
    bench = Bench()
    before = bench.core.delta_ms
    assert ("NULLIFY", 1) in said(bench.fire(m.TimerKind.PROPOSAL, 1))
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    assert ("FINALIZE", 1) not in said(effects)
    assert bench.core.delta_ms == 2 * before
    bench.hear(bench.certificate(VoteKind.NULLIFY, 1))  # of the same view: once
    assert bench.core.delta_ms == 2 * before


def test_r3_an_untimely_block_gets_no_vote() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.hear(bench.proposal(block, 1, None))
    assert said(bench.core.validated(block.hash(), True, timely=False)) == []


def test_r5_an_invalid_block_is_given_up_at_once() -> None:
    """Also if the proposal timer has passed: it had no effect while the block was executed."""
    for timer in (True, False):
        bench = Bench()
        block = bench.block(bench.genesis.header, 1)
        effects = bench.hear(bench.proposal(block, 1, None))
        assert not timer or said(bench.fire(m.TimerKind.PROPOSAL, 1)) == []
        assert said(bench.validate(effects, ok=False)) == [("NULLIFY", 1)]


def test_r5_a_proposal_that_cannot_be_valid_is_given_up_at_once() -> None:
    bench = Bench()
    bench.hear(bench.certificate(VoteKind.NULLIFY, 1))
    first = bench.block(bench.genesis.header, 1)
    second = bench.block(first.header, 2)
    effects = bench.hear(bench.proposal(second, 2, None), sender=2)
    assert len(find(effects, m.Rejected)) == 1
    assert said(effects) == [("NULLIFY", 2)]


def test_r3_only_the_first_proposal_of_a_view_and_the_second_is_evidence() -> None:
    bench = Bench()
    first, second = (bench.block(bench.genesis.header, 1, txs) for txs in ((), (b"other",)))
    assert said(bench.validate(bench.hear(bench.proposal(first, 1, None)))) == [("NOTARIZE", 1)]
    effects = bench.hear(bench.proposal(second, 1, None))
    assert [e.item.first.signer for e in find(effects, m.Evidence)] == [bench.signer(1).public]
    assert find(effects, m.Validate) == []
    # R4: this leader's view is not finalized from here, but it is left.
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, first.hash()))
    assert said(effects) == []
    assert bench.core.view == 2


def test_r3_a_parent_needs_its_notarization_and_the_views_between() -> None:
    bench = Bench()
    first = bench.block(bench.genesis.header, 1)
    bench.hear(bench.certificate(VoteKind.NULLIFY, 1))
    bench.hear(bench.certificate(VoteKind.NULLIFY, 2))
    assert bench.core.view == 3
    third = bench.block(first.header, 3)
    effects = bench.hear(bench.proposal(third, 3, None), sender=3)
    assert "no notarization" in find(effects, m.Rejected)[0].reason

    bench = Bench()
    bench.hear(bench.certificate(VoteKind.NULLIFY, 2))  # R8: view 3, but nothing about view 1
    block = bench.block(bench.genesis.header, 3)
    effects = bench.hear(bench.proposal(block, 3, None), sender=3)
    asked = [e for e in find(effects, m.Send) if isinstance(e.messages[0], m.CertificateRequest)]
    assert [e.peer for e in asked] == [name(3)]
    effects = bench.hear(bench.certificate(VoteKind.NULLIFY, 1))
    assert said(bench.validate(effects)) == [("NOTARIZE", 3)]


def test_r5_no_proposal_nullifies_at_2_delta_and_finalize_is_over() -> None:
    bench = Bench()
    assert said(bench.fire(m.TimerKind.PROPOSAL, 1)) == [("NULLIFY", 1)]
    block = bench.block(bench.genesis.header, 1)
    effects = bench.validate(bench.hear(bench.proposal(block, 1, None)))
    assert said(effects) == [("NOTARIZE", 1)]  # notarize after nullify is allowed
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    assert said(effects) == []
    assert bench.core.view == 2


def test_r5_a_proposal_that_is_being_executed_has_until_3_delta() -> None:
    bench = Bench()
    bench.hear(bench.proposal(bench.block(bench.genesis.header, 1), 1, None))
    assert said(bench.fire(m.TimerKind.PROPOSAL, 1)) == []
    assert said(bench.fire(m.TimerKind.ADVANCE, 1)) == [("NULLIFY", 1)]


def test_r5_the_leader_s_own_nullify_is_followed() -> None:
    bench = Bench()
    assert said(bench.hear(bench.vote(2, VoteKind.NULLIFY, 1))) == []
    assert said(bench.hear(bench.vote(1, VoteKind.NULLIFY, 1))) == [("NULLIFY", 1)]


def test_r5_holds_after_every_prefix_of_the_log() -> None:
    """Whatever was synced before a crash, the next life signs nothing against it."""
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    finalize = encode(bench.vote(0, VoteKind.FINALIZE, 1, block.hash()))
    assert finalize in bench.log
    for length in range(len(bench.log) + 1):
        core = bench.fresh(bench.log[:length])
        effects = core.start()
        effects += core.timer(m.Timer(m.TimerKind.ADVANCE, Epoch(1), View(1)))
        signed = finalize in bench.log[:length]
        assert not (signed and ("NULLIFY", 1) in said(effects))
        assert signed == (("FINALIZE", 1) in said(effects)) or core.view == 1


# --- R4, R7, R8 -----------------------------------------------------------------------


def test_r4_r7_three_of_four_make_a_block_final() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    effects = bench.hear(bench.vote(1, VoteKind.NOTARIZE, 1, block.hash()))
    assert said(effects) == []
    effects = bench.hear(bench.vote(2, VoteKind.NOTARIZE, 1, block.hash()))
    assert said(effects) == [("FINALIZE", 1)]
    assert bench.core.view == 2  # proposing view 2 does not wait for the finalization of 1
    bench.hear(bench.vote(1, VoteKind.FINALIZE, 1, block.hash()))
    effects = bench.hear(bench.vote(3, VoteKind.FINALIZE, 1, block.hash()))
    assert [e.blocks for e in find(effects, m.Deliver)] == [(block,)]
    assert bench.core.tip == block.header


def test_r8_a_higher_finalization_fetches_what_is_missing() -> None:
    bench = Bench()
    one = bench.block(bench.genesis.header, 1)
    two = bench.block(one.header, 2)
    certificate = bench.certificate(VoteKind.FINALIZE, 2, two.hash())
    effects = bench.hear(certificate, sender=3)
    assert bench.core.view == 3
    assert find(effects, m.Send) == [m.Send(name(3), (m.BlockRequest(two.hash()),))]
    effects = bench.hear(m.BlockReply(two), sender=3)
    assert find(effects, m.Send) == [m.Send(name(3), (m.BlockRequest(one.hash()),))]
    effects = bench.validate(bench.hear(m.BlockReply(one), sender=3))
    effects = bench.validate(effects)
    assert [e.blocks for e in find(effects, m.Deliver)] == [(one, two)]


def test_a_gap_too_large_to_fetch_is_synced() -> None:
    bench = Bench()
    chain = [bench.genesis]
    for view in range(1, 81):
        chain.append(bench.block(chain[-1].header, view))
    bench.hear(bench.certificate(VoteKind.FINALIZE, 80, chain[80].hash()), sender=2)
    effects = bench.hear(m.BlockReply(chain[80]), sender=2)
    assert find(effects, m.Sync) == [m.Sync(name(2), Epoch(1), Height(79))]
    certificate = bench.certificate(VoteKind.FINALIZE, 78, chain[78].hash())
    effects = bench.core.advance_to(chain[78].header, certificate)
    assert find(effects, m.Send)[0].messages == (m.BlockRequest(chain[79].hash()),)
    effects = bench.validate(bench.hear(m.BlockReply(chain[79])))
    effects = bench.validate(effects)
    assert [e.blocks for e in find(effects, m.Deliver)] == [(chain[79], chain[80])]
    assert bench.core.view == 81


# --- what stops a node, what is refused ----------------------------------------------------


def test_a_notarized_block_that_is_invalid_here_halts() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    effects = bench.hear(bench.proposal(block, 1, None))
    bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    halts = find(bench.validate(effects, ok=False), m.Halt)
    assert "certified but invalid here" in halts[0].report
    assert bench.fire(m.TimerKind.ADVANCE, 2) == []


def test_two_final_blocks_of_one_height_halt() -> None:
    bench = Bench()
    ours, theirs = (bench.block(bench.genesis.header, 1, txs) for txs in ((), (b"x",)))
    bench.validate(bench.hear(bench.proposal(ours, 1, None)))
    bench.hear(bench.certificate(VoteKind.FINALIZE, 1, ours.hash()))
    assert bench.core.tip == ours.header
    beside = bench.block(theirs.header, 3)
    bench.hear(bench.certificate(VoteKind.FINALIZE, 3, beside.hash()))
    effects = bench.hear(m.BlockReply(beside))
    assert "contradicts a final one" in find(effects, m.Halt)[0].report


def test_a_body_that_is_not_the_header_s_costs_its_sender_not_the_block() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    smuggled = Block(block.header, (b"smuggled",), ())
    effects = bench.hear(bench.proposal(smuggled, 1, None), sender=2)
    assert [e.peer for e in find(effects, m.Refuse)] == [name(2)]
    effects = bench.validate(bench.hear(bench.proposal(block, 1, None)))
    assert said(effects) == [("NOTARIZE", 1)]


def test_strangers_and_wrong_leaders_are_refused() -> None:
    bench = Bench()
    stranger = KeySigner(b"stranger".ljust(32))
    block = bench.block(bench.genesis.header, 1)
    wrong = [
        stranger.sign_vote(VoteKind.NULLIFY, Epoch(1), View(1), NULL),
        bench.certificate(VoteKind.NULLIFY, 1).__class__(9, Epoch(1), View(1), NULL, b"", ()),
        Proposal(stranger.sign_proposal(Epoch(1), View(1), block.hash()), block, None, ()),
        Proposal(bench.signer(2).sign_proposal(Epoch(1), View(1), block.hash()), block, None, ()),
    ]
    for message in wrong:
        assert len(find(bench.hear(message), m.Refuse)) == 1
    assert bench.core.view == 1


# --- recovery, followers, single validator ---------------------------------------------------


def test_a_rotated_log_recovers_the_same_core() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    again = bench.fresh(list(bench.core.snapshot()))
    assert again.view == bench.core.view == 2
    assert sorted(again.snapshot()) == sorted(bench.core.snapshot())
    effects = again.start()
    assert ("FINALIZE", 1) in said(effects)
    assert [e.block for e in find(effects, m.Validate)] == [block]


def test_a_vote_of_our_own_key_from_elsewhere_is_adopted() -> None:
    """A lost log, or a second process with this key: do not contradict what it signed."""
    bench = Bench()
    bench.hear(bench.vote(0, VoteKind.NULLIFY, 1), sender=2)
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    assert said(effects) == []
    assert encode(bench.vote(0, VoteKind.NULLIFY, 1)) in bench.log


def test_a_follower_delivers_and_signs_nothing() -> None:
    bench = Bench(own=-1)
    block = bench.block(bench.genesis.header, 1)
    bench.hear(bench.proposal(block, 1, None))
    effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    bench.validate(effects)
    effects = bench.hear(bench.certificate(VoteKind.FINALIZE, 1, block.hash()))
    assert [e.blocks for e in find(effects, m.Deliver)] == [(block,)]
    assert find(effects, m.Broadcast) == []


def test_one_validator_is_a_quorum() -> None:
    bench = Bench(size=1)
    build = find(bench.effects, m.Build)[0]
    block = bench.block(bench.genesis.header, 1)
    effects = bench.keep(bench.core.built(build.view, build.parent_hash, block))
    assert [e.blocks for e in find(effects, m.Deliver)] == [(block,)]
    assert find(effects, m.Build)[-1].parent == block.header
    kinds = [type(e) for e in effects]
    assert kinds.index(m.Deliver) < len(kinds) - 1 - kinds[::-1].index(m.Build)


def test_ep_the_last_block_is_proposed_again_until_it_is_final() -> None:
    bench = Bench(own=2, epoch_blocks=1)
    block = bench.block(bench.genesis.header, 1)
    bench.validate(bench.hear(bench.proposal(block, 1, None)))
    votes = [bench.vote(i, VoteKind.NOTARIZE, 1, block.hash()) for i in (0, 1)]
    effects = [e for v in votes for e in bench.hear(v)]
    proposals = [
        x for e in find(effects, m.Broadcast) for x in e.messages if isinstance(x, Proposal)
    ]
    assert [(p.seal.view, p.block) for p in proposals] == [(2, block)]
    assert ("NOTARIZE", 2) in said(effects)
    effects = bench.hear(bench.certificate(VoteKind.FINALIZE, 2, block.hash()))
    assert [e.blocks for e in find(effects, m.Deliver)] == [(block,)]
    assert bench.core.is_ended
    assert said(bench.fire(m.TimerKind.ADVANCE, 3)) == []  # nobody signs before the next epoch
    bench.core.begin_epoch(bench.context(2))
    assert (bench.core.epoch, bench.core.view) == (2, 1)


def test_r5_a_finalize_vote_that_is_ones_own_forbids_to_nullify() -> None:
    """It comes from a second copy of the key: one's own leaves the view at once, so that only this
    way is open, and no random network takes it (tests/sim/coverage.py)."""
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    bench.hear(bench.vote(0, VoteKind.FINALIZE, 1, block.hash()), sender=2)
    assert said(bench.fire(m.TimerKind.ADVANCE, 1)) == []
    assert bench.rules[-1] is Rule.R5_FINALIZED


def test_dl_a_notarized_view_that_was_given_up_slows_down() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    before = bench.core.delta_ms
    bench.hear(bench.certificate(VoteKind.NOTARIZE, 1, block.hash()))
    assert bench.core.delta_ms == before
    bench.fire(m.TimerKind.PROPOSAL, 2)
    bench.hear(bench.certificate(VoteKind.NOTARIZE, 2, bench.block(block.header, 2).hash()))
    assert bench.core.delta_ms == 2 * before


def test_mx_the_seventeenth_unfinalized_block_is_empty() -> None:
    bench = Bench()
    parent = bench.genesis.header
    for view in range(1, 20):
        block = bench.block(parent, view, (b"tx",))
        effects = bench.hear(bench.certificate(VoteKind.NOTARIZE, view, block.hash()))
        effects += bench.validate(bench.hear(m.BlockReply(block)))
        builds = find(effects, m.Build)
        if view % 4 == 3:  # this node leads the next view
            assert [b.empty for b in builds] == [view >= 16]
        parent = block.header


def test_messages_survive_the_wire() -> None:
    bench = Bench()
    block = bench.block(bench.genesis.header, 1)
    every: tuple[m.Message, ...] = (
        bench.proposal(block, 1, None, bench.certificate(VoteKind.NULLIFY, 1)),
        bench.vote(1, VoteKind.NULLIFY, 1),
        bench.certificate(VoteKind.NULLIFY, 1),
        m.BlockRequest(block.hash()),
        m.BlockReply(block),
        m.CertificateRequest(Epoch(1), View(1), View(9)),
    )
    assert decode(m.Envelope, encode(m.Envelope(every))) == m.Envelope(every)
