"""The state at one height in chunks that are verified alone (docs/spec/sync.md).

A chunk is a subtree of the state tree whose leaves are at most `MAX_SNAPSHOT_CHUNK_BYTES`: starting
at the root, what is larger is split in two by the next bit of the path. So every node makes the
same chunks of one state. The manifest lists them in the order of their paths; their hashes fold up
to the header's state root, so it is verified before the first chunk is asked for, and each chunk by
its own hash. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from chain import limits
from chain.codec import U16, U32, Bytes, Seq, decode, wire
from chain.errors import VerifyError
from chain.hashes import STATE_KEY, STATE_NODE, ZERO_HASH, Hash32
from chain.tree import StateTree, subtree_hash
from chain.types import Header

CHUNK_BYTES = limits.MAX_SNAPSHOT_CHUNK_BYTES
LEAF_BYTES = 128  # what a leaf counts at least: so a chunk has at most 32,768 of them
FRAMING_BYTES = 10  # of a key and a value in a message, at most
MESSAGE_BYTES = CHUNK_BYTES + 64  # an encoded chunk, at most
MAX_ITEMS = 2 * CHUNK_BYTES // LEAF_BYTES
PATH_BITS = 256
_PAUSE_LEAVES = 4096

Item = Annotated[bytes, Bytes(limits.MAX_MESSAGE_BYTES)]
Leaf = tuple[bytes, bytes]  # key, value


@wire(82)
@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """One subtree: how many path bits lead to it, its hash, and what its leaves count. An empty one
    has the zero hash and counts nothing."""

    depth: U16
    hash: Hash32
    size: U32


@wire(83)
@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """A final header and the parts of the state after it, in the order of their paths."""

    header: Header
    parts: Annotated[tuple[SnapshotPart, ...], Seq(limits.MAX_SNAPSHOT_PARTS)]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@wire(84)
@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A part's leaves in the order of their paths: key, value, key, value, …"""

    items: Annotated[tuple[Item, ...], Seq(MAX_ITEMS)]


class Place(NamedTuple):
    """Where a part hangs: the bits that all paths in it begin with."""

    prefix: int
    bits: int


class WrongSize(VerifyError):
    """A chunk is the part's, but the manifest says another size: it is the manifest that lies."""


def leaf_size(key: bytes, value: bytes) -> int:
    """What a leaf counts."""
    return max(LEAF_BYTES, len(key) + len(value) + FRAMING_BYTES)


# --- the parts --------------------------------------------------------------------------------


def places(manifest: SnapshotManifest) -> tuple[Place, ...]:
    """Where each part hangs, if the manifest holds: its parts cover every path once, none could be
    one with its neighbour, and they fold up to the header's state root. VerifyError if not."""
    found: list[Place] = []
    stack: list[SnapshotPart] = []  # complete left sides that wait for the right one
    path = 0
    for part in manifest.parts:
        if part.depth > PATH_BITS or (stack and part.depth < stack[-1].depth):
            raise VerifyError(f"part {len(found)} of the snapshot is not below the one before")
        if part.size > CHUNK_BYTES or (part.size == 0) != (part.hash == ZERO_HASH):
            raise VerifyError(f"part {len(found)} of the snapshot has an impossible size")
        if path >> PATH_BITS:
            raise VerifyError("the snapshot has parts beyond the last path")
        rest = PATH_BITS - part.depth
        found.append(Place(path >> rest, part.depth))
        path += 1 << rest
        top = part
        while stack and stack[-1].depth == top.depth:
            left = stack.pop()
            size = left.size + top.size
            if size <= CHUNK_BYTES:
                raise VerifyError("two parts of the snapshot would fit into one")
            # Sizes of all parts together may be more than a field holds: only the sum counts.
            node = STATE_NODE.hash(left.hash, top.hash)
            top = SnapshotPart(left.depth - 1, node, size)
        stack.append(top)
    if len(stack) != 1 or stack[0].depth:
        raise VerifyError("the snapshot does not cover every path")
    if stack[0].hash != manifest.header.state_root:
        raise VerifyError("the snapshot is not of the state that its header names")
    return tuple(found)


def read_chunk(data: bytes) -> tuple[Leaf, ...]:
    """The leaves in an encoded chunk, of which nothing is known yet."""
    chunk: SnapshotChunk = decode(SnapshotChunk, data, most=MESSAGE_BYTES)
    items = chunk.items
    if len(items) % 2 or not items:
        raise VerifyError(f"a chunk of {len(items)} keys and values")
    return tuple(zip(items[::2], items[1::2], strict=True))


def check_chunk(part: SnapshotPart, place: Place, data: bytes) -> tuple[Leaf, ...]:
    """The leaves in an encoded chunk, which are those of the part. DecodeError or VerifyError: its
    sender lies. WrongSize: whoever sent the manifest does."""
    leaves = read_chunk(data)
    if subtree_hash(leaves, place.prefix, place.bits) != part.hash:
        raise VerifyError("a chunk that is not the part's")
    size = sum(leaf_size(key, value) for key, value in leaves)
    if size != part.size:
        raise WrongSize(f"a part of size {size}, of which the manifest says {part.size}")
    return leaves


# --- making them ------------------------------------------------------------------------------


def plan(tree: StateTree, pause: Callable[[], None] = lambda: None) -> tuple[SnapshotPart, ...]:
    """The parts of a state. `pause` is called now and then: a large state takes seconds."""
    leaves = _Leaves(tree, pause)

    def part(prefix: int, bits: int, size: int) -> SnapshotPart:
        return SnapshotPart(bits, tree.subtree(prefix, bits).hash, size)

    def visit(prefix: int, bits: int) -> tuple[int, list[SnapshotPart]]:
        """The size of a subtree and its parts, none if it is to be one with its neighbours."""
        if not leaves.begins(prefix, bits, 0):
            return 0, []
        if not leaves.begins(prefix, bits, 1):
            return leaves.take(), []
        left = prefix << 1
        zero, zero_parts = visit(left, bits + 1)
        one, one_parts = visit(left | 1, bits + 1)
        if zero + one <= CHUNK_BYTES:
            return zero + one, []
        zero_parts = zero_parts or [part(left, bits + 1, zero)]
        return zero + one, zero_parts + (one_parts or [part(left | 1, bits + 1, one)])

    size, parts = visit(0, 0)
    return tuple(parts or [part(0, 0, size)])


class _Leaves:
    """The next two leaves of a tree: paths and sizes, in order."""

    def __init__(self, tree: StateTree, pause: Callable[[], None]) -> None:
        self._items, self._pause, self._count = tree.subtree(0, 0).leaves(), pause, 0
        self._next = [self._read(), self._read()]

    def _read(self) -> tuple[int, int] | None:
        self._count += 1
        if self._count % _PAUSE_LEAVES == 0:
            self._pause()
        for key, value in self._items:
            return int.from_bytes(STATE_KEY.hash(key), "big"), leaf_size(key, value)
        return None

    def begins(self, prefix: int, bits: int, index: int) -> bool:
        """Whether the next leaf, or the one after it, is below a prefix."""
        found = self._next[index]
        return found is not None and found[0] >> (PATH_BITS - bits) == prefix

    def take(self) -> int:
        """The size of the next leaf, which is passed."""
        taken = self._next.pop(0)
        self._next.append(self._read())
        return taken[1] if taken is not None else 0


def make_chunk(tree: StateTree, place: Place) -> SnapshotChunk:
    """The leaves of a part of `tree`."""
    leaves = tree.subtree(place.prefix, place.bits).leaves()
    return SnapshotChunk(tuple(item for leaf in leaves for item in leaf))
