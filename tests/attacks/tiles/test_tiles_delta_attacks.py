"""Hostile delta payloads: refused with DecodeError, in bounded memory, and never ambiguous."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from chain import limits
from chain.errors import DecodeError
from tiles import sections
from tiles.codings import INT8_NUMBER, MAX_RANK, low_rank_number
from tiles.delta import decode_delta, decode_tile, encode_delta, payload_root
from tiles.layout import ShardSpec, TensorSpec
from tiles.low_rank import MAX_EXPONENT, decode_low_rank

SPECS = [
    ShardSpec(0, "sparse", "sparse", (TensorSpec("w", "F32", (5000,)),)),
    ShardSpec(2, "dense", "dense", (TensorSpec("w", "F32", (20,)),)),
]
ELEMENTS, DENSITY = 5000, 12
RANK_2 = low_rank_number(2)
OTHERS = [INT8_NUMBER, RANK_2]  # codings of a large shard that are not sparse


def values(elements: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(elements) * 1e-3).astype(np.float32)


PAYLOAD, DECODED = encode_delta(bytes(32), {0: values(5000, 1), 2: values(20, 2)}, SPECS, DENSITY)
HEADER_BYTES = int.from_bytes(PAYLOAD[:4], "big")
HEADER = msgpack.unpackb(PAYLOAD[4 : 4 + HEADER_BYTES])
BODY = PAYLOAD[4 + HEADER_BYTES :]
SPARSE = BODY[: HEADER[3][0][2][0]]


def rebuilt(header: object, body: bytes) -> bytes:
    raw = msgpack.packb(header)
    return len(raw).to_bytes(4, "big") + raw + body


def meaning(payload: bytes) -> tuple[object, ...]:
    delta = decode_delta(payload, SPECS)
    units = [(i, s.units.tobytes()) for i, s in delta.shards.items()]
    return delta.base_root, delta.density, tuple(units)


def test_every_flipped_bit_is_refused_or_means_something_else() -> None:
    honest, refused = meaning(PAYLOAD), 0
    for bit in range(8 * len(PAYLOAD)):
        flipped = bytearray(PAYLOAD)
        flipped[bit // 8] ^= 1 << (bit % 8)
        try:
            got = meaning(bytes(flipped))
        except DecodeError:
            refused += 1
            continue
        assert got != honest
        assert payload_root(bytes(flipped)) != payload_root(PAYLOAD)
    assert refused > 100


def test_every_truncation_and_every_appended_byte_is_refused() -> None:
    for size in range(len(PAYLOAD)):
        with pytest.raises(DecodeError):
            decode_delta(PAYLOAD[:size], SPECS)
    for tail in (b"\0", b"\xff", PAYLOAD):
        with pytest.raises(DecodeError):
            decode_delta(PAYLOAD + tail, SPECS)


HEADERS: dict[str, Callable[[list], object]] = {
    "density 0": lambda h: [*h[:2], 0, h[3]],
    "a number of no coding": lambda h: [*h[:2], INT8_NUMBER + 1, h[3]],
    "rank 0": lambda h: [*h[:2], low_rank_number(0), h[3]],
    "a rank too high": lambda h: [*h[:2], low_rank_number(MAX_RANK + 1), h[3]],
    "a rank": lambda h: [*h[:2], RANK_2, h[3]],
    "the number of another coding": lambda h: [*h[:2], INT8_NUMBER, h[3]],
    "density 4097": lambda h: [*h[:2], 4097, h[3]],
    "a lower density": lambda h: [*h[:2], DENSITY - 1, h[3]],
    "no shards": lambda h: [*h[:3], []],
    "shards swapped": lambda h: [*h[:3], h[3][::-1]],
    "a shard twice": lambda h: [*h[:3], [h[3][0], h[3][0]]],
    "unknown shard": lambda h: [*h[:3], [[101, 1, h[3][0][2]], h[3][1]]],
    "too few sections": lambda h: [*h[:3], [[101, 0, []], h[3][1]]],
    "too many sections": lambda h: [*h[:3], [[101, 0, [*h[3][0][2], 0]], h[3][1]]],
    "a byte moved": lambda h: [
        *h[:3],
        [[101, 0, [h[3][0][2][0] + 1]], [101, 2, [h[3][1][2][0] - 1]]],
    ],
    "huge lengths": lambda h: [*h[:3], [[101, 0, [2**32 - 1]], h[3][1]]],
    "short base root": lambda h: [h[0], bytes(31), *h[2:]],
    "a field more": lambda h: [*h, 0],
    "no struct": lambda h: 7,
    "another struct": lambda h: [101, *h[1:]],
}


@pytest.mark.parametrize("name", HEADERS)
def test_lying_headers(name: str) -> None:
    with pytest.raises(DecodeError):
        decode_delta(rebuilt(HEADERS[name](HEADER), BODY), SPECS)


def test_a_header_in_a_longer_form_is_refused() -> None:
    raw = bytearray(PAYLOAD[4 : 4 + HEADER_BYTES])
    at = raw.index(bytes([DENSITY]), 36)
    long = bytes(raw[:at]) + b"\xcc" + bytes(raw[at:])  # density as two bytes
    with pytest.raises(DecodeError, match="shortest"):
        decode_delta(len(long).to_bytes(4, "big") + long + BODY, SPECS)


def section(count: int, table: bytes, *streams: str) -> bytes:
    def pack(bits: str) -> bytes:
        bits += "0" * (-len(bits) % 8)
        return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))

    return count.to_bytes(4, "big") + table + b"".join(pack(s) for s in streams)


ONE = bytes([1, 0, 1, 0])  # low and high centroid 1
TWO = bytes([1, 0, 2, 0])
# sections of 16 elements, density 4: one chunk, so one table of four bytes
SECTIONS = {
    "empty": (b"", "at least 8"),
    "a count without values": (section(1, ONE), "does not fit"),
    "count beyond the density": (section(5, ONE, "0" * 5, "0" * 5, "0" * 5, "1" * 5), "density 4"),
    "count beyond the elements": (section(2**32 - 1, ONE), "density 4"),
    "table without values": (section(0, ONE), "set in one without"),
    "values without table": (section(1, bytes(4), "0", "0", "0000", "1"), "zero in a chunk"),
    "half a table": (section(1, bytes([1, 0, 0, 0]), "0", "0", "0000", "1"), "zero in a chunk"),
    "not normalised": (section(1, bytes([1, 1, 1, 1]), "0", "0", "0000", "1"), "not normalised"),
    "beyond the range": (
        section(1, bytes([128, 21, 128, 21]), "0", "0", "0000", "1"),
        "out of range",
    ),
    "a shift bomb": (
        section(1, bytes([128, 255, 128, 255]), "0", "0", "0000", "1"),
        "out of range",
    ),
    "centroids swapped": (
        section(2, bytes([2, 0, 1, 0]), "00", "01", "000000", "11"),
        "above the high",
    ),
    "two centroids, low used": (section(2, TWO, "00", "00", "000000", "11"), "both"),
    "two centroids, high used": (section(2, TWO, "00", "11", "000000", "11"), "both"),
    "one centroid, high class": (section(2, ONE, "00", "01", "000000", "11"), "both"),
    "one centroid, all high": (section(2, ONE, "00", "11", "000000", "11"), "both"),
    "sign padding": (section(1, ONE, "01", "0", "0000", "1"), "padding"),
    "class padding": (section(1, ONE, "0", "01", "0000", "1"), "padding"),
    "remainder padding": (section(1, ONE, "0", "0", "00001", "1"), "padding"),
    "no gap": (section(1, ONE, "0", "0", "0000", "00000000"), "gaps where 1"),
    "two gaps for one": (section(1, ONE, "0", "0", "0000", "11"), "gaps where 1"),
    "a zero byte at the end": (
        section(2, ONE, "00", "00", "000000", "11", "00000000"),
        "gaps where 2|does not fit",
    ),
    "past the end": (section(1, ONE, "0", "0", "0000", "01"), "position 16"),
    "past the end by remainders": (
        section(2, ONE, "00", "00", "111111", "111"[:2]),
        None,
    ),
    "a Rice bomb": (section(1, ONE, "0", "0", "0000", "0" * 999_999 + "1"), "does not fit"),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_hostile_sections(name: str) -> None:
    raw, message = SECTIONS[name]
    if message is None:  # the largest gaps that still fit are no attack
        assert np.flatnonzero(sections.decode_sparse(raw, 16, 4)).tolist() == [7, 15]
        return
    with pytest.raises(DecodeError, match=message):
        sections.decode_sparse(raw, 16, 4)


def test_a_chunk_may_not_borrow_from_another() -> None:
    """The section's total is right, but one chunk holds more than the density allows."""
    units = np.zeros(8192, np.int32)
    units[:20] = 7
    _, (crowded,) = sections.encode_sparse(units, 20, 65_536)
    with pytest.raises(DecodeError, match="keeps 20 values at density 10"):
        sections.decode_sparse(crowded, 8192, 10)


@pytest.mark.parametrize(
    ("exponent", "mantissas"),
    [(1, [1, 2]), (14, [16384, 0]), (255, [16384, 0]), (0, [-32768, 0]), (1, [16383, -16383])],
)
def test_hostile_dense_sections(exponent: int, mantissas: list[int]) -> None:
    raw = bytes([exponent]) + np.array(mantissas, ">i2").tobytes()
    with pytest.raises(DecodeError, match="smallest that fits"):
        sections.decode_full(raw, 2, 2)
    with pytest.raises(DecodeError, match="expected 5"):
        sections.decode_full(raw[:-1], 2, 2)


@pytest.mark.parametrize(
    ("exponent", "mantissas"),
    [(1, [1, 2]), (22, [64, 0]), (255, [64, 0]), (0, [-128, 0]), (1, [63, -63])],
)
def test_hostile_int8_sections(exponent: int, mantissas: list[int]) -> None:
    raw = bytes([exponent]) + np.array(mantissas, "i1").tobytes()
    with pytest.raises(DecodeError, match="smallest that fits"):
        sections.decode_full(raw, 2, 1)
    with pytest.raises(DecodeError, match="expected 3"):
        sections.decode_full(raw + b"\0", 2, 1)


def low_rank(exponent: int, *parts: tuple[list[int], list[int]]) -> bytes:
    """A section of 2 rows; what a row of a component lacks in values is zero."""
    factors = [[*left, *right, *[0] * (256 - len(right))] for left, right in parts]
    return bytes([exponent]) + np.array(factors, np.int8).tobytes()


NONE: tuple[list[int], list[int]] = ([0, 0], [0])
LOW_RANKS = {
    "a byte more": (low_rank(0, NONE, NONE) + b"\0", "expected 517"),
    "one component": (low_rank(0, NONE), "expected 517"),
    "exponent without values": (low_rank(1, NONE, NONE), "smallest that fits"),
    "not normalised": (low_rank(1, ([63, -63], [127]), NONE), "smallest that fits"),
    "a shift bomb": (low_rank(255, ([127, 0], [127]), NONE), "out of range"),
    "exponent 20": (low_rank(20, ([127, 0], [127]), NONE), "out of range"),
    "-128": (low_rank(0, ([127, -128], [1]), NONE), "out of range"),
    "-128 in a row": (low_rank(0, ([127, 1], [-128]), NONE), "out of range"),
    "no row": (low_rank(0, ([1, 0], [0]), NONE), "half empty"),
    "no column": (low_rank(0, NONE, ([0, 0], [1])), "half empty"),
    "a sign moved": (low_rank(0, ([-1, 1], [1]), NONE), "negative entry"),
    "a later sign moved": (low_rank(0, ([0, -1], [1]), NONE), "negative entry"),
    "swapped": (low_rank(0, ([1, 0], [1]), ([1, 1], [1])), "descending"),
    "swapped by the row": (low_rank(0, ([1, 0], [-1]), ([1, 0], [1])), "descending"),
    "zero first": (low_rank(0, NONE, ([1, 0], [1])), "descending"),
}


@pytest.mark.parametrize("name", LOW_RANKS)
def test_hostile_low_rank_sections(name: str) -> None:
    raw, message = LOW_RANKS[name]
    with pytest.raises(DecodeError, match=message):
        decode_low_rank(raw, 300, 2)


def test_the_largest_low_rank_product_is_cut_to_what_fp32_holds() -> None:
    full = ([127] * 256, [127] * 256)
    raw = bytes([MAX_EXPONENT]) + np.array([[*full[0], *full[1]]] * MAX_RANK, np.int8).tobytes()
    units = decode_low_rank(raw, 65_536, MAX_RANK)
    assert set(units.tolist()) == {2**28 - 16}
    assert np.array_equal(units.astype(np.float32).astype(np.int64), units)
    small = decode_low_rank(b"\0" + raw[1:], 65_536, MAX_RANK)
    assert set(small.tolist()) == {MAX_RANK * 127**2}


@pytest.mark.parametrize("number", OTHERS)
def test_every_spoiled_byte_of_another_coding_is_refused_or_means_something_else(
    number: int,
) -> None:
    specs = [replace(SPECS[0], tensors=(TensorSpec("w", "F32", (300,)),)), SPECS[1]]
    shards = {0: values(300, 1), 2: values(20, 2)}
    payload, decoded = encode_delta(bytes(32), shards, specs, number)
    honest = {i: shard.units.tobytes() for i, shard in decoded.items()}
    for size in range(len(payload)):
        with pytest.raises(DecodeError):
            decode_delta(payload[:size], specs)
    for at in range(4, len(payload)):
        for flip in (1, 16, 128):
            flipped = bytearray(payload)
            flipped[at] ^= flip
            try:
                got = decode_delta(bytes(flipped), specs)
            except DecodeError:
                continue
            units = {i: shard.units.tobytes() for i, shard in got.shards.items()}
            assert units != honest or (got.base_root, got.density) != (bytes(32), number)
            assert all(np.abs(shard.units).max() < 2**28 for shard in got.shards.values())
    end = 4 + int.from_bytes(payload[:4], "big")
    header, body = msgpack.unpackb(payload[4:end]), payload[end:]
    for other in {DENSITY, 4096, *OTHERS} - {number}:  # the sections are no other coding's
        with pytest.raises(DecodeError):
            decode_delta(rebuilt([*header[:2], other, header[3]], body), specs)
    rng = np.random.default_rng(number)
    for _ in range(200):  # of the right length, and from a place on of random bits
        at = int(rng.integers(0, len(body)))
        some = rng.bytes(len(body) - at) if rng.integers(2) else bytes(len(body) - at)
        try:
            got = decode_delta(payload[: end + at] + some, specs)
        except DecodeError:
            continue
        assert all(np.abs(shard.units).max() < 2**28 for shard in got.shards.values())


def test_random_bytes_are_refused_or_read_without_surprise() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        raw = rng.bytes(int(rng.integers(0, 400)))
        head = SPARSE[: int(rng.integers(0, len(SPARSE)))]
        for attempt in (raw, head + raw):
            try:
                got = sections.decode_sparse(attempt, ELEMENTS, DENSITY)
            except DecodeError:
                continue
            assert np.abs(got).max() < 2**28


def test_memory_is_bounded_by_the_model_not_by_the_payload() -> None:
    bombs = [
        rebuilt([102, bytes(32), 1, [[101, 0, [0] * 20_000]]], b""),
        rebuilt([102, bytes(32), 1, [[101, i, []] for i in range(5_000)]], b""),
        b"\x00\x0f\xff\xff\xdd\xff\xff\xff\xff" + bytes(limits.MAX_DELTA_HEADER_BYTES),
        b"\x00\x0f\xff\xfb" + b"\x91" * (limits.MAX_DELTA_HEADER_BYTES),
        rebuilt([102, bytes(32), 4096, [[101, 0, [8_000_000]]]], bytes(8_000_000)),
        rebuilt([102, bytes(32), 4096, [[101, 0, [8_000_000]]]], b"\xff" * 8_000_000),
        *(
            rebuilt([102, bytes(32), number, [[101, 0, [8_000_000]]]], bytes(8_000_000))
            for number in (INT8_NUMBER, low_rank_number(MAX_RANK))
        ),
    ]
    for bomb in bombs:
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError):
                decode_delta(bomb, SPECS)
            with pytest.raises(DecodeError):
                decode_tile(bomb, SPECS, 0, 0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 40_000_000


def test_a_payload_beyond_the_limit_is_never_parsed() -> None:
    with pytest.raises(DecodeError, match="expected 4 to"):
        decode_delta(bytes(limits.MAX_BLOB_BYTES + 1), SPECS)
