"""What a node concludes from the signatures it has seen: evidence, contradictions, its own past."""

from __future__ import annotations

import pytest

from chain.certificates import assemble
from chain.codec import encode
from chain.types import Block, Certificate, Epoch, View, VoteKind
from consensus.evidence import conflicting_certificates
from consensus.simplex import messages as m
from tests.kit.core_bench import NULL, Bench, find, said

NOTARIZE, NULLIFY, FINALIZE = VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE


def two_blocks(bench: Bench) -> tuple[Block, Block]:
    parent = bench.genesis.header
    return bench.block(parent, 1), bench.block(parent, 1, (b"other",))


def by(bench: Bench, signers: list[int], kind: VoteKind, view: int, block: bytes) -> Certificate:
    votes = [bench.vote(i, kind, view, block) for i in signers]
    return assemble(bench.context(1).validators, votes)


# --- evidence ---------------------------------------------------------------------------


def test_a_vote_split_between_a_peer_and_a_certificate_is_evidence() -> None:
    """Votes that only a certificate shows here are compared as well."""
    for first_the_vote in (True, False):
        bench = Bench()
        one, other = two_blocks(bench)
        vote = bench.vote(1, NOTARIZE, 1, one.hash())
        certificate = by(bench, [1, 2, 3], NOTARIZE, 1, other.hash())
        order: list[m.Message] = [vote, certificate] if first_the_vote else [certificate, vote]
        effects = [e for message in order for e in bench.hear(message)]
        items = [e.item for e in find(effects, m.Evidence)]
        assert [i.first.signer for i in items] == [bench.signer(1).public]


def test_a_nullify_against_a_finalization_is_evidence() -> None:
    bench = Bench()
    one, _ = two_blocks(bench)
    bench.hear(bench.vote(3, NULLIFY, 1))
    effects = bench.hear(by(bench, [1, 2, 3], FINALIZE, 1, one.hash()))
    assert [e.item.first.signer for e in find(effects, m.Evidence)] == [bench.signer(3).public]


def test_certificates_of_the_log_still_convict_after_a_restart() -> None:
    bench = Bench()
    one, other = two_blocks(bench)
    bench.hear(by(bench, [1, 2, 3], NOTARIZE, 1, other.hash()))
    bench.core = bench.fresh(bench.log)
    bench.keep(bench.core.start())
    effects = bench.hear(bench.vote(1, NOTARIZE, 1, one.hash()))
    assert len(find(effects, m.Evidence)) == 1


def test_honest_votes_in_certificates_convict_nobody() -> None:
    bench = Bench()
    one, _ = two_blocks(bench)
    effects = bench.hear(by(bench, [1, 2, 3], NOTARIZE, 1, one.hash()))
    effects += bench.hear(by(bench, [1, 2, 3], NULLIFY, 1, NULL))  # notarize with nullify: R5
    for i in (1, 2, 3):
        effects += bench.hear(bench.vote(i, NOTARIZE, 1, one.hash()))
    assert not find(effects, m.Evidence)
    assert not find(effects, m.Halt)


# --- contradictions ---------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("first", "second"), [(NOTARIZE, FINALIZE), (NOTARIZE, NOTARIZE), (NULLIFY, FINALIZE)]
)
def test_certificates_of_one_view_that_contradict_halt(
    first: VoteKind, second: VoteKind, turned: bool
) -> None:
    """It takes over a third of liars; their evidence is out before the node stops."""
    bench = Bench()
    one, other = two_blocks(bench)
    pair = [
        bench.certificate(first, 1, NULL if first is NULLIFY else one.hash()),
        bench.certificate(second, 1, other.hash()),
    ]
    effects = [e for c in (pair[::-1] if turned else pair) for e in bench.hear(c)]
    assert "contradict" in find(effects, m.Halt)[0].report
    assert bench.core.is_halted
    attacks = [e.item for e in find(effects, m.Evidence) if hasattr(e.item.first, "signers")]
    slashable = (first, second) != (NOTARIZE, FINALIZE)  # a vote, and what follows a quorum's
    assert attacks == ([conflicting_certificates(*pair)] if slashable else [])


@pytest.mark.parametrize("kind", [NOTARIZE, NULLIFY, FINALIZE])
def test_what_contradicts_the_last_finalization_halts(kind: VoteKind) -> None:
    bench = Bench()
    one, other = two_blocks(bench)
    bench.validate(bench.hear(bench.proposal(one, 1, None)))
    bench.hear(bench.certificate(FINALIZE, 1, one.hash()))
    assert bench.core.tip == one.header
    late = bench.certificate(NOTARIZE, 1, one.hash())
    assert find(bench.hear(late), m.Halt) == []
    named = NULL if kind is NULLIFY else other.hash()
    unsigned = Certificate(kind, Epoch(1), View(1), named, b"", ())
    effects = bench.hear(unsigned, sender=3)
    assert [e.peer for e in find(effects, m.Refuse)] == ["node-3"]
    effects = bench.hear(bench.certificate(kind, 1, named))
    assert "contradict" in find(effects, m.Halt)[0].report


def test_votes_that_make_a_contradiction_halt_as_well() -> None:
    bench = Bench()
    one, _ = two_blocks(bench)
    bench.hear(bench.certificate(NULLIFY, 1))
    effects: list[m.Effect] = []
    for i in (1, 2, 3):
        effects += bench.hear(bench.vote(i, FINALIZE, 1, one.hash()))
    assert "contradict" in find(effects, m.Halt)[0].report


# --- our own past -----------------------------------------------------------------------


def test_a_seal_of_our_own_key_from_elsewhere_is_adopted() -> None:
    """A leader that has lost its log hears its own proposal: it does not make another."""
    bench = Bench(own=1)
    build = find(bench.effects, m.Build)[0]
    earlier, later = two_blocks(bench)
    bench.hear(bench.proposal(later, 1, None), sender=2)
    seal = bench.proposal(later, 1, None).seal
    assert encode(seal) in bench.log
    effects = bench.keep(bench.core.built(build.view, build.parent_hash, earlier))
    assert [x for e in find(effects, m.Broadcast) for x in e.messages] == []
    again = bench.fresh(bench.log)
    assert find(again.start(), m.Build) == []


def test_a_vote_of_our_own_key_in_a_certificate_is_adopted() -> None:
    bench = Bench()
    one, _ = two_blocks(bench)
    bench.hear(by(bench, [0, 1, 2], NULLIFY, 1, NULL))
    assert encode(bench.vote(0, NULLIFY, 1)) in bench.log
    bench.validate(bench.hear(bench.proposal(one, 1, None)))
    effects = bench.hear(bench.certificate(NOTARIZE, 1, one.hash()))
    assert said(effects) == []  # finalize is over


def test_a_key_that_abstains_neither_votes_nor_builds() -> None:
    bench = Bench(own=1)
    floor = m.SignFloor(Epoch(1), View(2**64 - 1))
    core = bench.fresh([encode(floor)])
    assert find(core.start(), m.Build) == []
    assert said(core.timer(m.Timer(m.TimerKind.ADVANCE, Epoch(1), View(1)))) == []
    core.receive("node-2", bench.certificate(NULLIFY, 1))
    assert core.view == 2
    two = bench.block(bench.genesis.header, 2)
    effects = core.receive("node-2", bench.proposal(two, 2, None))
    assert [e.block for e in find(effects, m.Validate)] == [two]  # it follows
    assert said(core.validated(two.hash(), True)) == []
