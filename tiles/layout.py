"""What a shard is made of, and how its bytes divide into tiles and subtiles (docs/spec/tiles.md).

A model is an ordered list of shards; a shard's data section is its tensors back to back in
order, little-endian. Tiles and subtiles are byte ranges of that section and know nothing of
tensor borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from chain import limits
from chain.errors import InputError

# Bits an element of every dtype that safetensors 0.8 knows, by its name there.
DTYPE_BITS = {
    name: bits
    for bits, names in (
        (64, "U64 I64 F64 C64"),
        (32, "U32 I32 F32"),
        (16, "U16 I16 F16 BF16"),
        (8, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
        (6, "F6_E2M3 F6_E3M2"),
        (4, "F4"),
    )
    for name in names.split()
}
CODINGS = ("sparse", "dense")  # how a delta of the shard is coded (docs/spec/delta.md)
ELEMENT_BYTES = 4  # of fp32, which all that is trained is stored in
TILE_ELEMENTS = limits.TILE_BYTES // ELEMENT_BYTES
SUBTILE_ELEMENTS = limits.SUBTILE_BYTES // ELEMENT_BYTES
SUBTILES_PER_TILE = limits.TILE_BYTES // limits.SUBTILE_BYTES
MAX_TENSOR_DIMS = 64  # what numpy and torch can hold
MAX_TENSOR_NAME = 1024  # bytes of UTF-8; names of foreign checkpoints are paths of modules
_MAX_ELEMENTS = 1 << 48  # also without the dimensions that are 0: readers multiply in 64 bits


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a shard. `dtype` is a safetensors name, one of DTYPE_BITS.

    A shape of () is a scalar; a dimension of 0 makes the tensor empty. Elements of less than a
    byte are packed, and the tensor ends on a whole byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_TENSOR_NAME:
            raise InputError(
                f"tensor name {self.name[:64]!r}: expected 1 to {MAX_TENSOR_NAME} bytes of UTF-8"
            )
        if self.name == "__metadata__":
            raise InputError("tensor name __metadata__: safetensors keeps it for itself")
        if self.dtype not in DTYPE_BITS:
            raise InputError(
                f"tensor {self.name[:64]!r}: dtype {self.dtype[:16]!r}, expected one of "
                + ", ".join(DTYPE_BITS)
            )
        if len(self.shape) > MAX_TENSOR_DIMS or any(n < 0 for n in self.shape):
            raise InputError(
                f"tensor {self.name[:64]!r}: expected a shape of at most {MAX_TENSOR_DIMS} "
                "dimensions, none negative"
            )
        if math.prod(n or 1 for n in self.shape) > _MAX_ELEMENTS:
            raise InputError(f"tensor {self.name[:64]!r}: a shape of more than 2**48 elements")
        if self.elements * DTYPE_BITS[self.dtype] % 8:
            raise InputError(
                f"tensor {self.name[:64]!r}: {self.elements} elements of {self.dtype} do not fill "
                "whole bytes"
            )

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8

    @property
    def alignment(self) -> int:
        """What its first byte's place in a data section is a multiple of."""
        return max(1, DTYPE_BITS[self.dtype] // 8)


def storage_order(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Tensors in an order in which each of them is aligned: larger elements first, else kept."""
    return tuple(sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype]))


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard of the model: its position, its name and its tensors in order of storage.

    Every tensor starts on a multiple of its element's size (`storage_order` sees to that), so
    that a mapping of the file serves any processor. A shard of empty tensors has no tiles.
    """

    index: int
    name: str
    coding: str
    tensors: tuple[TensorSpec, ...]
    data_bytes: int = field(init=False, compare=False, repr=False)  # size of the data section

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
        size = 0
        for tensor in self.tensors:
            if size % tensor.alignment and tensor.data_bytes:
                raise InputError(
                    f"shard {self.name}: tensor {tensor.name} would start at byte {size}, which "
                    f"{tensor.dtype} is not aligned to; order tensors by element size"
                )
            size += tensor.data_bytes
        object.__setattr__(self, "data_bytes", size)
        if self.tile_count > limits.MAX_TILES_PER_SHARD:
            raise InputError(
                f"shard {self.name}: {self.tile_count} tiles, at most {limits.MAX_TILES_PER_SHARD}"
            )

    @property
    def elements(self) -> int:
        """fp32 elements of the data section, if that is what it holds."""
        return self.data_bytes // ELEMENT_BYTES

    @property
    def tile_count(self) -> int:
        """Tiles of the data section; 0 if it is empty."""
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
