"""Aggregation: vectors, exactness, robust weights, and the witness of the Gram matrix."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import InputError, VerifyError
from chain.hashes import Hash32
from chain.transactions import TileChange
from tests.reference import aggregate_ref as reference
from tests.reference.merkle_ref import h, noise
from tiles import merkle
from tiles.aggregate import aggregate_tile, apply, check_weights, weights
from tiles.delta import PayloadTile, decode_tile, encode_delta
from tiles.gram import GramEntry, gram, gram_entry, verify_entry
from tiles.layout import SUBTILE_ELEMENTS, ShardSpec, TensorSpec
from tiles.momentum import share_of
from tiles.parts import NoDelta, TileDelta

VECTORS = json.loads(reference.VECTORS.read_text())
ONE = 2**20


def delta(seed: int, elements: int = 70_000, size: float = 1e-3, density: float = 0.05) -> Any:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(elements) * size * 2**28).astype(np.int64)
    values[rng.random(elements) > density] = 0
    return values


def learners(count: int, seed: int = 0, elements: int = 20_000) -> list[Any]:
    """Deltas with a common direction and as much noise of their own."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(elements)
    return [
        ((common + rng.standard_normal(elements)) * 1e-3 * 2**28).astype(np.int64)
        for _ in range(count)
    ]


def base(elements: int, seed: int = 99) -> bytes:
    return (np.random.default_rng(seed).standard_normal(elements) * 0.05).astype("<f4").tobytes()


def shares(deltas: list[Any]) -> list[float]:
    return [w / ONE for w in aggregate_tile(base(len(deltas[0])), deltas).weights]


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"{c['deltas']} deltas")
def test_vectors(case: dict[str, Any]) -> None:
    n, elements = case["deltas"], case["elements"]
    deltas = [np.array(reference.delta_of(f"delta {n} {i}", elements, 8 + i % 3)) for i in range(n)]
    if n == 7:
        deltas[5] = deltas[6] = -sum(deltas[:5]) // 8
    if n == 8:
        deltas[2], deltas[5] = -8 * deltas[1], np.zeros(elements, np.int64)
    old = (np.frombuffer(noise(f"base {n}", 2 * elements), "<i2") * 2.0**-17).astype("<f4")
    result = aggregate_tile(old.tobytes(), deltas)
    assert [str(total) for total in result.gram.totals] == case["gram"]
    assert result.gram_root.hex() == case["gram_root"]
    assert list(result.weights) == case["weights"]
    assert h("test", result.new_tile).hex() == case["tile_hash"]
    before = np.array(reference.previous_of([float(v) for v in old]), "<f4").tobytes()
    gone = aggregate_tile(old.tobytes(), deltas, before, share_of(case["momentum_ppm"]))
    assert h("test", gone.new_tile).hex() == case["momentum_hash"]
    assert gone.weights == result.weights
    assert result.new_root == merkle.tile_root(result.new_tile)


def test_momentum_goes_on_where_it_went() -> None:
    """Exactly twice the way for a share that is almost one, and none where nothing was."""
    old = base(70_000)
    step = np.float32(2**-10)
    new = (np.frombuffer(old, "<f4") + step).astype("<f4")
    new[::3] = np.frombuffer(old, "<f4")[::3]
    none = np.zeros(70_000, np.int64)
    made = np.frombuffer(aggregate_tile(new.tobytes(), [none], old, ONE // 2).new_tile, "<f4")
    assert np.array_equal(made[::3], new[::3])
    went = made.astype(np.float64) - new
    assert np.abs(went[1::3] - step / 2).max() < 2**-27
    still = aggregate_tile(new.tobytes(), [none], new.tobytes(), ONE // 2)
    assert still.new_tile == new.tobytes()
    assert aggregate_tile(new.tobytes(), [none]).new_tile == new.tobytes()


def test_momentum_of_what_is_no_number_is_none() -> None:
    wild = np.array([np.nan, np.inf, 1, 2.0**100, -1, -0.0, 3e38], "<f4")
    before = np.array([1, 1, np.nan, -(2.0**100), np.inf, 0.0, 3e38], "<f4")
    none = np.zeros(7, np.int64)
    made = aggregate_tile(wild.tobytes(), [none], before.tobytes(), ONE // 2).new_tile
    assert made == wild.tobytes()  # 2^100 moves by less than its last bit
    least = np.array([0.75], "<f4")
    made = aggregate_tile(least.tobytes(), [none[:1]], np.array([-3.5], "<f4").tobytes(), ONE // 2)
    assert np.frombuffer(made.new_tile, "<f4") == 1.25  # by half of 1 and not of 4.25


@pytest.mark.parametrize(("share", "size"), [(-1, 12), (ONE, 12), (1, 8)])
def test_momentum_out_of_range(share: int, size: int) -> None:
    with pytest.raises(InputError, match="momentum"):
        aggregate_tile(bytes(12), [np.zeros(3, np.int64)], bytes(size), share)


def test_no_one_and_two_deltas() -> None:
    old = base(70_000)
    nothing = aggregate_tile(old, [])
    assert (nothing.new_tile, nothing.weights, nothing.gram_total_bytes) == (old, (), b"")
    assert check_weights(b"", ())
    one = aggregate_tile(old, [delta(1)])
    assert one.weights == (ONE,)
    expected = np.frombuffer(old, "<f4") + (delta(1) / 2**28).astype(np.float64)
    assert np.array_equal(np.frombuffer(one.new_tile, "<f4"), expected.astype(np.float32))
    for w in shares([delta(1), delta(2)]):
        assert 0.47 < w <= 0.5


def test_a_few_alike_are_about_the_plain_mean() -> None:
    for count in (2, 3, 4, 8, 16):
        w = shares(learners(count))
        assert 0.9 < sum(w) <= 1.0
        deltas = learners(count)
        mean = sum(deltas) / count
        got = sum(a * d for a, d in zip(w, deltas, strict=True))
        assert np.linalg.norm(got - mean) < 0.25 * np.linalg.norm(mean)


def test_zero_deltas_have_no_weight_and_no_say() -> None:
    zero = np.zeros(70_000, np.int64)
    alone = shares([delta(1), delta(2)])
    assert shares([zero, delta(1), zero, delta(2)]) == [0, alone[0], 0, alone[1]]
    result = aggregate_tile(base(70_000), [zero, zero])
    assert result.weights == (0, 0)
    assert result.new_tile == base(70_000)


def test_short_deltas_are_not_everyones_nearest() -> None:
    """Honest deltas of a tile are nearly orthogonal. By distance, two that pull their mean back and
    are short would be nearer to every honest one than the others."""
    rng = np.random.default_rng(5)
    common = rng.standard_normal(20_000)
    honest = [common + 5 * rng.standard_normal(20_000) for _ in range(6)]
    mean = np.mean(honest, axis=0)
    bad = -mean * (0.4 * np.linalg.norm(honest[0]) / np.linalg.norm(mean))
    deltas = [(d * 1e-4 * 2**28).astype(np.int64) for d in (*honest, bad, bad)]

    def distance(a: Any, b: Any) -> float:
        return float(np.linalg.norm(deltas[a].astype(float) - deltas[b]))

    assert distance(0, 6) < min(distance(0, i) for i in range(1, 6))
    w = shares(deltas)
    assert max(w[6:]) < 0.03 < 0.14 < min(w[:6])


def test_flipped_signs_are_bounded() -> None:
    """2 of 8 with signs flipped, ten times as long. A plain mean goes backwards."""
    deltas = learners(8)
    honest_mean = sum(deltas[2:]) / 6
    deltas[0], deltas[1] = deltas[0] * -10, deltas[1] * -10
    w = shares(deltas)
    got = sum(a * d for a, d in zip(w, deltas, strict=True))

    def along(v: Any) -> float:
        return float(v @ honest_mean / (honest_mean @ honest_mean))

    assert along(sum(deltas) / 8) < 0
    assert along(got) > 0.6
    assert all(
        a * np.linalg.norm(d) <= np.linalg.norm(deltas[2]) / 6
        for a, d in zip(w[:2], deltas, strict=False)
    )


def test_a_huge_delta_does_not_blind_the_rule_to_the_others() -> None:
    deltas = learners(6)
    huge = np.clip(deltas[0] * 2000, -(2**28) + 1, 2**28 - 1)
    w = shares([huge, *deltas[1:]])
    assert w[0] < 0.01
    assert all(a > 0.1 for a in w[1:])


def test_order_permutes_the_weights_and_changes_no_byte() -> None:
    deltas = [delta(i, size=1e-3 * (1 + i / 10)) for i in range(7)]
    first = aggregate_tile(base(70_000), deltas)
    order = [3, 1, 6, 0, 5, 2, 4]
    second = aggregate_tile(base(70_000), [deltas[i] for i in order])
    assert second.new_tile == first.new_tile
    assert second.weights == tuple(first.weights[i] for i in order)


def test_a_part_of_a_tile_comes_out_as_in_the_whole() -> None:
    deltas = [delta(i) for i in range(3)]
    whole = aggregate_tile(base(70_000), deltas)
    cut = slice(65_536, None)
    part = apply(base(70_000)[65_536 * 4 :], [d[cut] for d in deltas], whole.weights)
    assert part == whole.new_tile[65_536 * 4 :]


def test_elements_that_keep_their_bits() -> None:
    special = np.array([0x7FC12345, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    x = np.array([5, 5, -5, 0, 0])
    assert apply(special.tobytes(), [x], (ONE,)) == special.tobytes()
    largest = np.array([3.4028235e38, -3.4028235e38], np.float32)
    reach = np.array([2**28 - 1, 1 - 2**28])
    assert apply(largest.tobytes(), [reach], (ONE,)) == largest.tobytes()
    cancelled = apply(np.float32(-0.5).tobytes(), [np.array([2**27])], (ONE,))
    assert cancelled == np.float32(0.0).tobytes()


def test_gram_entries_are_exact_at_the_extremes() -> None:
    top = np.full(65_536 * 2, 2**28 - 1, np.int64)
    table = gram([top, -top, np.arange(len(top))])
    edge = (2**28 - 1) ** 2 * len(top)
    ramp = (2**28 - 1) * len(top) * (len(top) - 1) // 2
    assert table.totals[:5] == [edge, -edge, edge, ramp, -ramp]
    assert gram_entry(top[:65_536], -top[65_536:]) == -edge // 2


@pytest.mark.parametrize(
    ("old", "deltas", "w", "message"),
    [
        (bytes(8), [np.array([1, 2**28])], (ONE,), "reaches"),
        (bytes(8), [np.array([1, -(2**28)])], (ONE,), "reaches"),
        (bytes(8), [np.array([-(2**63), 0])], (ONE,), "reaches"),
        (bytes(8), [np.array([0.5, 0.5])], (ONE,), "integer vectors"),
        (bytes(8), [np.array([1, 2]), np.array([1])], (1, 1), "of one length"),
        (bytes(8), [np.array([[1, 2]])], (1,), "integer vectors"),
        (bytes(8), [np.array([1, 2])] * 65, (1,) * 65, "at most 64"),
        (bytes(12), [np.array([1, 2])], (1,), "differ in size"),
        (bytes(7), [], (), "differ in size"),
        (bytes(8), [np.array([1, 2])], (ONE + 1,), "sum of at most 1"),
        (bytes(8), [np.array([1, 2])], (-1,), "none negative"),
        (bytes(8), [np.array([1, 2])], (), "one a delta"),
    ],
)
def test_bad_input_is_refused(old: bytes, deltas: list[Any], w: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply(old, deltas, w)


def test_the_result_fits_a_tile_change_and_its_weights_can_be_checked() -> None:
    deltas = [delta(i, 300) for i in range(limits.MAX_DELTAS)]
    result = aggregate_tile(base(300), deltas)
    change = TileChange(
        0, 0, bytes(32), result.new_root, result.gram_root, result.gram_total_bytes, result.weights
    )
    assert decode(TileChange, encode(change)) == change
    assert check_weights(change.gram, change.weights)
    assert weights([[1]]) == (ONE,)


def test_wrong_weights_are_seen() -> None:
    result = aggregate_tile(base(70_000), [delta(i) for i in range(3)])
    raw, w = result.gram_total_bytes, result.weights
    assert check_weights(raw, w)
    assert check_weights(raw, list(w))
    for claimed in ((w[0] + 1, *w[1:]), (*w, 0), w[:2], (), (w[1], w[0], w[2])):
        assert not check_weights(raw, claimed)
    assert not check_weights(raw[:-1], w)
    assert not check_weights(b"", w)


def test_a_gram_entry_is_shown_alone() -> None:
    deltas = [delta(i, 140_000) for i in range(4)]
    result = aggregate_tile(base(140_000), deltas)
    entry = result.gram.prove(2, 1)
    verify_entry(result.gram_root, 4, entry)
    assert decode(GramEntry, encode(entry)) == entry
    assert len(encode(entry)) < 2000
    part = slice(65_536, 131_072)
    assert entry.values()[1] == gram_entry(deltas[2][part], deltas[1][part])
    assert sum(entry.values()) == result.gram.totals[4]
    for lie in (
        replace(entry, parts=(entry.parts[0], entry.parts[0], entry.parts[2])),
        replace(entry, parts=entry.parts[:2]),
        replace(entry, row=3),
        replace(entry, column=0),
        replace(entry, row=200),
        replace(entry, row=1, column=2),
        replace(entry, proof=replace(entry.proof, index=5)),
    ):
        with pytest.raises(VerifyError):
            verify_entry(result.gram_root, 4, lie)
    with pytest.raises(VerifyError):
        verify_entry(result.gram_root, 5, entry)


@pytest.mark.parametrize(
    "values",
    [
        [2**28 - 1] * 65_536,  # sums beyond 2**53: halves
        [-(2**28) + 1, 2**28 - 1, 1] * 1000,
        [255 << 20, -(129 << 20)] * 32_768,  # wide, but zeros at the end of all of them
        [(1 << 18) - 1] * 65_536,  # the largest that one product bears
        [1 << 27, 3] * 5_000,
        [0] * 10,
    ],
    ids=lambda v: f"{v[0]} x {len(v)}",
)
def test_inner_products_are_exact_at_any_size(values: list[int]) -> None:
    other = [v if i % 3 else -v for i, v in enumerate(values)]
    found = gram([np.array(values), np.array(other, np.int32)])
    assert found.totals[0] == sum(v * v for v in values)
    assert found.totals[1] == sum(a * b for a, b in zip(values, other, strict=True))
    assert found.totals[2] == sum(v * v for v in other)


def payloads(count: int, elements: int, density: int) -> tuple[list[bytes], list[ShardSpec]]:
    spec = ShardSpec(4, "e", "sparse", (TensorSpec("w", "F32", (elements,)),))
    rng = np.random.default_rng(7)
    common = rng.standard_normal(elements) * 1e-3
    made = []
    for _ in range(count):
        values = (common + rng.standard_normal(elements) * 1e-3).astype(np.float32)
        made.append(encode_delta(Hash32(bytes(32)), {4: values}, [spec], density)[0])
    return made, [spec]


@pytest.mark.parametrize("most_bytes", [0, limits.MAX_DELTAS * 40_000, 2**30])
def test_tiles_out_of_payloads_aggregate_like_vectors(most_bytes: int) -> None:
    elements = 2 * SUBTILE_ELEMENTS + 5_000
    made, specs = payloads(6, elements, 256)
    whole = aggregate_tile(base(elements), [decode_tile(p, specs, 4, 0) for p in made])
    parts: list[TileDelta | Any] = [PayloadTile(p, specs, 4, 0, most_bytes) for p in made]
    assert aggregate_tile(base(elements), parts) == whole
    some = aggregate_tile(base(elements), [*parts[:2], NoDelta(elements)])
    zeros = [np.zeros(elements, np.int64)]
    vectors = [decode_tile(p, specs, 4, 0) for p in made[:2]]
    assert some == aggregate_tile(base(elements), vectors + zeros)


def test_32_deltas_of_a_whole_tile_take_little_memory() -> None:
    elements = limits.TILE_BYTES // 4
    made, specs = payloads(32, elements, 256)
    tile = base(elements)
    tracemalloc.start()
    try:
        aggregate_tile(tile, [PayloadTile(p, specs, 4, 0) for p in made])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * 10**6
