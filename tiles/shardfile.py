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
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.errors import DecodeError, InputError, StorageError, invariant
from tiles.layout import DTYPE_BITS, MAX_TENSOR_DIMS, ShardSpec, TensorSpec

PAGE_BYTES = 4096
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
# What numpy calls a dtype. What it has no name for is seen as unsigned integers of its width.
_NUMPY = {"BOOL": "?", "BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"}
_NUMPY |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "UI" for n in (1, 2, 4, 8)}

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One tensor of a file and where its bytes stand in the data section."""

    spec: TensorSpec
    start: int
    end: int


def shard_header(spec: ShardSpec) -> bytes:
    """Length, JSON and padding: everything that stands before the data section.

    Raises InputError if names and shapes take more than MAX_SHARD_HEADER_BYTES.
    """
    header = build_header(spec.tensors, {"format": "pt", "shard": spec.name})
    if len(header) > limits.MAX_SHARD_HEADER_BYTES:
        raise InputError(
            f"shard {spec.name}: a header of {len(header)} bytes for {len(spec.tensors)} tensors, "
            f"at most {limits.MAX_SHARD_HEADER_BYTES}; put them into several shards"
        )
    return header


def build_header(tensors: tuple[TensorSpec, ...], metadata: dict[str, str]) -> bytes:
    """The header of a file with these tensors back to back, data on a page."""
    entries: dict[str, Any] = {_METADATA: metadata}
    at = 0
    for tensor in tensors:
        end = at + tensor.data_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = -(-(_LENGTH_BYTES + len(text)) // PAGE_BYTES) * PAGE_BYTES - _LENGTH_BYTES
    return padded.to_bytes(_LENGTH_BYTES, "little") + text.ljust(padded)


def parse_header(prefix: bytes, file_bytes: int) -> tuple[tuple[TensorRange, ...], int]:
    """Tensors in order of offset, and where the data section starts.

    `prefix` is the file's beginning, at least up to the end of the header; `file_bytes` the size
    of the whole file. Raises DecodeError on anything that is not a sound file.
    """
    header_bytes = header_length(prefix)
    data_start = _LENGTH_BYTES + header_bytes
    if data_start > file_bytes or len(prefix) < data_start:
        raise DecodeError(f"header of {header_bytes} bytes in a file of {file_bytes} bytes")
    entries = _parse_json(prefix[_LENGTH_BYTES:data_start])
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise DecodeError("__metadata__ must map names to text")
    try:
        "".join([*metadata, *metadata.values()]).encode()
    except UnicodeEncodeError:
        raise DecodeError("__metadata__ holds half of a pair of surrogates") from None
    tensors = sorted((_parse_tensor(*e) for e in entries.items()), key=lambda t: (t.start, t.end))
    at = 0
    for tensor in tensors:
        if tensor.start != at:
            kind = "overlaps its neighbour" if tensor.start < at else "leaves a hole before it"
            raise DecodeError(
                f"tensor {tensor.spec.name[:64]!r} at byte {tensor.start} {kind} ({at})"
            )
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
        entries = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_int=_size,
        )
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


def _size(digits: str) -> int:
    if digits.startswith("-"):
        raise DecodeError(f"a size of {digits[:24]} in the header")
    return int(digits)


def _parse_tensor(name: str, entry: Any) -> TensorRange:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DecodeError(f"tensor {name[:64]!r}: expected dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPE_BITS:
        raise DecodeError(f"tensor {name[:64]!r}: unknown dtype {str(dtype)[:16]!r}")
    if not _is_sizes(shape, MAX_TENSOR_DIMS) or not _is_sizes(span, 2) or len(span) != 2:
        raise DecodeError(f"tensor {name[:64]!r}: shape and offsets must be short lists of sizes")
    try:
        spec = TensorSpec(name, dtype, tuple(shape))
    except (InputError, UnicodeEncodeError) as error:  # a lone surrogate has no UTF-8
        raise DecodeError(str(error)) from None
    if span[1] - span[0] != spec.data_bytes:
        raise DecodeError(
            f"tensor {name[:64]!r}: {span[1] - span[0]} bytes for {dtype} of shape {shape}, which "
            f"takes {spec.data_bytes}"
        )
    return TensorRange(spec, span[0], span[1])


def _is_sizes(value: Any, most: int) -> bool:
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(n) is int and 0 <= n < 1 << 48 for n in value)


class ShardFile:
    """An open shard. `data` is the data section; tensors are views of the same mapping.

    The mapping is private and copy-on-write (torch warns about read-only memory), so writing to
    a view never reaches the file. It stays valid after the file is unlinked, and goes with the
    last view of it.
    """

    def __init__(self, data: memoryview, tensors: tuple[TensorRange, ...]) -> None:
        self.data, self.tensors = data, tensors

    def view(self, name: str) -> memoryview:
        """The bytes of one tensor, without a copy. Raises InputError for an unknown name."""
        for tensor in self.tensors:
            if tensor.spec.name == name:
                return self.data[tensor.start : tensor.end]
        raise InputError(f"there is no tensor {name!r} in this file")

    def arrays(self) -> dict[str, Array]:
        """Each tensor by name, without a copy, as `tensor_array` makes it."""
        return {t.spec.name: tensor_array(t.spec, self.data, t.start) for t in self.tensors}

    def close(self) -> None:
        """Let go of the mapping; it goes once the last array of it has gone."""
        self.data.release()


def tensor_array(spec: TensorSpec, data: Buffer, offset: int) -> Array:
    """One tensor as an array of its shape over `data`, little-endian, without a copy.

    BF16 comes as unsigned 16-bit integers, F8 as bytes; F6 and F4 as one row of packed bytes.
    """
    if spec.dtype in _NUMPY:
        dtype, shape = np.dtype(_NUMPY[spec.dtype]), spec.shape
    else:
        dtype = np.dtype("u1")
        shape = spec.shape if DTYPE_BITS[spec.dtype] == 8 else (spec.data_bytes,)
    size = spec.data_bytes
    if not size:  # numpy makes no array from no bytes
        return np.empty(shape, dtype)
    count = size // dtype.itemsize
    return np.frombuffer(data, dtype, count=count, offset=offset).reshape(shape)


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
    with _reading(path), open(path, "rb", opener=_open_regular) as file:
        prefix = file.read(_LENGTH_BYTES)
        prefix += file.read(header_length(prefix))
        size = os.fstat(file.fileno()).st_size
        tensors, start = parse_header(prefix, size)
        if spec is not None and tuple(t.spec for t in tensors) != spec.tensors:
            raise DecodeError(f"its tensors are not those of shard {spec.name}")
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    return ShardFile(memoryview(mapping)[start:], tensors)


def _open_regular(path: str, flags: int) -> int:
    """Open a file that is one: a pipe would hang, and a device has no size."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return descriptor


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a .safetensors file of a user, by name. Raises DecodeError, StorageError."""
    return open_shard(path).arrays()


def shard_arrays(spec: ShardSpec, data: Buffer) -> dict[str, Array]:
    """The tensors of a shard's data section as views, by name."""
    invariant(len(data) == spec.data_bytes, f"shard {spec.name}: data section of a wrong size")
    offsets = spec.offsets()
    return {t.name: tensor_array(t, data, offsets[t.name][0]) for t in spec.tensors}
