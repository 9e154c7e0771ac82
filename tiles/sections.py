"""One subtile's share of a delta, as bytes: sparse, dense or int8 (docs/spec/delta.md).

Values are integers in units of 2**-DELTA_UNIT_BITS, below 2**DELTA_UNIT_BITS in size. A section
covers the elements of one subtile and needs nothing else to be decoded. Everything past the
first rounding is integer arithmetic, so encoders agree bit for bit on every machine, and each
value has one encoding only: a decoder refuses any other.
"""

from __future__ import annotations

from itertools import accumulate
from math import isqrt

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.errors import DecodeError

CHUNK = limits.CHUNK_ELEMENTS
MANTISSA_BITS = 8  # of a centroid
MAX_EXPONENT = limits.DELTA_UNIT_BITS - MANTISSA_BITS
DENSE_BYTES, INT8_BYTES = 2, 1  # of a mantissa, with its sign, where every element has one
_SPLIT_STEPS = 3  # rounds of Lloyd's algorithm; more changes nothing worth a byte
_COUNT_BYTES = 4
_CHUNK_BITS = CHUNK.bit_length() - 1
_WORD_BITS = 32  # more than a gap has
_SAMPLE = 8  # one in so many sizes tells about where a chunk's largest begin
_PLACES = np.ldexp(np.float32(1), np.arange(_WORD_BITS - 1, -1, -1))  # of a word's bits
_CENTROID_BYTES = 4  # low mantissa, low exponent, high mantissa, high exponent

Buffer = bytes | memoryview
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def chunk_count(elements: int) -> int:
    return -(-elements // CHUNK)


# --- sizes -----------------------------------------------------------------------------


def most_sparse_bytes(elements: int, density: int) -> int:
    """The most that a section of so many elements can have at a density."""
    chunks = chunk_count(elements)
    most = min(elements, density * chunks)
    # A section grows with its values as long as their gaps keep their stored bits: it is largest at
    # the last count before a change of those.
    counts = {min(most, elements >> bits) for bits in range(elements.bit_length())}
    return _COUNT_BYTES + _CENTROID_BYTES * chunks + max(_stream_bytes(n, elements) for n in counts)


def _stream_bytes(count: int, elements: int) -> int:
    """Signs, classes, rests and gaps of so many values, if the gaps are as unequal as can be."""
    bits = _rice_bits(count, elements)
    unary = count + ((elements - count) >> bits) if count else 0
    return sum(-(-n // 8) for n in (count, count, count * bits, unary))


def full_bytes(elements: int, width: int) -> int:
    """Of a section with a mantissa of `width` bytes for each element."""
    return chunk_count(elements) + width * elements


# --- sparse: encoding ----------------------------------------------------------------


def encode_sparse(units: Ints, density: int, section: int) -> tuple[Ints, list[bytes]]:
    """The `density` largest values of each chunk in two levels: what decoders get, and sections.

    `units`: int32 (n,); `section`: elements a section. Ties go to the lower index.
    """
    chunks = chunk_count(len(units))
    sizes = np.zeros((chunks, CHUNK), np.int32)
    np.abs(units, out=sizes.reshape(-1)[: len(units)])
    at = _largest(sizes, density)
    kept, chunk = units[at], at // CHUNK
    high, centroids = _two_levels(np.abs(kept).astype(np.int64), chunk, chunks)
    negative = kept < 0
    decoded = np.zeros(len(units), np.int32)
    size = _centroid_values(centroids).reshape(-1)[2 * chunk + high]
    decoded[at] = np.where(negative, -size, size)
    sections = []
    for start in range(0, len(units), section):
        end = min(start + section, len(units))
        i, j = np.searchsorted(at, (start, end))
        table = centroids[start // CHUNK : chunk_count(end)]
        sections.append(_pack_sparse(at[i:j] - start, negative[i:j], high[i:j], table, end - start))
    return decoded, sections


def _largest(sizes: Ints, most: int) -> Longs:
    """Where each row's `most` largest sizes stand, ascending; zeros never count."""
    bound = _bound(sizes, most)
    likely: Longs = np.flatnonzero(sizes >= bound)
    row, found = likely // CHUNK, sizes.reshape(-1)[likely]
    counts = np.bincount(row, minlength=len(sizes))
    many = np.flatnonzero(counts > most)
    if not len(many):
        return likely
    width = int(counts.max())
    places = np.arange(len(likely)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((len(sizes), width), np.int32)
    table.reshape(-1)[row * width + places] = found
    bound[many] = _ordered(table[many], most)
    at: Longs = likely[found >= bound[row, 0]]
    crowded = np.flatnonzero(np.bincount(at // CHUNK, minlength=len(sizes)) > most)
    if not len(crowded):
        return at
    mask = sizes >= bound
    rows, limit = sizes[crowded], bound[crowded]
    above, ties = rows > limit, rows == limit
    room = most - np.count_nonzero(above, axis=1)[:, None]
    mask[crowded] = above | (ties & (np.cumsum(ties, axis=1) <= room))
    chosen: Longs = np.flatnonzero(mask)
    return chosen


def _bound(sizes: Ints, most: int) -> Ints:
    """(rows, 1), at least 1: a size that each row's `most` largest reach and few others.

    A sample of the row tells it; where that lets too few or far too many through, the whole row.
    """
    sample = sizes[:, ::_SAMPLE]
    rank = most // _SAMPLE + 2 * isqrt(most // _SAMPLE) + 2  # so that it errs to the safe side
    if rank >= sample.shape[1]:
        return np.maximum(_ordered(sizes, min(most, CHUNK)), 1).astype(np.int32)
    bound = np.maximum(_ordered(sample, rank), 1)
    counts = np.count_nonzero(sizes >= bound, axis=1)
    odd = (counts > 3 * most) | ((counts < most) & (bound[:, 0] > 1))
    if odd.any():
        bound[odd] = np.maximum(_ordered(sizes[odd], most), 1)
    return bound.astype(np.int32, copy=False)


def _ordered(sizes: Ints, most: int) -> Ints:
    width = sizes.shape[1]
    return np.partition(sizes, width - most, axis=1)[:, width - most, None]


def _two_levels(sizes: Longs, chunk: Longs, chunks: int) -> tuple[Mask, Octets]:
    """Split each chunk's sizes in two classes; the class of each and the (chunks, 4) centroids."""

    each, rest = divmod(len(sizes), max(chunks, 1))
    is_even = each > 0 and not rest and bool((chunk[::each] == np.arange(chunks)).all())
    is_even = is_even and bool((chunk[each - 1 :: each] == np.arange(chunks)).all())

    def per_chunk(weights: npt.NDArray[np.generic]) -> Longs:
        if is_even:  # every chunk keeps as many: rows of a table
            rows: Longs = weights.reshape(chunks, each).sum(axis=1, dtype=np.int64)
            return rows
        # float64 sums of integers below 2**53 are exact in any order
        return np.bincount(chunk, weights, minlength=chunks).astype(np.int64)

    count, total = np.bincount(chunk, minlength=chunks), per_chunk(sizes)
    split = total // np.maximum(count, 1)
    for _ in range(_SPLIT_STEPS):
        high = sizes > split[chunk]
        high_count, high_total = per_chunk(high), per_chunk(sizes * high)
        low_mean = (total - high_total) // np.maximum(count - high_count, 1)
        high_mean = np.where(high_count, high_total // np.maximum(high_count, 1), low_mean)
        split = (low_mean + high_mean) // 2
    centroids = np.stack([*_scaled(low_mean), *_scaled(high_mean)], axis=1).astype(np.uint8)
    same = (centroids[:, :2] == centroids[:, 2:]).all(axis=1)
    return high & ~same[chunk], centroids


def _scaled(values: Longs) -> tuple[Longs, Longs]:
    """mantissa, exponent: the nearest mantissa * 2**exponent, half up, saturating at 255."""
    exponent = np.maximum(_bit_length(values) - MANTISSA_BITS, 0)
    mantissa = (values + ((1 << exponent) >> 1)) >> exponent
    return np.minimum(mantissa, (1 << MANTISSA_BITS) - 1), exponent


def _bit_length(values: Longs) -> Longs:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _rice_bits(count: int, elements: int) -> int:
    """Bits of a gap that are stored plainly: a function of the counts, so never a choice."""
    return (elements // count).bit_length() - 1 if count else 0


def _pack_sparse(at: Longs, negative: Mask, high: Mask, centroids: Octets, elements: int) -> bytes:
    bits = _rice_bits(len(at), elements)
    gaps = np.diff(at, prepend=-1) - 1
    ends = np.cumsum((gaps >> bits) + 1)
    unary = np.zeros(int(ends[-1]) if len(at) else 0, np.uint8)
    unary[ends - 1] = 1
    streams = [np.packbits(s).tobytes() for s in (negative, high, _low_bits(gaps, bits), unary)]
    return b"".join([len(at).to_bytes(_COUNT_BYTES, "big"), centroids.tobytes(), *streams])


def _low_bits(gaps: Longs, bits: int) -> Octets:
    """(gaps, bits) the last bits of each, the most significant first."""
    wide = (gaps << (_WORD_BITS - bits)).astype(">u4")  # what is above them falls out
    return np.unpackbits(wide.view(np.uint8).reshape(len(gaps), 4), axis=1)[:, :bits]


# --- sparse: decoding ----------------------------------------------------------------


def decode_sparse(section: Buffer, elements: int, density: int) -> Ints:
    """int32 (elements,) of one section. Raises DecodeError on anything but its one encoding."""
    at, kept = sparse_entries(section, elements, density)
    values = np.zeros(elements, np.int32)
    values[at] = kept
    return values


def sparse_entries(section: Buffer, elements: int, density: int) -> tuple[Longs, Ints]:
    """Where the values of one section stand, ascending, and what they are. Raises DecodeError.

    Memory is bounded by `elements` whatever the bytes say.
    """
    chunks = chunk_count(elements)
    head = _COUNT_BYTES + _CENTROID_BYTES * chunks
    if len(section) < head:
        raise DecodeError(f"sparse section of {len(section)} bytes, at least {head} expected")
    count = int.from_bytes(section[:_COUNT_BYTES], "big")
    if count > min(elements, density * chunks):
        raise DecodeError(f"{count} values in a section of {elements} at density {density}")
    bits = _rice_bits(count, elements)
    raw = np.frombuffer(section, np.uint8)
    centroids = raw[_COUNT_BYTES:head].reshape(chunks, _CENTROID_BYTES)
    sizes = [-(-n // 8) for n in (count, count, count * bits)]
    unary_most = -(-(count + ((elements - 1) >> bits)) // 8) if count else 0
    if not sum(sizes) <= len(section) - head <= sum(sizes) + unary_most:
        raise DecodeError(f"sparse section of {len(section)} bytes does not fit {count} values")
    cuts = list(accumulate(sizes, initial=head))
    negative = _unpack(raw[head : cuts[1]], count)
    high = _unpack(raw[cuts[1] : cuts[2]], count)
    rest = _unpack(raw[cuts[2] : cuts[3]], count * bits).reshape(count, bits)
    at = _positions(_ones(raw[cuts[3] :], count), rest, bits, elements)
    kind = (at >> _CHUNK_BITS << 2) + (high << 1 | negative)
    uses = np.bincount(kind, minlength=4 * chunks).reshape(chunks, 4)
    per_chunk, high_per_chunk = uses.sum(axis=1), uses[:, 2] + uses[:, 3]
    if count and int(per_chunk.max()) > density:
        raise DecodeError(f"a chunk keeps {per_chunk.max()} values at density {density}")
    levels = _checked_levels(centroids, per_chunk, high_per_chunk)
    signed = np.stack([levels, -levels], axis=2)
    return at, signed.reshape(-1)[kind]


def _unpack(packed: Octets, count: int) -> Octets:
    """`count` bits; whatever pads the last byte must be zero."""
    bits = np.unpackbits(packed)
    if bits[count:].any():
        raise DecodeError("padding bits are not zero")
    return bits[:count]


def _ones(packed: Octets, count: int) -> Longs:
    """Where the `count` ones stand, the last of which is in the last byte."""
    ones: Longs = np.flatnonzero(np.unpackbits(packed).view(np.bool_))
    if len(ones) != count or (len(packed) and packed[-1] == 0):
        raise DecodeError(f"{len(ones)} gaps where {count} belong")
    return ones


def _positions(ones: Longs, rest: Octets, bits: int, elements: int) -> Longs:
    """The sum of the gaps so far, and one for each value before: the quotients' sum is the number
    of zeros before a one."""
    low = rest.astype(np.float32) @ _PLACES[-bits or _WORD_BITS :]  # exact: fewer than 24 bits
    values = np.arange(len(ones))
    at: Longs = ((ones - values) << bits) + low.cumsum(dtype=np.int64) + values
    if len(at) and at[-1] >= elements:
        raise DecodeError(f"position {at[-1]} in a section of {elements} elements")
    return at


def _centroid_values(centroids: Octets) -> Ints:
    """(chunks, 2) int32 low and high level of each chunk, in units."""
    wide = centroids.astype(np.int32)
    return wide[:, ::2] << wide[:, 1::2]


def _checked_levels(centroids: Octets, count: Longs, high_count: Longs) -> Ints:
    """The levels, if they are in the one form that their chunk's values allow."""
    mantissas, exponents = centroids[:, ::2], centroids[:, 1::2]
    levels = _centroid_values(centroids)
    # Every condition at once: numpy's calls cost more than 16 chunks' arithmetic does.
    small = mantissas < 1 << (MANTISSA_BITS - 1)
    odd = (exponents > MAX_EXPONENT) | ((exponents > 0) & small)
    empty = (mantissas == 0) != (count == 0)[:, None]
    both = (high_count > 0) & (high_count < count)
    wrong = (both != (levels[:, 0] < levels[:, 1])) | (~both & (high_count > 0))
    if (odd | empty | (wrong | (levels[:, 0] > levels[:, 1]))[:, None]).any():
        if odd.any():
            raise DecodeError("a centroid is not normalised or out of range")
        if empty.any():
            raise DecodeError("a centroid is zero in a chunk with values, or set in one without")
        if (levels[:, 0] > levels[:, 1]).any():
            raise DecodeError("the low centroid is above the high one")
        raise DecodeError("a chunk names two centroids and does not use both")
    return levels


# --- dense and int8 --------------------------------------------------------------------


def encode_full(units: Ints, section: int, width: int) -> tuple[Ints, list[bytes]]:
    """All values, mantissas of `width` bytes with one exponent a chunk: what decoders get, and
    sections."""
    bits = 8 * width - 1
    chunks = chunk_count(len(units))
    padded = np.zeros((chunks, CHUNK), np.int64)
    padded.reshape(-1)[: len(units)] = units
    sizes = np.abs(padded)
    exponents = np.maximum(_bit_length(sizes.max(axis=1)) - bits, 0)[:, None]
    mantissas = (sizes + ((1 << exponents) >> 1)) >> exponents
    mantissas = np.sign(padded) * np.minimum(mantissas, (1 << bits) - 1)
    flat = mantissas.reshape(-1)[: len(units)].astype(f">i{width}")
    sections = []
    for start in range(0, len(units), section):
        end = min(start + section, len(units))
        table = exponents[start // CHUNK : chunk_count(end)].astype(np.uint8)
        sections.append(table.tobytes() + flat[start:end].tobytes())
    decoded = (mantissas << exponents).reshape(-1)[: len(units)].astype(np.int32)
    return decoded, sections


def decode_full(section: Buffer, elements: int, width: int) -> Ints:
    """int32 (elements,) of one section. Raises DecodeError on anything but its one encoding."""
    bits = 8 * width - 1
    chunks = chunk_count(elements)
    if len(section) != full_bytes(elements, width):
        raise DecodeError(
            f"full section of {len(section)} bytes, expected {full_bytes(elements, width)}"
        )
    exponents = np.frombuffer(section, np.uint8, chunks).astype(np.int32)[:, None]
    padded = np.zeros((chunks, CHUNK), np.int32)
    padded.reshape(-1)[:elements] = np.frombuffer(section, f">i{width}", elements, chunks)
    largest = np.abs(padded).max(axis=1, keepdims=True)
    normal = (exponents == 0) | (largest >= 1 << (bits - 1))
    in_range = exponents <= limits.DELTA_UNIT_BITS - bits
    if not (normal & in_range).all() or (largest >> bits).any():
        raise DecodeError("an exponent is not the smallest that fits, or out of range")
    return (padded << exponents).reshape(-1)[:elements]
