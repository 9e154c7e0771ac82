"""The 8-ary hash tree that all tile trees are (docs/spec/tiles.md, "Trees" and "Proofs").

    node = H_c(level, position, children)         1 to 8 children, levels from 1
    root = H_c(0xff, leaf count, size, top node)  a single leaf is its own top

A level is held as one byte string, 32 bytes a node, so that the children of a node are a slice of
it. A proof of a set of leaves is the **missing nodes**: level by level from the leaves, for each
parent of a known node in order, the children that are not known, in order.

Climbing takes what peers sent: it raises VerifyError, and never looks at more nodes than it was
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chain import limits
from chain.errors import InputError, VerifyError, invariant
from chain.hashes import Context, Hash32

ARITY = limits.MERKLE_ARITY
HASH_BYTES = 32
_GROUP_BYTES = ARITY * HASH_BYTES
_ROOT_LEVEL = 0xFF  # above any level that a tree of 2**64 leaves can have


def level_count(leaves: int) -> int:
    """Levels above the leaves of a tree of so many."""
    levels = 0
    while leaves > 1:
        leaves = -(-leaves // ARITY)
        levels += 1
    return levels


def siblings_most(leaves: int) -> int:
    """The most hashes in a proof of one leaf of a tree of at most so many."""
    return (ARITY - 1) * level_count(leaves)


def hash_at(nodes: bytes, index: int) -> Hash32:
    """Node `index` of a level, or of a list of missing nodes."""
    return Hash32(nodes[index * HASH_BYTES : (index + 1) * HASH_BYTES])


def split(nodes: bytes) -> tuple[Hash32, ...]:
    """The hashes of a level one by one."""
    return tuple(hash_at(nodes, i) for i in range(len(nodes) // HASH_BYTES))


# --- building ------------------------------------------------------------------------


def node(context: Context, level: int, position: int, children: bytes) -> Hash32:
    """The node at (`level`, `position`); `children`: its 1 to 8 children back to back."""
    place = (level << 64 | position).to_bytes(9, "big")
    return Hash32(context.fresh().update(place + children).digest())


def levels_of(context: Context, leaves: bytes) -> list[bytes]:
    """All levels from the leaves up to the single top node; only the leaves if there are none."""
    levels = [leaves]
    while len(levels[-1]) > HASH_BYTES:
        below, level = levels[-1], len(levels)
        groups = range(-(-len(below) // _GROUP_BYTES))
        levels.append(b"".join(_parent(context, level, p, below) for p in groups))
    return levels


def levels_with(context: Context, levels: Sequence[bytes], changed: Sequence[int]) -> list[bytes]:
    """`levels` after the leaves `changed` (ascending, already replaced in `levels[0]`) changed:
    only the nodes on their paths are hashed."""
    renewed = [levels[0]]
    for level, old in enumerate(levels[1:], 1):
        changed = list(dict.fromkeys(i // ARITY for i in changed))
        nodes = bytearray(old)
        for position in changed:
            start = position * HASH_BYTES
            nodes[start : start + HASH_BYTES] = _parent(context, level, position, renewed[-1])
        renewed.append(bytes(nodes))
    return renewed


def root_over(context: Context, leaves: int, size: int, top: bytes) -> Hash32:
    """The root over the single node of the last level, or over nothing for a tree of no leaves."""
    return Hash32(context.fresh().update(_shape(leaves, size) + top).digest())


def _shape(leaves: int, size: int) -> bytes:
    return (_ROOT_LEVEL << 128 | leaves << 64 | size).to_bytes(17, "big")


def root_of(context: Context, leaves: Sequence[Hash32], size: int) -> Hash32:
    """The root of a tree from its leaves."""
    return root_over(context, len(leaves), size, levels_of(context, _joined(leaves))[-1])


def _joined(leaves: Sequence[Hash32]) -> bytes:
    joined = b"".join(leaves)
    invariant(len(joined) == HASH_BYTES * len(leaves), "leaves must be hashes of 32 bytes")
    return joined


def _parent(context: Context, level: int, position: int, below: bytes) -> Hash32:
    start = position * _GROUP_BYTES
    return node(context, level, position, below[start : start + _GROUP_BYTES])


# --- proving ----------------------------------------------------------------------------


def siblings_of(context: Context, leaves: Sequence[Hash32], index: int) -> tuple[Hash32, ...]:
    """The proof of one leaf, hash by hash."""
    return split(missing_nodes(levels_of(context, _joined(leaves)), (index,)))


def missing_nodes(levels: Sequence[bytes], indices: Sequence[int]) -> bytes:
    """The proof of a set of leaves of the tree with these levels; `indices` ascend strictly."""
    count = len(levels[0]) // HASH_BYTES
    if not indices or not all(0 <= i < count for i in indices):
        raise InputError(f"entries {list(indices)[:8]} among {count}: expected some, all of them")
    if any(a >= b for a, b in pairwise(indices)):
        raise InputError("entries to be proven must ascend, each named once")
    missing: list[bytes] = []
    known = list(indices)
    for nodes in levels[:-1]:
        parents = list(dict.fromkeys(i // ARITY for i in known))
        at = 0
        for first in (p * ARITY for p in parents):
            for i in range(first, min(first + ARITY, len(nodes) // HASH_BYTES)):
                if at < len(known) and known[at] == i:
                    at += 1
                else:
                    missing.append(hash_at(nodes, i))
        known = parents
    return b"".join(missing)


# --- climbing -----------------------------------------------------------------------------


def climb(
    context: Context,
    leaf: Hash32,
    index: int,
    count: int,
    size: int,
    siblings: tuple[Hash32, ...],
) -> Hash32:
    """The root that a leaf and its siblings lead to. Raises VerifyError on a wrong shape."""
    if not 0 <= index < count:
        raise VerifyError(f"no entry {index} among {count}")
    # Lean, so that a path of ten nodes is checked in half of its subtile's time: one hasher for
    # all of them, shifts for multiples of 8 and of 32.
    hasher = context.fresh()
    update, digest, reset = hasher.update, hasher.digest, hasher.reset
    nodes, at, width, level, top = b"".join(siblings), 0, count, 1 << 64, bytes(leaf)
    while width > 1:
        middle = at + ((index & 7) << 5)
        index >>= 3
        others = min(7, width - (index << 3) - 1)
        end = at + (others << 5)
        update((level | index).to_bytes(9, "big") + nodes[at:middle] + top + nodes[middle:end])
        top = digest()
        reset()
        at, width, level = end, (width + 7) >> 3, level + (1 << 64)
    if at != len(nodes):
        raise VerifyError(f"a proof of {len(siblings)} hashes, expected {at // HASH_BYTES}")
    update(_shape(count, size) + top)
    return Hash32(digest())


class MissingNodes:
    """The missing nodes of a proof, taken from the front. Raises VerifyError where one lacks."""

    __slots__ = ("_at", "_nodes")

    def __init__(self, nodes: bytes) -> None:
        if len(nodes) % HASH_BYTES:
            raise VerifyError(f"{len(nodes)} bytes of hashes, expected a multiple of {HASH_BYTES}")
        self._nodes, self._at = nodes, 0

    def take(self) -> bytes:
        start = self._at
        self._at = start + HASH_BYTES
        if self._at > len(self._nodes):
            raise VerifyError(f"a proof of {len(self._nodes) // HASH_BYTES} hashes is too short")
        return self._nodes[start : self._at]

    def end(self) -> None:
        """Refuses what was not taken."""
        if self._at != len(self._nodes):
            found, used = len(self._nodes) // HASH_BYTES, self._at // HASH_BYTES
            raise VerifyError(f"a proof of {found} hashes, expected {used}")


def climb_set(
    context: Context,
    indices: Sequence[int],
    hashes: Sequence[bytes],
    count: int,
    size: int,
    missing: MissingNodes,
) -> Hash32:
    """The root that some leaves of a tree of `count` lead to, taking what it needs of `missing`.

    `indices` ascend strictly, one for each of `hashes`. Raises VerifyError if they do not, or are
    none, or one is not below `count`, or a node lacks.
    """
    if not indices or len(indices) != len(hashes):
        raise VerifyError(f"{len(hashes)} hashes for {len(indices)} entries, expected one each")
    if indices[0] < 0 or any(a >= b for a, b in pairwise(indices)):
        raise VerifyError("the entries of a proof must ascend, each named once")
    if indices[-1] >= count:
        raise VerifyError(f"no entry {indices[-1]} among {count}")
    known, nodes, width, level = list(indices), list(hashes), count, 0
    while width > 1:
        level += 1
        parents: list[int] = []
        above: list[bytes] = []
        at = 0
        while at < len(known):
            parent = known[at] // ARITY
            children: list[bytes] = []
            for i in range(parent * ARITY, min(parent * ARITY + ARITY, width)):
                if at < len(known) and known[at] == i:
                    children.append(nodes[at])
                    at += 1
                else:
                    children.append(missing.take())
            parents.append(parent)
            above.append(node(context, level, parent, b"".join(children)))
        known, nodes, width = parents, above, -(-width // ARITY)
    return root_over(context, count, size, nodes[0])
