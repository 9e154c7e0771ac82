"""Momentum over rounds: a tile goes on a part of the way that it went in the round before
(docs/spec/aggregation.md, "Momentum").

What it went is read off its two newest versions, so there is no state of an optimizer to keep, to
serve or to prove: it is one more delta, of integers, with a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chain.errors import InputError
from tiles.delta import UNIT_BITS
from tiles.layout import ELEMENT_BYTES, SUBTILE_ELEMENTS
from tiles.parts import UNITS_BOUND, Doubles, Part
from tiles.weights import WEIGHT_BITS

PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Momentum:
    """`share`: what part goes on, in units of 2**-20, below 1. `base` and `previous`: a tile, or a
    part of one, and what it was in the version before, fp32 little-endian. A TileDelta."""

    share: int
    base: bytes
    previous: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 << WEIGHT_BITS:
            raise InputError("momentum: expected a share of at least 0 and below 1")
        if len(self.base) != len(self.previous) or len(self.base) % ELEMENT_BYTES:
            raise InputError("momentum: a tile's two versions differ in size")

    @property
    def elements(self) -> int:
        return len(self.base) // ELEMENT_BYTES

    def part(self, subtile: int) -> Part:
        start = subtile * SUBTILE_ELEMENTS
        part = slice(start, start + SUBTILE_ELEMENTS)
        new, old = (_units(np.frombuffer(v, "<f4")[part]) for v in (self.base, self.previous))
        with np.errstate(invalid="ignore"):
            way = new - old
        way[~np.isfinite(way)] = 0  # of what is no number
        np.clip(way, 1 - UNITS_BOUND, UNITS_BOUND - 1, out=way)
        return Part(way.astype(np.int64))


def share_of(ppm: int) -> int:
    """Millionths in units of 2**-20, rounded down."""
    return (ppm << WEIGHT_BITS) // PPM


def _units(values: np.ndarray) -> Doubles:
    """In units of 2**-28, rounded to even: float64 holds every fp32 times 2**28 exactly."""
    with np.errstate(invalid="ignore"):
        return np.rint(values.astype(np.float64) * (1 << UNIT_BITS))
