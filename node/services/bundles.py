"""Many small blobs in one answer: the sealed payloads of a round (docs/spec/tile-transfer.md).

A relay passes on what others made, each piece as it was: it opens, adds and judges nothing. The
asker knows name and size of each from the chain, so it takes no relay's word for anything.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import U32, Seq, decode, encode, wire
from chain.errors import BlyanError, DecodeError, StorageError, VerifyError
from chain.hashes import BLOB, BUNDLE, Hash32
from chain.records import DeltaRecord
from chain.state import State
from chain.types import BlobId
from node.net.priority import Priority
from node.services.blobs import BlobService
from node.services.payload_bound import PayloadBound
from node.services.peers import Peers
from node.services.threads import Workers
from tiles.merkle import merkle_root

log = logging.getLogger("blyan.bundles")
PROTOCOL = "/blyan/bundle/1"
MAX_REQUEST_BYTES = 4096  # 64 pieces take 2,700
MAX_HEADER_BYTES = 512  # 64 sizes and a root take 361
LENGTH_BYTES = 2  # of the header's length, before it
PEERS = 3  # asked for bundles before the rest is asked for piece by piece
CONCURRENT = 2  # answers at a time: each may have 64 MiB
SINGLE = 8  # blobs asked for at a time one by one


@wire(121)
@dataclass(frozen=True, slots=True)
class BundlePiece:
    """A blob, and the bytes it has according to the chain."""

    blob: BlobId
    size: U32


@wire(122)
@dataclass(frozen=True, slots=True)
class BundleRequest:
    """Asks for blobs, no two alike. One that is held but of another size counts as not held."""

    pieces: Annotated[tuple[BundlePiece, ...], Seq(limits.MAX_DELTAS)]


@wire(123)
@dataclass(frozen=True, slots=True)
class BundleHeader:
    """What follows of the pieces asked for, in their order; `sizes` has 0 for what does not."""

    sizes: Annotated[tuple[U32, ...], Seq(limits.MAX_DELTAS)]
    root: Hash32


def root_of(pieces: Sequence[BundlePiece], sizes: Sequence[int]) -> Hash32:
    """Root of the list of H_bundle(blob ‖ size), which ties an answer to its question."""
    leaves = (
        BUNDLE.hash(piece.blob, size.to_bytes(8, "big"))
        for piece, size in zip(pieces, sizes, strict=True)
    )
    return merkle_root(list(leaves), limits.MAX_DELTAS)


def read_request(data: bytes) -> BundleRequest:
    """A request that can be meant. Raises DecodeError, or VerifyError for what cannot be."""
    request: BundleRequest = decode(BundleRequest, data, most=MAX_REQUEST_BYTES)
    names = {piece.blob for piece in request.pieces}
    if not names or len(names) != len(request.pieces):
        raise VerifyError("a bundle of nothing, or of the same blob twice")
    if not all(0 < piece.size <= limits.MAX_BLOB_BYTES for piece in request.pieces):
        raise VerifyError("a bundle of a blob that cannot be")
    return request


def bodies_of(
    pieces: Sequence[BundlePiece], answer: memoryview
) -> list[tuple[BundlePiece, memoryview]]:
    """The bodies of an answer, not yet hashed. Raises DecodeError or VerifyError unless header
    and length are what they must be."""
    start = LENGTH_BYTES + int.from_bytes(answer[:LENGTH_BYTES], "big")
    header: BundleHeader = decode(
        BundleHeader, bytes(answer[LENGTH_BYTES:start]), most=MAX_HEADER_BYTES
    )
    sizes = header.sizes
    if len(sizes) != len(pieces) or not any(sizes):
        raise VerifyError("a bundle that lists other pieces, or none")
    if any(size not in (0, piece.size) for piece, size in zip(pieces, sizes, strict=True)):
        raise VerifyError("a piece of another size than the chain says")
    if sum(sizes) != len(answer) - start or sum(sizes) > limits.MAX_BLOB_BYTES:
        raise VerifyError("a bundle of another length than its header says")
    if header.root != root_of(pieces, sizes):
        raise VerifyError("a bundle's root is not that of what it lists")
    found = []
    for piece, size in zip(pieces, sizes, strict=True):
        if size:
            found.append((piece, answer[start : start + size]))
            start += size
    return found


def pieces_of(records: Iterable[DeltaRecord], most: int) -> list[BundlePiece]:
    """The payloads of deltas, each once, in their order. What has nothing or more than `most` bytes
    cannot be one. Of several sizes that are said of a blob the greatest counts, or whoever names
    another's blob with a smaller one would keep it from everybody."""
    sizes: dict[BlobId, int] = {}
    for record in records:
        if 0 < record.blob_bytes <= most:
            sizes[record.blob] = max(record.blob_bytes, sizes.get(record.blob, 0))
    return [BundlePiece(blob, size) for blob, size in sizes.items()]


class BundleService:
    """Bundles served from the blobs that are here, and fetched to lie among them."""

    def __init__(self, blobs: BlobService, net: Peers) -> None:
        self._blobs, self._net = blobs, net
        self._reading = Workers(CONCURRENT)
        self._good: set[str] = set()  # peers whose last bundle was right
        self._fetching = asyncio.Lock()  # who waits finds most of it here
        self.served = self.fetched = 0
        net.serve(
            PROTOCOL,
            self._serve,
            most=MAX_REQUEST_BYTES,
            concurrent=CONCURRENT,
            priority=Priority.BULK,
        )

    async def have(self, pieces: Sequence[BundlePiece], most: int = limits.MAX_BLOB_BYTES) -> None:
        """Have what can be had of these blobs here: in bundles, and what is left one by one, then
        of up to `most` bytes each: its size is only what somebody said of it."""
        async with self._fetching:
            try:
                left = await self.fetch(pieces)
            except StorageError as error:
                log.warning("payloads cannot be kept: %s", error)
                return
        room = asyncio.Semaphore(SINGLE)

        async def single(blob: BlobId) -> None:
            async with room:
                await self._blobs.get(blob, most=most)

        tasks = [single(piece.blob) for piece in left]
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, BlyanError):
                log.debug("a payload cannot be had: %s", found)
            elif isinstance(found, BaseException):
                raise found

    async def fetch(self, pieces: Sequence[BundlePiece]) -> list[BundlePiece]:
        """Ask at most three peers, one after another, for what is not here. What is still not is
        returned. Raises StorageError if there is no room for it."""
        lacking: dict[BlobId, BundlePiece] = {}
        for piece in pieces:
            known = lacking.get(piece.blob)
            if piece.size > (known.size if known else 0) and not self._blobs.has(piece.blob):
                lacking[piece.blob] = piece
        left = list(lacking.values())
        ranked = self._blobs.ranked(banned=False)
        self._good &= set(ranked)
        for peer in sorted(ranked, key=lambda p: p not in self._good)[:PEERS]:
            rest = left
            while rest:  # what did not fit into one answer fits into the next
                batch = rest[: limits.MAX_DELTAS]
                if not await self._ask(peer, batch):
                    break
                rest = [p for p in rest if not self._blobs.has(p.blob)]
            left = [p for p in left if not self._blobs.has(p.blob)]
            if not left:
                break
        return left

    async def _ask(self, peer: str, pieces: Sequence[BundlePiece]) -> bool:
        """Whether a peer gave some of these, and nothing else. What is right is kept anyway."""
        size = min(sum(piece.size for piece in pieces), limits.MAX_BLOB_BYTES)
        most = LENGTH_BYTES + MAX_HEADER_BYTES + size
        answer = await self._blobs.ask(
            peer,
            encode(BundleRequest(tuple(pieces))),
            memoryview(mmap.mmap(-1, most))[:most],
            lambda data: self._keep(pieces, data),
            {},
            hurried=True,
            protocol=PROTOCOL,
        )
        if answer is None:
            self._good.discard(peer)
            return False
        self._good.add(peer)
        self.fetched += 1
        return True

    def _keep(self, pieces: Sequence[BundlePiece], data: bytes) -> bool:
        """Store what is right of an answer; whether all of it is. For a thread."""
        try:
            bodies = bodies_of(pieces, memoryview(data))
        except (DecodeError, VerifyError) as error:
            log.debug("no bundle: %s", error)
            return False
        right = True
        for piece, body in bodies:
            if BlobId(BLOB.hash(body)) == piece.blob:
                self._blobs.keep(bytes(body))
            else:
                right = False
        return right

    # --- serving -------------------------------------------------------------------------

    async def _serve(self, peer: str, data: bytes) -> bytes | list[bytes]:
        try:
            request = read_request(data)
        except (DecodeError, VerifyError) as error:
            self._net.report(peer, f"not a request for a bundle: {error}", 10)
            return b""
        bodies = await self._reading.run(self._read, request.pieces)
        if not any(bodies):
            return b""
        sizes = tuple(map(len, bodies))
        header = encode(BundleHeader(sizes, root_of(request.pieces, sizes)))
        self.served += 1
        return [len(header).to_bytes(LENGTH_BYTES, "big"), header, *bodies]

    def _read(self, pieces: Sequence[BundlePiece]) -> list[bytes]:
        """Each piece's bytes, none where it is not here or does not fit. For a thread."""
        found, room = [], limits.MAX_BLOB_BYTES
        for piece in pieces:
            fits = piece.size <= room and self._blobs.size(piece.blob) == piece.size
            body = (self._blobs.local(piece.blob) or b"") if fits else b""
            room -= len(body)
            found.append(body)
        return found


class Relay:
    """Has each payload of a round as soon as the chain has its commit, for whoever asks then."""

    def __init__(self, bundles: BundleService, bound: PayloadBound, state: State) -> None:
        self._bundles, self._bound = bundles, bound
        self._most = 0
        self._wanted: list[BundlePiece] = []
        self._woken = asyncio.Event()
        self.committed(state)

    def committed(self, state: State) -> None:
        """Another block is final."""
        current = state.round()
        self._most = self._bound.of_round(state, current.number)
        wanted = pieces_of(map(state.delta, current.deltas), self._most)
        if wanted != self._wanted:  # so what nobody has is asked for once with each new commit
            self._wanted = wanted
            self._woken.set()

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self._bundles.have(self._wanted, self._most)
