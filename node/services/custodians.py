"""Which of an epoch's custodians are there: seen connected, or signing blocks, not long ago.

Time is the caller's, from a clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Iterable

from chain.types import PubKey

GRACE_S = 60.0  # unseen for so long: others take its tiles
REMEMBERED = 4096  # accounts; validators of two epochs are at most 1,024


class Custodians:
    """When each custodian was last seen."""

    def __init__(self, own: PubKey, now: float, grace_s: float = GRACE_S) -> None:
        self._own, self._grace_s = own, grace_s
        self._began = now  # nobody is missed before we could have met it
        self._seen: dict[PubKey, float] = {}
        self._met: set[PubKey] = set()  # connected at some time
        self._moved = now  # when a block was last final
        self._gone: frozenset[PubKey] = frozenset()

    def connected(self, accounts: Iterable[PubKey], now: float) -> None:
        """These are connected to us now."""
        for account in accounts:
            self._note(account, now)
            self._met.add(account)

    def signed(self, accounts: Iterable[PubKey], now: float) -> None:
        """A block became final, with these signatures."""
        self._moved = now
        for account in accounts:
            self._note(account, now)

    def gone(self, members: Iterable[PubKey], now: float) -> frozenset[PubKey]:
        """Those of `members` that are not there any more.

        While no block becomes final nobody signs: whom we know by its signatures alone stays as it
        was judged before.
        """
        moves = now - self._moved <= self._grace_s
        found = set()
        for account in members:
            if account == self._own:
                continue
            unseen = now - max(self._seen.get(account, 0.0), self._began) > self._grace_s
            judged = moves or account in self._met
            if (unseen and judged) or (not judged and account in self._gone):
                found.add(account)
        self._gone = frozenset(found)
        return self._gone

    def _note(self, account: PubKey, now: float) -> None:
        self._seen.pop(account, None)  # so that the order is that of the last sight
        self._seen[account] = now
        if len(self._seen) > REMEMBERED:
            oldest = next(iter(self._seen))
            del self._seen[oldest]
            self._met.discard(oldest)
