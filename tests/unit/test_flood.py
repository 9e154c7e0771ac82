"""Validators that have no direct connection still agree, by gossip through the others."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from chain.certificates import assemble
from chain.codec import decode, encode
from chain.errors import VerifyError
from chain.hashes import Hash32
from chain.records import evidence_key
from chain.types import Certificate, Epoch, EvidenceItem, Height, View, VoteKind
from consensus import election
from consensus.evidence import double_vote
from consensus.simplex import messages as m
from node.services import evidence_pool, flood
from tests.kit.core_bench import Bench
from tests.kit.validators import Member, until_height, until_linked, until_view, validators
from tests.kit.waiting import TIMEOUT_S, reached
from tests.sim.ledger import CHAIN_ID, body_matches
from wallet.signing import sign_vote

QUICK = {"empty_interval_ms": 20, "delta_floor_ms": 100}


def part(members: list[Member]) -> None:
    """The first two, without either of whom there is no quorum for the other's block, have no
    connection with each other."""
    one, other = members[:2]
    one.shun(other)
    other.shun(one)


def leads(member: Member, view: View) -> bool:
    epoch = member.local.state.epoch(Epoch(0))
    leader = epoch.validators.members[election.leader(epoch.seed, view, epoch.validators)]
    return leader.node_id == member.id


def test_two_of_four_that_cannot_reach_each_other_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stakes are 4, 3, 2 and 1 of 10: a block that the second proposes needs the first's vote."""
    monkeypatch.setattr(flood, "UNREACHED_S", 0.5)

    async def main() -> None:
        async with validators(tmp_path, prepare=part, **QUICK) as members:
            await until_height(members, 1)
            before = members[1].height
            await reached(
                lambda: all(m.blocks_of(members[1]) >= 3 for m in members), TIMEOUT_S, "its blocks"
            )
            await until_height(members, before + 3)
            one, other = members[:2]
            assert other.id not in one.connected
            assert one.id not in other.connected
            assert one.consensus.info()["flooded"]
            assert other.consensus.info()["flooded"]
            assert sum(m.consensus.info()["flooded_for_others"] for m in members[2:])
            height = min(m.height for m in members)
            assert len({m.local.chain.store.block(height).hash() for m in members}) == 1

    asyncio.run(main())


def test_without_flooding_they_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above rests on: the second never gets a block through. (A view that it leads
    takes three Δ, which doubles with each in a row: they are few here, but some.)"""
    monkeypatch.setattr(flood, "UNREACHED_S", 1e9)

    async def main() -> None:
        async with validators(tmp_path, prepare=part, **QUICK) as members:
            lost = (View(v) for v in itertools.count(1) if leads(members[1], View(v)))
            await until_view(members, list(itertools.islice(lost, 3))[-1])
            await until_height(members, 2)
            assert members[2].blocks_of(members[1]) == 0

    asyncio.run(main())


def test_a_full_mesh_floods_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with validators(tmp_path, empty_interval_ms=20) as members:
            await until_linked(members)
            monkeypatch.setattr(flood, "UNREACHED_S", 0.0)
            before = [m.consensus.info()["flooded"] for m in members]
            await until_height(members, members[0].height + 20)
            assert [m.consensus.info()["flooded"] for m in members] == before

    asyncio.run(main())


def test_evidence_found_alone_is_soon_in_anothers_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the one with the least stake, whose blocks carry none, before it is connected with
    anybody: it is said again, and whoever leads has it."""
    monkeypatch.setattr(evidence_pool, "AGAIN_S", 0.5)

    async def main() -> None:
        async with validators(tmp_path, start=False, empty_interval_ms=50) as members:
            finder, offender = members[3], members[2].keys
            pair = (
                sign_vote(
                    offender.consensus,
                    chain_id=finder.local.genesis.chain_id,
                    kind=VoteKind.NOTARIZE,
                    epoch=Epoch(0),
                    view=View(1),
                    block_hash=Hash32(letter * 32),
                )
                for letter in (b"a", b"b")
            )
            monkeypatch.setattr(finder.consensus._evidence, "fill", lambda *_: ())
            assert not finder.connected
            finder.consensus._is_running = True
            finder.consensus._one(m.Evidence(double_vote(*pair)))
            for member in members:
                member.consensus.start()
            used = evidence_key(offender.consensus.public, Epoch(0))
            await reached(
                lambda: all(o.local.state.raw(used) is not None for o in members),
                TIMEOUT_S,
                "a verdict",
            )
            store = members[0].local.chain.store
            blocks = [store.block(Height(h)) for h in range(1, members[0].height + 1)]
            (guilty,) = (b for b in blocks if b is not None and b.evidence)
            assert guilty.header.proposer != finder.keys.consensus.public

    asyncio.run(main())


# --- what is passed on ------------------------------------------------------------------------


class Station:
    """A flood without a network, at a core whose view is 1, and a clock that a test sets."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.now = 100.0
        self.taken: list[m.Message | EvidenceItem] = []
        self.verdict: bool | VerifyError = True
        self.sent: list[bytes] = []
        self.flood = flood.Flood(
            self,  # type: ignore[arg-type]
            CHAIN_ID,
            self.bench.core,
            lambda epoch: self.bench.context(epoch) if epoch in (0, 1) else None,
            self.take,
            body_matches,
            lambda: self.now,
        )

    def subscribe(self, topic: str, handler: object) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None:
        self.sent.append(data)

    def take(self, peer: str, message: m.Message | EvidenceItem) -> bool:
        self.taken.append(message)
        if isinstance(self.verdict, VerifyError):
            raise self.verdict
        return self.verdict

    def judge(self, *messages: m.Message | EvidenceItem) -> bool | None:
        return asyncio.run(self.flood.judge("peer", encode(m.Envelope(messages))))

    def say(self, *messages: m.Message | EvidenceItem, heard: bool = True, unsent: int = 1) -> int:
        """What was published when this was said to all but the first `unsent`."""
        before = len(self.sent)
        members = self.bench.context(1).validators.members[:unsent]

        async def main() -> None:
            self.flood.said(messages, members, lambda member: heard)
            await asyncio.gather(*self.flood._publishing)

        asyncio.run(main())
        return len(self.sent) - before


def test_what_is_no_message_of_consensus_is_refused() -> None:
    station = Station()
    assert asyncio.run(station.flood.judge("peer", b"garbage")) is False
    assert station.judge(m.BlockRequest(Hash32(bytes(32)))) is False
    vote = station.bench.vote(1, VoteKind.NOTARIZE, 1, b"a" * 32)
    assert station.judge(replace(vote, view=View(2))) is False
    assert station.judge(vote, replace(vote, view=View(2))) is False
    assert station.taken == []


def test_a_vote_is_passed_on_once_a_second() -> None:
    station = Station()
    vote = station.bench.vote(1, VoteKind.NOTARIZE, 1, b"a" * 32)
    assert station.judge(vote) is True
    assert station.judge(vote) is None
    contradicting = station.bench.vote(1, VoteKind.NOTARIZE, 1, b"b" * 32)
    assert station.judge(contradicting) is None
    station.now += flood.AGAIN_S
    assert station.judge(contradicting) is True
    assert station.taken == [vote, contradicting]


def test_a_certificate_is_passed_on_once_however_it_was_assembled() -> None:
    station = Station()
    votes = [station.bench.vote(i, VoteKind.NOTARIZE, 1, b"a" * 32) for i in range(4)]
    members = station.bench.context(1).validators
    assert station.judge(assemble(members, votes[:3])) is True
    assert station.judge(assemble(members, votes[1:])) is None
    assert station.judge(assemble(members, votes)) is None


def test_little_news_does_not_carry_much_else() -> None:
    station = Station()
    votes = [station.bench.vote(i, VoteKind.NULLIFY, 1) for i in range(4)]
    assert station.judge(*votes[:3]) is True
    assert station.judge(*votes) is None
    assert station.taken[-1] == votes[3], "it counts here all the same"


@pytest.mark.parametrize("view", [0, 18, 10**9])
def test_what_is_of_no_use_now_is_neither_passed_on_nor_refused(view: int) -> None:
    station = Station()
    vote = station.bench.vote(1, VoteKind.NULLIFY, max(view, 1))
    station.bench.core._view = View(100 if view == 0 else 1)
    assert station.judge(vote) is None
    assert station.judge(replace(vote, epoch=Epoch(2))) is None


def test_a_proposal_must_hold_in_all_its_parts() -> None:
    station = Station()
    bench = station.bench
    first = bench.block(bench.genesis.header, 1)
    block = bench.block(first.header, 3)
    proof = bench.certificate(VoteKind.NOTARIZE, 1, first.hash())
    null = bench.certificate(VoteKind.NULLIFY, 2)
    good = bench.proposal(block, 3, proof, null)
    unsigned = Certificate(VoteKind.NOTARIZE, Epoch(1), View(1), first.hash(), b"", ())
    for wrong in (
        replace(good, parent_notarization=unsigned),
        replace(good, parent_notarization=null),
        replace(good, nullifications=(proof,)),
        replace(good, block=replace(block, txs=(b"smuggled",))),
        replace(good, seal=bench.signer(2).sign_proposal(Epoch(1), View(3), block.hash())),
    ):
        assert station.judge(wrong) is False
    assert station.taken == []
    assert station.judge(good) is True


def test_evidence_is_passed_on_when_its_taker_has_verified_it_and_it_is_new() -> None:
    station = Station()
    one, two = (station.bench.vote(1, VoteKind.NOTARIZE, 1, x * 32) for x in (b"a", b"b"))
    item = double_vote(one, two)
    assert station.judge(item) is True
    assert station.judge(item) is None
    station.now += flood.AGAIN_S
    station.verdict = False  # known, used or expired
    assert station.judge(item) is None
    station.now += flood.AGAIN_S
    station.verdict = VerifyError("it does not hold")
    assert station.judge(item) is False
    assert station.taken == [item, item, item]


# --- when it is said --------------------------------------------------------------------------


def test_it_is_said_for_members_who_take_part_unreached() -> None:
    station = Station()
    vote = station.bench.vote(0, VoteKind.NULLIFY, 1)
    station.flood.finalized()
    assert station.say(vote) == 0, "the connection may come back"
    station.now += flood.UNREACHED_S
    assert station.say(vote, heard=False) == 0, "it has crashed, and blocks are final without it"
    assert station.say(vote) == 1
    assert station.say(double_vote(vote, station.bench.vote(0, VoteKind.FINALIZE, 1))) == 1
    assert station.say(vote, unsent=0) == 0
    assert station.say(vote) == 0, "it was connected meanwhile"
    station.now += flood.STALLED_S
    assert station.say(vote, heard=False) == 1, "nothing is final: perhaps for want of its vote"


def test_floods_are_bounded() -> None:
    station = Station()
    vote = station.bench.vote(0, VoteKind.NULLIFY, 1)
    station.say(vote)
    station.now += flood.UNREACHED_S
    assert sum(station.say(vote) for _ in range(200)) == flood.FLOOD_BURST
    station.now += 1.0
    assert sum(station.say(vote) for _ in range(200)) == flood.FLOODS_PER_S


def test_a_block_too_large_to_gossip_is_left_out() -> None:
    station = Station()
    bench = station.bench
    block = bench.block(bench.genesis.header, 1, (bytes(260_000),) * 5)
    vote = bench.vote(0, VoteKind.NOTARIZE, 1, block.hash())
    proposal = bench.proposal(block, 1, None)
    station.say(vote)
    station.now += flood.UNREACHED_S
    assert station.say(proposal) == 0
    assert station.say(proposal, vote) == 1
    assert decode(m.Envelope, station.sent[0]).messages == (vote,)
