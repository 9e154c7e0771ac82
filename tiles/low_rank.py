"""One subtile's share of a delta as a product of two narrow matrices (docs/spec/delta.md).

A section is seen as rows of 256 elements. Its components, each a column times a row of signed
bytes, are found one after the other in what the ones before leave, by integer arithmetic alone:
encoders agree bit for bit on every machine. float64 and fp32 hold every sum here exactly, so
neither the order of summation nor a fused multiplication changes a bit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.errors import DecodeError

WIDTH = 256  # elements of a row
MOST = 127  # size of a factor's entry
MAX_EXPONENT = 19  # more than any encoder needs
LARGEST = (1 << limits.DELTA_UNIT_BITS) - 16  # of a value's size: 24 bits, so exact in fp32
_FACTOR_BITS = 7
_MATRIX_BITS = 20  # that the search looks at; a column's length then stays within 2**24
_VECTOR_BITS = 15  # of the search's vectors: its sums stay below 2**48
_ITERATIONS = 2

Buffer = bytes | memoryview
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]  # integers


def components(elements: int, rank: int) -> tuple[int, int]:
    """Rows of a section of so many elements, and its components: no more than rows."""
    rows = -(-elements // WIDTH)
    return rows, min(rank, rows)


def section_bytes(elements: int, rank: int) -> int:
    rows, count = components(elements, rank)
    return 1 + count * (rows + WIDTH)


def encode_low_rank(units: Ints, rank: int, section: int) -> tuple[Ints, list[bytes]]:
    """What decoders get, and sections of `section` elements. `units`: int32 (n,)."""
    decoded, parts = np.empty_like(units), []
    for start in range(0, len(units), section):
        part = units[start : start + section]
        parts.append(_encode(part, rank))
        decoded[start : start + section] = decode_low_rank(parts[-1], len(part), rank)
    return decoded, parts


def _encode(units: Ints, rank: int) -> bytes:
    rows, count = components(len(units), rank)
    whole = np.zeros((rows, WIDTH), np.int64)
    whole.reshape(-1)[: len(units)] = units
    shift = max(int(np.abs(whole).max()).bit_length() - _MATRIX_BITS, 0)
    rest = _rounded(whole, shift).astype(np.float64)
    factors = np.zeros((count, rows + WIDTH), np.int64)
    exponent = None
    for factor in factors:
        row = rest[np.abs(rest).sum(axis=1).argmax()]  # not orthogonal to what is left, ever
        if not row.any():
            break
        column, peak = _search(rest, row)
        if exponent is None:
            exponent = max(peak.bit_length() - 2 * _FACTOR_BITS, 0)
        bits = (peak.bit_length() - exponent + 1) // 2
        bits = min(max(bits, 1), _FACTOR_BITS)
        column = np.clip(_scaled(column, bits), 1 - (1 << bits), (1 << bits) - 1)
        line = _solved(rest, column, exponent)
        if not line.any():
            break
        rest -= np.ldexp(np.outer(column, line), exponent)
        sign = np.sign(column[np.flatnonzero(column)[0]])
        factor[:rows], factor[rows:] = sign * column, sign * line
    exponent = shift + (exponent or 0)
    left = factors[:, :rows]
    while exponent and 2 * np.abs(left).max() <= MOST:
        left *= 2
        exponent -= 1
    ordered = sorted(factors.tolist(), reverse=True)
    return bytes([exponent]) + np.array(ordered, np.int8).tobytes()


def _search(rest: Doubles, row: Doubles) -> tuple[Doubles, int]:
    """Where the matrix is largest, roughly: the column of it, and the largest size of the best
    product of that column and a row."""
    line = _scaled(row, _VECTOR_BITS)
    for _ in range(_ITERATIONS):
        line = _scaled(_scaled(rest @ line, _VECTOR_BITS) @ rest, _VECTOR_BITS)
    column = _scaled(rest @ line, _VECTOR_BITS)
    sizes = int(np.abs(column).max()) * int(np.abs(column @ rest).max())
    return column, sizes // int(column @ column)


def _solved(rest: Doubles, column: Doubles, exponent: int) -> Doubles:
    """The row whose product with the column, times 2**exponent, leaves least."""
    found = (column @ rest).astype(np.int64)
    norm = int(column @ column) << exponent
    sizes = np.minimum((2 * np.abs(found) + norm) // (2 * norm), MOST)
    line: Doubles = (np.sign(found) * sizes).astype(np.float64)
    return line


def _scaled(values: Doubles, bits: int) -> Doubles:
    """Divided by the least power of two that leaves about so many bits."""
    shift = max(int(np.abs(values).max()).bit_length() - bits, 0)
    return _rounded(values.astype(np.int64), shift).astype(np.float64)


def _rounded(values: Longs, shift: int) -> Longs:
    """values / 2**shift to the nearest, halves away from zero."""
    sizes: Longs = (np.abs(values) + ((1 << shift) >> 1)) >> shift
    return np.sign(values) * sizes


def decode_low_rank(section: Buffer, elements: int, rank: int) -> Ints:
    """int32 (elements,) of one section. Raises DecodeError on factors in any but their one form."""
    rows, count = components(elements, rank)
    length = section_bytes(elements, rank)
    if len(section) != length:
        raise DecodeError(f"low-rank section of {len(section)} bytes, expected {length}")
    exponent = section[0]
    factors = np.frombuffer(section, np.int8, offset=1).reshape(count, rows + WIDTH)
    if exponent > MAX_EXPONENT or (factors < -MOST).any():
        raise DecodeError("a low-rank exponent or factor is out of range")
    left, right = factors[:, :rows], factors[:, rows:]
    if exponent and 2 * int(np.abs(left).max()) <= MOST:
        raise DecodeError("a low-rank exponent is not the smallest that fits")
    used = left.any(axis=1)
    first = np.take_along_axis(left, (left != 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    if (used != right.any(axis=1)).any() or (first < 0).any():
        raise DecodeError("a low-rank component is half empty, or begins with a negative entry")
    order = [row.tobytes() for row in factors.view(np.uint8) ^ 0x80]  # as bytes without sign
    if any(a < b for a, b in pairwise(order)):
        raise DecodeError("low-rank components are not in descending order")
    # exact in fp32: a sum of at most 64 products of 7 bits each is below 2**20
    product = left.T.astype(np.float32) @ right.astype(np.float32)
    values = product.reshape(-1)[:elements].astype(np.int64) << exponent
    cut: Ints = np.clip(values, -LARGEST, LARGEST).astype(np.int32)
    return cut
