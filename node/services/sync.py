"""Catching up: certified blocks from several peers at once, verified and executed in order.

What a peer sends counts only as far as a finalization certificate reaches. Whoever sends a range
that does not hold is charged and another peer is asked for it; nothing of it enters the store. Who
is far behind begins with a snapshot, if that is quicker (node/services/snapshot_entry.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from chain import limits
from chain.certificates import verify_certificate
from chain.codec import decode, encode
from chain.errors import BlockError, BlyanError, DecodeError, UnreachableError, VerifyError
from chain.execute import epoch_of
from chain.types import Block, Certificate, CertifiedBlock, Height, VoteKind
from node.net.port import Network
from node.services.chain import ChainService, body_matches
from node.services.consensus import ConsensusService
from node.services.followers import BLOCK_TOPIC, CERTIFICATE_TOPIC
from node.services.peer_rates import PeerRates
from node.services.snapshot_entry import SnapshotEntry
from node.services.sync_plan import HEDGE_S, BlockPlan, Range
from node.services.sync_wire import (
    BATCH_BLOCKS,
    BATCH_BYTES,
    PROTOCOL,
    SyncReply,
    SyncRequest,
)
from node.services.threads import Workers

log = logging.getLogger("blyan.sync")
TIMEOUT_S = 15.0
READING = 2  # answers at a time that are read from the disk
POLL_S = 2.0  # a quiet node asks a peer for its height this often
FIRST_ASKED = 4  # peers that are asked, one after another, whether they are ahead
PEERS = 8  # that are asked at the same time by who is far behind
FAILURES = 3  # in a row, after which a peer is left alone in this catch-up
TAIL_BLOCKS = 64  # an answer goes on so far to end with a certificate
POINTS_LIE = 50
FAR = 8  # times the distance of snapshots, for one that has just begun with one
AGAIN_S = 60.0  # between two tries to begin with a snapshot


class SyncService:
    """Keeps a node at its peers' height when consensus messages alone do not.

    `mode`: `auto`; `blocks` never begins with a snapshot; `snapshot` never replays more blocks than
    lie between two of them.
    """

    def __init__(
        self,
        chain: ChainService,
        net: Network,
        entry: SnapshotEntry | None = None,
        *,
        mode: str = "auto",
        on_entered: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_entered` is called when a snapshot is ready to be adopted: nothing is synced any
        more."""
        self._chain, self._net = chain, net
        self._entry, self._mode, self._on_entered = entry, mode, on_entered
        self._again = 0.0
        self._consensus: ConsensusService | None = None
        self._wanted = asyncio.Event()
        self._hint: str | None = None
        self._rates = PeerRates()
        self.target = 0
        self.batches = self.lies = 0
        self.phase: str | None = None  # blocks, snapshot, entered
        self._reading = Workers(READING)
        net.serve(PROTOCOL, self._serve, most=64, concurrent=8)
        net.subscribe(BLOCK_TOPIC, self._block)
        net.subscribe(CERTIFICATE_TOPIC, self._certificate)
        net.on_peer(lambda peer, up: self.want(peer) if up else None)

    def attach(self, consensus: ConsensusService) -> None:
        self._consensus = consensus

    def info(self) -> dict[str, Any]:
        height = self._chain.tip.height
        target = max(self.target, height)
        return {
            "synced": target - height <= 2,
            "target": target,
            "active": self.phase is not None,
            "phase": self.phase,
            "batches": self.batches,
            "lies": self.lies + (self._entry.lies if self._entry is not None else 0),
            "first_height": self._chain.store.first_height(),
            "snapshot": self._entry.info() if self._entry is not None else None,
        }

    def want(self, peer: str, height: int = 0) -> None:
        """Ask this peer soon whether it is ahead."""
        self._hint = peer
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled: ask when told to, and now and then anyway."""
        while True:
            height = self._chain.tip.height
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wanted.wait()
            except TimeoutError:
                if self._chain.tip.height > height:
                    continue  # consensus moves by itself
            self._wanted.clear()
            await self._catch_up()
            if self.phase == "entered":
                await asyncio.Event().wait()  # what comes now would go into a file that is left

    # --- asking ----------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Ask peers, the hint first, whether they are ahead; several at once if one is by far."""
        plan = BlockPlan(self._chain.tip.height)
        peers = self._ordered()
        try:
            for peer in peers[:FIRST_ASKED]:
                self.phase = "blocks"
                await self._one(plan, peer)
                self.target = max(self._chain.tip.height, plan.target)
                if self._is_far(plan.target):
                    if await self._enter():
                        return
                    if self._mode == "snapshot":
                        break
                await self._commit_ready(plan)
                if plan.target > self._chain.tip.height:
                    await self._from_many(plan, peers)
                    break
        finally:
            if self.phase != "entered":
                self.phase = None
        self.target = self._chain.tip.height  # a height without blocks is only a word

    def _ordered(self) -> list[str]:
        """Connected peers: the hint, then those that give most; who lied of late not at all."""
        now, rates = time.monotonic(), self._rates
        peers = [p.peer_id for p in self._net.peers() if p.connected]
        peers = [p for p in peers if rates[p].banned_until <= now]
        random.shuffle(peers)
        peers.sort(key=lambda p: (rates[p].paused_until > now, -rates.promise(rates[p], now)))
        if self._hint in peers:
            peers.remove(self._hint)
            peers.insert(0, self._hint)
        return peers

    def _is_far(self, target: int) -> bool:
        """Whether a snapshot is worth it. Who has just begun with one goes on by blocks, unless the
        others are away again by far: a start takes as long as a few blocks."""
        interval, tip = self._chain.genesis.params.snapshot_blocks, self._chain.tip.height
        first = self._chain.store.first_height() or 0
        has_begun = first > 0 and tip - first < interval
        return target - tip >= (FAR * interval if has_begun else interval)

    async def _enter(self) -> bool:
        """Whether a snapshot is ready."""
        if self._entry is None or self._mode == "blocks" or time.monotonic() < self._again:
            return False
        self.phase = "snapshot"
        if await self._entry.enter():
            self.phase = "entered"
            self._on_entered()
            return True
        self._again = time.monotonic() + AGAIN_S
        self.phase = "blocks"
        return False

    async def _from_many(self, plan: BlockPlan, peers: list[str]) -> None:
        """Ranges from many peers; committed here, in order."""
        changed = asyncio.Event()
        tasks = [asyncio.create_task(self._ranges(plan, p, changed)) for p in peers[:PEERS]]
        ended = asyncio.gather(*tasks)
        try:
            while not ended.done():
                bell = asyncio.create_task(changed.wait())
                either: set[asyncio.Future[Any]] = {bell, ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                bell.cancel()
                changed.clear()
                await self._commit_ready(plan)
                self.target = max(self._chain.tip.height, plan.target)
        finally:
            ended.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await ended
        await self._commit_ready(plan)

    async def _ranges(self, plan: BlockPlan, peer: str, changed: asyncio.Event) -> None:
        """One range of a peer after the other, as long as it is of use."""
        failures = 0
        while failures < FAILURES and self._rates[peer].banned_until <= time.monotonic():
            if not plan.wants(peer):
                return
            came = await self._one(plan, peer)
            if came is None:
                await asyncio.sleep(HEDGE_S / 8)  # others have all that is missing
                continue
            changed.set()
            failures = 0 if came else failures + 1

    async def _one(self, plan: BlockPlan, peer: str) -> bool | None:
        """Ask a peer for a range. None: there is none to ask for."""
        rate, now = self._rates[peer], time.monotonic()
        wanted = plan.ask(peer, self._rates.speed(rate, now), now)
        if wanted is None:
            return None
        expected = plan.expected_bytes(wanted)
        rate.began(now, expected)
        came, left = False, expected
        try:
            raw = await self._net.request(
                peer,
                PROTOCOL,
                encode(SyncRequest(Height(wanted.first), wanted.count)),
                timeout_s=TIMEOUT_S,
                most=BATCH_BYTES + limits.MAX_MESSAGE_BYTES,
            )
            rate.arrived(time.monotonic(), len(raw))
            left = expected - len(raw)
            reply: SyncReply = decode(SyncReply, raw, most=len(raw))
            plan.tips[peer] = reply.tip
            if reply.blocks:
                _check_range(wanted, reply)
                plan.came(wanted, peer, reply.blocks, len(raw), time.monotonic())
                self.batches += 1
                came = True
                rate.gave()
        except UnreachableError as error:
            log.debug("%s does not sync: %s", peer, error)
            rate.failed(time.monotonic())
        except (VerifyError, DecodeError) as error:
            self._blame(peer, error)
        finally:
            rate.ended(time.monotonic(), left)
            if not came:
                plan.nothing_came(wanted, peer)
        return came

    def _blame(self, peer: str, error: BlyanError) -> None:
        self.lies += 1
        self._rates[peer].lied(time.monotonic())
        log.warning("%s sent blocks that do not hold: %s", peer, error)
        self._net.report(peer, f"sync: {error}", POINTS_LIE)

    async def _commit_ready(self, plan: BlockPlan) -> None:
        """Commit what has come, as far as it is the next."""
        while (ready := plan.head(self._chain.tip.height)) is not None:
            try:
                await self._take(ready.blocks)
            except (VerifyError, BlockError) as error:
                self._blame(plan.refuse(ready), error)

    async def _take(self, batch: tuple[CertifiedBlock, ...]) -> None:
        """Verify, execute and commit up to the last certificate of the batch."""
        group: list[Block] = []
        for item in batch:
            group.append(item.block)
            if item.finalization is not None:
                self._commit(group, item.finalization)
                group = []
                await asyncio.sleep(0)  # consensus and the API go on between groups

    def _commit(self, group: list[Block], certificate: Certificate) -> None:
        """Blocks that one certificate makes final. All of one epoch: an epoch's last block has
        a certificate of its own before anyone signs in the next."""
        while group and group[0].header.height <= self._chain.tip.height:
            group.pop(0)  # consensus was faster
        if not group:
            return
        chain, last = self._chain, group[-1]
        if certificate.kind != VoteKind.FINALIZE or certificate.block_hash != last.hash():
            raise VerifyError("a certificate that does not finalize its block")
        epoch = epoch_of(chain.genesis, last.header.height)
        if certificate.epoch != epoch or epoch != epoch_of(chain.genesis, chain.tip.height + 1):
            raise VerifyError("a certificate of another epoch than its blocks")
        verify_certificate(chain.genesis.chain_id, chain.validators(epoch), certificate)
        parent, parent_hash = chain.tip, chain.tip_hash
        for block in group:
            if block.header.parent != parent_hash:
                raise VerifyError("the blocks do not follow one another")
            parent, parent_hash = block.header, block.hash()
        parent = chain.tip
        for block in group:
            chain.execute(parent, block)
            parent = block.header
        chain.commit(group, certificate)
        if self._consensus is not None:
            self._consensus.advance_to(last.header, certificate)

    # --- answering -------------------------------------------------------------------------

    async def _serve(self, peer: str, data: bytes) -> bytes:
        try:
            request: SyncRequest = decode(SyncRequest, data)
        except DecodeError as error:
            self._net.report(peer, f"sync: {error}", 10)
            raise
        tip = self._chain.tip.height
        if request.blocks == 0 or request.first > tip:
            return encode(SyncReply(tip, ()))
        most = min(request.blocks + TAIL_BLOCKS, BATCH_BLOCKS)
        blocks = await self._reading.run(
            self._chain.store.blocks, request.first, tip, most, BATCH_BYTES
        )
        return encode(SyncReply(tip, _up_to_certified(blocks, request.blocks)))

    # --- gossip: followers hear of final blocks --------------------------------------------

    # A node passes on only what it has verified, and refuses only what every node refuses: what
    # one accepts and another, who stands elsewhere, refuses would be blamed on who passed it on.

    async def _block(self, peer: str, data: bytes) -> bool | None:
        try:
            item: CertifiedBlock = decode(CertifiedBlock, data)
        except DecodeError:
            return False
        header, certificate = item.block.header, item.finalization
        if certificate is None or certificate.block_hash != item.block.hash():
            return False
        if epoch_of(self._chain.genesis, header.height) != certificate.epoch:
            return False
        holds = self._holds(peer, certificate)
        if not holds:
            return holds
        if not body_matches(item.block):
            return False
        height = self._chain.tip.height
        if header.height > height + 1:
            self.want(peer)
        elif header.height == height + 1 and not self._is_validator():
            # (A validator's votes are on their way; its store must not run ahead of the log.)
            try:
                self._commit([item.block], certificate)
            except BlyanError as error:
                log.warning("a certified block that came by gossip does not hold: %s", error)
                return None
        return True

    async def _certificate(self, peer: str, data: bytes) -> bool | None:
        try:
            certificate: Certificate = decode(Certificate, data)
        except DecodeError:
            return False
        holds = self._holds(peer, certificate)
        if holds and not self._is_validator() and certificate.block_hash != self._chain.tip_hash:
            self.want(peer)
        return holds

    def _holds(self, peer: str, certificate: Certificate) -> bool | None:
        """Whether it finalizes something. None: of an epoch whose validators this node no longer
        looks at, or does not know yet."""
        if certificate.kind != VoteKind.FINALIZE:
            return False
        epoch = epoch_of(self._chain.genesis, self._chain.tip.height + 1)
        if certificate.epoch != epoch:
            if certificate.epoch > epoch:
                self.want(peer)
            return None
        try:
            verify_certificate(
                self._chain.genesis.chain_id, self._chain.validators(epoch), certificate
            )
        except VerifyError:
            return False
        return True

    def _is_validator(self) -> bool:
        return self._consensus is not None and self._consensus.info()["index"] is not None


def _check_range(wanted: Range, reply: SyncReply) -> None:
    """What can be said of an answer before the blocks in front of it are known."""
    for height, item in enumerate(reply.blocks, wanted.first):
        if item.block.header.height != height:
            raise VerifyError("not the blocks asked for")
    if reply.blocks[-1].finalization is None:
        raise VerifyError("blocks that no certificate makes final")


def _up_to_certified(blocks: tuple[CertifiedBlock, ...], count: int) -> tuple[CertifiedBlock, ...]:
    """`count` of them and on to the next that is certified; else as many as end with one."""
    ends = [i for i, item in enumerate(blocks, 1) if item.finalization is not None]
    end = next((i for i in ends if i >= count), ends[-1] if ends else 0)
    return blocks[:end]
