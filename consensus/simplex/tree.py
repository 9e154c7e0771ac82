"""The blocks above the last final one, and how far each has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from chain.errors import invariant
from chain.hashes import Hash32
from chain.types import Block, Header


class Status(Enum):
    WAITING = auto()  # its parent is not executed yet
    EXECUTING = auto()  # `Validate` is out
    VALID = auto()
    INVALID = auto()


@dataclass(slots=True)
class Node:
    block: Block
    block_hash: Hash32
    status: Status = Status.WAITING
    timely: bool = True

    @property
    def header(self) -> Header:
        return self.block.header


@dataclass(frozen=True, slots=True)
class Missing:
    """A path ends at a block that is not here. `height` is its height, if a child tells it."""

    block_hash: Hash32
    height: int | None


class Fork(Exception):
    """A path passes beside the last final block."""


class BlockTree:
    def __init__(self, tip: Header) -> None:
        self._nodes: dict[Hash32, Node] = {}
        self.tip = tip
        self.tip_hash = tip.hash()

    def get(self, block_hash: Hash32) -> Node | None:
        return self._nodes.get(block_hash)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def add(self, block: Block, block_hash: Hash32, *, executed: bool = False) -> None:
        invariant(block_hash not in self._nodes, "a block enters the tree once")
        status = Status.VALID if executed else Status.WAITING
        self._nodes[block_hash] = Node(block, block_hash, status)

    def executed(self, block_hash: Hash32) -> Header | None:
        """The header of a block whose state is known here: the tip, or a valid block above it."""
        if block_hash == self.tip_hash:
            return self.tip
        node = self._nodes.get(block_hash)
        return node.header if node is not None and node.status is Status.VALID else None

    def path(self, block_hash: Hash32) -> list[Node] | Missing:
        """The blocks from above the tip to `block_hash`, in height order. Raises Fork."""
        path: list[Node] = []
        while block_hash != self.tip_hash:
            node = self._nodes.get(block_hash)
            height = path[-1].header.height - 1 if path else None
            if node is None and height is not None and height <= self.tip.height:
                raise Fork(f"height {height} is final with another block")
            if node is None:
                return Missing(block_hash, height)
            if node.header.height <= self.tip.height:
                raise Fork(f"height {node.header.height} is final with another block")
            path.append(node)
            block_hash = node.header.parent
        return path[::-1]

    def ready(self) -> list[tuple[Node, Header]]:
        """Waiting blocks whose parent is executed, with that parent."""
        found = []
        for node in self._nodes.values():
            parent = self.executed(node.header.parent)
            if node.status is Status.WAITING and parent is not None:
                found.append((node, parent))
        return found

    def reroot(self, tip: Header) -> None:
        """`tip` is final: keep only what descends from it. Rivals will never be final."""
        self.tip, self.tip_hash = tip, tip.hash()
        keep = {self.tip_hash}
        above = [n for n in self._nodes.values() if n.header.height > tip.height]
        kept: dict[Hash32, Node] = {}
        for node in sorted(above, key=lambda n: n.header.height):
            # A block whose parent has not arrived may still belong to the final chain.
            orphan = node.header.parent not in self._nodes
            if node.header.parent in keep or (orphan and node.header.height > tip.height + 1):
                keep.add(node.block_hash)
                kept[node.block_hash] = node
        self._nodes = kept

    def clear(self) -> None:
        """The epoch has ended with the tip: nothing above it counts."""
        self._nodes = {}
