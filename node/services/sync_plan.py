"""Which blocks are asked of whom while a node catches up. Pure: times are the caller's.

The blocks above the tip are cut into ranges, each asked of one peer; what has come waits until all
before it is committed. There are never more than `AHEAD` ranges, so memory is bounded, and a range
is as long as its peer is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chain.types import CertifiedBlock

AHEAD = 8  # ranges that are asked for or wait to be committed
LEAST_BLOCKS, MOST_BLOCKS = 8, 192  # of one request: an answer may go on to the next certificate
GOAL_S = 1.0  # what a range should take its peer
GOAL_BYTES = 1024 * 1024
USUAL_BLOCK_BYTES = 1024.0  # until some have come
HEDGE_S = 2.0  # the range that all others wait for is asked of another peer after this


@dataclass(slots=True, eq=False)
class Range:
    """Blocks `first` to `last`. `asked`: of whom, and since when. `sender`: whose `blocks` they
    are; `failed`: who is not asked for them again; `shy`: who gave little of them, and until when
    others are asked instead."""

    first: int
    last: int
    asked: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    shy: tuple[str, float] = ("", 0.0)
    sender: str = ""
    blocks: tuple[CertifiedBlock, ...] = ()

    @property
    def count(self) -> int:
        return self.last - self.first + 1


class BlockPlan:
    """The ranges above a tip."""

    def __init__(self, tip: int) -> None:
        self._ranges: list[Range] = []  # by their first block, without holes
        self._frontier = tip + 1  # above all ranges
        self.tips: dict[str, int] = {}  # as peers say
        self._block_bytes = USUAL_BLOCK_BYTES

    @property
    def target(self) -> int:
        """The highest block that a peer claims."""
        return max(self.tips.values(), default=self._frontier - 1)

    def length(self, rate: float) -> int:
        """How many blocks to ask a peer for that gives `rate` bytes a second."""
        size = min(rate * GOAL_S, GOAL_BYTES)
        return max(LEAST_BLOCKS, min(MOST_BLOCKS, int(size / self._block_bytes)))

    def expected_bytes(self, wanted: Range) -> int:
        return int(wanted.count * self._block_bytes)

    def ask(self, peer: str, rate: float, now: float) -> Range | None:
        """The range that a peer is to be asked for now: one that nobody is asked for, else a new
        one, else the first that another is slow with."""
        tip = self.tips.get(peer)
        open_ = [r for r in self._ranges if not r.blocks and peer not in r.failed]
        open_ = [r for r in open_ if tip is None or r.first <= tip]
        open_ = [r for r in open_ if r.shy[0] != peer or r.shy[1] <= now]
        found = next((r for r in open_ if not r.asked), None)
        if found is None and len(self._ranges) < AHEAD and (tip is None or self._frontier <= tip):
            last = self._frontier + self.length(rate) - 1
            found = Range(self._frontier, last if tip is None else min(last, tip))
            self._ranges.append(found)
            self._frontier = found.last + 1
        if found is None and open_ and open_[0] is self._first_open():
            first = open_[0]
            if peer not in first.asked and now - min(first.asked.values()) >= HEDGE_S:
                found = first
        if found is not None:
            found.asked[peer] = now
        return found

    def _first_open(self) -> Range | None:
        return next((r for r in self._ranges if not r.blocks), None)

    def came(
        self, wanted: Range, peer: str, blocks: tuple[CertifiedBlock, ...], size: int, now: float
    ) -> None:
        """An answer that has the right heights and ends with a certificate. It may be shorter than
        the range, whose rest is asked for then, or longer."""
        wanted.asked.pop(peer, None)
        mean = size / len(blocks)
        self._block_bytes += (mean - self._block_bytes) / 4
        if wanted.blocks or wanted not in self._ranges:
            return  # another was quicker
        wanted.blocks, wanted.sender = blocks, peer
        end = wanted.first + len(blocks) - 1
        if end < wanted.last:
            rest = Range(end + 1, wanted.last)
            if 2 * len(blocks) < wanted.count and size < GOAL_BYTES:
                rest.shy = peer, now + HEDGE_S
            self._ranges.insert(self._ranges.index(wanted) + 1, rest)
            wanted.last = end

    def nothing_came(self, wanted: Range, peer: str) -> None:
        """The peer has not answered, or has not these blocks."""
        wanted.asked.pop(peer, None)
        wanted.failed.add(peer)
        self._trim()

    def head(self, tip: int) -> Range | None:
        """The blocks that come next, if they are here. Ranges up to the tip are over."""
        while self._ranges and self._ranges[0].last <= tip:
            self._ranges.pop(0)
        self._frontier = max(self._frontier, tip + 1)
        first = self._ranges[0] if self._ranges else None
        return first if first is not None and first.blocks else None

    def refuse(self, wanted: Range) -> str:
        """What stands in a range does not hold: it is asked of others. Its sender."""
        sender, wanted.blocks, wanted.sender = wanted.sender, (), ""
        wanted.failed.add(sender)
        self.tips.pop(sender, None)
        self._trim()
        return sender

    def _trim(self) -> None:
        """Ranges at the end that nobody has any more were only words."""
        while self._ranges and not self._ranges[-1].blocks and not self._ranges[-1].asked:
            last = self._ranges[-1]
            if any(t >= last.first for p, t in self.tips.items() if p not in last.failed):
                return
            self._frontier = self._ranges.pop().first

    def wants(self, peer: str) -> bool:
        """Whether a peer may still be of use."""
        tip = self.tips.get(peer)
        if tip is None or self._frontier <= tip:
            return True
        return any(not r.blocks and r.first <= tip and peer not in r.failed for r in self._ranges)
