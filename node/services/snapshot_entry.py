"""Begins with a snapshot instead of replaying what came before (docs/spec/sync.md).

Everything goes into a directory beside the chain's file: chunks, then a new file of the chain under
another name, which gets its own once it is whole. The node ends its services then and goes on with
that file in place of the old one (`adopt`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chain.codec import decode, encode
from chain.entry import check_body, first_events, first_receipts, is_told
from chain.errors import (
    BlyanError,
    DecodeError,
    QuotaError,
    StorageError,
    UnreachableError,
    VerifyError,
)
from chain.light import Attack, Walk
from chain.limits import MAX_MESSAGE_BYTES
from chain.snapshot import SnapshotManifest, WrongSize, places
from chain.store import ChainStore
from chain.types import Block, Certificate, Height
from node.light.attack_file import file_name, write_attack
from node.services.chain import ChainService
from node.services.peer_rates import PeerRates
from node.services.peers import Peers
from node.services.snapshot_chunks import ChunkFetch, ChunkFiles
from node.services.snapshot_walk import Checkpoint, Start, Walker
from node.services.snapshot_wire import PROTOCOL, ManifestRequest, Offers, OffersRequest
from node.services.sync_wire import PROTOCOL as BLOCKS
from node.services.sync_wire import SyncReply, SyncRequest
from node.services.threads import to_the_end

log = logging.getLogger("blyan.sync")
TIMEOUT_S = 10.0
PLAN_S = 60.0  # a server lists a large state when it is first asked for it
MAX_PEERS = 16  # that are asked what they offer, and for chunks
WITNESSES = 3
TRIES = 2  # snapshots that are tried, the newest first
ROUNDS = 3  # of asking everyone for what is missing of one
ROOM = 3  # times the snapshot's size: chunks, the new file and its log
RESERVE_BYTES = 64 * 1024 * 1024
POINTS_LIE = 50.0
BUILT, READY = "building.db", "chain.db"


class SnapshotEntry:
    """Fetches the newest snapshot that peers offer and that is worth it."""

    def __init__(
        self,
        chain: ChainService,
        net: Peers,
        directory: Path,
        now_ms: Callable[[], int],
        trust: str = "",
    ) -> None:
        """`directory` is this service's own. `trust`: HEIGHT:HASH, as the operator says."""
        self._chain, self._net, self._directory = chain, net, directory
        self._walker = Walker(chain, net, now_ms)
        self._checkpoint = Checkpoint.parse(trust) if trust else None
        self._rates = PeerRates()
        self._fetch: ChunkFetch | None = None
        self._start: Start | None = None
        self._height: int | None = None
        self.problem: str | None = None
        self.lies = 0

    def info(self) -> dict[str, Any] | None:
        """How far it is; None if none was tried."""
        if self._height is None and self.problem is None:
            return None
        trusted = self._start.trusted.header if self._start is not None else None
        return {
            "height": self._height,
            "chunks_done": self._fetch.done if self._fetch is not None else 0,
            "chunks_total": self._fetch.total if self._fetch is not None else None,
            "trusted_height": trusted.height if trusted is not None else None,
            "trusted_hash": trusted.hash().hex() if trusted is not None else None,
            "trusted_from": self._start.origin if self._start is not None else None,
            "problem": self.problem,
        }

    async def enter(self) -> bool:
        """Whether a new file of the chain is ready. What went wrong is told in `info`."""
        self.problem = None
        try:
            return await self._enter()
        except Attack as attack:
            self.problem = str(Attack(*attack.blocks, hint=self._save(attack)))
            log.critical("%s", self.problem)
        except BlyanError as error:
            log.warning("no snapshot: %s", error)
            self.problem = str(error)
        return False

    def _save(self, attack: Attack) -> str:
        """Beside the chain's file. The operator must decide: who is behind cannot tell which of two
        histories the others go on with, nor whom its own state could still punish."""
        try:
            return write_attack(attack, self._directory.parent / file_name(attack))
        except OSError as error:
            return f"they could not be written down ({error.strerror}); ask people"

    async def _enter(self) -> bool:
        offers = await self._offers()
        if not offers:
            return False
        peers = sorted({peer for found in offers.values() for peer in found})
        self._start = await self._walker.start(self._checkpoint, peers)
        above = self._start.trusted.header.height
        none: BlyanError = UnreachableError(f"no snapshot above block {above} is offered")
        last = none
        for height in [h for h in sorted(offers, reverse=True) if h > above][:TRIES]:
            self._height, self._fetch = height, None
            try:
                await self._take(Height(height), offers[height], self._start, drop=last is none)
                return True
            except (Attack, StorageError):
                raise
            except BlyanError as error:
                log.info("not the snapshot of height %d: %s", height, error)
                last = error
        raise last

    async def _offers(self) -> dict[int, list[str]]:
        """Who says to have the snapshot of which height, as far as they are worth it."""
        peers = [p.peer_id for p in self._net.peers() if p.connected]
        random.shuffle(peers)
        interval, tip = self._chain.genesis.params.snapshot_blocks, self._chain.tip.height
        found: dict[int, list[str]] = {}
        for peer in peers[:MAX_PEERS]:
            try:
                raw = await self._net.request(
                    peer,
                    PROTOCOL,
                    encode(OffersRequest(tip)),
                    timeout_s=TIMEOUT_S,
                    most=1024,
                )
                offers: Offers = decode(Offers, raw)
            except (UnreachableError, DecodeError) as error:
                log.debug("%s offers no snapshot: %s", peer, error)
                continue
            for height in offers.heights:
                if height % interval == 0 and height >= tip + interval:
                    found.setdefault(height, []).append(peer)
        return found

    async def _take(
        self, height: Height, peers: Sequence[str], start: Start, *, drop: bool
    ) -> None:
        """One snapshot, into a file that is ready to be adopted. `drop` what is kept of others."""
        log.info("a snapshot of height %d is offered by %d peers", height, len(peers))
        walk = await self._walker.walk(start, height, peers)
        agreed = await self._walker.confirm(walk, start, peers[:WITNESSES])
        log.info("block %d is final, say %d peers (from %s)", height, agreed, start.origin)
        certificate = _own_certificate(walk)
        block = await self._block(walk, peers)
        files = ChunkFiles(self._directory / "chunks")
        tried: set[SnapshotManifest] = set()
        for peer in peers:
            try:
                manifest = await self._manifest(peer, walk)
            except UnreachableError as error:
                log.debug("%s gives no manifest: %s", peer, error)
                continue
            except (VerifyError, DecodeError) as error:
                self._blame(peer, error)
                continue
            if manifest in tried:
                continue
            tried.add(manifest)
            self._check_room(manifest)
            await to_the_end(asyncio.to_thread(files.prepare, manifest, drop=drop))
            fetch = self._fetch = ChunkFetch(self._net, self._rates, files, manifest)
            try:
                await self._chunks(fetch, peers)
            except WrongSize as error:
                self._blame(peer, error)
                continue
            except UnreachableError as error:
                log.info("%s", error)
                continue
            finally:
                self.lies += fetch.lies
            await to_the_end(asyncio.to_thread(self._build, fetch, block, certificate))
            return
        raise UnreachableError(f"no peer has the whole snapshot of height {height}")

    async def _chunks(self, fetch: ChunkFetch, peers: Sequence[str]) -> None:
        for left in reversed(range(ROUNDS)):
            try:
                await fetch.run(peers)
                return
            except UnreachableError:
                if not left:
                    raise
                fetch.forgive()

    async def _manifest(self, peer: str, walk: Walk) -> SnapshotManifest:
        raw = await self._net.request(
            peer,
            PROTOCOL,
            encode(ManifestRequest(walk.trusted.header.height)),
            timeout_s=PLAN_S,
            most=MAX_MESSAGE_BYTES,
        )
        manifest: SnapshotManifest = decode(SnapshotManifest, raw)
        if manifest.header != walk.trusted.header:
            raise VerifyError("the manifest is of another header than the final one")
        places(manifest)
        return manifest

    async def _block(self, walk: Walk, peers: Sequence[str]) -> Block:
        header = walk.trusted.header
        for peer in peers:
            try:
                raw = await self._net.request(
                    peer,
                    BLOCKS,
                    encode(SyncRequest(header.height, 1)),
                    timeout_s=TIMEOUT_S,
                    most=2 * MAX_MESSAGE_BYTES,
                )
                reply: SyncReply = decode(SyncReply, raw, most=len(raw))
                if not reply.blocks:
                    continue
                check_body(header, reply.blocks[0].block)
                return reply.blocks[0].block
            except UnreachableError as error:
                log.debug("%s gives no block: %s", peer, error)
            except (VerifyError, DecodeError) as error:
                self._blame(peer, error)
        raise UnreachableError(f"no peer gives the block {header.height}")

    def _blame(self, peer: str, error: BlyanError) -> None:
        self.lies += 1
        log.warning("%s: %s", peer, error)
        self._net.report(peer, f"snapshot: {error}", POINTS_LIE)

    def _check_room(self, manifest: SnapshotManifest) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._directory).free
        needed = ROOM * manifest.size + RESERVE_BYTES
        if free < needed:
            raise QuotaError(
                f"the disk has {free} bytes free, and a snapshot of {manifest.size} needs {needed} "
                "while it is taken: free some room"
            )

    def _build(self, fetch: ChunkFetch, block: Block, certificate: Certificate) -> None:
        """The new file, durable when it has its name."""
        built, told = self._directory / BUILT, dict[bytes, bytes]()
        _remove(built)
        with ChainStore(built) as store, store.import_state() as state:
            for leaves in fetch.leaves():
                state.add(leaves)
                told.update((key, value) for key, value in leaves if is_told(key))
            state.finish(
                block, block.hash(), certificate, first_receipts(block), first_events(told)
            )
        _rename(built, self._directory / READY)
        log.info("the chain begins anew at block %d", block.header.height)


def _own_certificate(walk: Walk) -> Certificate:
    """The last block of an epoch has a finalization of its own."""
    if walk.block is None or len(walk.block.headers) != 1:
        raise VerifyError("the block of a snapshot is shown without its own finalization")
    return walk.block.finalization


def adopt(directory: Path, chain_db: Path) -> bool:
    """Put a new file of the chain that is ready in the place of the old one, before anything opens
    it. A crash at any point is mended by the next call. Whether there was one."""
    ready = directory / READY
    if not ready.exists():
        return False
    began = time.monotonic()
    _remove(chain_db)  # with its log, which must not be applied to the new file
    _rename(ready, chain_db)
    shutil.rmtree(directory, ignore_errors=True)
    log.info("the chain was put in place in %.1f s", time.monotonic() - began)
    return True


def _remove(path: Path) -> None:
    for name in (f"{path.name}-wal", f"{path.name}-shm", path.name):
        path.with_name(name).unlink(missing_ok=True)
    _sync_directory(path.parent)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    _sync_directory(source.parent)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
