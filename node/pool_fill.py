"""A leader's block from what waits: duties first, then what is worth most, stamps in their part."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from chain import limits
from chain.costs import NO_ROOM
from chain.execute import Execution
from chain.receipts import Receipt
from chain.types import TxId
from node.pool_index import Index, Sender, Waiting
from node.pool_value import Kind

LARGE_BYTES = 800 * 1024  # of a block for openings of custody: three, so that gossip bears it
MOST_MISSES = 16  # that do not fit any more: what still might is not worth looking for
# Refused now, but right in a block to come: the sender's view may be ahead of ours.
_EARLY = frozenset(("bad_nonce", *NO_ROOM))

# Minus the worth of a sender's next, its turn, and its next, or None where that is a guess.
_Heap = list[tuple[float, int, Sender, Waiting | None]]


class Filling:
    """One block being filled. `until` (monotonic seconds) ends it; `refuse` drops from the pool
    what a rule refuses."""

    def __init__(
        self,
        index: Index,
        execution: Execution,
        most_bytes: int,
        until: float,
        refuse: Callable[[TxId, Receipt], None],
    ) -> None:
        self._index, self._execution, self._refuse = index, execution, refuse
        self._until = until
        self._room, self._large = most_bytes, LARGE_BYTES
        self._stamps_fit, self._misses = True, 0
        self._txs: list[bytes] = []

    def run(self) -> tuple[bytes, ...]:
        for sender in sorted(self._index.with_duties(), key=lambda s: s.turn):
            self._duties(sender)
        self._others()
        return tuple(self._txs)

    @property
    def _is_over(self) -> bool:
        return (
            len(self._txs) >= limits.MAX_BLOCK_TXS
            or self._misses >= MOST_MISSES
            or time.monotonic() > self._until
        )

    def _next(self, sender: Sender) -> Waiting | None:
        return sender.txs.get(self._execution.next_nonce(sender.account))

    def _duties(self, sender: Sender) -> None:
        """Those of a sender that come next, one after the other."""
        while (found := self._next(sender)) is not None and found.kind is Kind.DUTY:
            if self._is_over or not self._put(found):
                return
            self._index.served(sender)

    def _others(self) -> None:
        """Each time the sender whose next is worth most; among equals whoever was served longest
        ago. Stamps, which are worth nothing in grains, come first while they have room."""
        paid, stamped = self._heads()
        while not self._is_over:
            heap = stamped if stamped and self._stamps_fit else paid
            if not heap:
                return
            _, _, sender, found = heapq.heappop(heap)
            if found is None:
                found = self._next(sender)
            elif self._put(found):
                self._index.served(sender)
                found = sender.txs.get(found.nonce + 1)
                if found is not None and found.kind is Kind.DUTY:
                    self._duties(sender)
                    found = self._next(sender)
            else:
                continue
            if found is not None and found.kind is not Kind.DUTY:
                heap = stamped if found.kind is Kind.STAMPED else paid
                heapq.heappush(heap, (-found.own_worth, sender.turn, sender, found))

    def _heads(self) -> tuple[_Heap, _Heap]:
        """The first that waits of each sender: where blocks before this one have taken it, its
        worth stands for the next one's until that is looked at."""
        heaps: tuple[_Heap, _Heap] = ([], [])
        for sender in self._index.senders.values():
            first = sender.txs.get(sender.base) or sender.txs[min(sender.txs)]
            if sender.duties:
                first = self._next(sender) or first
            if first.kind is not Kind.DUTY:
                heaps[first.kind].append((-first.own_worth, sender.turn, sender, None))
        for heap in heaps:
            heapq.heapify(heap)
        return heaps

    def _put(self, found: Waiting) -> bool:
        """Execute it into the block if it fits and holds."""
        size = len(found.raw)
        is_large = size > limits.MAX_TX_BYTES
        if size > (min(self._room, self._large) if is_large else self._room):
            return False
        receipt = self._execution.try_apply(found.raw)
        if not receipt.ok:
            if receipt.code not in _EARLY:
                self._refuse(found.tx_id, receipt)
            self._misses += receipt.code == "block_full"
            self._stamps_fit &= receipt.code != "stamp_share_full"
            return False
        self._execution.keep(receipt)
        self._txs.append(found.raw)
        self._room -= size
        if is_large:
            self._large -= size
        return True
