"""The state's commitment: an immutable, compact sparse Merkle tree (docs/spec/state-tree.md).

A key's path is the bits of `STATE_KEY.hash(key)`, most significant first. The hash of a subtree is

    empty        32 zero bytes
    one leaf     STATE_LEAF(path, STATE_VALUE(value)), at whatever depth the leaf is alone
    otherwise    STATE_NODE(hash of the 0 side, hash of the 1 side)

so the root depends on the content alone, never on the order of its changes. A new tree shares
every untouched node with the one it came from.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import Annotated, TypeVar

from chain import limits
from chain.codec import Seq, decode, wire
from chain.errors import VerifyError, invariant
from chain.hashes import STATE_KEY, STATE_LEAF, STATE_NODE, ZERO_HASH, Context, Hash32

STATE_VALUE = Context("state-value")
T = TypeVar("T")
_MAX_DECODED_BYTES = 256  # of a value that is kept decoded: an account's is 30
_PATH_BITS = 256
_CHUNK_KEYS = 512  # keys in one chunk of the ordered index; sqrt of a million, roughly


@wire(81)
@dataclass(frozen=True, slots=True)
class StateLeaf:
    """The leaf that stands where a missing key would be."""

    path: Hash32
    value_hash: Hash32


@wire(80)
@dataclass(frozen=True, slots=True)
class StateProof:
    """Shows one key's value, or its absence, under a state root.

    `siblings` are the other sides of the branches from the root down to where the path ends:
    at the key's leaf, at nothing, or at another key's leaf, which is then `other`.
    """

    siblings: Annotated[tuple[Hash32, ...], Seq(limits.MAX_PROOF_NODES)]
    other: StateLeaf | None


@dataclass(frozen=True, slots=True)
class Subtree:
    """Everything in a tree whose path begins with one prefix."""

    hash: Hash32
    _node: _Node

    def leaves(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in the order of the paths."""
        waiting = [self._node]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _Branch):
                waiting += (node.one, node.zero)
            elif node is not None:
                yield node.key, node.value


@dataclass(frozen=True, slots=True)
class StateTree:
    """A map from bytes to bytes with a root hash. Every change gives a new tree."""

    _top: _Node
    _index: tuple[tuple[bytes, ...], ...]  # the keys in order, in non-empty sorted chunks

    @classmethod
    def empty(cls) -> StateTree:
        return cls(None, ())

    @property
    def root(self) -> Hash32:
        return _hash_of(self._top)

    def __len__(self) -> int:
        return sum(map(len, self._index))

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def get(self, key: bytes) -> bytes | None:
        leaf = _find(self._top, STATE_KEY.hash(key))
        return None if leaf is None else leaf.value

    def read(self, key: bytes, cls: type[T]) -> T | None:
        """The value of `key`, decoded. Small ones stay decoded: what is read in one block is most
        likely read in the next, and immutable."""
        leaf = _find(self._top, STATE_KEY.hash(key))
        if leaf is None:
            return None
        if type(leaf.decoded) is cls:
            return leaf.decoded
        value: T = decode(cls, leaf.value)
        if len(leaf.value) <= _MAX_DECODED_BYTES:
            leaf.decoded = value
        return value

    def set_many(
        self,
        changes: Mapping[bytes, bytes | None],
        decoded: Mapping[bytes, object] = MappingProxyType({}),
    ) -> StateTree:
        """The tree after all `changes` (None deletes). Each touched node is hashed once. `decoded`:
        what `read` would give for some of the new values."""
        edits: list[tuple[Hash32, _Leaf | None]] = []
        inserted: list[bytes] = []
        deleted: set[bytes] = set()
        for key in sorted(changes):
            value, path = changes[key], STATE_KEY.hash(key)
            old = _find(self._top, path)
            if (None if old is None else old.value) == value:
                continue
            new = None if value is None else _Leaf(path, key, value, decoded.get(key))
            edits.append((path, new))
            if old is None:
                inserted.append(key)
            elif value is None:
                deleted.add(key)
        if not edits:
            return self
        edits.sort(key=_path_of)
        leaves = [leaf for _, leaf in edits]
        paths = [int.from_bytes(path, "big") for path, _ in edits]
        top = _edit(self._top, _PATH_BITS - 1, paths, leaves, 0, len(edits))
        return StateTree(top, _reindex(self._index, inserted, deleted))

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every key that begins with `prefix`, in byte order of the keys."""
        for key in self.keys(prefix):
            leaf = _find(self._top, STATE_KEY.hash(key))
            if leaf is not None:  # always: the index and the tree change together
                yield key, leaf.value

    def keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Every key that begins with `prefix`, in byte order."""
        start = max(0, bisect_right(self._index, prefix, key=_first) - 1)
        for chunk in self._index[start:]:
            for key in chunk[bisect_left(chunk, prefix) :]:
                if not key.startswith(prefix):
                    return
                yield key

    def prove(self, key: bytes) -> StateProof:
        """A proof of the key's value or of its absence, for `verify_state_proof`."""
        path = STATE_KEY.hash(key)
        node, depth, siblings = self._top, 0, []
        while isinstance(node, _Branch):
            near, far = (node.one, node.zero) if _bit(path, depth) else (node.zero, node.one)
            siblings.append(_hash_of(far))
            node, depth = near, depth + 1
        other = None
        if node is not None and node.path != path:
            other = StateLeaf(node.path, STATE_VALUE.hash(node.value))
        return StateProof(tuple(siblings), other)

    def subtree(self, prefix: int, bits: int) -> Subtree:
        """The part of the tree whose paths begin with the `bits` bits of value `prefix`."""
        invariant(0 <= bits <= _PATH_BITS and not prefix >> bits, "a prefix is of its bits")
        node = self._top
        for level in range(bits - 1, -1, -1):
            if not isinstance(node, _Branch):
                break
            node = node.one if prefix >> level & 1 else node.zero
        if isinstance(node, _Leaf) and int.from_bytes(node.path, "big") >> 256 - bits != prefix:
            node = None  # alone above, in another part
        return Subtree(_hash_of(node), node)


def subtree_hash(leaves: Sequence[tuple[bytes, bytes]], prefix: int, bits: int) -> Hash32:
    """What `subtree(prefix, bits).hash` is for exactly these leaves. VerifyError if they are not
    in the order of their paths, or one does not begin with the prefix."""
    made = [_Leaf(STATE_KEY.hash(key), key, value) for key, value in leaves]
    paths = [int.from_bytes(leaf.path, "big") for leaf in made]
    if any(first >= second for first, second in pairwise(paths)):
        raise VerifyError("keys that are not in the order of their paths")
    if any(path >> _PATH_BITS - bits != prefix for path in paths):
        raise VerifyError("a key of another subtree")
    return _hash_of(_build(made, _PATH_BITS - 1 - bits, paths, 0, len(made)))


def verify_state_proof(root: Hash32, key: bytes, value: bytes | None, proof: StateProof) -> bool:
    """Whether `proof` shows that `key` has `value` (None: is absent) under `root`."""
    path, depth = STATE_KEY.hash(key), len(proof.siblings)
    if depth > limits.MAX_PROOF_NODES:
        return False
    if depth and proof.siblings[-1] == ZERO_HASH:
        return False  # a lone leaf, or nothing, would stand higher
    if value is not None:
        if proof.other is not None:
            return False
        digest = _leaf_hash(path, STATE_VALUE.hash(value))
    elif proof.other is not None:
        if proof.other.path == path or not _agree(proof.other.path, path, depth):
            return False
        digest = _leaf_hash(proof.other.path, proof.other.value_hash)
    else:
        digest = ZERO_HASH
    for level in range(depth - 1, -1, -1):
        sibling = proof.siblings[level]
        zero, one = (sibling, digest) if _bit(path, level) else (digest, sibling)
        digest = STATE_NODE.hash(zero, one)
    return digest == root


# --- nodes -----------------------------------------------------------------------


class _Leaf:
    __slots__ = ("decoded", "hash", "key", "path", "value")

    def __init__(self, path: Hash32, key: bytes, value: bytes, decoded: object = None) -> None:
        self.path, self.key, self.value = path, key, value
        self.decoded = decoded  # what `read` makes of the value, once it has
        self.hash = _leaf_hash(path, STATE_VALUE.hash(value))


class _Branch:
    __slots__ = ("hash", "one", "zero")

    def __init__(self, zero: _Node, one: _Node) -> None:
        self.zero, self.one = zero, one
        sides = _hash_of(zero) + _hash_of(one)  # many a block: one call instead of two
        self.hash: Hash32 = Hash32(STATE_NODE.fresh().update(sides).digest())


_Node = _Leaf | _Branch | None


def _hash_of(node: _Node) -> Hash32:
    return ZERO_HASH if node is None else node.hash


def _leaf_hash(path: Hash32, value_hash: Hash32) -> Hash32:
    return STATE_LEAF.hash(path, value_hash)


def _bit(path: bytes, depth: int) -> int:
    return path[depth >> 3] >> (7 - (depth & 7)) & 1


def _agree(first: bytes, second: bytes, bits: int) -> bool:
    """Whether two paths share their first `bits` bits."""
    difference = int.from_bytes(first, "big") ^ int.from_bytes(second, "big")
    return difference >> (256 - bits) == 0


def _path_of(edit: tuple[Hash32, _Leaf | None]) -> Hash32:
    return edit[0]


def _find(node: _Node, path: Hash32) -> _Leaf | None:
    depth = 0
    while isinstance(node, _Branch):
        node = node.one if _bit(path, depth) else node.zero
        depth += 1
    return node if node is not None and node.path == path else None


def _edit(
    node: _Node, bit: int, paths: list[int], leaves: list[_Leaf | None], low: int, high: int
) -> _Node:
    """`node`, whose sides differ in path bit `bit` (of value 2**bit), after the edits [low:high],
    which are sorted by path and all lie below it."""
    if low == high:
        return node
    if isinstance(node, _Branch):
        middle = _middle(paths, bit, low, high)
        zero = _edit(node.zero, bit - 1, paths, leaves, low, middle)
        one = _edit(node.one, bit - 1, paths, leaves, middle, high)
        return _join(zero, one)
    kept = [leaf for leaf in leaves[low:high] if leaf is not None]
    if node is not None and int.from_bytes(node.path, "big") not in paths[low:high]:
        kept.append(node)
        kept.sort(key=lambda leaf: leaf.path)
    return _build(kept, bit, [int.from_bytes(leaf.path, "big") for leaf in kept], 0, len(kept))


def _build(leaves: list[_Leaf], bit: int, paths: list[int], low: int, high: int) -> _Node:
    """The subtree over leaves[low:high], which are sorted by path and agree above `bit`."""
    if high - low <= 1:
        return leaves[low] if high > low else None
    middle = _middle(paths, bit, low, high)
    return _join(
        _build(leaves, bit - 1, paths, low, middle), _build(leaves, bit - 1, paths, middle, high)
    )


def _middle(paths: list[int], bit: int, low: int, high: int) -> int:
    """Where in paths[low:high], sorted and alike above `bit`, those begin that have it set."""
    if paths[low] >> bit & 1:
        return low
    if not paths[high - 1] >> bit & 1:
        return high
    return bisect_left(paths, (paths[low] >> bit | 1) << bit, low, high)


def _join(zero: _Node, one: _Node) -> _Node:
    """The subtree of two sides; a single leaf rises, since it is alone there."""
    if zero is None and not isinstance(one, _Branch):
        return one
    if one is None and not isinstance(zero, _Branch):
        return zero
    return _Branch(zero, one)


# --- the ordered index -------------------------------------------------------------


def _first(chunk: tuple[bytes, ...]) -> bytes:
    return chunk[0]


def _reindex(
    index: tuple[tuple[bytes, ...], ...], inserted: list[bytes], deleted: set[bytes]
) -> tuple[tuple[bytes, ...], ...]:
    """The index after the changes, copying only the chunks that change."""
    if not inserted and not deleted:
        return index

    def home(key: bytes) -> int:
        return max(0, bisect_right(index, key, key=_first) - 1)

    chunks = list(index) or [()]
    for i, keys in groupby(sorted([*inserted, *deleted]), key=home):
        merged = sorted({*chunks[i], *keys} - deleted)
        chunks[i] = tuple(merged)
    result: list[tuple[bytes, ...]] = []
    for chunk in chunks:
        if result and len(result[-1]) + len(chunk) <= _CHUNK_KEYS // 2:
            result[-1] += chunk  # small neighbours grow together
        elif len(chunk) <= _CHUNK_KEYS:
            result += [chunk] if chunk else []
        else:
            half = _CHUNK_KEYS // 2
            result += [chunk[j : j + half] for j in range(0, len(chunk), half)]
    return tuple(result)
