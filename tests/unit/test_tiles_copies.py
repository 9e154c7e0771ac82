"""Copies of a delta among others (docs/spec/pol.md, "Copies")."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from chain.hashes import Hash32
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.copies import SUBTILES, Place, Sample, drawn, is_copy, sample
from tiles.delta import CutPayload, encode_delta
from tiles.layout import SUBTILE_ELEMENTS, ShardSpec, TensorSpec

Floats = npt.NDArray[np.float32]
SEED = Hash32(b"s" * 32)
ROOT = Hash32(bytes(32))


def spec(index: int, elements: int, coding: str = "sparse") -> ShardSpec:
    return ShardSpec(index, f"shard {index}", coding, (TensorSpec("w", "F32", (elements,)),))


SPECS = [spec(i, 5000) for i in range(4)] + [spec(4, 100, "dense")]
PLACES = drawn(SEED, SPECS)


def noise(*seed: int) -> dict[int, Floats]:
    chance = np.random.default_rng(seed)
    return {s.index: chance.normal(0, 1e-3, s.elements).astype(np.float32) for s in SPECS}


def mixed(own: dict[int, Floats], common: dict[int, Floats], share: float) -> dict[int, Floats]:
    """Deltas with a part in common: their cosine is its square."""
    rest = np.float32((1 - share**2) ** 0.5)
    return {i: np.float32(share) * common[i] + rest * own[i] for i in own}


def sent(shards: dict[int, Floats], density: int = 512) -> Sample:
    payload, _ = encode_delta(ROOT, shards, SPECS, density)
    return sample(CutPayload(payload, SPECS), PLACES, SPECS)


@pytest.mark.parametrize("density", [512, INT8_NUMBER, low_rank_number(8)])
def test_the_same_delta_twice_is_a_copy_and_another_is_none(density: int) -> None:
    first, other = sent(noise(1), density), sent(noise(2), density)
    assert is_copy(first, [first], PLACES)
    assert is_copy(first, [other, first], PLACES)
    assert not is_copy(first, [other], PLACES)
    assert not is_copy(first, [], PLACES)


def test_a_copy_is_told_through_noise_length_and_density() -> None:
    shards = noise(1)
    first = sent(shards)
    shorter = {i: v * np.float32(0.3) for i, v in shards.items()}
    for other in (mixed(noise(2), shards, 0.995), shorter):
        assert is_copy(sent(other), [first], PLACES)
    assert is_copy(sent(shards, 400), [first], PLACES)


@pytest.mark.parametrize("density", [512, INT8_NUMBER])
def test_deltas_with_much_in_common_are_none(density: int) -> None:
    """As alike as any that were measured of the same text (docs/spec/pol.md)."""
    common = noise(0)
    made = [sent(mixed(noise(i), common, 0.7**0.5), density) for i in (1, 2, 3)]
    for a, b in itertools.permutations(made, 2):
        assert not is_copy(a, [b], PLACES)


def test_nobody_is_a_copy_of_what_all_have_in_common() -> None:
    """What was trained on everybody's data is nearer to each than they are to each other."""
    common = noise(0)
    deltas = [mixed(noise(i), common, 0.7**0.5) for i in range(1, 9)]
    mean = {i: np.mean([d[i] for d in deltas], axis=0, dtype=np.float32) for i in common}
    first = sent(mean, INT8_NUMBER)
    assert not any(is_copy(sent(d, INT8_NUMBER), [first], PLACES) for d in deltas)


def test_a_few_places_tell_nothing() -> None:
    """What is alike at one place of two may be alike by nature: the output head is."""
    one, other = noise(1), noise(2)
    first = sent({0: one[0], 4: one[4]})
    assert not is_copy(sent({0: one[0], 4: other[4]}), [first], PLACES)


def test_what_is_much_longer_is_no_original() -> None:
    shards = noise(1)
    long = {i: v * np.float32(50) for i, v in shards.items()}
    assert not is_copy(sent(shards), [sent(long)], PLACES)


def test_the_opposite_is_no_copy() -> None:
    shards = noise(1)
    flipped = {i: -v for i, v in shards.items()}
    assert not is_copy(sent(flipped), [sent(shards)], PLACES)


def test_parts_that_both_hold_decide() -> None:
    """Who holds other experts has the trunk in common at most; what nobody has tells nothing."""
    one, other = noise(1), noise(2)
    first = sent({i: one[i] for i in (0, 1, 4)})
    first = sent({i: one[i] for i in (0, 1, 2, 4)})
    assert is_copy(sent({i: one[i] for i in (0, 1, 2, 4)}), [first], PLACES)
    assert not is_copy(sent({0: one[0], 2: other[2], 3: other[3]}), [first], PLACES)
    nothing = sent({})
    assert not is_copy(nothing, [first, nothing], PLACES)


def test_places_are_drawn_by_the_seed_among_sparse_shards() -> None:
    large = [spec(0, 9, "dense"), spec(1, 3), spec(2, 40 * SUBTILE_ELEMENTS + 7), spec(3, 100)]
    found = drawn(SEED, large)
    assert found == drawn(SEED, large) != drawn(Hash32(b"t" * 32), large)
    assert len(set(found)) == SUBTILES
    seen = {p for i in range(300) for p in drawn(Hash32(i.to_bytes(32, "big")), large)}
    assert {p.shard for p in seen} == {1, 2, 3}
    assert Place(2, 2, 8, 7) in seen  # the last: subtile 40 of its shard, 16 a tile
    assert Place(2, 1, 15, SUBTILE_ELEMENTS) in seen
    assert len(drawn(SEED, large[:2])) == 1  # as many as there are
    assert drawn(SEED, large[:1]) == ()
