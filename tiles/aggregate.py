"""One tile's new version from its deltas, the same bytes on every machine
(docs/spec/aggregation.md).

    new = round(base + sum_i w_i * x_i)

with w_i in units of 2**-20 and x_i in units of 2**-28. The sum is an exact integer; adding it to
the base is rounded once, to nearest, ties to even. Where genesis asks for momentum, that is one
more term of the sum (`tiles.momentum`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chain.errors import InputError, invariant
from chain.hashes import Hash32
from tiles import merkle
from tiles.delta import UNIT_BITS
from tiles.gram import Gram, gram, gram_matrix
from tiles.layout import ELEMENT_BYTES, SUBTILE_ELEMENTS
from tiles.momentum import Momentum
from tiles.parts import Doubles, Integers, TileDelta, tile_deltas
from tiles.weights import WEIGHT_BITS, check_weights, weights

__all__ = ["TileResult", "aggregate_tile", "apply", "check_weights", "weights"]

_SUM_BITS = UNIT_BITS + WEIGHT_BITS  # of the sum's units; it is below 2**49 in size
_SUM_UNIT = np.ldexp(1, -_SUM_BITS)


@dataclass(frozen=True, slots=True)
class TileResult:
    """A tile's aggregation and all that a `TileChange` says of it.

    `gram_total_bytes` is `TileChange.gram`; `gram` opens single entries of it for fraud proofs.
    """

    new_tile: bytes
    new_root: Hash32
    gram: Gram
    gram_root: Hash32
    gram_total_bytes: bytes
    weights: tuple[int, ...]


def aggregate_tile(
    base_tile: bytes,
    deltas: Sequence[TileDelta | Integers],
    previous: bytes | None = None,
    momentum: int = 0,
) -> TileResult:
    """Aggregate `deltas` (integers in units of 2**-28, one a contributor) into a tile.

    `momentum`, in units of 2**-20, is the part that goes on of the way from `previous`, the tile's
    bytes one version before; it has no say in the weights.

    Their order is the state's; another order permutes the weights and changes no byte of the
    tile unless distances tie. Without deltas the tile stays. Raises InputError.
    """
    deltas = tile_deltas(deltas)
    table = gram(deltas)
    raw = table.total_bytes()
    matrix = gram_matrix(raw, table.count)
    invariant(matrix is not None, "a Gram matrix does not read back")
    shares = weights(matrix or [])
    way = Momentum(momentum, base_tile, previous) if momentum and previous is not None else None
    new_tile = apply(base_tile, deltas, shares, way)
    return TileResult(new_tile, merkle.tile_root(new_tile), table, table.root(), raw, shares)


def apply(
    base: bytes,
    deltas: Sequence[TileDelta | Integers],
    shares: Sequence[int],
    momentum: Momentum | None = None,
) -> bytes:
    """base + sum_i shares_i * delta_i, fp32 little-endian bytes of a tile or a part of one.

    An element keeps its very bits where the sum is zero, where the base is not finite, and where
    the result would not be. Raises InputError on weights or deltas out of range.
    """
    invariant(_keeps_subnormals(), "this process flushes subnormal floats to zero: it would fork")
    found = tile_deltas(deltas)
    if len(shares) != len(found) or min(shares, default=0) < 0 or sum(shares) > 1 << WEIGHT_BITS:
        raise InputError("weights must be one a delta, none negative, with a sum of at most 1")
    if len(base) % ELEMENT_BYTES or any(d.elements * ELEMENT_BYTES != len(base) for d in found):
        raise InputError("base and deltas of a tile differ in size")
    if momentum is not None and momentum.elements * ELEMENT_BYTES != len(base):
        raise InputError("base and momentum of a tile differ in size")
    terms: list[tuple[int, TileDelta]] = list(zip(shares, found, strict=True))
    if momentum is not None:
        terms.append((momentum.share, momentum))
    old = np.frombuffer(base, "<f4")
    new = old.copy()
    for start in range(0, len(old) if terms else 0, SUBTILE_ELEMENTS):  # stays in the cache
        part = slice(start, start + SUBTILE_ELEMENTS)
        total = np.zeros(len(old[part]), np.float64)
        for share, delta in terms:
            # Exact: integers, and no partial sum reaches 2**49: shares sum up to 2**20 at most, and
            # momentum's is below that.
            delta.part(start // SUBTILE_ELEMENTS).add_to(total, share)
        new[part] = _add_rounded(old[part], total)
    return new.tobytes()


def _keeps_subnormals() -> bool:
    """False once some library has set the processor's flush-to-zero mode."""
    least = np.array([1], np.uint32).view(np.float32)  # 2**-149
    return bool((least.astype(np.float64).astype(np.float32) > 0).all())


def _add_rounded(base: npt.NDArray[np.float32], total: Doubles) -> npt.NDArray[np.float32]:
    """base + total * 2**-48 with one rounding to fp32, and the exceptions of `apply`.

    Both terms are exact in float64. Their sum is rounded to odd there (Boldo and Melquiond,
    2008): with more than two bits to spare, rounding that to fp32 equals rounding the exact sum.
    """
    keep = (total == 0) | ~np.isfinite(base)
    first = np.where(keep, np.float32(0), base).astype(np.float64)
    second = total * _SUM_UNIT
    near = first + second
    back = near - first
    error = (first - (near - back)) + (second - back)  # TwoSum: near + error is exact
    bits = near.view(np.int64)
    even = (bits & 1) == 0
    outward = (error > 0) == (near > 0)
    bits += np.where((error != 0) & even, np.where(outward, 1, -1), 0)
    with np.errstate(over="ignore"):
        result = near.astype(np.float32)
    return np.where(keep | ~np.isfinite(result), base, result)
