"""How long a delta's payload can be at most (docs/spec/delta.md), from the model's shape alone."""

from __future__ import annotations

from collections.abc import Sequence

from chain import limits
from chain.codec import encode
from chain.errors import DecodeError
from chain.hashes import ZERO_HASH
from chain.types import ShardIndex
from tiles.codings import INT8, LOW_RANK, codec_of, rank_of
from tiles.delta import DeltaHeader, ShardSections
from tiles.layout import SUBTILE_ELEMENTS, ShardSpec
from tiles.low_rank import WIDTH, components
from tiles.sections import CHUNK, DENSE_BYTES, INT8_BYTES, chunk_count

_LENGTH_BYTES = 4  # of the header's length
_COUNT_BYTES, _CENTROID_BYTES = 4, 4  # of a sparse section; the latter for each chunk


def largest_payload(specs: Sequence[ShardSpec], density: int) -> int:
    """Bytes that no payload of these shards exceeds in the coding of this density, or number.
    Raises InputError for a number that is none."""
    codec_of(density)
    total, entries = _LENGTH_BYTES, []
    for spec in specs:
        lengths = tuple(
            _largest_section(spec, min(SUBTILE_ELEMENTS, spec.elements - start), density)
            for start in range(0, spec.elements, SUBTILE_ELEMENTS)
        )
        entries.append(ShardSections(ShardIndex(spec.index), lengths))
        total += sum(lengths)
    try:
        header = len(encode(DeltaHeader(ZERO_HASH, density, tuple(entries))))
    except DecodeError:  # more sections than a header lists
        header = limits.MAX_DELTA_HEADER_BYTES
    return min(total + min(header, limits.MAX_DELTA_HEADER_BYTES), limits.MAX_BLOB_BYTES)


def _largest_section(spec: ShardSpec, elements: int, density: int) -> int:
    if spec.coding == "dense":
        return chunk_count(elements) + DENSE_BYTES * elements
    if codec_of(density) == INT8:
        return chunk_count(elements) + INT8_BYTES * elements
    if codec_of(density) == LOW_RANK:
        rows, count = components(elements, rank_of(density))
        return 1 + count * (rows + WIDTH)
    return _largest_sparse(elements, density)


def _largest_sparse(elements: int, density: int) -> int:
    """Of all numbers of kept values: between two powers of two the length only grows."""
    whole, rest = divmod(elements, CHUNK)
    most = whole * min(density, CHUNK) + min(density, rest)
    candidates = {most, *(min(most, elements >> k) for k in range(elements.bit_length()))}
    table = _COUNT_BYTES + _CENTROID_BYTES * chunk_count(elements)
    return table + max(_sparse_bytes(elements, kept) for kept in sorted(candidates))


def _sparse_bytes(elements: int, kept: int) -> int:
    """Signs, classes, rests and gaps of `kept` values."""
    if not kept:
        return 0
    k = (elements // kept).bit_length() - 1
    bits = (kept, kept, kept * k, kept + ((elements - 1) >> k))
    return sum(-(-b // 8) for b in bits)
