"""The state's commitment: an immutable, compact sparse Merkle tree (docs/spec/state-tree.md).

A key's path is the bits of `STATE_KEY.hash(key)`, most significant first. The hash of a subtree is

    empty        32 zero bytes
    one leaf     STATE_LEAF(path, STATE_VALUE(value)), at whatever depth the leaf is alone
    otherwise    STATE_NODE(hash of the 0 side, hash of the 1 side)

so the root depends on the content alone, never on the order of its changes. A new tree shares
every untouched page of nodes (chain/tree_pages.py) with the one it came from. A tree is in memory
as a whole, or above a store that has most of its pages and keys and gives them when they are asked
for (chain/store_tree.py). Trees do not change: any thread may read one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from chain import limits, tree_edit, tree_pages, tree_walk
from chain.codec import Seq, decode, wire
from chain.errors import InvariantError, StorageError, VerifyError, invariant
from chain.hashes import STATE_KEY, STATE_LEAF, STATE_NODE, ZERO_HASH, Hash32
from chain.tree_keys import Keys, MemoryKeys, StoredKeys
from chain.tree_pages import (
    PATH_BITS,
    STATE_VALUE,
    Leaf,
    Node,
    PageSource,
    Ref,
    place_of,
    prefix_of,
    value_of,
)

T = TypeVar("T")
_MAX_DECODED_BYTES = 256  # of a value that is kept decoded at its leaf: an account's is 30
_MAX_SHARED_BYTES = 64 * 1024  # of one that is among the few that all trees share
_SHARED = 64  # of those: the head, the round, the epoch's validators are read by every duty
_decoded: Callable[[Any, bytes], Any] = lru_cache(_SHARED)(decode)


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


class Subtree:
    """Everything in a tree whose path begins with one prefix."""

    def __init__(self, digest: Hash32, nodes: Sequence[Node], source: PageSource | None) -> None:
        self.hash = digest
        self._nodes, self._source = nodes, source

    def leaves(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in the order of the paths."""
        for leaf in tree_walk.leaves_of(self._nodes, self._source):
            yield leaf.key, value_of(leaf, self._source)


class StateTree:
    """A map from bytes to bytes with a root hash. Every change gives a new tree."""

    __slots__ = ("_count", "_keys", "_parent", "_replaced", "_source", "_top")

    def __init__(self, top: Ref, keys: Keys, count: int, source: PageSource | None = None) -> None:
        self._top, self._keys, self._count, self._source = top, keys, count, source
        self._parent: Ref | None = None  # top of the tree it was made from, above the same store
        self._replaced: list[Ref | Leaf] = []  # what that one had and this has no longer

    @classmethod
    def empty(cls) -> StateTree:
        return cls(tree_pages.empty_root(), MemoryKeys(), 0)

    @property
    def root(self) -> Hash32:
        return self._top.hash

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def get(self, key: bytes) -> bytes | None:
        leaf = self._find(key)
        return None if leaf is None else value_of(leaf, self._source)

    def read(self, key: bytes, cls: type[T]) -> T | None:
        """The value of `key`, decoded. Small ones and the last larger ones stay decoded: what is
        read in one block is most likely read in the next, and immutable."""
        leaf = self._find(key)
        if leaf is None:
            return None
        if type(leaf.decoded) is cls:
            return leaf.decoded
        raw = value_of(leaf, self._source)
        if _MAX_DECODED_BYTES < len(raw) <= _MAX_SHARED_BYTES:
            shared: T = _decoded(cls, raw)
            return shared
        value: T = decode(cls, raw)
        if len(raw) <= _MAX_DECODED_BYTES:
            leaf.decoded = value
        return value

    def set_many(
        self,
        changes: Mapping[bytes, bytes | None],
        decoded: Mapping[bytes, object] = MappingProxyType({}),
    ) -> StateTree:
        """The tree after all `changes` (None deletes). Each touched node is hashed once. `decoded`:
        what `read` would give for some of the new values."""
        edits: list[tuple[int, Leaf | None]] = []
        inserted: list[bytes] = []
        deleted: set[bytes] = set()
        top, source = self._top, self._source
        for key, value in changes.items():
            path = STATE_KEY.hash(key)
            place = place_of(path)
            old = tree_pages.find(top, place, key, source)
            if old is None:
                if value is None:
                    continue
                inserted.append(key)
            elif value is None:
                deleted.add(key)
            elif _is_value(old, value):
                continue
            new = None if value is None else Leaf(key, value, path, place, decoded.get(key))
            edits.append((place, new))
        if not edits:
            return self
        edits.sort(key=_place)
        replaced: list[Ref | Leaf] | None = None if source is None else []
        changed = tree_edit.edit(top, edits, source, replaced)
        keys = self._keys.changed(inserted, deleted)
        count = self._count + len(inserted) - len(deleted)
        tree = StateTree(changed, keys, count, source)
        if replaced is not None:
            tree._parent, tree._replaced = top, replaced
        return tree

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every key that begins with `prefix`, in byte order of the keys."""
        for key in self.keys(prefix):
            value = self.get(key)
            if value is None:  # the keys of a stored state are listed beside it
                raise StorageError(f"the state lists the key {key.hex()} and does not have it")
            yield key, value

    def keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """Every key that begins with `prefix`, in byte order."""
        return self._keys.scan(prefix)

    def prove(self, key: bytes) -> StateProof:
        """A proof of the key's value or of its absence, for `verify_state_proof`."""
        path = STATE_KEY.hash(key)
        siblings, leaf = tree_walk.siblings(self._top, place_of(path), self._source)
        other = None
        if leaf is not None and leaf.key != key:
            other = StateLeaf(leaf.path, leaf.value_hash)
        return StateProof(tuple(siblings), other)

    def subtree(self, prefix: int, bits: int) -> Subtree:
        """The part of the tree whose paths begin with the `bits` bits of value `prefix`."""
        invariant(0 <= bits <= PATH_BITS and not prefix >> bits, "a prefix is of its bits")
        digest, nodes = tree_walk.below(self._top, prefix, bits, self._source)
        return Subtree(digest, nodes, self._source)

    def _find(self, key: bytes) -> Leaf | None:
        return tree_pages.find(self._top, place_of(STATE_KEY.hash(key)), key, self._source)

    # --- above a store -------------------------------------------------------------------

    @classmethod
    def stored(cls, top: Ref, keys: StoredKeys, count: int, source: PageSource) -> StateTree:
        """A version that `source` has."""
        return cls(top, keys, count, source)

    @property
    def top(self) -> Ref:
        return self._top

    @property
    def replaced(self) -> Sequence[Ref | Leaf]:
        """What the tree that this one was made from had, and this one has no longer."""
        return self._replaced

    @property
    def stored_keys(self) -> StoredKeys:
        if not isinstance(self._keys, StoredKeys):
            raise InvariantError("a tree above a store lists its keys there")
        return self._keys

    def follows(self, parent: StateTree) -> bool:
        """Whether this tree is `parent`, or was made from it by one `set_many`."""
        if self._source is not parent._source or self._source is None:
            return False
        return self._top is parent._top or self._parent is parent._top

    def settle(self, version: int) -> None:
        """The store has it now, under this version: what only the way there needed goes."""
        self.stored_keys.settle(version)
        self._parent, self._replaced = None, []


def subtree_hash(leaves: Sequence[tuple[bytes, bytes]], prefix: int, bits: int) -> Hash32:
    """What `subtree(prefix, bits).hash` is for exactly these leaves. VerifyError if they are not
    in the order of their paths, or one does not begin with the prefix."""
    made = [Leaf(key, value) for key, value in leaves]
    places = [leaf.place for leaf in made]
    if any(first >= second for first, second in pairwise(places)):
        raise VerifyError("keys that are not in the order of their paths")
    if any(prefix_of(place, bits) != prefix for place in places):
        raise VerifyError("a key of another subtree")
    return tree_edit.fold(made, bits)


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


def _place(edit: tuple[int, Leaf | None]) -> int:
    return edit[0]


def _is_value(leaf: Leaf, value: bytes) -> bool:
    if leaf.value is None:  # a long one that was not read
        return leaf.value_hash == STATE_VALUE.hash(value)
    return leaf.value == value


def _leaf_hash(path: Hash32, value_hash: Hash32) -> Hash32:
    return STATE_LEAF.hash(path, value_hash)


def _bit(path: bytes, depth: int) -> int:
    return path[depth >> 3] >> (7 - (depth & 7)) & 1


def _agree(first: bytes, second: bytes, bits: int) -> bool:
    """Whether two paths share their first `bits` bits."""
    difference = int.from_bytes(first, "big") ^ int.from_bytes(second, "big")
    return difference >> (256 - bits) == 0
