"""Ways through the state tree's pages: proofs and subtrees (chain/tree_pages.py). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chain.hashes import Hash32
from chain.tree_edit import fold
from chain.tree_pages import (
    SLOTS,
    Bucket,
    Leaf,
    Node,
    PageSource,
    Ref,
    bit_at,
    hash_of,
    load,
    prefix_of,
)


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
