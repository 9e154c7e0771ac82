"""Shard layout and shard files: sizes, ranges, and what other readers make of our files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from chain import limits
from chain.errors import InputError
from tiles.layout import ShardSpec, TensorSpec
from tiles.shardfile import open_shard, read_tensors, shard_arrays, shard_header

SPEC = ShardSpec(
    2,
    "layers.0.experts.1",
    "sparse",
    (
        TensorSpec("up", "F32", (1024, 1000)),
        TensorSpec("größe", "F32", (7,)),
        TensorSpec("scale", "F32", ()),
        TensorSpec("down", "F32", (30_000,)),
    ),
)


def test_sizes_and_ranges() -> None:
    assert SPEC.elements == 1_054_008
    assert SPEC.data_bytes == 4_216_032
    assert SPEC.tile_count == 2
    assert SPEC.tile_range(0) == (0, limits.TILE_BYTES)
    assert SPEC.tile_range(1) == (limits.TILE_BYTES, SPEC.data_bytes)
    assert SPEC.tile_bytes(1) == SPEC.data_bytes - limits.TILE_BYTES
    assert SPEC.offsets()["größe"] == (4_096_000, 4_096_028)
    assert SPEC.offsets()["down"][1] == SPEC.data_bytes
    with pytest.raises(InputError, match="has 2 tiles, not a tile 2"):
        SPEC.tile_range(2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TensorSpec("", "F32", (1,)), "expected 1 to"),
        (lambda: TensorSpec("x" * 129, "F32", (1,)), "expected 1 to"),
        (lambda: TensorSpec("__metadata__", "F32", (1,)), "keeps it for itself"),
        (lambda: TensorSpec("x", "F64", (1,)), "expected 'F32'"),
        (lambda: TensorSpec("x", "F32", (0,)), "at least 1"),
        (lambda: TensorSpec("x", "F32", (1,) * 9), "at most 8"),
        (lambda: ShardSpec(-1, "s", "sparse", SPEC.tensors), "index -1"),
        (lambda: ShardSpec(0, "", "sparse", SPEC.tensors), "expected 1 to"),
        (lambda: ShardSpec(0, "s", "zip", SPEC.tensors), "coding 'zip'"),
        (lambda: ShardSpec(0, "s", "sparse", ()), "present and distinct"),
        (lambda: ShardSpec(0, "s", "sparse", SPEC.tensors[:1] * 2), "present and distinct"),
        (lambda: ShardSpec(0, "s", "sparse", (TensorSpec("x", "F32", (2**33,)),)), "at most 4096"),
    ],
)
def test_an_impossible_layout_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()  # type: ignore[operator]


def test_any_safetensors_reader_opens_our_file(tmp_path: Path) -> None:
    data = np.random.default_rng(1).standard_normal(SPEC.elements, "f4").tobytes()
    path = tmp_path / "ours.safetensors"
    path.write_bytes(shard_header(SPEC) + data)
    theirs, ours = load_file(path), open_shard(path, SPEC).arrays()
    views = shard_arrays(SPEC, data)
    assert set(theirs) == set(ours) == {t.name for t in SPEC.tensors}
    for name, tensor in theirs.items():
        assert np.array_equal(tensor, ours[name])
        assert np.array_equal(tensor, views[name])
        assert ours[name].flags.writeable  # private: torch would warn about a read-only one
    with safe_open(path, "numpy") as file:
        assert file.metadata()["shard"] == SPEC.name
    mapped = open_shard(path, SPEC)
    mapped.close()


def test_we_open_a_file_of_another_writer(tmp_path: Path) -> None:
    tensors = {"w": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, "f4")}
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours = read_tensors(tmp_path / "theirs.safetensors")
    assert all(np.array_equal(ours[name], tensors[name]) for name in tensors)
    assert set(ours) == set(tensors)
