"""Checkpoint files as strangers write them, byte by byte, without the product's code."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Bits an element: the dtypes of safetensors 0.8.
_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
BITS = {name: bits for bits, names in _BY_BITS.items() for name in names.split()}
Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def size_of(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * BITS[dtype] // 8


def entries(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """The header of these tensors, back to back."""
    found: dict[str, Any] = {}
    at = 0
    for name, dtype, shape in tensors:
        end = at + size_of(dtype, shape)
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return found


def raw_file(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def checkpoint(
    tensors: Sequence[Tensor],
    *,
    seed: int = 1,
    metadata: dict[str, str] | None = None,
    shuffled: bool = False,
    spaces: int = 0,
) -> bytes:
    """A file of random bytes. `shuffled`: the JSON in another order than the data."""
    header = entries(tensors)
    if shuffled:
        names = list(header)
        random.Random(seed).shuffle(names)
        header = {name: header[name] for name in names}
    if metadata is not None:
        header = {"__metadata__": metadata, **header}
    size = sum(size_of(dtype, shape) for _, dtype, shape in tensors)
    text = json.dumps(header, ensure_ascii=False).encode() + b" " * spaces
    return raw_file(text, random.Random(seed).randbytes(size))


def moe(layers: int, experts: int, width: int, *, dtype: str = "BF16") -> list[Tensor]:
    """A small model under the names that Mixtral has, in the order that its files have."""
    found: list[Tensor] = [("lm_head.weight", dtype, (width, width))]
    found.append(("model.embed_tokens.weight", dtype, (width, width)))
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for expert in range(experts):
            part = f"{at}block_sparse_moe.experts.{expert}."
            found += [(f"{part}{w}.weight", dtype, (width, 2 * width)) for w in ("w1", "w2", "w3")]
        found.append((f"{at}block_sparse_moe.gate.weight", dtype, (experts, width)))
        found.append((f"{at}input_layernorm.weight", dtype, (width,)))
        found += [(f"{at}self_attn.{x}_proj.weight", dtype, (width, width)) for x in "kqv"]
    found.append(("model.norm.weight", dtype, (width,)))
    return found


def parts(
    directory: Path, tensors: Sequence[Tensor], count: int, *, seed: int = 1
) -> tuple[list[Path], Path]:
    """A sharded checkpoint in a directory: its files and its index."""
    directory.mkdir(parents=True, exist_ok=True)
    files, weight_map = [], {}
    step = -(-len(tensors) // count)
    for i in range(count):
        mine = tensors[i * step : (i + 1) * step]
        path = directory / f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        path.write_bytes(checkpoint(mine, seed=seed + i, metadata={"format": "pt"}))
        files.append(path)
        weight_map |= {name: path.name for name, _, _ in mine}
    index = directory / "model.safetensors.index.json"
    total = sum(size_of(dtype, shape) for _, dtype, shape in tensors)
    text = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index.write_text(json.dumps(text, indent=2) + "\n")
    return files, index
