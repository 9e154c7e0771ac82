"""Round trip and strictness of every wire type, and agreement with the reference on any bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain.codec import decode, encode
from chain.errors import DecodeError
from tests.reference import codec_ref as reference

REF = reference.Reference()
TYPES = sorted(REF.tags, key=lambda cls: REF.tags[cls])
FAST = settings(
    derandomize=True,
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def plain_of(kind: tuple[Any, ...], room: int = 3) -> st.SearchStrategy[Any]:
    """Plain values of a kind, with small sequences."""
    match kind:
        case ("uint", bits):
            return st.integers(0, 2**bits - 1)
        case ("int", bits):
            return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        case ("bytes", least, most):
            return st.binary(min_size=least, max_size=min(most, least + 40))
        case ("text", most):
            letters = st.characters(exclude_categories=["Cs", "Cc"])
            return st.text(letters, max_size=min(12, most // 4))
        case ("seq", item, most):
            return st.lists(plain_of(item, room - 1), max_size=min(most, 3) if room > 0 else 0)
        case ("option", item):
            return st.lists(plain_of(item, room - 1), max_size=1)
        case ("union", classes):
            return st.one_of([plain_of(("struct", cls), room) for cls in classes])
    parts = [st.just(REF.tags[kind[1]]), *(plain_of(k, room) for _, k in REF.fields(kind[1]))]
    return st.tuples(*parts).map(list)


STRUCTS = st.sampled_from(TYPES)
VALUES = STRUCTS.flatmap(lambda cls: plain_of(("struct", cls)).map(lambda plain: (cls, plain)))


@FAST
@given(VALUES)
def test_round_trip(pair: tuple[type, list[Any]]) -> None:
    cls, plain = pair
    data = reference.pack(plain)
    value = decode(cls, data)
    assert value == REF.build(("struct", cls), plain)
    assert encode(value) == data
    assert REF.accepts(cls, data)


@FAST
@given(VALUES, st.data())
def test_changed_bytes_are_refused_or_mean_what_they_say(
    pair: tuple[type, list[Any]], choose: st.DataObject
) -> None:
    cls, plain = pair
    data = bytearray(reference.pack(plain))
    for _ in range(choose.draw(st.integers(1, 3))):
        at = choose.draw(st.integers(0, len(data) - 1))
        cut = choose.draw(st.integers(0, 2))
        data[at : at + cut] = choose.draw(st.binary(max_size=3))
        if not data:
            break
    _judge(cls, bytes(data))


@FAST
@given(STRUCTS, st.binary(max_size=60))
def test_any_bytes(cls: type, data: bytes) -> None:
    _judge(cls, data)
    size = len(REF.fields(cls)) + 1
    _judge(cls, bytes([0x90 | size & 15]) + reference.pack(REF.tags[cls]) + data)


def _judge(cls: type, data: bytes) -> None:
    """Both codecs say the same, and what is accepted encodes to the same bytes."""
    try:
        value = decode(cls, data)
    except DecodeError:
        assert not REF.accepts(cls, data)
    else:
        assert REF.accepts(cls, data)
        assert encode(value) == data
