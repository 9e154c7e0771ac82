"""The number that says how a delta's large shards are coded (docs/spec/delta.md, "Coding").

It stands where the density stands (header, manifest, step): a density is the sparse coding, and
numbers above all densities are the others. What is no number here is refused everywhere.
"""

from __future__ import annotations

from chain import limits
from chain.errors import InputError

SPARSE, INT8 = "sparse", "int8"
CODECS = (SPARSE, INT8)
INT8_NUMBER = 0x2000


def codec_of(number: int) -> str:
    """One of CODECS. Raises InputError."""
    if 1 <= number <= limits.MAX_DENSITY:
        return SPARSE
    if number == INT8_NUMBER:
        return INT8
    raise InputError(
        f"density {number}, expected 1 to {limits.MAX_DENSITY} or the number of another coding"
    )
