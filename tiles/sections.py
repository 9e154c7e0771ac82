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
_SAMPLE = 8  # one in so many sizes tells about where a chunk's largest begin
_CENTROID_BYTES = 4  # low mantissa, low exponent, high mantissa, high exponent

Buffer = bytes | memoryview
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


# --- tables ----------------------------------------------------------------------------


def _gather(bits: int) -> int:
    """What moves `bits` bits, each in the last place of its byte, side by side to a word's top: see
    `_numbers`. The first byte is the word's lowest; no sum in any byte exceeds 255."""
    return sum(1 << (bits - 1 - i) << 8 * (7 - i) for i in range(bits))


def _level_of_centroids() -> Ints:
    """By mantissa and exponent as they stand in a section, in units; -1 if not normalised."""
    mantissa, exponent = np.divmod(np.arange(1 << 16), 1 << 8)
    normal = (exponent == 0) | (mantissa >= 1 << (MANTISSA_BITS - 1))
    level = mantissa << np.minimum(exponent, MAX_EXPONENT)
    return np.where(normal & (exponent <= MAX_EXPONENT), level, -1).astype(np.int32)


_GATHER = np.array([_gather(bits) for bits in range(9)], np.uint64)
_SIGNS = np.array([1, -1], np.int32)
_TOP_BYTE = np.uint64(56)
_LEVELS = _level_of_centroids()


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
    sizes = np.empty((chunks, CHUNK), np.int32)
    np.abs(units, out=sizes.reshape(-1)[: len(units)])
    sizes.reshape(-1)[len(units) :] = 0
    at = _largest(sizes, density)
    kept, chunk = units[at], at >> _CHUNK_BITS
    high, centroids = _two_levels(np.abs(kept).astype(np.int64), chunk, chunks)
    negative = kept < 0
    decoded = np.zeros(len(units), np.int32)
    decoded[at] = _signed(_levels(centroids)).take(_kinds(at, high, negative))
    sections = []
    for start in range(0, len(units), section):
        end = min(start + section, len(units))
        i, j = np.searchsorted(at, (start, end))
        table = centroids[start // CHUNK : chunk_count(end)]
        sections.append(_pack_sparse(at[i:j] - start, negative[i:j], high[i:j], table, end - start))
    return decoded, sections


def _largest(sizes: Ints, most: int) -> Longs:
    """Where each row's `most` largest sizes stand, ascending; zeros never count."""
    mask = _likely(sizes, most)
    likely: Longs = np.flatnonzero(mask)
    row, found = likely >> _CHUNK_BITS, sizes.reshape(-1)[likely]
    counts = np.bincount(row, minlength=len(sizes))
    many = np.flatnonzero(counts > most)
    if not len(many):
        return likely
    width = int(counts.max())
    places = np.arange(len(likely)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((len(sizes), width), np.int32)
    table.reshape(-1)[row * width + places] = found
    bound = np.ones((len(sizes), 1), np.int32)
    bound[many] = _ordered(table[many], most)
    at: Longs = likely[np.flatnonzero(found >= bound.take(row))]
    crowded = np.flatnonzero(np.bincount(at >> _CHUNK_BITS, minlength=len(sizes)) > most)
    if not len(crowded):
        return at
    mask &= sizes >= bound
    rows, limit = sizes[crowded], bound[crowded]
    above, ties = rows > limit, rows == limit
    room = most - np.count_nonzero(above, axis=1)[:, None]
    mask[crowded] = above | (ties & (np.cumsum(ties, axis=1) <= room))
    chosen: Longs = np.flatnonzero(mask)
    return chosen


def _likely(sizes: Ints, most: int) -> Mask:
    """Of each row the `most` largest sizes, all that equal them, and few others; no zeros.

    A sample of the row tells a bound; where that lets too few or far too many through, the row.
    """
    sample = sizes[:, ::_SAMPLE]
    rank = most // _SAMPLE + 2 * isqrt(most // _SAMPLE) + 2  # so that it errs to the safe side
    if rank >= sample.shape[1]:
        return sizes >= np.maximum(_ordered(sizes, min(most, CHUNK)), 1)
    bound = np.maximum(_ordered(sample, rank), 1)
    mask = sizes >= bound
    counts = _count_rows(mask)
    odd = np.flatnonzero((counts > 3 * most) | ((counts < most) & (bound[:, 0] > 1)))
    mask[odd] = sizes[odd] >= np.maximum(_ordered(sizes[odd], most), 1)
    return mask


def _count_rows(mask: Mask) -> Longs:
    """Trues of each row of CHUNK, eight columns to a word; no byte of a sum of 128 reaches 256."""
    sums = mask.view(np.uint64).reshape(-1, 128).sum(axis=1)
    counts: Longs = sums.view(np.uint8).reshape(-1, CHUNK // 128).sum(axis=1, dtype=np.int64)
    return counts


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
    gaps = at.copy()
    gaps[1:] -= at[:-1] + 1
    ends = np.cumsum((gaps >> bits) + 1)
    unary = np.zeros(int(ends[-1]) if len(at) else 0, np.uint8)
    unary[ends - 1] = 1
    streams = [np.packbits(s).tobytes() for s in (negative, high, _low_bits(gaps, bits), unary)]
    return b"".join([len(at).to_bytes(_COUNT_BYTES, "big"), centroids.tobytes(), *streams])


def _low_bits(gaps: Longs, bits: int) -> Octets:
    """(gaps, bits) the last bits of each, the most significant first."""
    octets = 1 if bits <= 8 else 4
    whole = np.unpackbits(gaps.astype(f">u{octets}").view(np.uint8))
    return whole.reshape(-1, 8 * octets)[:, 8 * octets - bits :]


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
    sizes = [-(-n // 8) for n in (count, count, count * bits)]
    unary_most = -(-(count + ((elements - 1) >> bits)) // 8) if count else 0
    if not sum(sizes) <= len(section) - head <= sum(sizes) + unary_most:
        raise DecodeError(f"sparse section of {len(section)} bytes does not fit {count} values")
    cuts = list(accumulate(sizes, initial=head))
    for end, padding in zip(cuts[1:], (-count % 8, -count % 8, -(count * bits) % 8), strict=True):
        if padding and section[end - 1] & ((1 << padding) - 1):
            raise DecodeError("padding bits are not zero")
    stream = np.unpackbits(raw[head:])
    high_from, rest_from, gaps_from = (8 * (cut - head) for cut in cuts[1:])
    (ones,) = stream[gaps_from:].view(np.bool_).nonzero()
    if len(ones) != count or (cuts[3] < len(section) and section[-1] == 0):
        raise DecodeError(f"{len(ones)} gaps where {count} belong")
    at = _positions(ones, _numbers(stream[rest_from:], count, bits), bits, elements)
    kinds = _kinds(at, stream[high_from : high_from + count], stream[:count])
    uses = np.bincount(kinds, minlength=4 * chunks).reshape(chunks, 4)
    levels = _levels(raw[_COUNT_BYTES:head])
    _check_chunks(levels.tolist(), uses.tolist(), density)
    return at, _signed(levels).take(kinds)


def _numbers(stream: Octets, count: int, bits: int) -> Longs:
    """`count` numbers of `bits` bits, which stand in a byte each, the most significant first.

    Eight of a number's bytes are a word, and a product moves them side by side into its top byte.
    `stream` goes on for a word at least after the first byte of the last number.
    """

    def octet(first: int) -> Words:
        words = np.ndarray(count, "<u8", stream, first, (bits,))
        gathered: Words = words * _GATHER[min(bits - first, 8)] >> _TOP_BYTE
        return gathered

    numbers = octet(0)
    for first in range(8, bits, 8):
        numbers = numbers << np.uint64(min(bits - first, 8)) | octet(first)
    return numbers.view(np.int64)


def _positions(ones: Longs, rests: Longs, bits: int, elements: int) -> Longs:
    """Where the values stand, from their gaps' ones and stored bits. Uses up `rests`.

    Value i stands at Σ gaps + i, and its one at Σ quotients + i: at (ones[i] << bits) + Σ rests -
    i * step. The sums are over the gaps up to its own.
    """
    step = (1 << bits) - 1
    rests -= step
    rests[:1] += step
    at: Longs = ones << bits
    at += rests.cumsum(out=rests)
    if len(at) and at[-1] >= elements:
        raise DecodeError(f"position {at[-1]} in a section of {elements} elements")
    return at


def _kinds(at: Longs, high: Octets | Mask, negative: Octets | Mask) -> Longs:
    """Which of `_signed` each value is: a chunk has four."""
    kinds: Longs = at >> _CHUNK_BITS << 2
    kinds |= high.view(np.uint8) << 1 | negative.view(np.uint8)
    return kinds


def _levels(centroids: Octets) -> Ints:
    """(chunks, 2) in units, low and high; -1 where not normalised."""
    levels: Ints = _LEVELS[centroids.reshape(-1).view(">u2").reshape(-1, 2)]
    return levels


def _signed(levels: Ints) -> Ints:
    """(4 * chunks,) the low level, either sign, then the high one, of each chunk."""
    signed: Ints = (levels[:, :, None] * _SIGNS).reshape(-1)
    return signed


def _check_chunks(levels: list[list[int]], uses: list[list[int]], density: int) -> None:
    """Raise DecodeError unless each chunk's levels are in the one form that its values allow.
    `uses`: values of the low level, above and below zero, then of the high one. (Not by numpy,
    whose calls cost more than 16 chunks do.)"""
    for (low, top), (a, b, c, d) in zip(levels, uses, strict=True):
        lows, highs = a + b, c + d
        if lows + highs > density:
            raise DecodeError(f"a chunk keeps {lows + highs} values at density {density}")
        if low < 0 or top < 0:
            raise DecodeError("a centroid is not normalised or out of range")
        if (low == 0 or top == 0) if lows + highs else (low != 0 or top != 0):
            raise DecodeError("a centroid is zero in a chunk with values, or set in one without")
        if low > top:
            raise DecodeError("the low centroid is above the high one")
        if (low < top) != (lows > 0 and highs > 0) or (highs > 0 and not lows):
            raise DecodeError("a chunk names two centroids and does not use both")


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
