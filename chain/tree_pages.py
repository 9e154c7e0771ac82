"""The nodes of the state tree, in pages (docs/spec/state-tree.md, docs/adr/0020).

A page holds what lies between one depth that is a multiple of PAGE_BITS and the next: a list in
heap order, node i above nodes 2i and 2i+1, whose last half are its slots. A node is

    None     nothing below
    Leaf     one leaf, alone below this node: it stands at every node down to its slot
    bytes    the hash of a branch above the slots
    Bucket   in a slot: a few leaves
    Ref      in a slot: another page, of more than BUCKET_LEAVES leaves, loaded when it is needed

so which pages there are depends on the content alone. Pages never change: an edit makes new ones
along the changed paths. Pure; where pages are kept is the business of a `PageSource`.

Node 0 of a page is no node but its `Since`: which of its slots differ from the last page in this
place that was stored as a whole. Where they are few, only they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeAlias

from chain.errors import InvariantError
from chain.hashes import STATE_KEY, STATE_LEAF, ZERO_HASH, Context, Hash32

STATE_VALUE = Context("state-value")
PATH_BITS = 256
PAGE_BITS = 4
BUCKET_LEAVES = 4
MOST_CHANGED = 6  # slots of a page of which only what changed is stored
SLOTS = 1 << PAGE_BITS
SLOT_MASK = SLOTS - 1
SPAN = -(-PATH_BITS // PAGE_BITS) * PAGE_BITS  # bits of a place: a path with zeros behind it
_PAD = SPAN - PATH_BITS


class PageSource(Protocol):
    """Where the pages are that are not in memory. Called from any thread."""

    def page(self, ref: Ref) -> Page:
        """The page of a ref that has a number, checked."""

    def value(self, leaf: Leaf) -> bytes:
        """The value of a leaf that has a number, checked."""

    def keys(self, version: int, prefix: bytes) -> Iterator[bytes]:
        """The keys with this prefix that a version has, in byte order."""


class Leaf:
    """A key and its value. One of a page that was loaded parses and hashes what is asked for."""

    __slots__ = (
        *("_hash", "_path", "_place", "_value_hash"),
        *("decoded", "key", "number", "raw", "value"),
    )

    def __init__(
        self,
        key: bytes,
        value: bytes | None,
        path: Hash32 | None = None,
        place: int | None = None,
        decoded: object = None,
    ) -> None:
        self.key = key
        self.value = value  # None: a long one that was not read yet
        self.decoded = decoded  # what StateTree.read makes of the value, once it has
        self.number: int | None = None  # under which a long value is kept, once it is
        self.raw: bytes | None = None  # as it stands in a page, once it does
        self._path, self._place = path, place
        self._hash: Hash32 | None = None
        self._value_hash: Hash32 | None = None

    @property
    def path(self) -> Hash32:
        if self._path is None:
            self._path = STATE_KEY.hash(self.key)
        return self._path

    @property
    def place(self) -> int:
        if self._place is None:
            self._place = place_of(self.path)
        return self._place

    @property
    def value_hash(self) -> Hash32:
        if self._value_hash is None:
            if self.value is None:
                raise InvariantError("a leaf that is loaded without its value has its hash")
            self._value_hash = STATE_VALUE.hash(self.value)
        return self._value_hash

    @value_hash.setter
    def value_hash(self, value_hash: Hash32) -> None:
        self._value_hash = value_hash

    @property
    def hash(self) -> Hash32:
        digest = self._hash
        if digest is None:  # most leaves beside one that changes come here: without calls
            path, value_hash, value = self._path, self._value_hash, self.value
            if path is None:
                path = self._path = STATE_KEY.hash(self.key)
            if value_hash is None:
                value_hash = self.value_hash if value is None else STATE_VALUE.hash(value)
                self._value_hash = value_hash
            digest = self._hash = STATE_LEAF.hash(path + value_hash)
        return digest


class Bucket:
    """Two to BUCKET_LEAVES leaves below one slot, in the order of their paths."""

    __slots__ = ("hash", "leaves", "raw")

    def __init__(self, leaves: tuple[Leaf, ...], digest: Hash32) -> None:
        self.leaves, self.hash = leaves, digest
        self.raw: bytes | None = None


class Whole:
    """A page that is stored as a whole, once it has a number."""

    __slots__ = ("number",)

    def __init__(self, number: int | None = None) -> None:
        self.number = number


class Since(NamedTuple):
    """What a page is made from, and which slots changed since, a bit for each."""

    whole: Whole
    changed: int


class Ref:
    """The way to a page: in memory, or by its number."""

    __slots__ = ("base", "hash", "number", "page", "raw", "used")

    def __init__(self, digest: Hash32, page: Page | None, number: int | None = None) -> None:
        self.hash = digest
        self.number = number  # None: not stored yet, so that `page` stays
        self.base: int | None = None  # of the whole page, if only what changed is stored
        self.page = page
        self.raw: bytes | None = None  # as it stands in a page, once it does
        self.used = False  # since a cache looked last


Node: TypeAlias = "Leaf | Bucket | Ref | Since | bytes | None"
Page: TypeAlias = "list[Node]"
Edit = tuple[int, "Leaf | None"]  # where, and what shall stand there


def place_of(path: bytes) -> int:
    return int.from_bytes(path, "big") << _PAD


def bit_at(place: int, depth: int) -> int:
    return place >> (SPAN - 1 - depth) & 1


def prefix_of(place: int, bits: int) -> int:
    """The first bits of a place."""
    return place >> (SPAN - bits)


def hash_of(node: Node) -> Hash32:
    if node is None:
        return ZERO_HASH
    return node if type(node) is bytes else node.hash  # type: ignore[return-value,union-attr]


def empty_page() -> Page:
    return [Since(Whole(), 0), *[None] * (2 * SLOTS - 1)]


def empty_root() -> Ref:
    return Ref(ZERO_HASH, empty_page())


def since(page: Page) -> Since:
    found = page[0]
    if type(found) is not Since:
        raise InvariantError("a page says what it is made from")
    return found


def load(ref: Ref, source: PageSource | None) -> Page:
    page = ref.page
    if page is None:
        if source is None:
            raise InvariantError("only above a store a page is not in memory")
        page = source.page(ref)
    ref.used = True
    return page


def value_of(leaf: Leaf, source: PageSource | None) -> bytes:
    value = leaf.value
    if value is None:
        if source is None:
            raise InvariantError("only above a store a value is not in memory")
        value = source.value(leaf)
    return value


def find(root: Ref, place: int, key: bytes, source: PageSource | None) -> Leaf | None:
    node: Node = root
    shift = SPAN
    while type(node) is Ref:
        page = node.page
        if page is None:
            page = load(node, source)
        node.used = True
        shift -= PAGE_BITS
        node = page[SLOTS | (place >> shift & SLOT_MASK)]
    if type(node) is Leaf:
        return node if node.key == key else None
    if type(node) is Bucket:
        for leaf in node.leaves:
            if leaf.key == key:
                return leaf
    return None
