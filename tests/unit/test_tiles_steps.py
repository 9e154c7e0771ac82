"""Steps between a tile's versions: vectors, the aggregation's very bytes, refusals."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import DecodeError, InputError, VerifyError
from chain.hashes import Hash32
from tests.reference import steps_ref as reference
from tests.reference.merkle_ref import h
from tiles.aggregate import aggregate_tile
from tiles.delta import decode_tile, encode_delta
from tiles.layout import ShardSpec, TensorSpec
from tiles.merkle import shard_root, tile_root
from tiles.steps import DeltaSections, TileStep, apply_step, make_step
from tiles.store import TileStore

VECTORS = json.loads(reference.VECTORS.read_text())
BASE = Hash32(bytes(32))
OTHER = ShardSpec(1, "other", "sparse", (TensorSpec("w", "F32", (8,)),))


def spec_of(coding: str, elements: int, index: int = reference.SHARD) -> ShardSpec:
    return ShardSpec(index, "shard", coding, (TensorSpec("w", "F32", (elements,)),))


def payload(spec: ShardSpec, seed: int, density: int = 64, size: float = 1e-3) -> bytes:
    values = np.random.default_rng(seed).standard_normal(spec.elements) * size
    return encode_delta(BASE, {spec.index: values.astype(np.float32)}, [spec], density)[0]


def weights_bytes(spec: ShardSpec, seed: int = 99) -> bytes:
    values = np.random.default_rng(seed).standard_normal(spec.elements) * 0.05
    return values.astype("<f4").tobytes()


def one_step(spec: ShardSpec, count: int = 3) -> tuple[TileStep, bytes, bytes]:
    """A step over tile 0, its base and its result."""
    payloads = [payload(spec, seed) for seed in range(count)]
    base = weights_bytes(spec)[: spec.tile_bytes(0)]
    done = aggregate_tile(base, [decode_tile(p, [spec], spec.index, 0) for p in payloads])
    deltas = [DeltaSections(p, [spec]) for p in payloads]
    step = make_step(spec, 0, tile_root(base), done.new_root, deltas, done.weights)
    assert step is not None
    return step, base, done.new_tile


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: c["label"])
def test_vectors(case: dict[str, Any]) -> None:
    spec = spec_of(case["coding"], case["elements"])
    deltas, weights = [], []
    for number, (density, weight, trained) in enumerate(case["deltas"]):
        label = reference.delta_label(case, number)
        values = np.array(reference.values_of(label, case["elements"], 22), np.float32)
        target = spec if trained else OTHER
        part = values if trained else values[:8]
        raw, _ = encode_delta(BASE, {target.index: part}, [spec, OTHER], density)
        deltas.append(DeltaSections(raw, [spec, OTHER]))
        weights.append(weight)
    roots = [Hash32(bytes.fromhex(case[name])) for name in ("base_root", "new_root")]
    step = make_step(spec, reference.TILE, *roots, deltas, weights)
    if case["step_bytes"] >= spec.tile_bytes(0):
        assert step is None
        step = decode(TileStep, bytes.fromhex(case["step"]))
    assert step is not None
    raw = encode(step)
    assert (len(raw), h("test", raw).hex()) == (case["step_bytes"], case["step_hash"])
    assert case["step"] in (raw.hex(), "")
    base = struct.pack(f"<{case['elements']}f", *reference.base_of(case))
    assert tile_root(apply_step(spec, step, base)).hex() == case["new_root"]


def test_a_step_gives_the_aggregations_bytes_in_every_tile() -> None:
    spec = spec_of("sparse", (limits.TILE_BYTES + limits.SUBTILE_BYTES + 400) // 4)
    payloads = [payload(spec, seed, density=8) for seed in range(6)]
    deltas = [DeltaSections(p, [spec]) for p in payloads]
    whole = weights_bytes(spec)
    for tile in range(spec.tile_count):
        base = whole[slice(*spec.tile_range(tile))]
        ints = [decode_tile(p, [spec], spec.index, tile) for p in payloads]
        done = aggregate_tile(base, ints)
        step = make_step(spec, tile, tile_root(base), done.new_root, deltas, done.weights)
        assert step is not None
        assert decode(TileStep, encode(step), most=limits.MAX_STEP_BYTES) == step
        assert len(encode(step)) < len(base) / 20
        assert apply_step(spec, step, bytearray(base)) == done.new_tile


def test_what_adds_nothing_is_left_out() -> None:
    spec = spec_of("sparse", 9000)
    deltas = [DeltaSections(payload(spec, 1), [spec]), DeltaSections(payload(spec, 2), [spec])]
    root = tile_root(weights_bytes(spec))
    step = make_step(spec, 0, root, root, deltas, (0, 0))
    assert step is not None
    assert (step.densities, step.weights, step.sections) == ((), (), ())
    assert apply_step(spec, step, weights_bytes(spec)) == weights_bytes(spec)
    assert deltas[0].tile(spec.index + 1, 0) == ()


def test_a_step_longer_than_its_tile_is_none() -> None:
    spec = spec_of("dense", 5000)
    deltas = [DeltaSections(payload(spec, seed), [spec]) for seed in range(2)]
    assert make_step(spec, 0, BASE, BASE, deltas[:1], (5,)) is not None
    assert make_step(spec, 0, BASE, BASE, deltas, (5, 5)) is None
    with pytest.raises(InputError, match="1 weights for 2"):
        make_step(spec, 0, BASE, BASE, deltas, (5,))


def test_a_payload_of_another_model_is_refused() -> None:
    spec = spec_of("sparse", 9000)
    with pytest.raises(DecodeError):
        DeltaSections(payload(spec, 1), [spec_of("sparse", 90_000)])
    with pytest.raises(DecodeError):
        DeltaSections(payload(spec, 1)[:-1], [spec])


def changes(step: TileStep) -> dict[str, TileStep]:
    cut = step.sections[0]
    flipped = bytes([cut[0][0] ^ 1]) + cut[0][1:]
    return {
        "another shard": replace(step, shard=step.shard + 1),
        "another tile": replace(step, tile=7),
        "another base": replace(step, base_root=BASE),
        "another result": replace(step, new_root=BASE),
        "one density too few": replace(step, densities=step.densities[1:]),
        "density 0": replace(step, densities=(0, *step.densities[1:])),
        "density too high": replace(step, densities=(4097, *step.densities[1:])),
        "weight 0": replace(step, weights=(0, *step.weights[1:])),
        "weights above 1": replace(step, weights=(2**20, *step.weights[1:])),
        "another weight": replace(step, weights=(step.weights[0] - 1, *step.weights[1:])),
        "a section short": replace(step, sections=(cut[:-1], *step.sections[1:])),
        "a section more": replace(step, sections=((*cut, b""), *step.sections[1:])),
        "an empty section": replace(step, sections=((b"", *cut[1:]), *step.sections[1:])),
        "a flipped bit": replace(step, sections=((flipped, *cut[1:]), *step.sections[1:])),
        "a delta less": replace(
            step,
            densities=step.densities[1:],
            weights=step.weights[1:],
            sections=step.sections[1:],
        ),
    }


CHANGES = tuple(changes(one_step(spec_of("sparse", 70_000))[0]))


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_that_is_not_sound_is_refused(name: str) -> None:
    spec = spec_of("sparse", 70_000)
    step, base, new = one_step(spec)
    assert apply_step(spec, step, base) == new
    with pytest.raises(VerifyError):
        apply_step(spec, changes(step)[name], base)


def test_a_wrong_base_is_refused() -> None:
    spec = spec_of("sparse", 70_000)
    step, base, new = one_step(spec)
    for wrong in (new, base[:-4], b""):
        with pytest.raises(VerifyError):
            apply_step(spec, step, wrong)
    bits = ShardSpec(spec.index, "shard", "sparse", (TensorSpec("w", "F32", (70_000,)),))
    assert apply_step(bits, step, memoryview(base).cast("f")) == new


def test_limits_of_the_wire_form() -> None:
    spec = spec_of("sparse", 70_000)
    step, _, _ = one_step(spec)
    many = replace(step, sections=(step.sections[0],) * (limits.MAX_DELTAS + 1))
    long = replace(step, sections=((bytes(limits.MAX_SECTION_BYTES + 1),),))
    for wrong in (many, long):
        with pytest.raises(DecodeError):
            encode(wrong)


def test_the_longest_steps_are_read_back(tmp_path: Path) -> None:
    """All elements of seven deltas: longer than any message, shorter than the tile."""
    spec = spec_of("sparse", limits.TILE_BYTES // 4, index=0)
    payloads = [payload(spec, seed, density=4096) for seed in range(7)]
    base = weights_bytes(spec)
    done = aggregate_tile(base, [decode_tile(p, [spec], 0, 0) for p in payloads])
    deltas = [DeltaSections(p, [spec]) for p in payloads]
    step = make_step(spec, 0, tile_root(base), done.new_root, deltas, done.weights)
    assert step is not None
    assert limits.MAX_MESSAGE_BYTES < len(encode(step)) < limits.MAX_STEP_BYTES
    old, new = (shard_root([tile_root(data)], spec.data_bytes) for data in (base, done.new_tile))
    with TileStore(tmp_path, [spec]) as store:
        store.put_shard(0, base, old)
        assert store.apply(0, old, {0: done.new_tile}) == new
        store.put_steps(0, new, old, [step])
        store.thin(0, new)
        assert store.read_shard(0, new) == done.new_tile
        assert store.scrub() == []
