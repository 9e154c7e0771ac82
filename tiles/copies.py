"""Whether a delta is a copy of another one (docs/spec/pol.md, "Copies").

Deltas of different data point different ways, whatever they have in common: over a subtile of 64 Ki
elements the cosine of two honest ones is 0.1 to 0.7. A few subtiles tell, and which ones is drawn
when no delta can be changed any more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from chain.hashes import EVENT_SEED, Hash32
from chain.types import u64_be
from tiles.delta import PayloadTile, SectionSource
from tiles.gram import inner_products
from tiles.layout import SUBTILE_ELEMENTS, SUBTILES_PER_TILE, ShardSpec
from tiles.parts import Part

SUBTILES = 5  # looked at of a round's deltas, or all where there are fewer
LEAST = 3  # of these must tell anything, or all where there are fewer
# A subtile is alike above a cosine of 0.9, squared. Honest ones have up to 0.7, and each of many
# such a cosine of up to 0.84 with their mean.
ALIKE = (81, 100)
LENGTHS = 16  # and if the longer one's square is at most so many times the other's
Sample = tuple[Part, ...]  # a delta at the places that are drawn
_DRAWS = 64  # at most, until so many different ones are found


@dataclass(frozen=True, slots=True)
class Place:
    """A subtile of the model."""

    shard: int
    tile: int
    subtile: int
    elements: int


def drawn(seed: Hash32, specs: Sequence[ShardSpec]) -> tuple[Place, ...]:
    """The subtiles that a round's deltas are compared at, of shards that are coded sparsely: small
    vectors are alike in all deltas."""
    sparse = [spec for spec in specs if spec.coding == "sparse"]
    ends = list(accumulate(-(-spec.elements // SUBTILE_ELEMENTS) for spec in sparse))
    total, numbers = ends[-1] if ends else 0, list[int]()
    for i in range(_DRAWS):
        if len(numbers) < min(SUBTILES, total):
            lot = EVENT_SEED.hash(b"copies", seed, u64_be(i))
            number = int.from_bytes(lot[:8], "big") % total
            numbers += [number] if number not in numbers else []
    found = []
    for number in numbers:
        at = bisect_right(ends, number)
        spec, first = sparse[at], ends[at - 1] if at else 0
        size = min(SUBTILE_ELEMENTS, spec.elements - (number - first) * SUBTILE_ELEMENTS)
        found.append(Place(spec.index, *divmod(number - first, SUBTILES_PER_TILE), size))
    return tuple(found)


def sample(payload: SectionSource, places: Sequence[Place], specs: Sequence[ShardSpec]) -> Sample:
    """A delta at the places, nothing where it lacks the shard. DecodeError if a section cannot be
    decoded, StorageError if one cannot be read."""
    none = np.zeros(0, np.int64)
    return tuple(
        PayloadTile(payload, specs, place.shard, place.tile).part(place.subtile)
        if payload.has(place.shard)
        else Part(none, none)
        for place in places
    )


def is_copy(own: Sample, others: Sequence[Sample], places: Sequence[Place]) -> bool:
    """Whether a delta is alike one of the others at more than half of the places at which either
    has anything."""
    alike, told = [0] * len(others), [0] * len(others)
    for place, *parts in zip(places, own, *others, strict=True):
        products = inner_products(parts, place.elements)
        size = products[0][0]
        for i in range(len(others)):
            other, both = products[i + 1][i + 1], products[0][i + 1]
            told[i] += size > 0 or other > 0
            near = both > 0 and ALIKE[1] * both * both > ALIKE[0] * size * other
            alike[i] += near and max(size, other) <= LENGTHS * min(size, other)
    least = min(LEAST, len(places))
    return any(2 * a > t >= least for a, t in zip(alike, told, strict=True))
