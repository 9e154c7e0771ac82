"""How a page of the state tree is stored (docs/spec/storage.md): its slots, then the hashes of its
branches, then a checksum that also covers the number it is stored under."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as StructError

from chain.errors import DecodeError, invariant
from chain.hashes import Context, Hash32
from chain.tree_pages import (
    PAGE_BITS,
    SLOTS,
    Bucket,
    Leaf,
    Node,
    Page,
    Ref,
    fold,
    hash_of,
    join,
    prefix_of,
)

INLINE_BYTES = 96  # of a value that stands in its page: an account's is 30; longer ones get a row
MAX_KEY_BYTES = 4096
_FORMAT = 1
_HEAD = Struct("<BHHH")  # format, which slots hold a page, which a leaf, which a bucket
_LENGTHS = Struct("<HH")  # of a leaf's key and value
_ELSEWHERE = 0xFFFF  # instead of a length: the value's hash and number follow the key
_NUMBER = Struct("<Q")
_SUM = Context("state-page")
_SUM_BYTES = 16


def seal(number: int, payload: bytes) -> bytes:
    return payload + _SUM.hash(_NUMBER.pack(number), payload)[:_SUM_BYTES]


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
        self._values: list[Leaf] = []

    def write(self, ref: Ref) -> None:
        """A page and all below it that have no number yet, lower ones first."""
        invariant(ref.page is not None, "a page that is not stored is in memory")
        if ref.page is not None:
            ref.number = self._add(encode_page(ref.page, self))
            self.pages.append(ref)

    def write_below(self, node: Node) -> None:
        if type(node) is Ref and node.number is None:
            self.write(node)

    def write_value(self, leaf: Leaf, value: bytes) -> int:
        leaf.number = self._add(value)
        self._values.append(leaf)
        return leaf.number

    def undo(self) -> None:
        for ref in self.pages:
            ref.number = None
        for leaf in self._values:
            leaf.number = leaf.raw = None

    def _add(self, payload: bytes) -> int:
        number = self.next_number
        self.next_number += 1
        self.rows.append((number, seal(number, payload)))
        return number


def encode_page(page: Page, writer: PageWriter) -> bytes:
    refs = lone = buckets = 0
    parts: list[bytes] = []
    bit = 1
    for node in page[SLOTS:]:
        if type(node) is Leaf:
            lone |= bit
            parts.append(node.raw or _encode_leaf(node, writer))
        elif type(node) is Ref:
            refs |= bit
            if node.number is None:
                writer.write(node)
            parts += (_NUMBER.pack(node.number or 0), node.hash)
        elif type(node) is Bucket:
            buckets |= bit
            parts.append(node.raw or _encode_bucket(node, writer))
        bit <<= 1
    inner = [node for node in page[SLOTS - 1 : 0 : -1] if type(node) is bytes]
    return b"".join((_HEAD.pack(_FORMAT, refs, lone, buckets), *parts, *inner))


def _encode_leaf(leaf: Leaf, writer: PageWriter) -> bytes:
    key, value = leaf.key, leaf.value
    invariant(len(key) <= MAX_KEY_BYTES, "a key of the state is short")
    if value is not None and len(value) <= INLINE_BYTES:
        leaf.raw = _LENGTHS.pack(len(key), len(value)) + key + value
        return leaf.raw
    number = leaf.number
    if number is None:
        invariant(value is not None, "a value that is not stored is in memory")
        number = writer.write_value(leaf, value or b"")
    head = _LENGTHS.pack(len(key), _ELSEWHERE)
    leaf.raw = head + key + leaf.value_hash + _NUMBER.pack(number)
    return leaf.raw


def _encode_bucket(bucket: Bucket, writer: PageWriter) -> bytes:
    leaves = [leaf.raw or _encode_leaf(leaf, writer) for leaf in bucket.leaves]
    raw = b"".join((bytes((len(leaves),)), bucket.hash, *leaves))
    if all(leaf.number is None for leaf in bucket.leaves):  # numbers may be undone
        bucket.raw = raw
    return raw


def decode_page(data: bytes) -> Page:
    """The page in a payload; DecodeError if it is none."""
    try:
        return _decode_page(data)
    except (StructError, IndexError) as error:
        raise DecodeError(f"a page of the state tree is cut off: {error}") from None


def _decode_page(data: bytes) -> Page:
    form, refs, lone, buckets = _HEAD.unpack_from(data)
    if form != _FORMAT:
        raise DecodeError(f"a page of the state tree has format {form}, not {_FORMAT}")
    page: Page = [None] * (2 * SLOTS)
    at = _HEAD.size
    for slot in range(SLOTS):
        bit = 1 << slot
        if lone & bit:
            page[SLOTS | slot], at = _decode_leaf(data, at)
        elif refs & bit:
            (number,) = _NUMBER.unpack_from(data, at)
            page[SLOTS | slot] = Ref(Hash32(data[at + 8 : at + 40]), None, number)
            at += 40
        elif buckets & bit:
            start, count, digest = at, data[at], Hash32(data[at + 1 : at + 33])
            at += 33
            leaves = []
            for _ in range(count):
                leaf, at = _decode_leaf(data, at)
                leaves.append(leaf)
            bucket = Bucket(tuple(leaves), digest)
            bucket.raw = data[start:at]
            page[SLOTS | slot] = bucket
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
        raise DecodeError("a page of the state tree has another length than its content")
    return page


def _decode_leaf(data: bytes, at: int) -> tuple[Leaf, int]:
    key_length, value_length = _LENGTHS.unpack_from(data, at)
    start = at
    at += 4 + key_length
    key = data[start + 4 : at]
    if value_length != _ELSEWHERE:
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
    for i in range(1, SLOTS):
        if hash_of(page[i]) != hash_of(join(page[2 * i], page[2 * i + 1])):
            raise DecodeError("branches of the state tree do not hash to what is stored")
