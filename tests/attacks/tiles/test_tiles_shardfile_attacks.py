"""Hostile .safetensors files: each is refused with an error that says what is wrong."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize

from chain import limits
from chain.errors import DecodeError, StorageError
from tiles.layout import ShardSpec, TensorSpec
from tiles.shardfile import open_shard, read_tensors, shard_header

SPEC = ShardSpec(0, "s", "dense", (TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "F32", (4,))))


def entry(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def packed(header: Any, data: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


DUPLICATE = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)
ESCAPED = DUPLICATE.replace(b',"a"', b',"\\u0061"')
FILES = {
    "empty": (b"", "no safetensors header"),
    "short length": (b"\x08\0\0", "no safetensors header"),
    "huge length": (struct.pack("<Q", 2**63) + b"{}", "this is no safetensors file"),
    "length past the end": (struct.pack("<Q", 500) + b"{}", "in a file of"),
    "no JSON": (packed(b"not json at all", 0), "not JSON"),
    "bad UTF-8": (packed(b'{"\xff":1}', 0), "not JSON"),
    "a list": (packed([1], 0), "not a JSON object"),
    "space first": (packed(b" {}", 0), "not a JSON object"),
    "deep": (packed(b"[" * 100_000, 0), "not JSON"),
    "huge integer": (packed(b'{"a":' + b"9" * 10_000 + b"}", 0), "not JSON"),
    "NaN": (packed(b'{"a":NaN}', 0), "NaN in the header"),
    "duplicate": (packed(DUPLICATE, 4), "twice"),
    "metadata": (packed({"__metadata__": {"a": 1}}, 0), "must map names to text"),
    "metadata list": (packed({"__metadata__": []}, 0), "must map names to text"),
    "no entry": (packed({"a": 1}, 0), "expected dtype"),
    "more keys": (packed({"a": entry(0, 4, [1]) | {"x": 1}}, 4), "expected dtype"),
    "unknown dtype": (packed({"a": entry(0, 2, [1], "F17")}, 2), "unknown dtype 'F17'"),
    "dtype no text": (packed({"a": entry(0, 2, [1], 16)}, 2), "unknown dtype '16'"),  # type: ignore[arg-type]
    "negative shape": (packed({"a": entry(0, 4, [-1])}, 4), "a size of -1"),
    "minus nothing": (packed(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0), "-0"),
    "bool shape": (packed({"a": entry(0, 4, [True])}, 4), "short lists of sizes"),
    "float offset": (packed({"a": entry(0.0, 4, [1])}, 4), "short lists of sizes"),  # type: ignore[arg-type]
    "many dimensions": (packed({"a": entry(0, 4, [1] * 65)}, 4), "short lists of sizes"),
    "wrong size": (packed({"a": entry(0, 8, [1])}, 8), "8 bytes for F32 of shape"),
    "reversed": (packed({"a": entry(8, 4, [1])}, 8), "-4 bytes for F32 of shape"),
    "2**60 bytes": (packed({"a": entry(0, 2**60, [2**58])}, 4), "short lists of sizes"),
    "2**60 in two": (packed({"a": entry(0, 4, [2**29, 2**29])}, 4), "more than 2\\*\\*48"),
    "overflow": (packed({"a": entry(0, 4, [2**40, 2**40])}, 4), "more than 2\\*\\*48"),
    "empty and vast": (packed({"a": entry(0, 0, [0, 2**40, 2**40])}, 0), "more than 2\\*\\*48"),
    "half a byte": (packed({"a": entry(0, 2, [3], "F4")}, 2), "do not fill whole bytes"),
    "past the end": (packed({"a": entry(0, 400, [100])}, 4), "4 bytes of data where"),
    "empty inside": (packed({"a": entry(4, 4, [0]), "b": entry(0, 8, [2])}, 8), "overlaps"),
    "same name escaped": (packed(ESCAPED, 4), "twice"),
    "same key": (
        packed(b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}', 0),
        "twice",
    ),
    "long name": (packed({"n" * 1025: entry(0, 4, [1])}, 4), "expected 1 to"),
    "hole": (packed({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12), "leaves a hole"),
    "overlap": (packed({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, 8), "overlaps"),
    "trailing": (packed({"a": entry(0, 4, [1])}, 5), "5 bytes of data where tensors take 4"),
    "missing": (packed({"a": entry(0, 4, [1])}, 3), "3 bytes of data where tensors take 4"),
    "empty name": (packed({"": entry(0, 4, [1])}, 4), "expected 1 to"),
    "surrogate": (packed(b'{"\\ud800":' + json.dumps(entry(0, 4, [1])).encode() + b"}", 4), ""),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    raw, message = FILES[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(raw)
    with pytest.raises(DecodeError, match=f"hostile.safetensors: .*{message}"):
        open_shard(path)


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"deep", "huge integer"}))
def test_what_the_reference_refuses_we_refuse_and_what_we_accept_it_does(name: str) -> None:
    """`safetensors` accepts some of these (duplicates, and a name of ours), never the reverse."""
    raw, _ = FILES[name]
    try:
        deserialize(raw)
    except SafetensorError:
        return
    assert name in {
        *("duplicate", "same name escaped", "empty name", "long name", "more keys", "space first"),
        *("many dimensions", "empty and vast"),
    }


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no regular file"):
        open_shard(tmp_path / "pipe")


def test_a_hostile_header_costs_little_memory(tmp_path: Path) -> None:
    """The worst that fits: a mebibyte of small objects."""
    text = b'{"a":[' + b"[]," * 349_000 + b"[]]}"
    path = tmp_path / "objects.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    with pytest.raises(DecodeError):
        open_shard(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_another_model_is_not_this_shard(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(packed({"a": entry(0, 4, [1])}, 4))
    assert list(read_tensors(path)) == ["a"]
    with pytest.raises(DecodeError, match="not those of shard s"):
        open_shard(path, SPEC)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.safetensors: cannot be read: No such file"):
        open_shard(tmp_path / "gone.safetensors")


def test_our_own_header_survives_its_own_parser_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    raw = shard_header(SPEC) + bytes(SPEC.data_bytes)
    assert len(shard_header(SPEC)) % 4096 == 0
    path.write_bytes(raw)
    assert open_shard(path, SPEC).data.nbytes == SPEC.data_bytes
    for size in (0, 7, 8, 100, len(raw) - 1, len(raw) + 1):
        path.write_bytes((raw + b"\0")[:size])
        with pytest.raises(DecodeError):
            open_shard(path, SPEC)


def test_a_header_beyond_the_limit_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    text = b"{}".ljust(limits.MAX_SHARD_HEADER_BYTES + 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(DecodeError, match="this is no safetensors file"):
        open_shard(path)
