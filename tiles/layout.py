"""What a shard is made of, and how its bytes divide into tiles and subtiles (docs/spec/tiles.md).

A model is an ordered list of shards; a shard's data section is its tensors back to back in
order, fp32 little-endian. Tiles and subtiles are byte ranges of that section and know nothing
of tensor borders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chain import limits
from chain.errors import InputError

DTYPE_BYTES = {"F32": 4}  # safetensors dtype name to bytes an element
CODINGS = ("sparse", "dense")  # how a delta of the shard is coded (docs/spec/delta.md)
ELEMENT_BYTES = 4
TILE_ELEMENTS = limits.TILE_BYTES // ELEMENT_BYTES
SUBTILE_ELEMENTS = limits.SUBTILE_BYTES // ELEMENT_BYTES
SUBTILES_PER_TILE = limits.TILE_BYTES // limits.SUBTILE_BYTES
MAX_TENSOR_DIMS = 8  # more has no use here and would only cost a decoder


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a shard. `dtype` is a safetensors name; only "F32" for now."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= limits.MAX_NAME:
            raise InputError(f"tensor name {self.name!r}: expected 1 to {limits.MAX_NAME} bytes")
        if self.name == "__metadata__":
            raise InputError("tensor name __metadata__: safetensors keeps it for itself")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(f"tensor {self.name}: dtype {self.dtype!r}, expected 'F32'")
        if len(self.shape) > MAX_TENSOR_DIMS or any(n < 1 for n in self.shape):
            raise InputError(
                f"tensor {self.name}: shape {self.shape}, expected at most {MAX_TENSOR_DIMS} "
                "dimensions of at least 1"
            )

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard of the model: its position, its name and its tensors in order of storage."""

    index: int
    name: str
    coding: str
    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.index < limits.MAX_SHARDS:
            raise InputError(f"shard {self.name}: index {self.index} >= {limits.MAX_SHARDS}")
        if not 0 < len(self.name.encode()) <= limits.MAX_NAME:
            raise InputError(f"shard name {self.name!r}: expected 1 to {limits.MAX_NAME} bytes")
        if self.coding not in CODINGS:
            raise InputError(
                f"shard {self.name}: coding {self.coding!r}, expected one of {CODINGS}"
            )
        names = [tensor.name for tensor in self.tensors]
        if not names or len(set(names)) != len(names):
            raise InputError(f"shard {self.name}: tensor names must be present and distinct")
        if self.tile_count > limits.MAX_TILES_PER_SHARD:
            raise InputError(
                f"shard {self.name}: {self.tile_count} tiles, at most {limits.MAX_TILES_PER_SHARD}"
            )

    @property
    def data_bytes(self) -> int:
        """Size of the data section in bytes."""
        return sum(tensor.data_bytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """fp32 elements of the data section."""
        return self.data_bytes // ELEMENT_BYTES

    @property
    def tile_count(self) -> int:
        return -(-self.data_bytes // limits.TILE_BYTES)

    def tile_range(self, tile: int) -> tuple[int, int]:
        """Byte range [start, end) of a tile in the data section; the last may be shorter."""
        if not 0 <= tile < self.tile_count:
            raise InputError(f"shard {self.name} has {self.tile_count} tiles, not a tile {tile}")
        start = tile * limits.TILE_BYTES
        return start, min(start + limits.TILE_BYTES, self.data_bytes)

    def tile_bytes(self, tile: int) -> int:
        start, end = self.tile_range(tile)
        return end - start

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Byte range [start, end) of each tensor in the data section, in order of storage."""
        ranges: dict[str, tuple[int, int]] = {}
        start = 0
        for tensor in self.tensors:
            ranges[tensor.name] = (start, start + tensor.data_bytes)
            start += tensor.data_bytes
        return ranges


def subtile_count(data_bytes: int) -> int:
    """Subtiles of a tile (or of any run of bytes that starts on a subtile border)."""
    return -(-data_bytes // limits.SUBTILE_BYTES)
