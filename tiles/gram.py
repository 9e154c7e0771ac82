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

from chain import limits
from chain.codec import U8, Bytes, Seq, wire
from chain.errors import VerifyError
from chain.hashes import GRAM_LEAF, Hash32
from chain.transactions import GRAM_BYTES
from chain.types import u64_be
from tiles import merkle
from tiles.layout import SUBTILE_ELEMENTS, SUBTILES_PER_TILE
from tiles.parts import Doubles, Integers, Part, TileDelta, subtiles, tile_deltas

GramPart = Annotated[bytes, Bytes(GRAM_BYTES, GRAM_BYTES)]
_HALF_BITS = limits.DELTA_UNIT_BITS // 2
_HALF, _PER_HALF = np.ldexp(1, _HALF_BITS), np.ldexp(1, -_HALF_BITS)
_FLOAT_BITS = 53  # of a float64: integers up to 2**53 in size are exact
_BLOCK = 8192  # elements split at a time: 64 deltas' halves take 8 MiB


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


def gram(deltas: Sequence[TileDelta | Integers]) -> Gram:
    """Exact Gram matrix of one tile's deltas, integers in units of 2**-28, all of one length.

    Exact in float64, whatever the order of summation: every partial sum is a multiple of what all
    products have in common, and below 2**53 times that. Where it would not be, values are split in
    halves of 14 bits, so that a sum over a subtile is an integer below 2**46.
    """
    found = tile_deltas(deltas)
    room = np.empty(len(found) * SUBTILE_ELEMENTS)  # fresh memory each time costs more
    sums: list[list[int]] = [[] for _ in _cells(len(found))]
    for subtile in subtiles(found):
        size = min(SUBTILE_ELEMENTS, found[0].elements - subtile * SUBTILE_ELEMENTS)
        products = inner_products([delta.part(subtile) for delta in found], size, room)
        for entry, (i, j) in zip(sums, _cells(len(found)), strict=True):
            entry.append(products[i][j])
    return Gram(len(found), tuple(tuple(entry) for entry in sums))


def inner_products(
    parts: Sequence[Part], elements: int, room: Doubles | None = None
) -> list[list[int]]:
    """The exact inner products, in units of 2**-56, of deltas' parts of one subtile, which has so
    many elements. `room`: a buffer for at least len(parts) * elements of them."""
    if room is None:
        room = np.empty(len(parts) * elements)
    table = room[: len(parts) * elements].reshape(len(parts), elements)
    for row, part in zip(table, parts, strict=True):
        part.fill(row)
    return _products(table, is_single=_fits(parts, elements))


def _fits(parts: Sequence[Part], elements: int) -> bool:
    """Whether sums of products of so many of these values are exact: what all of them have in
    common as a power of two does not count."""
    sizes = [max(int(p.values.max()), -int(p.values.min())) for p in parts if len(p.values)]
    most = max(sizes, default=0)
    if elements * most**2 < 1 << _FLOAT_BITS:
        return True
    bits = 0
    for part in parts:
        bits |= int(np.bitwise_or.reduce(part.values))
    most //= bits & -bits
    return elements * most**2 < 1 << _FLOAT_BITS


def _products(table: Doubles, *, is_single: bool) -> list[list[int]]:
    """The exact inner products of the rows: integers below 2**28 in size, as float64."""
    count, elements = table.shape
    if is_single:
        return [[int(value) for value in row] for row in (table @ table.T).tolist()]
    sums = np.zeros((2 * count, 2 * count), np.int64)
    for start in range(0, elements, _BLOCK):
        block = table[:, start : start + _BLOCK]
        high = np.floor(block * _PER_HALF)
        halves = np.concatenate([high, block - high * _HALF])
        sums += (halves @ halves.T).astype(np.int64)
    high, cross, low = sums[:count, :count], sums[:count, count:], sums[count:, count:]
    wide = zip(high.tolist(), (cross + cross.T).tolist(), low.tolist(), strict=True)
    return [
        [(h << 2 * _HALF_BITS) + (c << _HALF_BITS) + x for h, c, x in zip(*row, strict=True)]
        for row in wide
    ]


def gram_entry(first: Integers, second: Integers) -> int:
    """One entry for one subtile, for whoever checks a single one."""
    return gram([first, second]).totals[1]


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
