"""A tile's deltas subtile by subtile, so that aggregating many of them needs little memory.

A tile of 32 deltas is 128 MiB of integers; what is sparse about them is a sixteenth of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.errors import InputError
from tiles.layout import SUBTILE_ELEMENTS

UNITS_BOUND = 1 << limits.DELTA_UNIT_BITS  # exclusive, of a value's size

Integers = npt.NDArray[np.integer]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """A subtile's share of a delta, in units of 2**-28: `values` at the places `at` and zero
    elsewhere; without `at`, a value for each element."""

    values: Integers
    at: Integers | None = None

    def fill(self, row: Doubles) -> None:
        """Write all elements into a float64 row, exactly."""
        if self.at is None:
            row[:] = self.values
        else:
            row.fill(0)
            row[self.at] = self.values

    def add_to(self, total: Doubles, share: int) -> None:
        """total += share * this, exactly as long as all stays below 2**53."""
        if self.at is None:
            total += self.values * np.float64(share)
        else:
            total[self.at] += self.values * np.float64(share)

    @property
    def kept_bytes(self) -> int:
        return self.values.nbytes + (0 if self.at is None else self.at.nbytes)


class TileDelta(Protocol):
    """One delta's share of a tile."""

    @property
    def elements(self) -> int: ...

    def part(self, subtile: int) -> Part:
        """Subtile `subtile` of the tile. It may be asked for more than once."""


@dataclass(frozen=True, slots=True)
class ArrayDelta:
    """A delta that is in memory as a vector: int64 or int32 (elements,). InputError if it is none,
    or has values out of range."""

    values: Integers

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 1 or values.dtype.kind != "i":
            raise InputError("deltas of one tile must be integer vectors of one length")
        if not len(values) or max(-int(values.min()), int(values.max())) >= UNITS_BOUND:
            raise InputError(f"a delta of a tile is empty or reaches {UNITS_BOUND} units")

    @property
    def elements(self) -> int:
        return len(self.values)

    def part(self, subtile: int) -> Part:
        start = subtile * SUBTILE_ELEMENTS
        return Part(self.values[start : start + SUBTILE_ELEMENTS])


@dataclass(frozen=True, slots=True)
class NoDelta:
    """Of a learner that has not trained this tile: zeros."""

    elements: int

    def part(self, subtile: int) -> Part:
        none = np.zeros(0, np.int64)
        return Part(none, none)


def tile_deltas(deltas: Sequence[TileDelta | Integers]) -> list[TileDelta]:
    """The deltas of one tile; InputError unless they are of one length and not too many."""
    if len(deltas) > limits.MAX_DELTAS:
        raise InputError(f"{len(deltas)} deltas for one tile, at most {limits.MAX_DELTAS}")
    found = [ArrayDelta(d) if isinstance(d, np.ndarray) else d for d in deltas]
    if any(d.elements != found[0].elements for d in found):
        raise InputError("deltas of one tile must be integer vectors of one length")
    return found


def subtiles(deltas: Sequence[TileDelta]) -> range:
    return range(-(-deltas[0].elements // SUBTILE_ELEMENTS) if deltas else 0)
