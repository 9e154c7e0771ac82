"""Shard layout and shard files: sizes, ranges, and what other readers make of our files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import _TYPES as TORCH_TYPES
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from chain import limits
from chain.errors import InputError
from tiles.layout import DTYPE_BITS, ShardSpec, TensorSpec, storage_order
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


MISALIGNED = (TensorSpec("a", "U8", (3,)), TensorSpec("b", "F32", (1,)))


def _torch(dtype: torch.dtype) -> Callable[[dict[str, Any]], torch.Tensor]:
    """What makes a tensor of a safetensors entry."""

    def make(entry: dict[str, Any]) -> torch.Tensor:
        if not entry["data"]:
            return torch.empty(entry["shape"], dtype=dtype)
        return torch.frombuffer(bytearray(entry["data"]), dtype=dtype).reshape(entry["shape"])

    return make


# The dtypes that `safetensors.torch` 0.8 reads back; it has no torch dtype for F4, F6 and F8_E8M0.
TORCH = {name: _torch(dtype) for name, dtype in TORCH_TYPES.items()}


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


def test_storage_order_aligns_and_keeps_what_it_can() -> None:
    tensors = [TensorSpec(f"{d}.{i}", d, (24,)) for i in range(2) for d in reversed(DTYPE_BITS)]
    ordered = storage_order(tensors)
    spec = ShardSpec(0, "s", "dense", ordered)
    assert {t.name for t in ordered} == {t.name for t in tensors}
    assert all(spec.offsets()[t.name][0] % t.alignment == 0 for t in ordered)
    assert [t.name for t in ordered if t.dtype == "F8_E8M0"] == ["F8_E8M0.0", "F8_E8M0.1"]
    assert ShardSpec(0, "s", "dense", MISALIGNED[::-1]).data_bytes == 7


def test_a_shard_may_be_empty() -> None:
    spec = ShardSpec(0, "s", "dense", (TensorSpec("none", "F32", (3, 0)),))
    assert (spec.data_bytes, spec.tile_count, spec.offsets()) == (0, 0, {"none": (0, 0)})
    with pytest.raises(InputError, match="has 0 tiles"):
        spec.tile_range(0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TensorSpec("", "F32", (1,)), "expected 1 to"),
        (lambda: TensorSpec("x" * 1025, "F32", (1,)), "expected 1 to"),
        (lambda: TensorSpec("__metadata__", "F32", (1,)), "keeps it for itself"),
        (lambda: TensorSpec("x", "F31", (1,)), "dtype 'F31', expected one of"),
        (lambda: TensorSpec("x", "F32", (-1,)), "none negative"),
        (lambda: TensorSpec("x", "F32", (1,) * 65), "at most 64"),
        (lambda: TensorSpec("x", "U8", (0, 2**30, 2**30)), "more than 2"),
        (lambda: TensorSpec("x", "F4", (3,)), "do not fill whole bytes"),
        (lambda: TensorSpec("x", "F6_E2M3", (2, 3)), "do not fill whole bytes"),
        (lambda: ShardSpec(0, "s", "sparse", MISALIGNED), "F32 is not aligned"),
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


def everything() -> ShardSpec:
    """All dtypes: vectors, matrices, scalars, empty ones, dots and other scripts in names."""
    tensors = []
    for dtype, bits in DTYPE_BITS.items():
        unit = {6: 4, 4: 2}.get(bits, 1)  # elements that fill whole bytes
        tensors += [
            TensorSpec(f"model.layers.0.{dtype}.weight", dtype, (3, 5, 2 * unit)),
            TensorSpec(f"größe.{dtype}.\u91cd\u307f", dtype, (7 * unit,)),
            TensorSpec(f'quote".\\.{dtype}', dtype, () if unit == 1 else (unit,)),
            TensorSpec(f"empty.{dtype}", dtype, (4, 0, 3)),
        ]
    tensors.append(TensorSpec("across.tiles", "F16", (1100, 2000)))
    return ShardSpec(0, "every.thing", "dense", storage_order(tensors))


def test_every_dtype_both_ways(tmp_path: Path) -> None:
    """The same names, dtypes, shapes and bytes for `safetensors` and for us, written by either."""
    spec = everything()
    assert spec.tile_count == 2
    data = np.random.default_rng(2).integers(0, 2, spec.data_bytes, "u1").tobytes()
    path = tmp_path / "ours.safetensors"
    path.write_bytes(shard_header(spec) + data)
    offsets = spec.offsets()
    theirs = dict(deserialize(path.read_bytes()))
    assert set(theirs) == set(offsets)
    ours = open_shard(path, spec)
    arrays = ours.arrays()
    for tensor in spec.tensors:
        entry, raw = theirs[tensor.name], data[slice(*offsets[tensor.name])]
        assert (entry["dtype"], tuple(entry["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(entry["data"]) == ours.view(tensor.name) == raw
        assert arrays[tensor.name].tobytes() == raw
        if DTYPE_BITS[tensor.dtype] >= 8:
            assert arrays[tensor.name].shape == tensor.shape
    with pytest.raises(InputError, match="no tensor 'x'"):
        ours.view("x")
    again = tmp_path / "theirs.safetensors"
    save = {n: TORCH[e["dtype"]](e) for n, e in theirs.items() if e["dtype"] in TORCH}
    save_torch(save, again)
    back = open_shard(again)
    assert {t.spec.name for t in back.tensors} == set(save)
    for entry in back.tensors:
        start, end = offsets[entry.spec.name]
        assert back.view(entry.spec.name) == data[start:end]
        assert entry.spec.dtype == next(t.dtype for t in spec.tensors if t.name == entry.spec.name)


def test_torch_reads_our_files_and_maps_them(tmp_path: Path) -> None:
    spec = everything()
    known = ShardSpec(0, "s", "dense", tuple(t for t in spec.tensors if t.dtype in TORCH))
    data = np.random.default_rng(3).integers(0, 2, known.data_bytes, "u1").tobytes()
    path = tmp_path / "ours.safetensors"
    path.write_bytes(shard_header(known) + data)
    tensors = load_torch(path)
    ours, offsets = open_shard(path, known), known.offsets()
    for tensor in known.tensors:
        start, end = offsets[tensor.name]
        raw = tensors[tensor.name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        assert raw == data[start:end]
        if end > start:  # no warning: the mapping is writable, and private
            mapped = torch.frombuffer(ours.view(tensor.name), dtype=tensors[tensor.name].dtype)
            assert mapped.view(torch.uint8).numpy().tobytes() == raw
            mapped.zero_()
    assert path.read_bytes().endswith(data)


def test_we_open_a_file_of_another_writer(tmp_path: Path) -> None:
    tensors = {"w": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, "f4")}
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours = read_tensors(tmp_path / "theirs.safetensors")
    assert all(np.array_equal(ours[name], tensors[name]) for name in tensors)
    assert set(ours) == set(tensors)
