"""How a page of the state tree is stored (docs/spec/storage.md): all its slots and the hashes of
its branches, or the slots that differ from a page that is stored as a whole; then a checksum that
also covers the number it is stored under."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as StructError
from typing import Any

from chain.errors import DecodeError, InvariantError, invariant
from chain.hashes import STATE_NODE, Context, Hash32
from chain.tree_edit import fold, join, rehash
from chain.tree_pages import (
    PAGE_BITS,
    SLOTS,
    Bucket,
    Leaf,
    Node,
    Page,
    Ref,
    Since,
    Whole,
    hash_of,
    prefix_of,
    since,
)

INLINE_BYTES = 96  # of a value that stands in its page: an account's is 30; longer ones get a row
MAX_KEY_BYTES = 4096
_WHOLE, _CHANGED = 1, 2  # formats: all slots and branches; the whole page's number and some slots
_CHANGED_HEAD = Struct("<BQH")  # format, number of the whole page, which slots
# What a slot begins with. Above _BUCKET: how many leaves there are.
_EMPTY, _REF, _LEAF, _LONG_LEAF, _BUCKET = 0, 1, 2, 3, 16
_REF_HEAD = Struct("<BQ")  # then the hash
_LEAF_HEAD = Struct("<BHH")  # lengths of key and value; a long one's hash and number follow the key
_NUMBER = Struct("<Q")
_SUM = Context("state-page")
_SUM_BYTES = 16
_NOTHING = bytes((_EMPTY,))
_WHOLE_HEAD = bytes((_WHOLE,))


def seal(number: int, payload: bytes) -> bytes:
    return payload + _SUM.xof(_SUM_BYTES, payload + _NUMBER.pack(number))


def unseal(number: int, stored: bytes) -> bytes:
    """What was sealed under this number; DecodeError if anything changed."""
    payload = stored[:-_SUM_BYTES]
    if seal(number, payload) != stored:
        raise DecodeError(f"page {number} of the state tree does not have its checksum")
    return payload


class PageWriter:
    """Gives numbers to what a tree has in memory only, and collects it as rows. The numbers hold
    once the rows are stored; `undo` if they never are."""

    def __init__(self, first_number: int) -> None:
        self.next_number = first_number
        self.rows: list[tuple[int, bytes]] = []
        self.pages: list[Ref] = []
        self.bases: set[int] = set()  # whole pages of which only changes are written
        self._values: list[Leaf] = []
        self._wholes: list[Whole] = []
        self._hasher = _SUM.fresh()

    def write(self, ref: Ref) -> None:
        """A page and all below it that have no number yet, lower ones first."""
        page = ref.page
        if page is None:
            raise InvariantError("a page that is not stored is in memory")
        whole, changed = since(page)
        if changed and whole.number is not None:
            ref.base = whole.number
            self.bases.add(whole.number)
            parts = [_CHANGED_HEAD.pack(_CHANGED, whole.number, changed)]
            while changed:  # so is whatever below has no number yet
                lowest = changed & -changed
                changed ^= lowest
                node: Any = page[SLOTS - 1 + lowest.bit_length()]
                parts.append(_NOTHING if node is None else node.raw or self._raw(node))
            ref.number = self._add(b"".join(parts))
        else:
            parts = [_WHOLE_HEAD]
            for node in page[SLOTS:]:
                parts.append(_NOTHING if node is None else node.raw or self._raw(node))
            parts += [node for node in page[SLOTS - 1 : 0 : -1] if type(node) is bytes]
            ref.number = self._add(b"".join(parts))
            if changed:  # since a page that was never stored
                whole = Whole()
                page[0] = Since(whole, 0)
            whole.number = ref.number
            self._wholes.append(whole)
        self.pages.append(ref)

    def write_below(self, node: Node) -> None:
        if type(node) is Ref and node.number is None:
            self.write(node)

    def undo(self) -> None:
        for ref in self.pages:
            ref.number = ref.base = ref.raw = None
        for whole in self._wholes:
            whole.number = None
        for leaf in self._values:
            leaf.number = leaf.raw = None

    def _add(self, payload: bytes) -> int:
        number, hasher = self.next_number, self._hasher
        self.next_number += 1
        checksum = hasher.update(payload + _NUMBER.pack(number)).digest(_SUM_BYTES)
        hasher.reset()
        self.rows.append((number, payload + checksum))  # as `seal` does
        return number

    def _raw(self, node: Node) -> bytes:
        """What a slot is stored as that is not empty, made and kept."""
        if type(node) is Leaf:
            return self._leaf(node)
        if type(node) is Ref:
            if node.number is None:
                self.write(node)
            node.raw = _REF_HEAD.pack(_REF, node.number or 0) + node.hash
            return node.raw
        if type(node) is not Bucket:
            raise InvariantError("a slot holds leaves or a page")
        leaves = [leaf.raw or self._leaf(leaf) for leaf in node.leaves]
        raw = b"".join((bytes((_BUCKET + len(leaves),)), node.hash, *leaves))
        if all(leaf.number is None for leaf in node.leaves):  # numbers may be undone
            node.raw = raw
        return raw

    def _leaf(self, leaf: Leaf) -> bytes:
        key, value = leaf.key, leaf.value
        invariant(len(key) <= MAX_KEY_BYTES, "a key of the state is short")
        if value is not None and len(value) <= INLINE_BYTES:
            leaf.raw = _LEAF_HEAD.pack(_LEAF, len(key), len(value)) + key + value
            return leaf.raw
        if leaf.number is None:
            if value is None:
                raise InvariantError("a value that is not stored is in memory")
            leaf.number = self._add(value)
            self._values.append(leaf)
        head = _LEAF_HEAD.pack(_LONG_LEAF, len(key), 0)
        leaf.raw = head + key + leaf.value_hash + _NUMBER.pack(leaf.number)
        return leaf.raw


def base_of(payload: bytes) -> int | None:
    """The number of the whole page of which this payload has the changes; None if it is whole."""
    return int(_CHANGED_HEAD.unpack_from(payload)[1]) if payload[0] == _CHANGED else None


def decode_page(number: int, payload: bytes, base: tuple[int, bytes] | None = None) -> Page:
    """The page in a payload, with the number and payload of its base if it has one. DecodeError if
    it is none."""
    try:
        if base is None:
            return _decode_whole(number, payload)
        page = _decode_whole(*base)
        _, _, changed = _CHANGED_HEAD.unpack_from(payload)
        at = _CHANGED_HEAD.size
        touched = [slot for slot in range(SLOTS) if changed >> slot & 1]
        for slot in touched:
            page[SLOTS | slot], at = _decode_slot(payload, at)
        if at != len(payload):
            raise DecodeError(f"page {number} of the state tree has another length")
        page[0] = Since(since(page).whole, changed)
        rehash(page, [SLOTS | slot for slot in touched])
    except (StructError, IndexError) as error:
        raise DecodeError(f"page {number} of the state tree is cut off: {error}") from None
    return page


def _decode_whole(number: int, data: bytes) -> Page:
    if data[0] != _WHOLE:
        raise DecodeError(f"page {number} of the state tree has the unknown format {data[0]}")
    page: Page = [None] * (2 * SLOTS)
    page[0] = Since(Whole(number), 0)
    at = 1
    for slot in range(SLOTS, 2 * SLOTS):
        if data[at]:
            page[slot], at = _decode_slot(data, at)
        else:
            at += 1
    for i in range(SLOTS - 1, 0, -1):
        zero, one = page[2 * i], page[2 * i + 1]
        if zero is None and (one is None or type(one) is Leaf):
            page[i] = one
        elif one is None and type(zero) is Leaf:
            page[i] = zero
        else:
            page[i] = data[at : at + 32]
            at += 32
    if at != len(data):
        raise DecodeError(f"page {number} of the state tree has another length")
    return page


def _decode_slot(data: bytes, at: int) -> tuple[Node, int]:
    kind = data[at]
    if kind in (_LEAF, _LONG_LEAF):
        return _decode_leaf(data, at)
    if kind == _REF:
        _, number = _REF_HEAD.unpack_from(data, at)
        ref = Ref(Hash32(data[at + 9 : at + 41]), None, number)
        ref.raw = data[at : at + 41]
        return ref, at + 41
    if kind == _EMPTY:
        return None, at + 1
    start, digest = at, Hash32(data[at + 1 : at + 33])
    at += 33
    leaves = []
    for _ in range(kind - _BUCKET):
        leaf, at = _decode_leaf(data, at)
        leaves.append(leaf)
    bucket = Bucket(tuple(leaves), digest)
    bucket.raw = data[start:at]
    return bucket, at


def _decode_leaf(data: bytes, at: int) -> tuple[Leaf, int]:
    kind, key_length, value_length = _LEAF_HEAD.unpack_from(data, at)
    start = at
    at += 5 + key_length
    key = data[start + 5 : at]
    if kind == _LEAF:
        leaf = Leaf(key, data[at : at + value_length])
        at += value_length
    else:
        leaf = Leaf(key, None)
        leaf.value_hash = Hash32(data[at : at + 32])
        (leaf.number,) = _NUMBER.unpack_from(data, at + 32)
        at += 40
    leaf.raw = data[start:at]
    return leaf, at


def check_page(page: Page, level: int, prefix: int) -> None:
    """That a loaded page is what the hashes of the pages below it and its own leaves make of it,
    at this place in the tree. DecodeError if not."""
    depth = PAGE_BITS * (level + 1)
    for slot, node in enumerate(page[SLOTS:]):
        leaves: Iterable[Leaf] = ()
        if type(node) is Leaf:
            leaves = (node,)
        elif type(node) is Bucket:
            leaves = node.leaves
            if fold(node.leaves, depth) != node.hash:
                raise DecodeError("leaves of the state tree do not hash to what is stored")
        if any(prefix_of(leaf.place, depth) != prefix << PAGE_BITS | slot for leaf in leaves):
            raise DecodeError("a leaf of the state tree stands where another belongs")
    hasher = STATE_NODE.fresh()
    for i in range(1, SLOTS):
        if hash_of(page[i]) != hash_of(join(page[2 * i], page[2 * i + 1], hasher)):
            raise DecodeError("branches of the state tree do not hash to what is stored")
