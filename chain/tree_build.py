"""A whole state tree from its leaves, which come in the order of their paths (docs/adr/0020).

Of a large state only the part in progress is in memory: what is complete is written and let go.
"""

from __future__ import annotations

from collections.abc import Callable

from chain.errors import VerifyError
from chain.tree_codec import PageWriter
from chain.tree_edit import content, page_of, wrap
from chain.tree_pages import (
    PAGE_BITS,
    SLOTS,
    Leaf,
    Node,
    Ref,
    hash_of,
    prefix_of,
)

_PART_BITS = 2 * PAGE_BITS  # a 256th of the paths at a time
FLUSH_ROWS = 4096


class TreeBuilder:
    """`add` all leaves in order, then `finish`. `flush` is told to store the writer's rows, and
    forget them, now and then."""

    def __init__(self, writer: PageWriter, flush: Callable[[], None]) -> None:
        self.count = 0
        self._writer, self._flush = writer, flush
        self._leaves: list[Leaf] = []  # of the part in progress
        self._places: list[int] = []
        self._part = 0
        self._slots: list[Node] = [None] * SLOTS  # of the page above the part
        self._top: list[Node] = [None] * SLOTS

    def add(self, key: bytes, value: bytes) -> None:
        """VerifyError if the key does not come after the one before."""
        leaf = Leaf(key, value)
        place = leaf.place
        part = prefix_of(place, _PART_BITS)
        if part != self._part:
            self._close_until(part)
        elif self._places and place <= self._places[-1]:
            raise VerifyError("keys that are not in the order of their paths")
        self._leaves.append(leaf)
        self._places.append(place)
        self.count += 1

    def finish(self) -> Ref:
        """The tree's root, stored with all below it once the writer's last rows are."""
        self._close_until(SLOTS * SLOTS)
        page = page_of(self._top)
        top = Ref(hash_of(page[1]), page)
        self._writer.write(top)
        self._let_go()
        return top

    def _close_until(self, part: int) -> None:
        """The part in progress is complete, and the next one that has leaves is `part`."""
        if part < self._part:
            raise VerifyError("keys that are not in the order of their paths")
        self._slots[self._part % SLOTS] = self._written(content(self._leaves, self._places, 2))
        self._leaves, self._places = [], []
        if part // SLOTS != self._part // SLOTS:
            page = page_of(self._slots)
            self._top[self._part // SLOTS] = self._written(wrap(page, 1))
            self._slots = [None] * SLOTS
        self._part = part

    def _written(self, node: Node) -> Node:
        self._writer.write_below(node)
        self._let_go()
        return node

    def _let_go(self) -> None:
        for ref in self._writer.pages:
            ref.page = None
        self._writer.pages.clear()
        if len(self._writer.rows) >= FLUSH_ROWS:
            self._flush()
