"""A tile's custody order where some are full (docs/spec/election.md, "Capacities").

Whoever is full is known by its cutoff (consensus/bounded.py), the first tile that it refused. Of a
tile's first REACH ranks those come first that have not refused it, then the others, then the rest.
So a tile's custodians are the first of its order that have room; where too few have any, those that
the plain election names are asked all the same, or nobody would have to keep the tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from chain.types import PubKey
from consensus.bounded import REACH, SPARE
from consensus.ranking import Indices, Layout


class CustodyOrder:
    """Orders under a layout and the cutoffs (a tile's name, by the candidate's number)."""

    def __init__(self, layout: Layout, cutoffs: Mapping[int, bytes]) -> None:
        self.layout = layout
        self._cutoffs = {i: (layout.lot(tile), tile) for i, tile in cutoffs.items()}

    def refuses(self, candidate: int, place: tuple[int, bytes]) -> bool:
        """Whether a candidate is full when it is the turn of a tile, by its lot and name."""
        cutoff = self._cutoffs.get(candidate)
        return cutoff is not None and place >= cutoff

    def order(self, subject: bytes) -> Iterator[int]:
        """Candidates by number, the primary first; as lazy as it can be."""
        ranks = self.layout.order(subject)
        if self._cutoffs:
            place, refused = (self.layout.lot(subject), subject), []
            for candidate in islice(ranks, REACH):
                if self.refuses(candidate, place):
                    refused.append(candidate)
                else:
                    yield candidate
            yield from refused
        yield from ranks

    def ranks(self, subject: bytes, most: int | None = None) -> tuple[PubKey, ...]:
        """The first `most` (by default all) of a tile's order."""
        return tuple(self.layout.accounts[i] for i in islice(self.order(subject), most))

    def leading(self, subjects: Sequence[bytes], depth: int) -> Indices:
        """The first `depth` candidates of each tile by number, -1 where there are no more."""
        if not self._cutoffs:
            return self.layout.leading(subjects, depth)[0]
        found = np.full((len(subjects), depth), -1, np.int32)
        first = np.full(len(self.layout.accounts) + 1, np.iinfo(np.uint64).max, np.uint64)
        for i, (lot, _) in self._cutoffs.items():
            first[i] = lot
        pending = np.arange(len(subjects))
        for look in (min(REACH, depth + SPARE), REACH):
            known, lots = self.layout.leading([subjects[i] for i in pending.tolist()], look)
            # 0: has room, 1: refuses, 2: nobody. The last of `first` belongs to nobody, -1.
            kind = np.where(known < 0, 2, lots[:, None] >= first[known])
            done = (kind == 0).sum(axis=1) >= depth
            if look >= REACH:
                done[:] = depth <= REACH
            done &= ~np.isin(lots, first)  # a cutoff itself, or the like of it: by its name
            by_kind = np.take_along_axis(known, np.argsort(kind, axis=1, kind="stable"), axis=1)
            width = min(depth, look)
            found[pending[done], :width] = by_kind[done, :width]
            pending = pending[~done]
        for i in pending.tolist():
            whole = list(islice(self.order(subjects[i]), depth))
            found[i, : len(whole)] = whole
        return found
