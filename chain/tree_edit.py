"""Edits of the state tree's pages, and the hashes above what they change (chain/tree_pages.py).

Pure. A block changes a thousand leaves and with them two thousand pages of some 32 nodes, most of
them in one slot alone, so what is done for one slot is written out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from blake3 import blake3

from chain.hashes import STATE_NODE, ZERO_HASH, Hash32
from chain.tree_pages import (
    BUCKET_LEAVES,
    MOST_CHANGED,
    PAGE_BITS,
    SLOT_MASK,
    SLOTS,
    SPAN,
    Bucket,
    Edit,
    Leaf,
    Node,
    Page,
    PageSource,
    Ref,
    Since,
    Whole,
    empty_page,
    hash_of,
    load,
    since,
)

_STATE_NODE = STATE_NODE.fresh


def edit(
    ref: Ref, edits: Sequence[Edit], source: PageSource | None, replaced: list[Ref | Leaf] | None
) -> Ref:
    """The root after the edits, which are sorted by place. What is no longer in the new tree is
    appended to `replaced`."""
    page = _Edit(edits, source, replaced).page(ref, 0, 0, len(edits))
    return Ref(hash_of(page[1]), page)


class _Edit:
    """What all pages of one edit share. The edits from `low` to `high` are those below a node."""

    __slots__ = ("edits", "hasher", "places", "replaced", "shrinks", "source")

    def __init__(
        self,
        edits: Sequence[Edit],
        source: PageSource | None,
        replaced: list[Ref | Leaf] | None,
    ) -> None:
        self.edits, self.source, self.replaced = edits, source, replaced
        self.places = [place for place, _ in edits]
        self.shrinks = any(leaf is None for _, leaf in edits)
        self.hasher = _STATE_NODE()

    def page(self, ref: Ref, level: int, low: int, high: int) -> Page:
        if high - low == 1:
            return self.page_of_one(ref, level, low)
        page = load(ref, self.source).copy()
        if self.replaced is not None:
            self.replaced.append(ref)
        whole, changed = since(page)
        places, shift = self.places, SPAN - PAGE_BITS * (level + 1)
        touched = []
        while low < high:
            slot = places[low] >> shift & SLOT_MASK
            changed |= 1 << slot
            end = low + 1
            while end < high and places[end] >> shift & SLOT_MASK == slot:
                end += 1
            at = SLOTS | slot
            page[at] = self.slot(page[at], level + 1, low, end)
            touched.append(at)
            low = end
        rehash(page, touched, self.hasher)
        is_far = changed.bit_count() > MOST_CHANGED
        page[0] = Since(Whole(), 0) if is_far else Since(whole, changed)
        return page

    def page_of_one(self, ref: Ref, level: int, at: int) -> Page:
        """`page` with the edit at `at` alone."""
        page = (ref.page or load(ref, self.source)).copy()
        ref.used = True
        if self.replaced is not None:
            self.replaced.append(ref)
        slot = self.places[at] >> (SPAN - PAGE_BITS * (level + 1)) & SLOT_MASK
        i = SLOTS | slot
        node = page[i]
        if type(node) is Ref and not self.shrinks:
            below = self.page_of_one(node, level + 1, at)
            page[i] = Ref(hash_of(below[1]), below)
        else:
            page[i] = self.slot(node, level + 1, at, at + 1)
        hasher = self.hasher
        while i > 1:
            zero, one = page[i & ~1], page[i | 1]
            i >>= 1
            if type(zero) is bytes and type(one) is bytes:
                page[i] = hasher.update(zero + one).digest()
                hasher.reset()
            else:
                page[i] = join(zero, one, hasher)
        whole, changed = since(page)
        changed |= 1 << slot
        is_far = changed.bit_count() > MOST_CHANGED
        page[0] = Since(Whole(), 0) if is_far else Since(whole, changed)
        return page

    def slot(self, node: Node, level: int, low: int, high: int) -> Node:
        if type(node) is Ref:
            below = self.page(node, level, low, high)
            return wrap(below, level) if self.shrinks else Ref(hash_of(below[1]), below)
        new = self.edits[low][1]
        old: tuple[Leaf, ...] = ()
        if type(node) is Leaf:
            old = (node,)
        elif type(node) is Bucket:
            old = node.leaves
        if high - low == 1 and new is not None:
            if not old:
                return new
            for i, was in enumerate(old):
                if was.key == new.key:  # a new value and nothing else, as most edits are
                    if self.replaced is not None:
                        self.replaced.append(was)
                    if len(old) == 1:
                        return new
                    leaves = [*old[:i], new, *old[i + 1 :]]
                    return content(leaves, [x.place for x in leaves], level, self.hasher)
        merged = {leaf.place: leaf for leaf in old}
        for place, new in self.edits[low:high]:
            gone = merged.pop(place, None)
            if gone is not None and self.replaced is not None:
                self.replaced.append(gone)
            if new is not None:
                merged[place] = new
        if len(merged) < 2:
            return next(iter(merged.values()), None)
        places = sorted(merged)
        return content([merged[place] for place in places], places, level, self.hasher)


def content(
    leaves: list[Leaf], places: list[int], level: int, hasher: blake3 | None = None
) -> Node:
    """What stands in a slot above `level` for these leaves, which are sorted."""
    hasher = hasher or _STATE_NODE()
    if len(leaves) <= 1:
        return leaves[0] if leaves else None
    if len(leaves) <= BUCKET_LEAVES:
        bit = SPAN - 1 - PAGE_BITS * level
        return Bucket(tuple(leaves), _fold(leaves, places, bit, 0, len(leaves), hasher))
    page = empty_page()
    shift = SPAN - PAGE_BITS * (level + 1)
    low = 0
    touched = []
    while low < len(leaves):
        slot = places[low] >> shift & SLOT_MASK
        end = low + 1
        while end < len(leaves) and places[end] >> shift & SLOT_MASK == slot:
            end += 1
        page[SLOTS | slot] = content(leaves[low:end], places[low:end], level + 1, hasher)
        touched.append(SLOTS | slot)
        low = end
    rehash(page, touched, hasher)
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
    return _fold(leaves, places, SPAN - 1 - depth, 0, len(leaves), _STATE_NODE())


def _fold(
    leaves: Sequence[Leaf], places: list[int], bit: int, low: int, high: int, hasher: blake3
) -> Hash32:
    if high - low <= 1:
        return leaves[low].hash if high > low else ZERO_HASH
    if places[low] >> bit & 1:
        middle = low
    elif places[high - 1] >> bit & 1:
        middle = bisect_left(places, (places[low] >> bit | 1) << bit, low + 1, high)
    else:
        middle = high
    zero = _fold(leaves, places, bit - 1, low, middle, hasher)
    one = _fold(leaves, places, bit - 1, middle, high, hasher)
    return Hash32(_branch(zero + one, hasher))


def _branch(both: bytes, hasher: blake3) -> bytes:
    """STATE_NODE's hash, by a hasher of it that has nothing and is left with nothing: a new one for
    each would take as long again."""
    digest = hasher.update(both).digest()
    hasher.reset()
    return digest


def join(zero: Node, one: Node, hasher: blake3) -> Node:
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
    second = one if type(one) is bytes else hash_of(one)
    return _branch(first + second, hasher)


def rehash(page: Page, touched: Iterable[int], hasher: blake3 | None = None) -> None:
    """Makes the nodes above the touched ones, which come in order and are all of one row. `hasher`:
    one of STATE_NODE that is at hand."""
    hasher = hasher or _STATE_NODE()
    update, digest, reset = hasher.update, hasher.digest, hasher.reset
    row: Sequence[int] = list(touched)
    while row and row[0] > 1:
        above = []
        last = 0
        for i in row:
            up = i >> 1
            if up != last:
                last = up
                zero, one = page[2 * up], page[2 * up + 1]
                if type(zero) is bytes and type(one) is bytes:  # most are: no call more
                    update(zero + one)
                    page[up] = digest()
                    reset()
                else:
                    page[up] = join(zero, one, hasher)
                above.append(up)
        row = above
