"""A shard version as an ordinary .safetensors file that maps without a copy (docs/spec/tiles.md).

    8 bytes  header length, little-endian
    header   JSON, padded with spaces so that the data section starts on a 4096-byte page
    data     the tensors back to back, in the order of the shard's spec

Any safetensors reader opens it. Our own parser is stricter than most: it refuses duplicate
names, holes, overlaps and trailing bytes, since each would let two readers see different models.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.errors import DecodeError, InputError, StorageError, invariant
from tiles.layout import DTYPE_BYTES, MAX_TENSOR_DIMS, ShardSpec, TensorSpec

PAGE_BYTES = 4096
_LENGTH_BYTES = 8
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One tensor of a file and where its bytes stand in the data section."""

    spec: TensorSpec
    start: int
    end: int


def shard_header(spec: ShardSpec) -> bytes:
    """Length, JSON and padding: everything that stands before the data section."""
    entries: dict[str, Any] = {_METADATA: {"format": "pt", "shard": spec.name}}
    offsets = spec.offsets()
    for tensor in spec.tensors:
        start, end = offsets[tensor.name]
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = -(-(_LENGTH_BYTES + len(text)) // PAGE_BYTES) * PAGE_BYTES - _LENGTH_BYTES
    return padded.to_bytes(_LENGTH_BYTES, "little") + text.ljust(padded)


def parse_header(prefix: bytes, file_bytes: int) -> tuple[tuple[TensorRange, ...], int]:
    """Tensors in order of offset, and where the data section starts.

    `prefix` is the file's beginning, at least up to the end of the header; `file_bytes` the size
    of the whole file. Raises DecodeError on anything that is not a sound file of fp32 tensors.
    """
    header_bytes = header_length(prefix)
    data_start = _LENGTH_BYTES + header_bytes
    if data_start > file_bytes or len(prefix) < data_start:
        raise DecodeError(f"header of {header_bytes} bytes in a file of {file_bytes} bytes")
    entries = _parse_json(prefix[_LENGTH_BYTES:data_start])
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise DecodeError("__metadata__ must map names to text")
    tensors = sorted((_parse_tensor(*e) for e in entries.items()), key=lambda t: (t.start, t.end))
    at = 0
    for tensor in tensors:
        if tensor.start != at:
            kind = "overlaps its neighbour" if tensor.start < at else "leaves a hole before it"
            raise DecodeError(f"tensor {tensor.spec.name} at byte {tensor.start} {kind} ({at})")
        at = tensor.end
    if data_start + at != file_bytes:
        raise DecodeError(f"{file_bytes - data_start} bytes of data where tensors take {at}")
    return tuple(tensors), data_start


def header_length(prefix: bytes) -> int:
    """Length of the JSON header, from a file's first 8 bytes."""
    if len(prefix) < _LENGTH_BYTES:
        raise DecodeError(f"a file of {len(prefix)} bytes has no safetensors header")
    length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if not 2 <= length <= limits.MAX_SHARD_HEADER_BYTES:
        raise DecodeError(
            f"header of {length} bytes, expected 2 to {limits.MAX_SHARD_HEADER_BYTES}: "
            "this is no safetensors file"
        )
    return length


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
        entries = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the header is not JSON: {error}") from None
    if not text.startswith("{") or not isinstance(entries, dict):
        raise DecodeError("the header is not a JSON object")
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise DecodeError("the header names a tensor twice")
    return names


def _no_constant(name: str) -> None:
    raise DecodeError(f"{name} in the header")


def _parse_tensor(name: str, entry: Any) -> TensorRange:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DecodeError(f"tensor {name[:64]!r}: expected dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPE_BYTES:
        raise DecodeError(f"tensor {name[:64]!r}: dtype {str(dtype)[:16]!r}, expected 'F32'")
    if not _is_sizes(shape, MAX_TENSOR_DIMS) or not _is_sizes(span, 2) or len(span) != 2:
        raise DecodeError(f"tensor {name[:64]!r}: shape and offsets must be short lists of sizes")
    try:
        spec = TensorSpec(name, dtype, tuple(shape))
    except (InputError, UnicodeEncodeError) as error:  # a lone surrogate has no UTF-8
        raise DecodeError(str(error)) from None
    if span[1] - span[0] != spec.data_bytes:
        raise DecodeError(f"tensor {name}: {span[1] - span[0]} bytes for shape {shape}")
    return TensorRange(spec, span[0], span[1])


def _is_sizes(value: Any, most: int) -> bool:
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(n) is int and 0 <= n < 1 << 48 for n in value)


class ShardFile:
    """An open shard file. `data` is the data section; tensors are views of the same mapping.

    The mapping is private and copy-on-write (torch warns about read-only memory), so writing to
    a view never reaches the file. It stays valid after the file is unlinked.
    """

    def __init__(self, mapping: mmap.mmap, tensors: tuple[TensorRange, ...], start: int) -> None:
        self._mapping = mapping
        self.tensors = tensors
        self.data = memoryview(mapping)[start:]

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Each tensor by name, little-endian fp32, without a copy."""
        return {
            t.spec.name: np.frombuffer(
                self.data, "<f4", count=t.spec.elements, offset=t.start
            ).reshape(t.spec.shape)
            for t in self.tensors
        }

    def close(self) -> None:
        """Unmap. Raises BufferError while arrays or views of the mapping are still alive."""
        self.data.release()
        self._mapping.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong with it."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(f"{path.name}: {error}") from None
    except OSError as error:
        raise StorageError(f"{path.name}: cannot be read: {error.strerror}") from None


def open_shard(path: Path, spec: ShardSpec | None = None) -> ShardFile:
    """Map a shard file. With `spec`, its tensors must be exactly those of the spec, in order.

    Bytes are not verified here: the store does that. Raises DecodeError, StorageError.
    """
    with _reading(path), path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        prefix += file.read(header_length(prefix))
        size = file.seek(0, 2)
        tensors, start = parse_header(prefix, size)
        if spec is not None and tuple(t.spec for t in tensors) != spec.tensors:
            raise DecodeError(f"its tensors are not those of shard {spec.name}")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return ShardFile(mapping, tensors, start)


def read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors of a .safetensors file of a user, by name. Raises DecodeError, StorageError."""
    return open_shard(path).arrays()


def shard_arrays(
    spec: ShardSpec, data: bytes | bytearray | memoryview
) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a shard's data section as views, by name."""
    invariant(len(data) == spec.data_bytes, f"shard {spec.name}: data section of a wrong size")
    offsets = spec.offsets()
    return {
        tensor.name: np.frombuffer(
            data, "<f4", count=tensor.elements, offset=offsets[tensor.name][0]
        ).reshape(tensor.shape)
        for tensor in spec.tensors
    }
