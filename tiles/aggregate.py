"""One tile's new version from its deltas, the same bytes on every machine
(docs/spec/aggregation.md).

    new = round(base + sum_i w_i * x_i)

with w_i in units of 2**-20 and x_i in units of 2**-28. The sum is an exact integer; adding it to
the base is rounded once, to nearest, ties to even.
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
from tiles.gram import Gram, check_deltas, gram, gram_matrix, touched
from tiles.layout import ELEMENT_BYTES, SUBTILE_ELEMENTS
from tiles.weights import WEIGHT_BITS, check_weights, weights

__all__ = ["TileResult", "aggregate_tile", "apply", "check_weights", "weights"]

_SUM_BITS = UNIT_BITS + WEIGHT_BITS  # the sum is in units of 2**-48 and below 2**48 in size


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


def aggregate_tile(base_tile: bytes, deltas: Sequence[npt.NDArray[np.integer]]) -> TileResult:
    """Aggregate `deltas` (integers in units of 2**-28, one a contributor) into a tile.

    Their order is the state's; another order permutes the weights and changes no byte of the
    tile unless distances tie. Without deltas the tile stays. Raises InputError.
    """
    table = gram(deltas)
    raw = table.total_bytes()
    matrix = gram_matrix(raw, table.count)
    invariant(matrix is not None, "a Gram matrix does not read back")
    shares = weights(matrix or [])
    new_tile = apply(base_tile, deltas, shares)
    return TileResult(new_tile, merkle.tile_root(new_tile), table, table.root(), raw, shares)


def apply(base: bytes, deltas: Sequence[npt.NDArray[np.integer]], shares: Sequence[int]) -> bytes:
    """base + sum_i shares_i * delta_i, fp32 little-endian bytes of a tile or a part of one.

    An element keeps its very bits where the sum is zero, where the base is not finite, and where
    the result would not be. Raises InputError on weights or deltas out of range.
    """
    invariant(_keeps_subnormals(), "this process flushes subnormal floats to zero: it would fork")
    check_deltas(deltas)
    if len(shares) != len(deltas) or min(shares, default=0) < 0 or sum(shares) > 1 << WEIGHT_BITS:
        raise InputError("weights must be one a delta, none negative, with a sum of at most 1")
    if len(base) % ELEMENT_BYTES or any(len(d) * ELEMENT_BYTES != len(base) for d in deltas):
        raise InputError("base and deltas of a tile differ in size")
    old = np.frombuffer(base, "<f4")
    new = old.copy()
    for start in range(0, len(old) if deltas else 0, SUBTILE_ELEMENTS):  # stays in the cache
        part = [delta[start : start + SUBTILE_ELEMENTS] for delta in deltas]
        live = touched(part)
        total = np.zeros(len(live), np.int64)
        for share, delta in zip(shares, part, strict=True):
            total += delta[live] * np.int64(share)
        new[start + live] = _add_rounded(old[start + live], total)
    return new.tobytes()


def _keeps_subnormals() -> bool:
    """False once some library has set the processor's flush-to-zero mode."""
    least = np.array([1], np.uint32).view(np.float32)  # 2**-149
    return bool((least.astype(np.float64).astype(np.float32) > 0).all())


def _add_rounded(
    base: npt.NDArray[np.float32], total: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """base + total * 2**-48 with one rounding to fp32, and the exceptions of `apply`.

    Both terms are exact in float64. Their sum is rounded to odd there (Boldo and Melquiond,
    2008): with more than two bits to spare, rounding that to fp32 equals rounding the exact sum.
    """
    keep = (total == 0) | ~np.isfinite(base)
    first = np.where(keep, np.float32(0), base).astype(np.float64)
    second = np.ldexp(total.astype(np.float64), -_SUM_BITS)
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
