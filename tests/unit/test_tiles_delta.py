"""The delta codec against its reference vectors, its precision, and its refusals of bad input."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from chain import limits
from chain.errors import InputError
from tests.reference import delta_ref as reference
from tests.reference.merkle_ref import h, noise
from tiles import delta, merkle, sections
from tiles.codings import INT8_NUMBER, MAX_RANK, low_rank_number
from tiles.delta import (
    PayloadTile,
    decode_delta,
    decode_section,
    decode_tile,
    encode_delta,
    payload_root,
)
from tiles.layout import ShardSpec, TensorSpec
from tiles.low_rank import encode_low_rank

VECTORS = json.loads(reference.VECTORS.read_text())


def spec(index: int, coding: str, elements: int) -> ShardSpec:
    return ShardSpec(index, f"shard {index}", coding, (TensorSpec("w", "F32", (elements,)),))


def noisy(elements: int, seed: int, size: float = 1e-3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(elements) * size).astype(np.float32)


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: c["label"])
def test_vectors(case: dict[str, Any]) -> None:
    specs = [spec(3, case["coding"], case["elements"])]
    values = np.array(
        reference.values_of(case["label"], case["elements"], case["spread"]), np.float32
    )
    base = bytes.fromhex(case["base_root"])
    payload, decoded = encode_delta(base, {3: values}, specs, case["density"])
    assert case["payload"] in (payload.hex(), "")
    assert h("test", payload).hex() == case["payload_hash"]
    assert payload_root(payload).hex() == case["payload_root"]
    got = decode_delta(payload, specs)
    assert (got.base_root, got.density) == (base, case["density"])
    assert h("test", got.shards[3].units.astype("<i4").tobytes()).hex() == case["units_hash"]
    assert np.array_equal(got.shards[3].units, decoded[3].units)


@pytest.mark.parametrize("kept", [(0,), (65_535,), (0, 65_535), (70, 30_000, 65_000), range(0)])
def test_few_values_with_gaps_of_any_width(kept: tuple[int, ...]) -> None:
    units = np.zeros(65_536, np.int32)
    units[list(kept)] = 1000
    units[list(kept[:1])] = -3
    wanted, section = reference.sparse_section(units.tolist(), 64)
    decoded, made = sections.encode_sparse(units, 64, 65_536)
    assert made == [section]
    assert decoded.tolist() == wanted
    assert sections.decode_sparse(memoryview(section), 65_536, 64).tolist() == wanted


def test_several_shards_and_tiles() -> None:
    specs = [
        spec(0, "dense", 5),
        spec(1, "sparse", 100),
        spec(4, "sparse", 2**20 + 70_000),
        spec(5, "dense", 9000),
    ]
    shards = {s.index: noisy(s.elements, s.index) for s in specs if s.index != 1}
    payload, decoded = encode_delta(bytes(32), shards, specs, 64)
    got = decode_delta(payload, specs)
    assert set(got.shards) == {0, 4, 5}
    for index, quantized in decoded.items():
        floats = got.shard_float(index)
        assert floats.dtype == np.float32
        assert np.array_equal(floats.astype(np.float64) * 2**28, quantized.units)
    for tile in (0, 1):
        ints = got.tile_ints(4, tile)
        assert ints.dtype == np.int64
        assert np.array_equal(decode_tile(payload, specs, 4, tile), ints)
    assert len(got.tile_ints(4, 0)) == 2**20
    assert np.array_equal(decode_tile(payload, specs, 5, 0), got.tile_ints(5, 0))
    for ask in (
        lambda: got.tile_ints(1, 0),
        lambda: decode_tile(payload, specs, 1, 0),
        lambda: got.tile_ints(4, 2),
        lambda: decode_tile(payload, specs, 4, 2),
    ):
        with pytest.raises(InputError):
            ask()


def test_one_section_is_shown_and_decoded_alone() -> None:
    specs = [spec(0, "dense", 40), spec(2, "sparse", 150_000)]
    shards = {s.index: noisy(s.elements, s.index) for s in specs}
    payload, decoded = encode_delta(bytes(32), shards, specs, 32)
    leaves = delta.payload_leaves(payload)
    assert len(leaves) == 1 + 1 + 3
    header = delta.delta_header(payload)
    lengths = header.shards[1].lengths
    section = payload[-lengths[2] :]
    assert delta.section_hash(2, 2, section) == leaves[4]
    merkle.verify_merkle(payload_root(payload), merkle.merkle_proof(leaves, 4), leaves[4])
    rest = 150_000 - 2 * 65_536
    assert np.array_equal(
        decode_section(specs[1], rest, 32, section), decoded[2].units[2 * 65_536 :]
    )


def test_top_k_keeps_the_largest_and_ties_go_to_the_lower_index() -> None:
    one = spec(0, "sparse", 4096)
    values = np.zeros(4096, np.float32)
    values[[5, 9, 100, 4000]] = [0.5, -0.5, 0.25, 0.5]
    _, decoded = encode_delta(bytes(32), {0: values}, [one], 2)
    assert np.flatnonzero(decoded[0].units).tolist() == [5, 9]
    same = np.full(4096, -0.001, np.float32)
    _, decoded = encode_delta(bytes(32), {0: same}, [one], 7)
    assert np.flatnonzero(decoded[0].units).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("number", "most"), [(512, 0.1), (INT8_NUMBER, 0.001), (low_rank_number(4), 0.1)]
)
def test_error_feedback_brings_everything_across(number: int, most: float) -> None:
    """What one round drops, the next ones carry: the sum of payloads follows the sum of inputs."""
    one = spec(0, "sparse", 8192)
    step, residual = noisy(8192, 7), np.zeros(8192, np.float32)
    sent = np.zeros(8192, np.float64)
    rounds = 60
    for _ in range(rounds):
        wanted = residual + step
        _, decoded = encode_delta(bytes(32), {0: wanted}, [one], number)
        residual = wanted - decoded[0].floats()
        sent += decoded[0].floats()
    gap = np.linalg.norm(sent / rounds - step) / np.linalg.norm(step)
    assert gap < most


def test_precision_and_size() -> None:
    sparse, dense = spec(0, "sparse", 2**20), spec(1, "dense", 20_000)
    shards = {0: noisy(2**20, 1), 1: noisy(20_000, 2)}
    payload, decoded = encode_delta(bytes(32), shards, [sparse, dense], 64)
    assert len(payload) < 20_900 + 2 * 20_000 + 200  # 20 KiB a tile at 64 of 4096
    largest = np.abs(shards[1]).max()
    assert np.abs(decoded[1].floats() - shards[1]).max() <= largest / 2**15
    kept = decoded[0].units != 0
    assert np.count_nonzero(kept) == 64 * 256
    error = np.abs(decoded[0].floats() - shards[0])[kept]
    assert error.mean() < 0.1 * np.abs(shards[0][kept]).mean()


def test_int8_sends_every_value_in_a_byte() -> None:
    one, values = spec(0, "sparse", 70_000), noisy(70_000, 3)
    payload, decoded = encode_delta(bytes(32), {0: values}, [one], INT8_NUMBER)
    assert len(payload) < 70_000 + 18 + 100
    error = np.abs(decoded[0].floats() - values)
    assert error.max() <= np.abs(values).max() / 127
    tile = PayloadTile(payload, [one], 0, 0)
    assert np.array_equal(np.concatenate([tile.part(i).values for i in (0, 1)]), decoded[0].units)
    assert np.array_equal(decode_tile(payload, [one], 0, 0), decoded[0].units)


def test_a_low_rank_delta_is_told_by_its_components() -> None:
    one, rng = spec(0, "sparse", 70_000), np.random.default_rng(5)
    tall, wide = rng.standard_normal((274, 3)), rng.standard_normal((3, 256))
    values = (tall @ wide * 1e-3).astype(np.float32).reshape(-1)[:70_000]
    sizes, errors = [], []
    for rank in (1, 3, 6):
        payload, decoded = encode_delta(bytes(32), {0: values}, [one], low_rank_number(rank))
        sizes.append(len(payload))
        errors.append(np.linalg.norm(values - decoded[0].floats()) / np.linalg.norm(values))
        tile = PayloadTile(payload, [one], 0, 0)
        got = np.concatenate([tile.part(i).values for i in (0, 1)])
        assert np.array_equal(got, decoded[0].units)
    assert sizes[2] < 6 * 512 + 6 * (18 + 256) + 100
    assert errors[0] > 0.3 > 0.06 > errors[1] > 2 * errors[2]


def test_the_search_stays_in_range_whatever_it_is_given() -> None:
    """Every sum that float64 has to hold is far below 2**53, so the bytes are the same anywhere."""
    edge = np.nextafter(np.float32(1), np.float32(0))
    rng = np.random.default_rng(6)
    for values in (
        rng.choice([-edge, edge], 65_536).astype(np.float32),
        np.eye(256, dtype=np.float32).reshape(-1) * edge,
        np.where(np.arange(65_536) < 256, edge, np.float32(2**-28)),
    ):
        _, (section,) = encode_low_rank(
            delta.to_units(values, spec(0, "sparse", 65_536)), MAX_RANK, 65_536
        )
        assert len(section) == 1 + MAX_RANK * 512


@pytest.mark.parametrize("number", [4096, INT8_NUMBER, low_rank_number(3)])
def test_extremes_stay_in_range(number: int) -> None:
    edge = np.nextafter(np.float32(1), np.float32(0))
    specs = [spec(0, "sparse", 4096), spec(1, "dense", 4096)]
    values = np.full(4096, -edge, np.float32)
    payload, _ = encode_delta(bytes(32), {0: values, 1: values}, specs, number)
    got = decode_delta(payload, specs)
    for index in (0, 1):
        units = got.shards[index].units
        assert np.abs(units).max() < 2**28
        assert units.min() < -(2**28) * 0.99


@pytest.mark.parametrize(
    ("shards", "density", "message"),
    [
        ({0: np.array([np.nan] * 4, np.float32)}, 4, "not finite or not below 1"),
        ({0: np.array([np.inf] * 4, np.float32)}, 4, "not finite or not below 1"),
        ({0: np.array([0, 0, -1, 0], np.float32)}, 4, "not finite or not below 1"),
        ({0: np.zeros(5, np.float32)}, 4, r"expected float32 \(4,\)"),
        ({0: np.zeros((2, 2), np.float32)}, 4, r"expected float32 \(4,\)"),
        ({0: np.zeros(4)}, 4, r"expected float32 \(4,\)"),
        ({1: np.zeros(4, np.float32)}, 4, "no shard 1"),
        ({0: np.zeros(4, np.float32)}, 0, "density 0"),
        ({0: np.zeros(4, np.float32)}, 4097, "density 4097"),
    ],
)
def test_bad_input_is_refused(shards: dict[int, np.ndarray], density: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_delta(bytes(32), shards, [spec(0, "sparse", 4)], density)


def test_too_large_a_payload_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BLOB_BYTES", 1000)
    with pytest.raises(InputError, match="lower the density"):
        encode_delta(bytes(32), {0: noisy(4096, 1)}, [spec(0, "sparse", 4096)], 4096)


def test_noise_of_the_vectors_is_stable() -> None:
    assert struct.unpack("<h", noise("one value", 2))[0] * 2.0**-20 != 0
