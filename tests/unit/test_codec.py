"""The codec against the vectors of every wire type, and its limits.

If a vector file no longer matches its types, a wire format changed: that is a protocol change.
If it is meant, write the vectors again with `python -m tests.reference.codec_ref`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
import pytest

from chain import codec, limits, plain
from chain.codec import U8, Bytes, Seq, Text, decode, encode, tag_of, wire_types
from chain.errors import DecodeError
from chain.hashes import ZERO_HASH, Hash32
from chain.transactions import Transfer
from chain.tree import StateProof
from chain.types import Block, Epoch, Grains, PubKey, Signature, View, Vote, VoteKind
from tests.reference import codec_ref as reference

UNSIGNED = Signature(bytes(64))
REF = reference.Reference()
MODULES = reference.modules()
FILES = {path.stem: json.loads(path.read_text()) for path in reference.VECTORS.glob("*.json")}
CASES: list[dict[str, Any]] = [case for name in sorted(FILES) for case in FILES[name]]
TYPES = {cls.__name__: cls for cls in REF.tags}


def _id(case: dict[str, Any]) -> str:
    return str(case["type"])


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert sorted(FILES) == MODULES
    for module in MODULES:
        assert reference.vectors(REF, module) == FILES[module], f"{module}: see this file's head"


def test_every_wire_type_has_vectors() -> None:
    known = {tag: cls for tag, cls in wire_types().items() if cls in REF.tags}
    assert {tag_of(cls): cls for cls in REF.tags} == known
    assert len(TYPES) == len(REF.tags)  # no two types share a name
    strangers = {c for c in wire_types().values() if c not in REF.tags}
    assert all(c.__module__.split(".")[0] not in reference.PACKAGES for c in strangers)


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_examples(case: dict[str, Any]) -> None:
    cls = TYPES[case["type"]]
    assert tag_of(cls) == case["tag"]
    for text in case["examples"]:
        data = bytes.fromhex(text)
        value = decode(cls, data)
        assert encode(value) == data
        assert value == REF.build(("struct", cls), reference.parse(data))
        assert reference.pack(REF.plain(value)) == data


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_rejects(case: dict[str, Any]) -> None:
    cls, base = TYPES[case["type"]], bytes.fromhex(case["base"])
    decode(cls, base)
    for why, at, cut, put in case["rejects"]:
        bad = base[:at] + bytes.fromhex(put) + base[at + cut :]
        assert not REF.accepts(cls, bad), why
        with pytest.raises(DecodeError):
            decode(cls, bad)


# --- forms at their boundaries, by the MessagePack specification -------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (255, "ccff"),
        (256, "cd0100"),
        (65535, "cdffff"),
        (65536, "ce00010000"),
        (2**32 - 1, "ceffffffff"),
        (2**32, "cf0000000100000000"),
        (2**64 - 1, "cfffffffffffffffff"),
        (-1, "ff"),
        (-32, "e0"),
        (-33, "d0df"),
        (-128, "d080"),
        (-129, "d1ff7f"),
        (-32768, "d18000"),
        (-32769, "d2ffff7fff"),
        (-(2**31) - 1, "d3ffffffff7fffffff"),
        (b"", "c400"),
        ("", "a0"),
        ([], "90"),
        ([[1], "a", b"b"], "939101a161c40162"),
    ],
)
def test_shortest_forms(value: Any, expected: str) -> None:
    assert plain.pack(value).hex() == reference.pack(value).hex() == expected


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65535, 65536])
def test_shortest_lengths(size: int) -> None:
    for value in ("x" * size, b"x" * size, [7] * size):
        assert plain.pack(value) == reference.pack(value)
        assert reference.parse(reference.pack(value)) == value


# --- limits -----------------------------------------------------------------------


def test_no_more_bytes_than_allowed() -> None:
    data = encode(Transfer(PubKey(bytes(32)), Grains(1)))
    assert decode(Transfer, data, most=len(data))
    with pytest.raises(DecodeError, match="at most"):
        decode(Transfer, data, most=len(data) - 1)


def test_encoding_checks_as_decoding_does() -> None:
    for value in (
        Transfer(PubKey(bytes(31)), Grains(1)),
        Transfer(PubKey(bytes(32)), Grains(-1)),
        Transfer(PubKey(bytes(32)), Grains(2**64)),
        Transfer(PubKey(bytes(32)), Grains(True)),
        StateProof((Hash32(bytes(32)),) * (limits.MAX_PROOF_NODES + 1), None),
    ):
        with pytest.raises(DecodeError):
            encode(value)


def test_an_enum_member_is_its_number() -> None:
    vote = Vote(VoteKind.FINALIZE, Epoch(0), View(0), ZERO_HASH, PubKey(bytes(32)), UNSIGNED)
    assert encode(vote)[2] == 3
    assert decode(Vote, encode(vote)) == vote


def test_huge_lengths_cost_nothing() -> None:
    """A few bytes that claim 2**32 items, and nested claims, are refused without allocating."""
    for data in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff" * 1000,
        b"\x93" + b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"",
    ):
        with pytest.raises(DecodeError):
            decode(Block, data)


def test_unions_take_their_members_only() -> None:
    data = encode(Transfer(PubKey(bytes(32)), Grains(1)))
    assert decode(Transfer | StateProof, data) == Transfer(PubKey(bytes(32)), Grains(1))
    with pytest.raises(DecodeError, match="unknown type tag"):
        decode(Block | StateProof, data)


def test_errors_name_the_field() -> None:
    data = msgpack.packb([32, bytes(31), 5])
    with pytest.raises(DecodeError, match=r"Transfer\.to: expected 32 bytes"):
        decode(Transfer, data)


def test_no_type_nests_deeper_than_the_limit() -> None:
    """So nothing that decodes does: what is nested otherwise than its type is refused."""

    def depth(kind: Any) -> int:
        form, spec = codec._plan(kind)
        inner = {
            "scalar": list,
            "struct": lambda: [k for _, k, _ in spec.fields],
            "seq": lambda: [spec[0]],
            "option": lambda: [spec],
            "union": lambda: list(spec.values()),
        }[form]()
        own = 0 if form in ("scalar", "union") else 1
        return own + max((depth(k) for k in inner), default=0)

    depths = {cls.__name__: depth(cls) for cls in wire_types().values()}
    assert max(depths.values()) <= limits.MAX_DEPTH
    assert depths["Transfer"] == 1
    assert depths["Transaction"] >= 3  # an opening's proof lies in its payload


def test_a_tag_is_given_once() -> None:
    with pytest.raises(TypeError, match="belongs to"):

        @codec.wire(32)
        @dataclass(frozen=True)
        class Second:
            number: U8


def test_field_types_without_a_wire_form_are_refused() -> None:
    @dataclass(frozen=True)
    class Loose:
        number: int

    with pytest.raises(TypeError, match="no wire form"):
        codec._plan(int)
    with pytest.raises(TypeError, match="no wire form"):
        codec._plan(Loose)


def test_annotations_mean_what_they_say() -> None:
    assert codec._plan(Annotated[tuple[U8, ...], Seq(3)]) == ("seq", (U8, 3))
    assert codec._plan(Annotated[str, Text(3)]) == ("scalar", Text(3))
    assert codec._plan(Annotated[bytes, Bytes(3)]) == ("scalar", Bytes(3))
