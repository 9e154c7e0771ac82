"""An epoch's custodians: which are there, which lack what they should hold, and where we stand.

Time is the caller's, from a clock that never goes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from chain.records import EpochRecord
from chain.types import Epoch, PubKey
from node.rules import custodians
from node.services.placement_plan import Ahead, Tile, standing

GRACE_S = 60.0  # unseen for so long: others take its tiles
LACKING_S = 1800.0  # there, and lacking a tile for so long: it has no room for it
SLICE = 1024  # tiles whose election is computed without a pause
SPARE = 2  # custodians before us, beyond the target, that may go before we look again
REMEMBERED = 4096  # accounts; validators of two epochs are at most 1,024


class Custodians:
    """Seen connected, or signing blocks, not long ago; else gone."""

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


class Lacking:
    """Custodians that are connected and say, for a long time, that they lack a tile."""

    def __init__(self, lacking_s: float = LACKING_S) -> None:
        self._lacking_s = lacking_s
        self._since: dict[tuple[PubKey, Tile], float] = {}

    def of(
        self,
        before: Ahead,
        target: int,
        says: Callable[[PubKey, Tile], bool | None],
        now: float,
    ) -> dict[Tile, frozenset[PubKey]]:
        """Of tiles that would fall to us: who before us lacks them. `says(account, tile)`: None if
        it is not known, as of a version that has just come."""
        since: dict[tuple[PubKey, Tile], float] = {}
        found: dict[Tile, frozenset[PubKey]] = {}
        for tile, others in before.items():
            if len(others) < target:
                continue  # ours in any case
            for account in others:
                said, key = says(account, tile), (account, tile)
                if said is False or (said is None and key in self._since):
                    since[key] = self._since.get(key, now)
            late = [a for a in others if now - since.get((a, tile), now) > self._lacking_s]
            if late:
                found[tile] = frozenset(late)
        self._since = since
        return found


class Standings:
    """Who stands before us at each tile, by epoch: computed once, some 10 µs a tile."""

    def __init__(self, account: PubKey, model: Sequence[Tile], target: int) -> None:
        self._account, self._model, self._target = account, model, target
        self._known: dict[Epoch, tuple[EpochRecord, int, Ahead]] = {}

    async def of(self, epochs: Sequence[EpochRecord], gone: int) -> tuple[Ahead, ...]:
        """Of each epoch, as deep as it must be with so many gone: deeper in steps, or each
        departure would cost an election of the whole model."""
        spare = SPARE
        while spare < gone:
            spare *= 2
        found = []
        for epoch in epochs:
            known = self._known.get(epoch.epoch)
            if known is None or known[:2] != (epoch, spare):
                known = epoch, spare, await self._elect(epoch, self._target + spare)
            found.append(known)
        self._known = {entry[0].epoch: entry for entry in found}
        return tuple(ahead for *_, ahead in found)

    async def _elect(self, epoch: EpochRecord, depth: int) -> Ahead:
        """In slices in a thread: the node goes on meanwhile."""
        candidates = custodians(epoch.validators.members)
        found: dict[Tile, tuple[PubKey, ...]] = {}
        for start in range(0, len(self._model), SLICE):
            part = self._model[start : start + SLICE]
            found |= await asyncio.to_thread(
                standing, epoch.seed, candidates, self._account, part, depth
            )
        return found
