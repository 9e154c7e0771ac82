"""Evidence from peers who want to be a burden: what does not hold, what is old, what is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.codec import encode
from chain.hashes import Hash32
from chain.types import DoubleVote, Epoch, EvidenceItem, View, VoteKind
from consensus import evidence as rules
from consensus.evidence import double_vote
from consensus.simplex.messages import Envelope
from node.net import limits as net_limits
from node.services import evidence_pool
from node.services.consensus import ConsensusService
from tests.kit.local_chain import LocalChain
from wallet.signing import sign_vote

BLAME = 20.0


class Wire:
    """The part of the network port that consensus uses; what was said and who was blamed."""

    peer_id = "victim"

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.points: dict[str, float] = {}

    def on_message(self, handler: Any) -> None: ...

    def on_peer(self, handler: Any) -> None: ...

    def subscribe(self, topic: str, handler: Any) -> None: ...

    def peers(self) -> list[Any]:
        return []

    def link_info(self) -> list[Any]:
        return []

    def send(self, peer: str, data: bytes) -> bool:
        self.said.append(data)
        return True

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.points[peer] = self.points.get(peer, 0.0) + weight


class Victim:
    def __init__(self, directory: Path) -> None:
        self.local = LocalChain(directory, validators=4)
        self.wire = Wire()
        self.service = ConsensusService(
            self.local.chain,
            self.local.pool,
            self.wire,  # type: ignore[arg-type]
            self.local.validators[0],
            directory / "wal",
            lambda peer, height: None,
            lambda report: None,
        )
        self.service.start()
        self.service._build = None  # it leads nothing here, and no timer fires
        self.wire.said.clear()

    def hear(self, peer: str, *items: EvidenceItem) -> float:
        """The points that `peer` has after it said these in one packet."""
        self.service._received(peer, encode(Envelope(items)))
        return self.wire.points.get(peer, 0.0)

    def pair(self, index: int, epoch: int = 0, view: int = 5) -> DoubleVote:
        one, two = (
            sign_vote(
                self.local.validators[index].consensus,
                chain_id=self.local.genesis.chain_id,
                kind=VoteKind.NOTARIZE,
                epoch=Epoch(epoch),
                view=View(view),
                block_hash=Hash32(letter * 32),
            )
            for letter in (b"a", b"b")
        )
        return double_vote(one, two)

    def forged(self, index: int, view: int = 5) -> DoubleVote:
        item = self.pair(index, view=view)
        return replace(item, second=replace(item.second, signature=item.first.signature))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    loop = asyncio.new_event_loop()  # only for the timers
    try:

        async def make() -> Victim:
            return Victim(tmp_path)

        made = loop.run_until_complete(make())
        yield made
        made.service.stop()
        made.local.__exit__()
    finally:
        loop.close()


def test_what_does_not_hold_costs_and_is_neither_kept_nor_passed_on(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = 0
    verify = rules.verify_vote

    def counting(*arguments: Any) -> None:
        nonlocal verified
        verified += 1
        verify(*arguments)

    monkeypatch.setattr(rules, "verify_vote", counting)
    packet = [victim.forged(1, view) for view in range(1, 129)]
    assert victim.hear("liar", *packet) == BLAME
    assert verified == 2, "the rest of a packet is not worth its signatures"
    for _ in range(4):
        victim.hear("liar", *packet)
    assert victim.wire.points["liar"] >= net_limits.VIOLATION_LIMIT
    assert victim.wire.said == []
    assert len(victim.service._evidence) == 0


def test_what_a_liar_says_of_somebody_is_no_shield_for_it(victim: Victim) -> None:
    victim.hear("liar", victim.forged(2))
    assert victim.hear("honest", victim.pair(2)) == 0
    assert len(victim.service._evidence) == 1
    assert len(victim.wire.said) == 3  # once to each other validator
    assert victim.hear("honest too", victim.pair(2)) == 0
    assert len(victim.wire.said) == 3


@pytest.mark.parametrize("epoch", [0, 77], ids=["known", "of no epoch that counts"])
def test_what_is_stale_costs_no_signature_and_in_the_end_its_sender(
    victim: Victim, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest peer says some of it, never so much."""
    victim.hear("finder", victim.pair(1))
    now = [1000.0]
    monkeypatch.setattr(victim.service._evidence, "_clock", lambda: now[0])
    monkeypatch.setattr(evidence_pool, "check_evidence", None)  # would raise TypeError
    stale = victim.pair(1, epoch)
    said = len(victim.wire.said)
    for _ in range(int(evidence_pool.STALE_BURST)):
        assert victim.hear("bore", stale) == 0
    assert victim.hear("bore", *[stale] * 128) == BLAME
    assert victim.hear("another", stale) == 0
    now[0] += 10.0
    for _ in range(int(10 * evidence_pool.STALE_PER_S)):
        assert victim.hear("bore", stale) == BLAME
    while victim.wire.points["bore"] < net_limits.VIOLATION_LIMIT:
        victim.hear("bore", stale)
    assert len(victim.wire.said) == said
    assert len(victim.service._evidence) == 1


def test_memory_is_bounded_and_a_key_counts_once_an_epoch(victim: Victim) -> None:
    pool = victim.service._evidence
    for view in range(1, 200):  # of one key, all of them true
        victim.hear("colluder", victim.pair(1, view=view))
    assert len(pool) == 1
    for index in range(4):
        for epoch in range(50):
            victim.hear("colluder", victim.pair(index, epoch))
    assert len(pool) <= evidence_pool.MAX_HELD
    assert len(pool) == 4 * 2  # epochs 0 and 1 have sets
