"""An epoch's custodians: which are there, which lack what they should hold, and where we stand.

Time is the caller's, from a clock that never goes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from chain.params import Params
from chain.records import EpochRecord
from chain.rules import Rules
from chain.state import State
from chain.types import Epoch, PubKey, TimeMs
from node.rules import custody_order
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


def replicas(state: Callable[[], State], genesis: Params) -> Callable[[], int]:
    """How many have to keep a tile, whenever that is asked."""
    return lambda: state().params(genesis).custody_replicas


class Standings:
    """Who stands before us at each tile, by epoch: computed once, some 10 µs a tile."""

    def __init__(
        self, account: PubKey, model: Sequence[Tile], target: Callable[[], int], rules: Rules
    ) -> None:
        """`target`: how many have to keep a tile, as things stand."""
        self._account, self._model, self._target, self._rules = account, model, target, rules
        self._known: dict[Epoch, tuple[EpochRecord, int, Ahead]] = {}
        shards = max((shard for shard, _ in model), default=-1) + 1
        self._tiles = [0] * shards  # of each shard
        for shard, _ in model:
            self._tiles[shard] += 1

    async def of(self, epochs: Sequence[EpochRecord], gone: int) -> tuple[Ahead, ...]:
        """Of each epoch, as deep as it must be with so many gone: deeper in steps, or each
        departure would cost an election of the whole model."""
        spare = SPARE
        while spare < gone:
            spare *= 2
        depth, found = self._target() + spare, []
        for epoch in (*epochs[:1], *await self.ahead(epochs[1:])):
            same = replace(epoch, ended_ms=TimeMs(0))
            known = self._known.get(epoch.epoch)
            if known is None or known[:2] != (same, depth):
                known = same, depth, await self._elect(epoch, depth)
            found.append(known)
        self._known = {entry[0].epoch: entry for entry in found}
        return tuple(ahead for *_, ahead in found)

    async def ahead(self, epochs: Sequence[EpochRecord]) -> list[EpochRecord]:
        """Epochs to come with the cutoffs that the chain will write for them. It then need not work
        them out in the middle of a block: the rules remember them."""
        found = []
        for epoch in epochs:
            depth = self._target()
            cutoffs = await asyncio.to_thread(self._rules.cutoffs, epoch, self._tiles, depth)
            found.append(replace(epoch, cutoffs=cutoffs))
        return found

    async def _elect(self, epoch: EpochRecord, depth: int) -> Ahead:
        """In slices in a thread: the node goes on meanwhile."""
        order = await asyncio.to_thread(custody_order, epoch)
        found: dict[Tile, tuple[PubKey, ...]] = {}
        for start in range(0, len(self._model), SLICE):
            part = self._model[start : start + SLICE]
            found |= await asyncio.to_thread(standing, order, self._account, part, depth)
        return found
