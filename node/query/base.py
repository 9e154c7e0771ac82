"""What every query has at hand: the node, its latest final state, and the ways to say no."""

from __future__ import annotations

from typing import Any

from chain.errors import BlyanError
from chain.state import State
from node.seam import NodeSeam

Json = dict[str, Any]
MAX_LIMIT = 100  # rows of one answer
DEFAULT_LIMIT = 25


class NotFound(BlyanError):
    """What was asked for does not exist here; the text says what does."""

    code = "not_found"


class Pruned(BlyanError):
    """It was here, and this node keeps no transactions of blocks that old."""

    code = "pruned"

    def __init__(self, what: str, below: int) -> None:
        super().__init__(
            f"{what}: pruned. This node keeps transactions of blocks from {below} on, and headers "
            "of all: ask an archive node"
        )


class BadQuery(BlyanError):
    """A question that cannot be asked like this."""

    code = "bad_query"


class Reader:
    """Reads of one node. Each call sees the latest final state; nothing is kept between calls."""

    def __init__(self, node: NodeSeam) -> None:
        self.node = node

    @property
    def state(self) -> State:
        return self.node.chain.state()

    def limit(self, limit: int | None) -> int:
        """A page size; what is out of range is told rather than bent."""
        if limit is None:
            return DEFAULT_LIMIT
        if not 1 <= limit <= MAX_LIMIT:
            raise BadQuery(f"limit is {limit}; expected 1 to {MAX_LIMIT}")
        return limit


def unhex(text: str, what: str, size: int | None = 32) -> bytes:
    """Bytes from hex, or BadQuery that says what was expected."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if not value or (size is not None and len(value) != size) or text != text.strip():
        expected = "an even number of" if size is None else str(2 * size)
        raise BadQuery(f"{text[:80]!r} is no {what}; expected {expected} hexadecimal digits")
    return value


def natural(text: str, what: str) -> int:
    """A number from a path, or BadQuery."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise BadQuery(f"{text[:80]!r} is no {what}; expected a number from 0")
    return int(text)
