"""The framing of links against its vectors, in pieces of any size."""

import json
import random
from typing import Any

import pytest
from blake3 import blake3

from node.net.links import limits
from node.net.links.certificate import authority_key, signed_key
from node.net.links.frames import (
    Answer,
    Frame,
    Kind,
    LinkError,
    Open,
    Reader,
    Status,
    credit_frame,
    data_frame,
    header,
    message_frames,
    read_credit,
)
from node.net.priority import Priority
from tests.reference import links_ref as reference

VECTORS = json.loads(reference.VECTORS.read_text())  # tests/vectors/links/frames.json


class Recorder:
    """A sink that decodes what it gets; content is collected by stream."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.frames: list[Frame] = []
        self.begun: list[tuple[int, int]] = []
        self.content: dict[int, bytes] = {}
        self._place = memoryview(bytearray(room))
        self.discard: set[int] = set()

    def frame(self, frame: Frame) -> None:
        decoders: dict[Kind, Any] = {
            Kind.OPEN: Open.decode, Kind.ANSWER: Answer.decode, Kind.CREDIT: read_credit,
        }  # fmt: skip
        if frame.kind in decoders:
            decoders[frame.kind](frame.body)
        self.frames.append(frame)

    def begin(self, stream: int, size: int) -> None:
        self.begun.append((stream, size))

    def place(self, stream: int, left: int) -> memoryview | None:
        return None if stream in self.discard else self._place

    def data(self, stream: int, count: int) -> None:
        part = bytes(count) if stream in self.discard else bytes(self._place[:count])
        self.content[stream] = self.content.get(stream, b"") + part


def encoded(fields: dict[str, Any]) -> bytes:
    stream, kind = fields["stream"], Kind[fields["kind"].upper()]
    if kind is Kind.OPEN:
        priority, credit, size = Priority(fields["priority"]), fields["credit"], fields["size"]
        return Frame(
            stream, kind, Open(priority, credit, size, fields["protocol"]).encode()
        ).encode()
    if kind is Kind.ANSWER:
        return Frame(
            stream, kind, Answer(Status(fields["status"]), fields["size"]).encode()
        ).encode()
    if kind is Kind.CREDIT:
        return credit_frame(stream, fields["count"])
    if kind is Kind.DATA:
        return b"".join(data_frame(stream, [memoryview(bytes.fromhex(fields["body"]))]))
    return Frame(stream, kind, bytes.fromhex(fields.get("body", ""))).encode()


def test_the_vectors_are_what_the_reference_makes():
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("fields", VECTORS["frames"], ids=lambda f: f["bytes"][:40])
def test_frames(fields):
    data = bytes.fromhex(fields["bytes"])
    assert encoded(fields) == data
    sink = Recorder()
    Reader(sink).feed(data)
    if fields["kind"] == "data":
        assert sink.content == {fields["stream"]: bytes.fromhex(fields["body"])}
    else:
        assert [f.encode() for f in sink.frames] == [data]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda c: c["why"])
def test_what_is_refused(case):
    with pytest.raises(LinkError) as caught:
        Reader(Recorder()).feed(bytes.fromhex(case["bytes"]))
    assert caught.value.points == limits.POINTS_FRAME


@pytest.mark.parametrize("case", VECTORS["messages"], ids=lambda c: str(c["size"]))
def test_frames_of_messages(case):
    frames = message_frames(b"\xa5" * case["size"])
    assert [blake3(frame).hexdigest() for frame in frames] == case["frames"]


@pytest.mark.parametrize("case", VECTORS["extensions"], ids=lambda c: c["seed"][:8])
def test_extensions_of_certificates(case):
    seed, spki = bytes.fromhex(case["seed"]), bytes.fromhex(case["spki"])
    assert signed_key(seed, spki).hex() == case["extension"]


@pytest.mark.parametrize("case", VECTORS["authorities"], ids=lambda c: c["chain_id"][:8])
def test_authorities(case):
    key = authority_key(bytes.fromhex(case["chain_id"])).public_key()
    assert key.public_bytes_raw().hex() == case["public_key"]


@pytest.mark.parametrize("piece", [1, 2, 7, 8, 9, 300, 4096, 65536, 1 << 20])
def test_pieces_of_any_size(piece):
    chance = random.Random(piece)
    sent, wanted = bytearray(), {1: b"", 2: b"", 3: b""}
    frames = []
    sizes = [1, limits.BODY_BYTES] + [chance.randrange(1, 9000) for _ in range(20)]
    for size in sizes if piece > 1 else sizes[2:]:
        stream, body = chance.choice((1, 2, 3)), chance.randbytes(size)
        sent += b"".join(data_frame(stream, [memoryview(body)]))
        wanted[stream] += body if stream != 3 else bytes(size)
        if chance.random() < 0.5:
            frames.append(Frame(0, Kind.PING, chance.randbytes(8)))
            sent += frames[-1].encode()
    sink = Recorder()
    sink.discard = {3}
    reader = Reader(sink)
    for start in range(0, len(sent), piece):
        reader.feed(sent[start : start + piece])
    assert sink.frames == frames
    assert {k: sink.content.get(k, b"") for k in wanted} == wanted


def test_a_buffer_is_never_empty_and_a_turn_is_bounded():
    sink = Recorder()
    reader = Reader(sink)
    ping = Frame(0, Kind.PING, bytes(8)).encode()
    waiting, is_more = memoryview(ping * 100_000), False
    while waiting or is_more:
        buffer = reader.get_buffer()
        assert len(buffer) > 0
        count = 0 if is_more else min(len(buffer), len(waiting))
        buffer[:count] = waiting[:count]
        waiting = waiting[count:]
        before = len(sink.frames)
        is_more = reader.advance(count)
        assert len(sink.frames) - before <= limits.TURN_READ_FRAMES
    assert len(sink.frames) == 100_000


def test_large_content_fills_whole_records():
    parts = data_frame(9, [memoryview(bytes(limits.BODY_BYTES))])
    assert [len(p) for p in parts] == [limits.RECORD_BYTES, 3 * limits.RECORD_BYTES]
    several = data_frame(9, [memoryview(b"ab"), memoryview(b"c")])
    assert several == [header(9, Kind.DATA, 3) + b"abc"]
