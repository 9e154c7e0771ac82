"""Who keeps which tiles when nobody keeps more than it has room for (docs/spec/election.md).

Every tile wants its first `depth` ranks, and no candidate takes more tiles than its capacity. The
rule: tiles choose one after another in the order of their lots, each the first `depth` of its
first REACH ranks that have room left. This is the one stable assignment (Gale and Shapley, 1962,
with the lots as every candidate's preference), so it may be worked out in any order: `Assignment`
lets all tiles apply at once and candidates refuse, until nobody has more than fits.

What is final in it is one number for each full candidate: the **cutoff**, the first lot that it
refused. With them anybody knows a tile's custodians from its own order alone: the first `depth`
whose cutoffs lie behind its lot (Azevedo and Leshno, 2016).

A departure: its tiles apply further down. One that is full takes such a tile only by refusing a
later one, which then applies further in turn. Such a chain ends at the first that never fills up;
if those who fill up hold a part f of the weight, a tile of the departed moves at most f / (1 - f)
others on average: at most twice its own while f is at most 2/3.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from chain.errors import invariant
from chain.types import PubKey
from consensus.ranking import Indices, Layout

SPARE = 4  # candidates of each tile that are worked out beyond its depth; more when asked for
REACH = 32  # ranks that a tile asks for room: bounds what it costs when nobody has any
NEVER = np.iinfo(np.int64).max  # the cutoff of whoever refuses nobody
TOGETHER = 32  # tiles whose further ranks are worked out at once rather than one by one
VACANT = -2  # an entry that looks for another custodian


class Assignment:
    """The first `depth` custodians of each of `subjects`, within the `capacities` (tiles, in the
    order of the layout's candidates; None: as many as come)."""

    def __init__(
        self,
        layout: Layout,
        subjects: Sequence[bytes],
        depth: int,
        capacities: Sequence[int] | None = None,
    ) -> None:
        invariant(len(set(subjects)) == len(subjects), "a tile stands once")
        self.layout, self.subjects, self.depth = layout, subjects, depth
        count = len(layout.candidates)
        room = [len(subjects)] * count if capacities is None else list(capacities)
        invariant(len(room) == count and min(room, default=0) >= 0, "each has its capacity")
        self._room = np.array(room, np.int64)
        binds = bool((self._room < len(subjects)).any())
        invariant(depth <= REACH, "custodians are within reach")
        self._orders, lots = layout.leading(subjects, min(REACH, depth + SPARE * binds))
        self._longer: dict[int, list[int]] = {}
        self._row_at = _by_lot(lots, subjects)
        self._place = np.empty(len(subjects), np.int64)
        self._place[self._row_at] = np.arange(len(subjects))
        self._cutoff = np.where(self._room > 0, NEVER, -1)
        self._chosen = self._orders[:, :depth].copy()
        self._at = np.broadcast_to(np.arange(depth), self._chosen.shape).copy()
        self._next = np.full(len(subjects), depth)
        self._settle()
        self._load = self._loads()
        self._heaps: dict[int, list[int]] = {}
        self._kept = self._kept_by() if binds else None

    @property
    def table(self) -> Indices:
        """Custodians of each tile by number, the primary first; -1 where nobody has room."""
        return np.take_along_axis(self._chosen, np.argsort(self._at, axis=1), axis=1)

    @property
    def cutoffs(self) -> dict[PubKey, bytes | None]:
        """Of each candidate that refused any: the first tile that it refused, by lot; None for
        one that has no room at all."""
        return {
            self.layout.accounts[i]: self.subjects[int(self._row_at[self._cutoff[i]])]
            if self._room[i]
            else None
            for i in np.flatnonzero(self._cutoff < NEVER).tolist()
        }

    def ranks(self, row: int) -> tuple[PubKey, ...]:
        """The custodians of one tile that have room for it, the primary first."""
        pairs = sorted(zip(self._at[row].tolist(), self._chosen[row].tolist(), strict=True))
        return tuple(self.layout.accounts[i] for _, i in pairs if i >= 0)

    def loads(self) -> list[int]:
        """Tiles that each candidate keeps."""
        return [int(n) for n in self._load]

    def depart(self, account: PubKey) -> tuple[int, int]:
        """A candidate leaves: (tiles that it kept, tiles of others that had to move for them)."""
        gone = self.layout.accounts.index(account)
        flat = self._chosen.reshape(-1)
        vacant = deque(np.flatnonzero(flat == gone).tolist())
        own, overflow = len(vacant), 0
        flat[list(vacant)] = VACANT
        self._room[gone], self._load[gone], self._cutoff[gone] = 0, 0, -1
        while vacant:
            refused = self._fill(vacant.popleft())
            if refused is not None:
                vacant.append(refused)
                overflow += 1
        return own, overflow

    # --- all at once --------------------------------------------------------------------

    def _settle(self) -> None:
        """All apply, the full refuse, the refused apply further, until nobody has too many."""
        flat = self._chosen.reshape(-1)
        while True:
            over = np.append(self._loads() > self._room, False)  # the last: nobody, -1
            entries = np.flatnonzero(over[flat])
            if not len(entries):
                return
            owner, place = flat[entries], self._place[entries // self.depth]
            by_owner = np.lexsort((place, owner))
            entries, owner, place = entries[by_owner], owner[by_owner], place[by_owner]
            nth = np.arange(len(owner)) - np.searchsorted(owner, owner)
            beyond = nth >= self._room[owner]
            np.minimum.at(self._cutoff, owner[beyond], place[beyond])
            self._apply(np.sort(entries[beyond]))

    def _apply(self, entries: NDArray[np.intp]) -> None:
        """Let each of these (row * depth + rank) go on to the next that may still take it."""
        vain = self._place[entries // self.depth] >= self._cutoff.max()  # all are full by then
        self._chosen.reshape(-1)[entries[vain]] = -1
        self._at.reshape(-1)[entries[vain]] = REACH
        entries = entries[~vain]
        while len(entries):
            rows = entries // self.depth
            first = np.append(True, rows[1:] != rows[:-1])  # one of each tile at a time
            now, entries = entries[first], entries[~first]
            while len(now):
                rows, at = now // self.depth, self._next[now // self.depth]
                end = at >= self._orders.shape[1]
                self._lengthen(rows[end])
                for entry in now[end].tolist():
                    self._apply_beyond(entry)
                now, rows, at = now[~end], rows[~end], at[~end]
                owner = self._orders[rows, at]
                self._next[rows] += 1
                taken = (owner < 0) | (self._place[rows] < self._cutoff[owner])
                self._chosen.reshape(-1)[now[taken]] = owner[taken]
                self._at.reshape(-1)[now[taken]] = at[taken]
                now = now[~taken]

    def _apply_beyond(self, entry: int) -> None:
        row = entry // self.depth
        at = int(self._next[row])
        while True:
            owner = self._in_order(row, at)
            at += 1
            if owner < 0 or self._place[row] < self._cutoff[owner]:
                break
        self._next[row] = at
        self._chosen.reshape(-1)[entry], self._at.reshape(-1)[entry] = owner, at - 1

    def _lengthen(self, rows: NDArray[np.intp]) -> None:
        """Work out all that is in reach of these tiles: together it takes a fifth of the time."""
        new = [row for row in rows.tolist() if row not in self._longer]
        if len(new) >= TOGETHER:
            found, _ = self.layout.leading([self.subjects[row] for row in new], REACH)
            self._longer.update(zip(new, found.tolist(), strict=True))

    def _in_order(self, row: int, at: int) -> int:
        """Who is at a place of a tile's order; -1 behind its end, and out of its reach."""
        if at >= REACH:
            return -1
        if at < self._orders.shape[1]:
            return int(self._orders[row, at])
        known = self._longer.get(row, [])
        if at >= len(known):
            most = min(REACH, max(2 * at, self.depth + SPARE))
            known = list(islice(self.layout.order(self.subjects[row]), most))
            known += [-1] * (most - len(known))
            self._longer[row] = known
        return known[at]

    def _loads(self) -> NDArray[np.int64]:
        kept = self._chosen[self._chosen >= 0]
        return np.bincount(kept, minlength=len(self.layout.candidates))

    # --- one after another ----------------------------------------------------------------

    def _fill(self, entry: int) -> int | None:
        """Find a custodian for a vacant entry (row * depth + rank). Returns the entry that became
        vacant for it: the new one was full and keeps those with the lower lots."""
        row, rank = divmod(entry, self.depth)
        place, kept, at = int(self._place[row]), self._chosen[row].tolist(), 0
        while True:
            owner = self._in_order(row, at)
            if owner < 0 or (owner not in kept and place < self._cutoff[owner]):
                break
            at += 1
        never_full = owner < 0 or self._room[owner] >= len(self.subjects)
        heap = [] if never_full else self._heap(owner)
        self._chosen[row, rank], self._at[row, rank] = owner, at
        if owner < 0:
            return None
        self._load[owner] += 1
        heapq.heappush(heap, -place)
        if self._load[owner] <= self._room[owner]:
            return None
        while True:  # what has left since is still in the heap
            last = -heapq.heappop(heap)
            refused = int(self._row_at[last])
            found = np.flatnonzero(self._chosen[refused] == owner)
            if len(found):
                break
        self._cutoff[owner] = last
        self._load[owner] -= 1
        self._chosen[refused, found[0]] = VACANT
        return refused * self.depth + int(found[0])

    def _heap(self, owner: int) -> list[int]:
        """The places of what a candidate keeps, the last first; made when it first gets more."""
        if owner not in self._heaps:
            invariant(self._kept is not None, "who may be full has its tiles listed")
            rows, starts = self._kept or self._kept_by()
            mine = rows[starts[owner] : starts[owner + 1]]
            heap = [-place for place in self._place[mine].tolist()]
            heapq.heapify(heap)
            self._heaps[owner] = heap
        return self._heaps[owner]

    def _kept_by(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows by custodian, and where each custodian's begin."""
        flat = self._chosen.reshape(-1)
        entries = np.argsort(flat, kind="stable")
        starts = np.searchsorted(flat[entries], np.arange(len(self._room) + 1))
        return entries // self.depth, starts


def _by_lot(lots: NDArray[np.uint64], subjects: Sequence[bytes]) -> NDArray[np.intp]:
    """Rows in the order of their lots; of equal ones by subject, so that no two are the same."""
    ordered = np.argsort(lots, kind="stable")
    drawn = lots[ordered]
    if (drawn[1:] == drawn[:-1]).any():
        rows = sorted(range(len(subjects)), key=lambda i: (int(lots[i]), subjects[i]))
        return np.array(rows, np.intp)
    return ordered
