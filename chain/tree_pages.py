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

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from chain.errors import InvariantError
from chain.hashes import STATE_KEY, STATE_LEAF, STATE_NODE, ZERO_HASH, Context, Hash32

STATE_VALUE = Context("state-value")
PATH_BITS = 256
PAGE_BITS = 4
BUCKET_LEAVES = 4
MOST_CHANGED = 6  # slots of a page of which only what changed is stored
SLOTS = 1 << PAGE_BITS
_SLOT = SLOTS - 1
_SPAN = -(-PATH_BITS // PAGE_BITS) * PAGE_BITS  # bits of a place: a path with zeros behind it
_PAD = _SPAN - PATH_BITS
_STATE_NODE = STATE_NODE.fresh


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
        if self._hash is None:
            self._hash = STATE_LEAF.hash(self.path, self.value_hash)
        return self._hash


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
    return place >> (_SPAN - 1 - depth) & 1


def prefix_of(place: int, bits: int) -> int:
    """The first bits of a place."""
    return place >> (_SPAN - bits)


def hash_of(node: Node) -> Hash32:
    if node is None:
        return ZERO_HASH
    return Hash32(node) if type(node) is bytes else node.hash  # type: ignore[union-attr]


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
    shift = _SPAN
    while type(node) is Ref:
        page = node.page
        if page is None:
            page = load(node, source)
        node.used = True
        shift -= PAGE_BITS
        node = page[SLOTS | (place >> shift & _SLOT)]
    if type(node) is Leaf:
        return node if node.key == key else None
    if type(node) is Bucket:
        for leaf in node.leaves:
            if leaf.key == key:
                return leaf
    return None


# --- editing -----------------------------------------------------------------------------------


def edit(
    ref: Ref, edits: Sequence[Edit], source: PageSource | None, replaced: list[Ref | Leaf] | None
) -> Ref:
    """The root after the edits, which are sorted by place. What is no longer in the new tree is
    appended to `replaced`."""
    places = [place for place, _ in edits]
    shrinks = any(leaf is None for _, leaf in edits)
    page = _edit_page(ref, 0, shrinks, places, edits, 0, len(edits), source, replaced)
    return Ref(hash_of(page[1]), page)


def _edit_page(
    ref: Ref,
    level: int,
    shrinks: bool,
    places: list[int],
    edits: Sequence[Edit],
    low: int,
    high: int,
    source: PageSource | None,
    replaced: list[Ref | Leaf] | None,
) -> Page:
    page = load(ref, source).copy()
    if replaced is not None:
        replaced.append(ref)
    shift = _SPAN - PAGE_BITS * (level + 1)
    touched = []
    whole, changed = since(page)
    while low < high:
        slot = places[low] >> shift & _SLOT
        changed |= 1 << slot
        end = low + 1
        while end < high and places[end] >> shift & _SLOT == slot:
            end += 1
        at = SLOTS | slot
        node = page[at]
        if type(node) is Ref:
            below = _edit_page(node, level + 1, shrinks, places, edits, low, end, source, replaced)
            page[at] = wrap(below, level + 1) if shrinks else Ref(hash_of(below[1]), below)
        else:
            page[at] = _edit_leaves(node, level + 1, edits, low, end, replaced)
        touched.append(at)
        low = end
    rehash(page, touched)
    is_far = changed.bit_count() > MOST_CHANGED
    page[0] = Since(Whole(), 0) if is_far else Since(whole, changed)
    return page


def _edit_leaves(
    node: Node,
    level: int,
    edits: Sequence[Edit],
    low: int,
    high: int,
    replaced: list[Ref | Leaf] | None,
) -> Node:
    new = edits[low][1]
    if high - low == 1 and (node is None or (type(node) is Leaf and new and node.key == new.key)):
        if type(node) is Leaf and replaced is not None:
            replaced.append(node)
        return new
    old: tuple[Leaf, ...] = ()
    if type(node) is Leaf:
        old = (node,)
    elif type(node) is Bucket:
        old = node.leaves
    merged = {leaf.place: leaf for leaf in old}
    for place, new in edits[low:high]:
        was = merged.pop(place, None)
        if was is not None and replaced is not None:
            replaced.append(was)
        if new is not None:
            merged[place] = new
    if len(merged) < 2:
        return next(iter(merged.values()), None)
    places = sorted(merged)
    return content([merged[place] for place in places], places, level)


def content(leaves: list[Leaf], places: list[int], level: int) -> Node:
    """What stands in a slot above `level` for these leaves, which are sorted."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else None
    if len(leaves) <= BUCKET_LEAVES:
        bit = _SPAN - 1 - PAGE_BITS * level
        return Bucket(tuple(leaves), _fold(leaves, places, bit, 0, len(leaves)))
    page = empty_page()
    shift = _SPAN - PAGE_BITS * (level + 1)
    low = 0
    touched = []
    while low < len(leaves):
        slot = places[low] >> shift & _SLOT
        end = low + 1
        while end < len(leaves) and places[end] >> shift & _SLOT == slot:
            end += 1
        page[SLOTS | slot] = content(leaves[low:end], places[low:end], level + 1)
        touched.append(SLOTS | slot)
        low = end
    rehash(page, touched)
    return Ref(hash_of(page[1]), page)


def page_of(slots: Sequence[Node]) -> Page:
    """The page of these slots."""
    page = empty_page()
    page[SLOTS:] = slots
    rehash(page, range(SLOTS, 2 * SLOTS))
    return page


def wrap(page: Page, level: int) -> Node:
    """A page, or what stands in its place where its leaves are few."""
    few: list[Leaf] = []
    for node in page[SLOTS:]:
        if type(node) is Leaf:
            few.append(node)
        elif type(node) is Bucket:
            few += node.leaves
        elif node is not None:
            break  # a page below
        if len(few) > BUCKET_LEAVES:
            break
    else:
        return content(few, [leaf.place for leaf in few], level)
    return Ref(hash_of(page[1]), page)


def fold(leaves: Sequence[Leaf], depth: int) -> Hash32:
    """The hash at `depth` of leaves in order that agree down to it."""
    places = [leaf.place for leaf in leaves]
    return _fold(leaves, places, _SPAN - 1 - depth, 0, len(leaves))


def _fold(leaves: Sequence[Leaf], places: list[int], bit: int, low: int, high: int) -> Hash32:
    if high - low <= 1:
        return leaves[low].hash if high > low else ZERO_HASH
    if places[low] >> bit & 1:
        middle = low
    else:
        middle = bisect_left(places, (places[low] >> bit | 1) << bit, low, high)
    zero = _fold(leaves, places, bit - 1, low, middle)
    one = _fold(leaves, places, bit - 1, middle, high)
    return Hash32(_STATE_NODE().update(zero + one).digest())


def join(zero: Node, one: Node) -> Node:
    """The node above two others; a leaf rises where it is alone."""
    if zero is None:
        if one is None or type(one) is Leaf:
            return one
        first = ZERO_HASH
    elif one is None:
        if type(zero) is Leaf:
            return zero
        first = hash_of(zero)
    else:
        first = zero if type(zero) is bytes else zero.hash  # type: ignore[assignment,union-attr]
    second = hash_of(one)
    return _STATE_NODE().update(first + second).digest()


def rehash(page: Page, touched: Iterable[int]) -> None:
    """Makes the nodes above the touched ones, which come in order and are all of one row."""
    row = list(touched)
    if len(row) == 1:
        up = row[0] >> 1
        while up:
            page[up] = join(page[2 * up], page[2 * up + 1])
            up >>= 1
        return
    while row and row[0] > 1:
        above = []
        last = 0
        for i in row:
            up = i >> 1
            if up != last:
                last = up
                zero, one = page[2 * up], page[2 * up + 1]
                if type(zero) is bytes and type(one) is bytes:  # most are: no call more
                    page[up] = _STATE_NODE().update(zero + one).digest()
                else:
                    page[up] = join(zero, one)
                above.append(up)
        row = above


# --- walking -----------------------------------------------------------------------------------


def siblings(root: Ref, place: int, source: PageSource | None) -> tuple[list[Hash32], Leaf | None]:
    """The other sides of the branches on a path, from the root down, and the leaf at its end."""
    found: list[Hash32] = []
    page, i, depth = load(root, source), 1, 0
    while (node := page[i]) is not None and type(node) is not Leaf:
        if type(node) is Bucket:
            return _bucket_siblings(node.leaves, place, depth, found)
        if type(node) is Ref:
            page, i = load(node, source), 1
        i = 2 * i + bit_at(place, depth)
        found.append(hash_of(page[i ^ 1]))
        depth += 1
    return found, node


def _bucket_siblings(
    leaves: Sequence[Leaf], place: int, depth: int, found: list[Hash32]
) -> tuple[list[Hash32], Leaf | None]:
    while len(leaves) > 1:
        zeros = sum(not bit_at(leaf.place, depth) for leaf in leaves)
        near, far = leaves[:zeros], leaves[zeros:]
        if bit_at(place, depth):
            near, far = far, near
        depth += 1
        found.append(fold(far, depth))
        leaves = near
    return found, leaves[0] if leaves else None


def below(
    root: Ref, prefix: int, bits: int, source: PageSource | None
) -> tuple[Hash32, Sequence[Node]]:
    """The hash of the subtree at a path prefix, and what is in it, in order: no bytes."""
    page, i = load(root, source), 1
    for depth in range(bits):
        node = page[i]
        if node is None or type(node) is Leaf or type(node) is Bucket:
            break
        if type(node) is Ref:
            page, i = load(node, source), 1
        i = 2 * i + (prefix >> (bits - 1 - depth) & 1)
    node = page[i]
    if type(node) is Leaf or type(node) is Bucket:
        leaves = (node,) if type(node) is Leaf else node.leaves  # type: ignore[union-attr]
        inside = [leaf for leaf in leaves if prefix_of(leaf.place, bits) == prefix]
        return fold(inside, bits), inside
    width = 1
    while i < SLOTS:
        i, width = 2 * i, 2 * width
    return hash_of(node), page[i : i + width]


def leaves_of(nodes: Sequence[Node], source: PageSource | None) -> Iterator[Leaf]:
    """The leaves below these slots, in order."""
    for node in nodes:
        if type(node) is Leaf:
            yield node
        elif type(node) is Bucket:
            yield from node.leaves
        elif type(node) is Ref:
            yield from leaves_of(load(node, source)[SLOTS:], source)
