"""Catching up: certified blocks fetched from peers in batches, verified, executed, committed.

A batch counts only as far as a finalization certificate reaches. Whoever sends a batch that does
not hold is charged and another peer is asked; nothing of it enters the store.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any

from chain import limits
from chain.certificates import verify_certificate
from chain.codec import U8, Seq, decode, encode, wire
from chain.errors import BlockError, BlyanError, DecodeError, UnreachableError, VerifyError
from chain.execute import epoch_of
from chain.types import Block, Certificate, CertifiedBlock, Height, VoteKind
from node.net.port import Network
from node.services.chain import ChainService
from node.services.consensus import ConsensusService, body_matches
from node.services.followers import BLOCK_TOPIC, CERTIFICATE_TOPIC
from node.services.threads import Workers

log = logging.getLogger("blyan.sync")
PROTOCOL = "/blyan/sync/1"
TIMEOUT_S = 15.0
BATCH_BLOCKS = 256
BATCH_BYTES = 4 * 1024 * 1024
READING = 2  # answers at a time that are read from the disk
POLL_S = 2.0  # a quiet node asks a peer for its height this often
MAX_BATCHES = 100_000  # of one catch-up
MAX_ASKED = 4  # peers asked in one catch-up


@wire(20)
@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Asks for final blocks from `first` on; none fit an asker who only wants the tip's height."""

    first: Height
    blocks: U8  # 0: only tell the tip


@wire(21)
@dataclass(frozen=True, slots=True)
class SyncReply:
    """The sender's final height and consecutive blocks; the last one carries its certificate."""

    tip: Height
    blocks: Annotated[tuple[CertifiedBlock, ...], Seq(BATCH_BLOCKS)]


class SyncService:
    """Keeps a node at its peers' height when consensus messages alone do not."""

    def __init__(self, chain: ChainService, net: Network) -> None:
        self._chain, self._net = chain, net
        self._consensus: ConsensusService | None = None
        self._wanted = asyncio.Event()
        self._hint: str | None = None
        self.target = 0
        self.batches = self.lies = 0
        self.active = False
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
            "active": self.active,
            "batches": self.batches,
            "lies": self.lies,
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

    # --- asking ----------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Ask peers, in random order but for the hint; whoever is behind or lies is passed over.

        Those that are ahead serve a batch each, in turn: one that sends as little and as slowly
        as it may must not hold us up.
        """
        peers = [p.peer_id for p in self._net.peers() if p.connected]
        random.shuffle(peers)
        if self._hint in peers:
            peers.remove(self._hint)
            peers.insert(0, self._hint)
        asked = deque(peers[:MAX_ASKED])
        for _ in range(MAX_BATCHES):
            if not asked:
                break
            peer = asked.popleft()
            self.active = True
            try:
                if await self._from(peer):
                    asked.append(peer)
            except UnreachableError as error:
                log.debug("%s does not sync: %s", peer, error)
            except (VerifyError, BlockError, DecodeError) as error:
                self.lies += 1
                log.warning("%s sent blocks that do not hold: %s", peer, error)
                self._net.report(peer, f"sync: {error}", 50)
            finally:
                self.active = False
        self.target = self._chain.tip.height  # a height without blocks is only a word

    async def _from(self, peer: str) -> bool:
        """Take one batch. False if this peer has none."""
        request = SyncRequest(Height(self._chain.tip.height + 1), 255)
        raw = await self._net.request(
            peer,
            PROTOCOL,
            encode(request),
            timeout_s=TIMEOUT_S,
            most=BATCH_BYTES + limits.MAX_MESSAGE_BYTES,
        )
        reply: SyncReply = decode(SyncReply, raw, most=len(raw))
        if not reply.blocks:
            return False
        first, last = reply.blocks[0], reply.blocks[-1]
        if first.block.header.height != request.first or last.finalization is None:
            raise VerifyError("not the blocks asked for, up to a certified one")  # no progress
        await self._take(reply.blocks)
        self.target = max(self.target, reply.tip)
        self.batches += 1
        return True

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
        blocks = await self._reading.run(
            self._chain.store.blocks, request.first, tip, request.blocks, BATCH_BYTES
        )
        last = max((i for i, b in enumerate(blocks) if b.finalization is not None), default=-1)
        return encode(SyncReply(tip, blocks[: last + 1]))

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
