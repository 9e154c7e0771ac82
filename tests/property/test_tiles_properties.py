"""Properties of trees, delta payloads and aggregation, for any input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.reference import aggregate_ref, merkle_ref
from tests.reference import delta_ref as reference
from tiles import merkle
from tiles.aggregate import aggregate_tile, apply
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.delta import decode_delta, encode_delta
from tiles.layout import ShardSpec, TensorSpec
from tiles.weights import weights

FAST = settings(derandomize=True, deadline=None, max_examples=60)
HASHES = st.integers(0, 2**16).map(lambda i: i.to_bytes(32, "big"))


@FAST
@given(st.lists(HASHES, min_size=1, max_size=150), st.data())
def test_every_entry_of_a_list_has_a_proof(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = merkle.merkle_root(leaves)
    assert root == merkle_ref.root("list", leaves, 0)
    proof = merkle.merkle_proof(leaves, index)
    assert list(proof.siblings) == merkle_ref.proof("list", leaves, index)
    merkle.verify_merkle(root, proof, leaves[index])


def floats(bound: float) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-bound, bound, width=32, exclude_max=True, exclude_min=True)
    sizes = st.integers(1, 300)
    return hnp.arrays(np.float32, sizes, elements=elements, fill=st.just(np.float32(0)))


@FAST
@given(
    floats(1.0),
    st.integers(1, 80) | st.sampled_from([INT8_NUMBER, *map(low_rank_number, (1, 2, 64))]),
    st.sampled_from(["sparse", "dense"]),
)
def test_encoding_is_the_references_and_decodes_to_what_the_encoder_said(
    values: np.ndarray, density: int, coding: str
) -> None:
    spec = ShardSpec(0, "s", coding, (TensorSpec("w", "F32", (len(values),)),))
    payload, decoded = encode_delta(bytes(32), {0: values}, [spec], density)
    got = decode_delta(payload, [spec]).shards[0]
    assert np.array_equal(got.units, decoded[0].units)
    expected, _, units = reference.payload(bytes(32), density, [(0, coding, values.tolist())])
    assert payload == expected
    assert got.units.tolist() == units[0]
    # an encoded delta is a fixed point: decoding and encoding again gives the same bytes
    if coding == "dense" or density == INT8_NUMBER:
        assert encode_delta(bytes(32), {0: got.floats()}, [spec], density)[0] == payload


UNITS = st.integers(-(2**28) + 1, 2**28 - 1) | st.integers(-3, 3)
ANY_BASE = (
    st.floats(width=32) | st.floats(-1, 1, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32)
)


@FAST
@given(
    st.lists(st.tuples(ANY_BASE, UNITS, UNITS), min_size=1, max_size=40),
    st.integers(0, 2**20),
    st.integers(0, 2**20),
)
def test_each_element_is_rounded_once(
    rows: list[tuple[float, int, int]], first: int, second: int
) -> None:
    shares = (first, min(second, 2**20 - first))
    base = np.array([r[0] for r in rows], np.float32)
    deltas = [np.array([r[k] for r in rows], np.int64) for k in (1, 2)]
    new = np.frombuffer(apply(base.tobytes(), deltas, shares), np.float32)
    for old, got, row in zip(base, new, rows, strict=True):
        total = sum(w * x for w, x in zip(shares, row[1:], strict=True))
        if total == 0 or not np.isfinite(old):
            assert old.tobytes() == got.tobytes()
        else:
            exact = Fraction(float(old)) + Fraction(total, 2**48)
            # the largest fp32 plus less than 1 rounds back to it, so nothing here overflows
            assert got == np.float32(aggregate_ref.as_fp32(exact))


@st.composite
def integer_deltas(draw: st.DrawFn) -> list[list[int]]:
    count, size = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    return [draw(st.lists(UNITS, min_size=size, max_size=size)) for _ in range(count)]


@FAST
@given(integer_deltas())
def test_aggregation_is_the_references(deltas: list[list[int]]) -> None:
    base = np.linspace(-1, 1, len(deltas[0]), dtype=np.float32)
    result = aggregate_tile(base.tobytes(), [np.array(d) for d in deltas])
    parts = aggregate_ref.gram_parts(deltas)
    assert result.gram_root == aggregate_ref.gram_root(parts, len(deltas))
    assert list(result.weights) == aggregate_ref.weights(parts[0])
    assert all(w >= 0 for w in result.weights)
    assert sum(result.weights) <= 2**20
    xs = list(zip(*deltas, strict=True))
    new = [
        aggregate_ref.new_value(float(b), x, result.weights) for b, x in zip(base, xs, strict=True)
    ]
    assert np.array_equal(np.frombuffer(result.new_tile, np.float32), np.array(new, np.float32))


@FAST
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-(2**127), 2**127 - 1), min_size=n, max_size=n),
            min_size=n,
            max_size=n,
        )
    )
)
def test_weights_are_defined_for_any_symmetric_matrix(rows: list[list[int]]) -> None:
    n = len(rows)
    matrix = [[rows[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)]
    result = weights(matrix)
    assert list(result) == aggregate_ref.weights(matrix)
    assert all(w >= 0 for w in result)
    assert sum(result) <= 2**20
