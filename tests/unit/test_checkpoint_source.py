"""Headers and indexes of strangers: odd but sound ones are read, others refused with a reason."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

import tiles.json_scan as scan
from chain.errors import DecodeError
from tests.kit.checkpoint import BITS, Tensor, checkpoint, entries, raw_file, size_of
from tiles import source
from tiles.source import Source, SourceParser, check_index, indexed_files, missing_parts


def parse(raw: bytes, parser: SourceParser | None = None, name: str = "x") -> Source:
    return (parser or SourceParser()).parse(name, io.BytesIO(raw).read, len(raw))


def opens(raw: bytes, path: Path) -> bool:
    """Whether the `safetensors` package takes the file."""
    path.write_bytes(raw)
    try:
        with safe_open(path, framework="np") as file:
            return bool(file) or True
    except SafetensorError:
        return False


ALL: list[Tensor] = [
    ("scalar", "F32", ()),
    *((f"t.{dtype}", dtype, (2, 4)) for dtype in BITS),
    ("empty", "I64", (3, 0, 2)),
    ("Größe 🙂.重み", "BF16", (1,)),
    ("x" * 1024, "U8", (1,)),
    ('quote " back \\ slash / tab \t', "U8", (1,)),
    ("deep", "U8", (1,) * 20),
]


@pytest.mark.parametrize("window", [7, 64, 1 << 20])
def test_every_dtype_and_odd_but_sound_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, window: int
) -> None:
    """Whatever the window: most tokens cross its border when it is small."""
    monkeypatch.setattr(scan, "WINDOW_BYTES", window)
    metadata = {
        "format": "pt",
        "🙂" * 20: "🙂",
        "é" * 512: "",
        "größe": 'a\\"b\u2028\n' * 30,
        "": "",
    }
    raw = checkpoint(ALL, metadata=metadata, shuffled=True, spaces=4000)
    assert opens(raw, tmp_path / "x")
    found = parse(raw)
    assert [(p.spec.name, p.spec.dtype, p.spec.shape) for p in found.tensors] == ALL
    assert found.data_start + found.data_bytes == len(raw)
    assert found.tensors[-1].end == found.data_bytes
    escaped = json.dumps(
        {"__metadata__": metadata, **entries(ALL)}, indent=2
    ).encode()  # names as \\uXXXX, white space between
    data = bytes(found.data_bytes)
    assert parse(raw_file(escaped, data)).tensors == found.tensors


@pytest.mark.parametrize(
    "header",
    [b"{}", b"{}   ", b"{ }", b'{"__metadata__":{}}', b'{"__metadata__":null}', b"\n{}\t\r\n"],
)
def test_files_without_tensors(header: bytes, tmp_path: Path) -> None:
    raw = raw_file(header, b"")
    assert opens(raw, tmp_path / "x")
    assert parse(raw).tensors == ()


def _one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def _two(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    return {
        name: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        for name, (start, end) in (("a", first), ("b", second))
    }


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no safetensors file"),
    "half a length": (b"\x08\0\0", "no safetensors file"),
    "a header past the end": (b"\xff" * 7 + b"\x00{}", "the header alone takes"),
    "a header of 2^63 bytes": (bytes(7) + b"\x80{}", "the header alone takes"),
    "an empty header": (raw_file(b"", b""), "not JSON"),
    "a list": (raw_file(b"[]", b""), "not JSON"),
    "a text": (raw_file(b'"a"', b""), "not JSON"),
    "an open object": (raw_file(b'{"a":', b""), "not JSON"),
    "two objects": (raw_file(b"{}{}", b""), "more text after the end"),
    "a comma at the end": (raw_file(b'{"__metadata__":{},}', b""), "not JSON"),
    "no UTF-8": (raw_file(b'{"\xff\xfe":{}}', b""), "not UTF-8"),
    "UTF-8 cut short": (raw_file(b'{"a":{}} \xe2\x82', b""), "not UTF-8"),
    "a lone surrogate": (
        raw_file(json.dumps({"\ud800": _one()["a"]}).encode(), bytes(8)),
        "not JSON",
    ),
    "a control character": (raw_file(b'{"a\x01":1}', b""), "not JSON"),
    "a bad escape": (raw_file(b'{"a\\x":1}', b""), "not JSON"),
    "a bad escape in metadata": (raw_file(b'{"__metadata__":{"a":"\\x"}}', b""), "bad escape"),
    "half a surrogate in metadata": (
        raw_file(b'{"__metadata__":{"a":"\\ud83d\\ude00\\ud83d"}}', b""),
        "bad escape",
    ),
    "metadata without end": (raw_file(b'{"__metadata__":{"a":"b', b""), "without end"),
    "metadata that is no text": (raw_file(b'{"__metadata__":{"a":1}}', b""), "not JSON"),
    "metadata that nests": (raw_file(b'{"__metadata__":{"a":{}}}', b""), "not JSON"),
    "metadata twice": (raw_file(b'{"__metadata__":{},"__metadata__":{}}', b""), "twice"),
    "a long name in metadata": (
        raw_file({"__metadata__": {"x" * 1025: ""}}, b""),
        "one of more than 1024 bytes",
    ),
    "minus nothing as a size": (
        raw_file(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b""),
        "lists of sizes",
    ),
    "a name that clears a terminal": (
        raw_file({"\x1b[2J": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        r"tensor '.{4}\[2J': 1 elements",
    ),
    "a metadata name twice": (raw_file(b'{"__metadata__":{"a":"1","a":"2"}}', b""), "'a' twice"),
    "a tensor twice": (
        raw_file(
            b'{"a":%b,"a":%b}' % ((b'{"dtype":"U8","shape":[],"data_offsets":[0,1]}',) * 2), b"0"
        ),
        "tensor 'a' stands in the header twice",
    ),
    "a field twice": (
        raw_file(b'{"a":{"dtype":"U8","shape":[],"shape":[],"data_offsets":[0,1]}}', b"\0"),
        "a name twice in one object",
    ),
    "a field too many": (raw_file(_one(more=1), bytes(8)), "expected dtype, shape and data_off"),
    "a field too few": (
        raw_file({"a": {"dtype": "U8"}}, b""),
        "expected dtype, shape and data_off",
    ),
    "no object": (raw_file(b'{"a":[]}', b""), "not JSON"),
    "an unknown dtype": (raw_file(_one(dtype="F33"), bytes(8)), "unknown dtype 'F33'"),
    "a dtype that is no text": (raw_file(_one(dtype=7), bytes(8)), "unknown dtype"),
    "a name of 1,025 bytes": (raw_file({"x" * 1025: _one()["a"]}, bytes(8)), "1 to 1024 bytes"),
    "no name": (raw_file({"": _one()["a"]}, bytes(8)), "1 to 1024 bytes"),
    "an endless name": (raw_file({"x" * 9999: _one()["a"]}, bytes(8)), "too long"),
    "65 dimensions": (raw_file(_one(shape=[1] * 64 + [2]), bytes(8)), "64 dimensions"),
    "an endless shape": (raw_file(_one(shape=[1] * 9999), bytes(8)), "too long"),
    "a shape of 2^60": (raw_file(_one(shape=[1 << 60]), bytes(8)), "lists of sizes"),
    "a shape of 2^60 by product": (raw_file(_one(shape=[1 << 30, 1 << 30]), bytes(8)), "2\\*\\*48"),
    "a product that wraps to 2": (
        raw_file(_one(shape=[1 << 33, 1 << 31, 2]), bytes(8)),
        "2\\*\\*48",
    ),
    "a huge product with a zero": (
        raw_file(_one(shape=[1 << 40, 1 << 40, 0], data_offsets=[0, 0]), b""),
        "2\\*\\*48",
    ),
    "a number of 5,000 digits": (
        raw_file(
            b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"\0"
        ),
        "not JSON",
    ),
    "a size below zero": (raw_file(_one(shape=[-2]), bytes(8)), "lists of sizes"),
    "a size that is no integer": (raw_file(_one(shape=[2.0]), bytes(8)), "lists of sizes"),
    "a size that is a truth": (raw_file(_one(shape=[True, 2]), bytes(8)), "lists of sizes"),
    "NaN": (raw_file(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"\0"), "NaN"),
    "offsets that turn round": (raw_file(_one(data_offsets=[8, 0]), bytes(8)), "-8 bytes where"),
    "three offsets": (raw_file(_one(data_offsets=[0, 4, 8]), bytes(8)), "lists of sizes"),
    "offsets of another size": (raw_file(_one(data_offsets=[0, 7]), bytes(7)), "7 bytes where"),
    "half a byte": (raw_file(_one(dtype="F4", shape=[3]), bytes(8)), "whole bytes"),
    "a hole": (raw_file(_two((0, 2), (3, 4)), bytes(4)), "'b' at byte 3 leaves a hole"),
    "a hole at the start": (
        raw_file(_two((1, 2), (2, 4)), bytes(4)),
        "'a' at byte 1 leaves a hole",
    ),
    "an overlap": (raw_file(_two((0, 3), (2, 4)), bytes(4)), "'b' at byte 2 overlaps"),
    "one inside another": (raw_file(_two((0, 4), (1, 3)), bytes(4)), "'b' at byte 1 overlaps"),
    "an empty one inside another": (raw_file(_two((0, 4), (2, 2)), bytes(4)), "overlaps"),
    "an empty one past the end": (raw_file(_two((0, 4), (9, 9)), bytes(4)), "leaves a hole"),
    "trailing bytes": (raw_file(_one(), bytes(9)), "1 bytes after the last tensor"),
    "a truncated file": (raw_file(_one(), bytes(7)), "the end is missing"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("window", [5, 1 << 20])
def test_hostile_headers(what: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "WINDOW_BYTES", window)
    raw, reason = HOSTILE[what]
    with pytest.raises(DecodeError, match=reason):
        parse(raw)


def test_random_damage_is_refused_or_the_same_for_both_readers(tmp_path: Path) -> None:
    """What we take, `safetensors` takes with the same tensors; we refuse more than it does."""
    rng = random.Random(7)
    text = json.dumps(entries(ALL[:6])).encode()
    data = bytes(sum(size_of(d, s) for _, d, s in ALL[:6]))
    taken = 0
    for _ in range(1500):
        broken = bytearray(text)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(broken))
            broken[at : at + rng.randint(0, 2)] = rng.choice(
                [b"", b"0", b"1", b'"', b"{", b",", b"]", b" ", b"\\", b"9", b"\xc3"]
            )
        raw = raw_file(bytes(broken), data)
        try:
            found = parse(raw)
        except DecodeError:
            continue
        taken += 1
        path = tmp_path / "x"
        path.write_bytes(raw)
        with safe_open(path, framework="np") as file:
            assert sorted(file.keys()) == sorted(p.spec.name for p in found.tensors)
            for piece in found.tensors:
                assert file.get_slice(piece.spec.name).get_shape() == list(piece.spec.shape)
    assert taken > 20


def test_a_name_in_two_files_is_refused() -> None:
    parser = SourceParser()
    parse(checkpoint([("a", "U8", (1,)), ("b", "U8", (1,))]), parser, "one")
    with pytest.raises(DecodeError, match="tensor 'b' stands in one as well"):
        parse(checkpoint([("b", "U8", (1,))]), parser, "two")


def test_limits_hold_for_all_files_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_MODEL_TENSORS", 3)
    parser = SourceParser()
    parse(checkpoint([("a", "U8", ()), ("b", "U8", ())]), parser)
    with pytest.raises(DecodeError, match="more than 3 tensors"):
        parse(checkpoint([("c", "U8", ()), ("d", "U8", ())]), parser)
    monkeypatch.undo()
    monkeypatch.setattr(source, "MAX_NAMES_BYTES", 1000)
    with pytest.raises(DecodeError, match="MiB of names"):
        parse(checkpoint([("é" * 251, "U8", ())]))
    monkeypatch.setattr(source, "MAX_SOURCE_HEADER_BYTES", 100)
    with pytest.raises(DecodeError, match="bytes, at most 100"):
        parse(checkpoint([("a", "U8", ())], spaces=100))


def test_a_large_header_costs_its_tensors_and_not_its_text() -> None:
    """10 MB of metadata and 10 MB of spaces pass through a window of 1 MiB."""
    raw = checkpoint([("a", "U8", (1,))], metadata={"x": "é" * 5_000_000}, spaces=10_000_000)
    parse(raw)  # what Python keeps for good is not counted
    tracemalloc.start()
    try:
        file = io.BytesIO(raw)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        SourceParser().parse("x", file.read, len(raw))
        assert tracemalloc.get_traced_memory()[1] - before < 6 << 20
    finally:
        tracemalloc.stop()


# --- indexes --------------------------------------------------------------------------


def _reads(raw: bytes) -> tuple[Callable[[int], bytes], int]:
    return io.BytesIO(raw).read, len(raw)


def test_an_index_names_its_files_and_their_tensors() -> None:
    text = {
        "metadata": {"total_size": 3, "x": [1.5e3, None, True, {"a": ["b\\n"]}]},
        "weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
    }
    raw = json.dumps(text).encode()
    files = indexed_files(*_reads(raw))
    assert files == ("1.safetensors", "2.safetensors")
    check_index(*_reads(raw), files, {"a": 1, "b": 0, "c": 1})
    for owners, reason in (
        ({"a": 1, "b": 1, "c": 1}, "'b' should be in '1.safetensors' and is in 2.safetensors"),
        ({"a": 1, "b": 0}, "'c' should be in '2.safetensors' and is not"),
        ({"a": 1, "b": 0, "c": 1, "d": 0}, "tensor 'd' of 1.safetensors is not named"),
    ):
        with pytest.raises(DecodeError, match=reason):
            check_index(*_reads(raw), files, owners)
    twice = b'{"weight_map":{"a":"1","a":"1"}}'
    with pytest.raises(DecodeError, match="'a' is named twice"):
        check_index(*_reads(twice), ["1"], {"a": 0})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{}", "expected one weight_map, found 0"),
        (b'{"weight_map":{},"weight_map":{}}', "found 2"),
        (b'{"weight_map":[]}', "not JSON"),
        (b'{"weight_map":{"a":1}}', "not JSON"),
        (b'{"weight_map":{"a":"../b"}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":"/etc/passwd"}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":"..\\\\b"}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":".."}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":""}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":"b\\u0000"}}', "no name of a file beside it"),
        (b'{"weight_map":{"a":"\\ud800"}}', "not JSON"),
        (b'{"x":' + b"[" * 99 + b"]" * 99 + b',"weight_map":{}}', "nested"),
        (b'{"x":01,"weight_map":{}}', "not JSON"),
        (b'{"x":nul,"weight_map":{}}', "not JSON"),
    ],
)
def test_hostile_indexes(raw: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        indexed_files(*_reads(raw))


def test_names_that_promise_parts() -> None:
    assert missing_parts(["a.safetensors"]) == ()
    have = ["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"]
    assert missing_parts(have) == ("m-00002-of-00003.safetensors",)
