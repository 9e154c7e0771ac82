"""Attacks by who holds a validator's keys, by those who serve lies, and by crashes."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from chain.codec import decode, encode
from chain.errors import BlyanError
from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Certificate,
    CertifiedBlock,
    Epoch,
    Height,
    Proposal,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex.messages import Envelope
from node.net.port import Network
from node.services.blobs import PROTOCOL as BLOB
from node.services.sync_wire import PROTOCOL as SYNC
from node.services.sync_wire import SyncReply, SyncRequest
from node.services.tiles import PROTOCOL as TILE
from tests.kit.attacker import say
from tests.kit.victims import START_S, Victim, Victims
from tests.kit.waiting import paused, reached, until
from wallet.signing import sign_proposal, sign_vote


@dataclass(slots=True)
class Ear:
    """What a validator's link tells: the newest view, and messages to copy."""

    epoch: int = 0
    view: int = 0
    votes: dict[tuple[int, int, int, bytes], Vote] = field(default_factory=dict)
    certificates: list[Certificate] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)

    def hear(self, _: str, data: bytes) -> None:
        with contextlib.suppress(BlyanError):
            envelope: Envelope = decode(Envelope, data)
            for message in envelope.messages:
                self._note(message)

    def _note(self, message: object) -> None:
        if isinstance(message, Vote):
            self.votes[message.kind, message.epoch, message.view, message.signer] = message
            self.epoch, self.view = max((self.epoch, self.view), (message.epoch, message.view))
        elif isinstance(message, Certificate):
            self.certificates.append(message)
        elif isinstance(message, Proposal):
            self.proposals.append(message)


async def equivocation(victims: Victims, chance: random.Random) -> None:
    """One of four validators votes twice, nullifies what it finalizes, proposes twice, copies
    others' votes and replays an honest leader's block without its proof. It is slashed; the
    others go on."""
    thief, *honest = victims.validators
    victims.hostile.append(thief)
    account = thief.founded.keys.account.public.hex()
    bonded = honest[0].get(f"accounts/{account}")["bonded"]
    thief.end(signal.SIGKILL)
    keys, chain_id = thief.founded.keys, victims.genesis.chain_id
    ear = Ear()
    net = Network(keys.node.seed)
    net.on_message(ear.hear)
    await net.start()

    def vote(kind: VoteKind, view: int, block: bytes) -> Vote:
        return sign_vote(
            keys.consensus,
            chain_id=chain_id,
            kind=kind,
            epoch=Epoch(ear.epoch),
            view=View(view),
            block_hash=Hash32(block),
        )

    def misbehave() -> None:
        for view in (ear.view, ear.view + 1):
            one, two = Hash32(chance.randbytes(32)), Hash32(chance.randbytes(32))
            for node in honest:
                say(net, node, vote(VoteKind.NOTARIZE, view, one))
                say(net, node, vote(VoteKind.NOTARIZE, view, two))
                say(net, node, vote(VoteKind.FINALIZE, view, one))
                say(net, node, vote(VoteKind.NULLIFY, view, ZERO_HASH))
            for block_hash in (one, two):
                seal = sign_proposal(
                    keys.consensus,
                    chain_id=chain_id,
                    epoch=Epoch(ear.epoch),
                    view=View(view),
                    block_hash=block_hash,
                )
                if ear.proposals:
                    last = ear.proposals[-1]
                    for node in honest:
                        say(net, node, replace(last, seal=replace(seal, block_hash=block_hash)))
        copied = list(ear.votes.values())[-50:]
        for node in honest:
            if copied:
                say(net, node, *copied)

    try:
        for node in honest:
            await net.dial(node.address)
        await reached(lambda: ear.view > 0, 20, "the thief hears votes")
        before = max(n.height for n in honest)

        def slashed() -> bool:
            misbehave()
            found = honest[0].get(f"accounts/{account}")
            return bool(found["bonded"] < bonded)

        await reached(slashed, 30 * victims.slack, "the equivocator is slashed on chain")
        goal = max(n.height for n in honest) + 3
        await reached(
            lambda: min(n.height for n in honest) >= goal,
            30 * victims.slack,
            f"three honest validators go on from {before}",
        )
    finally:
        await net.stop()
        thief.start()
    until(lambda: thief.height >= 0, START_S * victims.slack, "the robbed node is back")


async def stripped_proposals(victims: Victims, chance: random.Random) -> None:
    """A validator forwards honest leaders' proposals at once, without the proof of the parent: its
    copy must not make anyone reject the leader's own."""
    thief, *honest = victims.validators
    victims.hostile.append(thief)
    thief.end(signal.SIGKILL)
    net = Network(thief.founded.keys.node.seed)
    rejected = sum(n.metrics()["consensus_rejected_proposals"] for n in honest)
    sent = 0

    def forward(_: str, data: bytes) -> None:
        nonlocal sent
        with contextlib.suppress(BlyanError):
            envelope: Envelope = decode(Envelope, data)
            for message in envelope.messages:
                if isinstance(message, Proposal):
                    bare = replace(message, parent_notarization=None, nullifications=())
                    for node in honest:
                        say(net, node, bare)
                    sent += 1

    net.on_message(forward)
    await net.start()
    try:
        for node in honest:
            await net.dial(node.address)
        await reached(lambda: sent >= 8, 60 * victims.slack, "proposals were forwarded")
        now = sum(n.metrics()["consensus_rejected_proposals"] for n in honest)
        assert now == rejected, "an honest leader's block was rejected for a copy of it"
    finally:
        await net.stop()
        thief.start()
    until(lambda: thief.height >= 0, START_S * victims.slack, "the robbed node is back")


# --- liars that serve ---------------------------------------------------------------------------

Answer = Callable[[str, bytes], Awaitable[bytes]]


async def liars_serve_a_joiner(victims: Victims, chance: random.Random) -> None:
    """A node that joins is told of as many liars as of honest nodes, and reaches the tip."""
    source = victims.nodes[0]
    old = encode(SyncReply(Height(2**63), (certified(source, 1),)))

    async def junk(_: str, __: bytes) -> bytes:
        return chance.randbytes(4096)

    async def again(_: str, __: bytes) -> bytes:
        return old

    async def forged(_: str, data: bytes) -> bytes:
        request: SyncRequest = decode(SyncRequest, data)
        real = certified(source, request.first)
        header = replace(real.block.header, state_root=Hash32(chance.randbytes(32)))
        wrong = CertifiedBlock(replace(real.block, header=header), real.finalization)
        return encode(SyncReply(Height(request.first + 1000), (wrong,)))

    async def slow(_: str, data: bytes) -> bytes:
        await paused(14)
        request: SyncRequest = decode(SyncRequest, data)
        return encode(SyncReply(Height(2**40), (certified(source, request.first),)))

    liars = []
    for answer in (junk, again, forged, slow):
        net = Network(chance.randbytes(32))
        for protocol, most in ((SYNC, 64), (BLOB, 33), (TILE, 64)):
            net.serve(protocol, answer if protocol == SYNC else junk, most=most)
        await net.start()
        liars.append(net)
    joiner = victims.stranger([*(n.addresses()[0] for n in liars), victims.nodes[1].address])
    joiner.start()
    try:
        goal = source.height
        await reached(
            lambda: joiner.height >= goal, (START_S + 30) * victims.slack, "the joiner is level"
        )
        height = min(joiner.height, source.height)
        assert joiner.get(f"blocks/{height}")["hash"] == source.get(f"blocks/{height}")["hash"]
        model = joiner.get("model")["shards"][0]
        data = joiner.client.get(f"tiles/{model['name']}/0/data")
        assert data.status_code == 200
        assert joiner.alive
    finally:
        joiner.end()
        joiner.client.close()
        for net in liars:
            await net.stop()


def certified(node: Victim, height: int) -> CertifiedBlock:
    """The first certified block from a height on, alone."""
    while (found := node.block(height)).finalization is None:
        height += 1
    return found


# --- crashes ----------------------------------------------------------------------------------


async def reached_by(node: Victim, height: int, timeout_s: float) -> None:
    await reached(lambda: node.height >= height, timeout_s, f"{node.home} at height {height}")


async def kill_and_restart(victims: Victims, chance: random.Random, times: int = 20) -> None:
    """kill -9 at any moment: the store opens, the log replays, nothing is signed twice."""
    for _ in range(times):
        victim = chance.choice(victims.validators)
        other = next(n for n in victims.validators if n is not victim)
        goal = other.height + 1
        await reached_by(other, goal, 30 * victims.slack)
        await paused(chance.uniform(0, 0.3))
        victim.end(signal.SIGKILL)
        victim.start()
        await reached_by(victim, goal, START_S * victims.slack)
    for node in victims.validators:
        assert not (node.home.logs / "halt.txt").exists(), "consensus has halted"
        signs = [line for line in node.logs().splitlines() if "evidence against" in line]
        own = victims.hostile_keys
        assert all(any(k in line for k in own) for line in signs), "a node signed twice"
    victims.agree(min(n.height for n in victims.validators))
