"""Exact inner products of deltas and the witness of them (docs/spec/aggregation.md).

The Gram matrix of a tile's deltas is what weights follow from, so it is committed to in a form
of which each entry can be proven wrong alone: for entry (i, j) a leaf with its value in each
subtile, and a list root over the leaves. The total that goes on chain is the sum of a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.codec import U8, Bytes, Seq, wire
from chain.errors import InputError, VerifyError
from chain.hashes import GRAM_LEAF, Hash32
from chain.transactions import GRAM_BYTES
from chain.types import u64_be
from tiles import merkle
from tiles.delta import UNITS_BOUND
from tiles.layout import SUBTILE_ELEMENTS, SUBTILES_PER_TILE

Longs = npt.NDArray[np.int64]
GramPart = Annotated[bytes, Bytes(GRAM_BYTES, GRAM_BYTES)]
_HALF_BITS = limits.DELTA_UNIT_BITS // 2


@wire(103)
@dataclass(frozen=True, slots=True)
class GramEntry:
    """Entry (row, column), row >= column, of a tile's Gram matrix: its value in each subtile.

    `proof` shows the entry's leaf under the `gram_root` of a tile update.
    """

    row: U8
    column: U8
    parts: Annotated[tuple[GramPart, ...], Seq(SUBTILES_PER_TILE)]
    proof: merkle.MerkleProof

    def values(self) -> list[int]:
        return [int.from_bytes(part, "big", signed=True) for part in self.parts]


@dataclass(frozen=True, slots=True)
class Gram:
    """Lower triangle, row-major, of a tile's Gram matrix; `parts[e]` is entry e by subtile.

    In units of 2**-56. An entry's size is below 2**76, so GRAM_BYTES hold it.
    """

    count: int
    parts: tuple[tuple[int, ...], ...]

    @property
    def totals(self) -> list[int]:
        return [sum(part) for part in self.parts]

    def total_bytes(self) -> bytes:
        """`TileChange.gram`: each total, GRAM_BYTES signed big-endian."""
        return b"".join(_entry_bytes(total) for total in self.totals)

    def leaves(self) -> list[Hash32]:
        cells = zip(_cells(self.count), self.parts, strict=True)
        return [_leaf(cell, [_entry_bytes(v) for v in part]) for cell, part in cells]

    def root(self) -> Hash32:
        """`TileChange.gram_root`."""
        return merkle.merkle_root(self.leaves())

    def prove(self, row: int, column: int) -> GramEntry:
        """What a fraud proof carries about one entry, row >= column."""
        index = row * (row + 1) // 2 + column
        parts = tuple(_entry_bytes(v) for v in self.parts[index])
        return GramEntry(row, column, parts, merkle.merkle_proof(self.leaves(), index))


def gram(deltas: Sequence[npt.NDArray[np.integer]]) -> Gram:
    """Exact Gram matrix of one tile's deltas, integers in units of 2**-28, all of one length.

    Exact in float64: values are split in halves of 14 bits, so that every partial sum of
    products over a subtile is an integer below 2**46, whatever the order of summation.
    """
    check_deltas(deltas)
    count = len(deltas)
    elements = len(deltas[0]) if deltas else 0
    parts: list[list[int]] = [[] for _ in _cells(count)]
    for start in range(0, elements, SUBTILE_ELEMENTS):
        end = min(start + SUBTILE_ELEMENTS, elements)
        part = [delta[start:end] for delta in deltas]
        live = touched(part)
        wide = np.empty((2 * count, len(live)), np.float64)
        for i, delta in enumerate(part):
            values = delta[live]
            wide[i] = values >> _HALF_BITS
            wide[count + i] = values & ((1 << _HALF_BITS) - 1)
        products = (wide @ wide.T).astype(np.int64).tolist()
        for sums, (i, j) in zip(parts, _cells(count), strict=True):
            high, low = products[i][j], products[count + i][count + j]
            cross = products[i][count + j] + products[count + i][j]
            sums.append((high << 2 * _HALF_BITS) + (cross << _HALF_BITS) + low)
    return Gram(count, tuple(tuple(part) for part in parts))


def touched(deltas: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.intp]:
    """Where any delta is not zero: of sparse deltas a small part."""
    any_of = np.zeros(deltas[0].shape, np.bool_)
    for delta in deltas:
        any_of |= delta != 0
    return np.flatnonzero(any_of)


def gram_entry(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> int:
    """One entry for one subtile, for whoever checks a single one."""
    return gram([first, second]).totals[1]


def check_deltas(deltas: Sequence[npt.NDArray[np.integer]]) -> None:
    """Raise InputError unless these are integer vectors of one size, in range, not too many."""
    if len(deltas) > limits.MAX_DELTAS:
        raise InputError(f"{len(deltas)} deltas for one tile, at most {limits.MAX_DELTAS}")
    for delta in deltas:
        if delta.ndim != 1 or delta.shape != deltas[0].shape or delta.dtype.kind != "i":
            raise InputError("deltas of one tile must be integer vectors of one length")
        if not len(delta) or max(-int(delta.min()), int(delta.max())) >= UNITS_BOUND:
            raise InputError(f"a delta of a tile is empty or reaches {UNITS_BOUND} units")


# --- checking --------------------------------------------------------------------------


def verify_entry(gram_root: Hash32, count: int, entry: GramEntry) -> None:
    """Check that an update of `count` deltas committed to this entry. Raises VerifyError."""
    index = entry.row * (entry.row + 1) // 2 + entry.column
    in_place = entry.column <= entry.row < count and entry.proof.index == index
    if not in_place or entry.proof.count != count * (count + 1) // 2:
        raise VerifyError(f"not the proof of entry ({entry.row}, {entry.column}) of {count} deltas")
    leaf = _leaf((entry.row, entry.column), list(entry.parts))
    merkle.verify_merkle(gram_root, entry.proof, leaf)


def gram_matrix(raw: bytes, count: int) -> list[list[int]] | None:
    """The symmetric matrix of `TileChange.gram`, or None if `raw` is not of `count` deltas."""
    if len(raw) != GRAM_BYTES * count * (count + 1) // 2:
        return None
    matrix = [[0] * count for _ in range(count)]
    for e, (i, j) in enumerate(_cells(count)):
        part = raw[e * GRAM_BYTES : (e + 1) * GRAM_BYTES]
        matrix[i][j] = matrix[j][i] = int.from_bytes(part, "big", signed=True)
    return matrix


def _cells(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1)]


def _entry_bytes(value: int) -> bytes:
    return value.to_bytes(GRAM_BYTES, "big", signed=True)


def _leaf(cell: tuple[int, int], parts: Sequence[bytes]) -> Hash32:
    return GRAM_LEAF.hash(u64_be(cell[0]), u64_be(cell[1]), *parts)
