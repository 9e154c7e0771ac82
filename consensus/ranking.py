"""Who keeps a tile, in which order: weighted rendezvous by probes (docs/spec/election.md).

Plain rendezvous asks every candidate about every tile. Here each candidate **claims** slots of a
large table, as many as its weight is worth, at places that follow from the seed and its account
alone; a tile has an endless row of **probes** into that table. The first candidate whose claim a
probe meets is rank 0, the next different one rank 1, and so on. So a candidate's place at a tile
is the number of the first probe that meets it: a value that no other candidate has any part in.

- One that leaves, comes or changes its weight moves itself only; the others keep their order.
- The next rank takes over from a silent one without any new vote.
- Every claim is met alike, so the chance of rank 0 is a candidate's part of all weight.
- A tile costs about 200 probes, however many candidates there are.

`Layout.ranks` is one tile in plain Python, `Layout.leading` many at once; they agree bit for bit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from struct import unpack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.errors import invariant
from chain.hashes import Context, Hash32
from chain.types import PubKey
from consensus.election import Candidate, wait_of

PROBE = Context("probe")
CLAIM = Context("claim")
RANK = Context("rank")

SLOT_BITS = 22  # the table: 2**22 slots, of which claims fill at most 1/32, so that few meet
CELL_BITS = 10  # a slot has 2**10 cells; a candidate's last claim has as many as it has left over
UNIT_BITS = 17  # whole claims together: from 2**16 to 2**17, whatever the unit of weight
PROBES = 4096  # a tile's row; candidates that it does not meet follow by their waits
STRIDE = 256  # probes that are worked out at once for one tile
BATCH = 1024  # tiles that are worked out at once: 2 MiB of probes
FIRST_LOOK = 512  # probes of each tile in a batch; where they do not do, twice as many, then all
LOT_BYTES = 8  # in front of a row: the tile's place where capacities bind

Indices = NDArray[np.int32]


class Layout:
    """The claims of all candidates under one seed.

    `scale` is the bit length of all weight, and must be the same for two layouts to have the
    same claims; by default it is that of these candidates.
    """

    def __init__(
        self, seed: Hash32, candidates: Sequence[Candidate], scale: int | None = None
    ) -> None:
        self.seed, self.candidates = seed, tuple(candidates)
        self.accounts = tuple(c.account for c in self.candidates)
        invariant(len(set(self.accounts)) == len(self.accounts), "a candidate stands once")
        total = sum(c.weight for c in self.candidates)
        self.scale = total.bit_length() if scale is None else scale
        invariant(total.bit_length() <= self.scale, "the scale holds all weight")
        self._gone: frozenset[int] = frozenset()
        self._row = PROBE.fresh().update(seed)
        self._claim(*self._claims())

    def without(self, gone: Collection[PubKey]) -> Layout:
        """The same layout after a departure: no claim of anybody else moves."""
        left = object.__new__(Layout)
        left.__dict__.update(self.__dict__)
        left._gone = self._gone | {i for i, a in enumerate(self.accounts) if a in gone}
        stays = ~np.isin(self._owners, np.array(sorted(left._gone), np.int32))
        left._claim(self._slots[stays], self._heights[stays], self._owners[stays])
        return left

    def ranks(self, subject: bytes, most: int | None = None) -> tuple[PubKey, ...]:
        """The first `most` (by default all) of the candidates with weight, the primary first."""
        return tuple(self.accounts[i] for i in islice(self.order(subject), most))

    def order(self, subject: bytes) -> Iterator[int]:
        """Candidates by number, in the order of their ranks; as lazy as it can be."""
        seen: set[int] = set()
        for _, met in self.meetings(subject):
            for owner in met:
                if owner not in seen:
                    seen.add(owner)
                    yield owner
        rest = [
            (wait_of(self._digest(i, subject), c.weight), c.account, i)
            for i, c in enumerate(self.candidates)
            if c.weight > 0 and i not in seen and i not in self._gone
        ]
        yield from (i for *_, i in sorted(rest))

    def meetings(self, subject: bytes) -> Iterator[tuple[int, list[int]]]:
        """(number of the probe, whose claims it meets) for each probe that meets any."""
        row = self._row.copy().update(subject)
        for start in range(0, PROBES, STRIDE):
            raw = row.digest(length=4 * STRIDE, seek=LOT_BYTES + 4 * start)
            for number, probe in enumerate(unpack(f"<{STRIDE}I", raw), start):
                if self._occupied[probe >> CELL_BITS] and (met := self._met(probe)):
                    yield number, self._apart(met, subject)

    def lot(self, subject: bytes) -> int:
        """The tile's lot: where capacities bind, lower ones choose first."""
        return int.from_bytes(self._row.copy().update(subject).digest(LOT_BYTES), "little")

    def leading(self, subjects: Sequence[bytes], depth: int) -> tuple[Indices, NDArray[np.uint64]]:
        """The first `depth` candidates of each tile by number, -1 where there are no more, and
        the tiles' lots."""
        found = np.full((len(subjects), depth), -1, np.int32)
        lots = np.zeros(len(subjects), np.uint64)
        for start in range(0, len(subjects), BATCH):
            part = subjects[start : start + BATCH]
            pending = np.arange(len(part))
            for probes in (FIRST_LOOK, 2 * FIRST_LOOK, PROBES):
                asked = [part[i] for i in pending.tolist()]
                grid = self._grid(asked, probes)
                lots[start + pending] = grid[:, :2].copy().view("<u8")[:, 0]
                chosen = self._chosen(asked, grid[:, 2:], depth)
                found[start + pending] = chosen
                pending = pending[chosen[:, -1] < 0]
            for i in pending.tolist():
                whole = list(islice(self.order(part[i]), depth))
                found[start + i, : len(whole)] = whole
        return found, lots

    # --- claims ---------------------------------------------------------------------

    def _claims(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Slots, heights in cells and owners of all claims, by slot."""
        raw, owners, heights = [], [], []
        for i, candidate in enumerate(self.candidates):
            cells = (candidate.weight << UNIT_BITS + CELL_BITS) >> self.scale
            whole, rest = divmod(cells, 1 << CELL_BITS)
            units = whole + (rest > 0)
            if units:
                raw.append(CLAIM.xof(4 * units, self.seed, candidate.account))
                owners.append(np.full(units, i, np.int32))
                heights.append(np.full(units, 1 << CELL_BITS, np.uint32))
                if rest:
                    heights[-1][-1] = rest
        if not raw:
            return np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.int32)
        slots = np.frombuffer(b"".join(raw), "<u4") >> np.uint32(32 - SLOT_BITS)
        by_slot = np.argsort(slots, kind="stable")
        return slots[by_slot], np.concatenate(heights)[by_slot], np.concatenate(owners)[by_slot]

    def _claim(self, slots: NDArray[Any], heights: NDArray[Any], owners: NDArray[Any]) -> None:
        self._slots, self._heights, self._owners = slots, heights, owners
        self._table = np.zeros(1 << SLOT_BITS, np.bool_)
        self._table[slots] = True
        self._ends = np.searchsorted(slots, slots, "right").astype(np.int32)
        # The same memory for plain Python, where reading one item of an array is slow.
        self._occupied = self._table.view(np.uint8).data
        self._claimed = slots.data, heights.data, owners.data

    def _met(self, probe: int) -> list[int]:
        """Owners of the claims in a probe's slot that are high enough, in the layout's order."""
        slot, cell = probe >> CELL_BITS, probe & (1 << CELL_BITS) - 1
        slots, heights, owners = self._claimed
        found: list[int] = []
        claim = bisect_left(slots, slot)
        while claim < len(slots) and slots[claim] == slot:
            if cell < heights[claim] and owners[claim] not in found:
                found.append(owners[claim])
            claim += 1
        return found

    def _apart(self, met: list[int], subject: bytes) -> list[int]:
        """Those that one probe meets together, in an order of the tile's own."""
        if len(met) == 1:
            return met
        return sorted(met, key=lambda i: self._digest(i, subject))

    def _digest(self, candidate: int, subject: bytes) -> Hash32:
        return RANK.hash(self.seed, self.accounts[candidate], subject)

    # --- many tiles at once ------------------------------------------------------------

    def _grid(self, subjects: Sequence[bytes], probes: int) -> NDArray[np.uint32]:
        """A row of words for each tile: its lot in two, then its probes."""
        length, fresh = LOT_BYTES + 4 * probes, self._row.copy
        raw = b"".join([fresh().update(s).digest(length=length) for s in subjects])
        return np.frombuffer(raw, "<u4").reshape(len(subjects), length // 4)

    def _chosen(self, subjects: Sequence[bytes], probes: NDArray[np.uint32], depth: int) -> Indices:
        """The first `depth` different owners that each row of probes meets."""
        rows, numbers = np.nonzero(self._table[probes >> np.uint32(CELL_BITS)])
        words = probes[rows, numbers]
        first = np.searchsorted(self._slots, words >> np.uint32(CELL_BITS))
        count = self._ends[first] - first if len(first) else first
        meeting = np.repeat(np.arange(len(rows)), count)
        claim = np.arange(len(meeting)) - np.repeat(np.cumsum(count) - count - first, count)
        cells = words[meeting] & np.uint32((1 << CELL_BITS) - 1)
        high = cells < self._heights[claim]
        meeting, owner = meeting[high], self._owners[claim[high]]
        row = rows[meeting]
        self._sort_apart(subjects, row, meeting, owner)
        chosen = np.full((len(subjects), depth), -1, np.int32)
        for rank in range(depth):
            starts = np.flatnonzero(np.diff(row, prepend=-1))
            chosen[row[starts], rank] = owner[starts]
            left = owner != chosen[row, rank]
            row, owner = row[left], owner[left]
        return chosen

    def _sort_apart(
        self,
        subjects: Sequence[bytes],
        row: NDArray[np.intp],
        meeting: NDArray[np.intp],
        owner: Indices,
    ) -> None:
        """`_apart` for the few probes that meet several claims."""
        same = np.flatnonzero(meeting[1:] == meeting[:-1])
        if not len(same):
            return
        starts = same[np.diff(same, prepend=-2) > 1]
        ends = np.searchsorted(meeting, meeting[starts], "right")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            subject = subjects[int(row[start])]
            owner[start:end] = sorted(
                owner[start:end].tolist(), key=lambda i: self._digest(i, subject)
            )


@lru_cache(maxsize=4)
def layout_of(seed: Hash32, candidates: tuple[Candidate, ...]) -> Layout:
    """A layout, remembered: it holds for a whole epoch and takes some 10 ms to work out."""
    return Layout(seed, candidates)


def ranks(
    seed: Hash32, subject: bytes, candidates: Sequence[Candidate], most: int | None = None
) -> tuple[PubKey, ...]:
    """The first `most` candidates for `subject`: the primary first, then its substitutes."""
    return layout_of(seed, tuple(candidates)).ranks(subject, most)
