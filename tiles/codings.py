"""The number that says how a delta's large shards are coded (docs/spec/delta.md, "Coding").

It stands where the density stands (header, manifest, step): a density is the sparse coding, and
numbers above all densities are the others. What is no number here is refused everywhere.
"""

from __future__ import annotations

from chain import limits
from chain.errors import InputError

SPARSE, INT8, LOW_RANK = "sparse", "int8", "lowrank"
CODECS = (SPARSE, INT8, LOW_RANK)
MAX_RANK = 64
INT8_NUMBER = 0x2000
_LOW_RANK_NUMBER = 0x3000  # plus the rank


def low_rank_number(rank: int) -> int:
    """Of the coding of so many components, 1 to MAX_RANK."""
    return _LOW_RANK_NUMBER + rank


def codec_of(number: int) -> str:
    """One of CODECS. Raises InputError."""
    if 1 <= number <= limits.MAX_DENSITY:
        return SPARSE
    if number == INT8_NUMBER:
        return INT8
    if 1 <= number - _LOW_RANK_NUMBER <= MAX_RANK:
        return LOW_RANK
    raise InputError(
        f"density {number}, expected 1 to {limits.MAX_DENSITY} or the number of another coding"
    )


def rank_of(number: int) -> int:
    """Components of a low-rank coding."""
    return number - _LOW_RANK_NUMBER
