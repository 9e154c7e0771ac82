"""Bundles: many blobs in one answer, each worth nothing until it is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import StorageError
from chain.hashes import BLOB, ZERO_HASH
from chain.types import BlobId
from node.net.requests import parts_of
from node.services import blobs as blobs_module
from node.services import bundles
from node.services.blobs import BlobService
from node.services.bundles import BundleHeader, BundlePiece, BundleRequest, BundleService, root_of
from tests.kit.wire import Wire

DATA = [b"first", b"the second", b"third of them"]


@dataclass
class Node:
    blobs: BlobService
    bundles: BundleService
    wire: Wire
    single: Any  # the handler of /blyan/blob/1


def node(directory: Path, *held: bytes) -> Node:
    wire = Wire()
    blobs = BlobService(directory, wire)
    single = wire.handler
    made = Node(blobs, BundleService(blobs, wire), wire, single)
    for data in held:
        blobs.put(data)
    return made


def piece(data: bytes, size: int | None = None) -> BundlePiece:
    return BundlePiece(BlobId(BLOB.hash(data)), len(data) if size is None else size)


PIECES = [piece(data) for data in DATA]
MOST = 1 << 20


def serving(far: Node) -> Callable[..., Any]:
    """A peer that answers both protocols, told apart by a request's length."""

    async def answer(peer: str, request: bytes) -> Any:
        return await (far.single if len(request) == 33 else far.wire.handler)(peer, request)

    return answer


def answer(
    sizes: Sequence[int], bodies: Sequence[bytes], pieces: Sequence[BundlePiece] = PIECES
) -> bytes:
    return framed(encode(BundleHeader(tuple(sizes), root_of(pieces, sizes))), bodies)


def framed(header: bytes, bodies: Sequence[bytes]) -> bytes:
    return len(header).to_bytes(2, "big") + header + b"".join(bodies)


def asked_for(wire: Wire, peer: str, handler: Any) -> list[list[BundlePiece]]:
    """What `peer` is asked for in bundles, from now on."""
    seen: list[list[BundlePiece]] = []

    async def listen(asker: str, request: bytes) -> Any:
        if len(request) != 33:
            seen.append(list(decode(BundleRequest, request, most=len(request)).pieces))
        return await handler(asker, request)

    wire.servers[peer] = listen
    return seen


def test_one_answer_has_what_is_lacking_and_only_that(tmp_path: Path) -> None:
    far, near = node(tmp_path / "far", *DATA), node(tmp_path / "near", DATA[1])
    seen = asked_for(near.wire, "far", serving(far))
    twice = [*PIECES, PIECES[0]]
    assert asyncio.run(near.bundles.fetch(twice)) == []
    assert seen == [[PIECES[0], PIECES[2]]]
    assert [near.blobs.local(p.blob) for p in PIECES] == DATA
    assert (near.bundles.fetched, far.bundles.served, near.wire.reported) == (1, 1, [])
    assert asyncio.run(near.bundles.fetch(twice)) == []
    assert len(seen) == 1  # nothing lacks


def test_what_one_relay_lacks_comes_from_the_next_and_the_rest_alone(tmp_path: Path) -> None:
    near = node(tmp_path / "near")
    seen = []
    for i, data in enumerate(DATA):
        far = node(tmp_path / str(i), data)
        seen.append(asked_for(near.wire, f"peer {i}", serving(far)))
    alone = node(tmp_path / "last", b"rare")
    last = asked_for(near.wire, "peer 3", serving(alone))
    asyncio.run(near.bundles.have([*PIECES, piece(b"rare"), piece(b"of nobody")], MOST))
    assert all(near.blobs.has(p.blob) for p in PIECES)
    assert near.blobs.local(piece(b"rare").blob) == b"rare"
    assert not near.blobs.has(piece(b"of nobody").blob)
    assert last == []  # three were asked for bundles, then all for each blob
    assert near.wire.reported == []
    assert all(seen)


def lies() -> dict[str, bytes]:
    sizes = [p.size for p in PIECES]
    honest = encode(BundleHeader(tuple(sizes), root_of(PIECES, sizes)))
    longer = honest[:2] + b"\xdc\x00" + bytes([honest[2] & 15]) + honest[3:]
    return {
        "a wrong root": framed(encode(BundleHeader(tuple(sizes), ZERO_HASH)), DATA),
        "a wrong size": answer([5, 9, 13], [DATA[0], DATA[1][:9], DATA[2]]),
        "trailing bytes": answer(sizes, [*DATA, b"!"]),
        "a body too few": answer(sizes, DATA[:2]),
        "a piece too many": answer([*sizes, 3], [*DATA, b"foo"], [*PIECES, piece(b"foo")]),
        "a piece too few": answer(sizes[:2], DATA[:2], PIECES[:2]),
        "nothing listed": answer([0, 0, 0], []),
        "a longer form": framed(longer, DATA),
        "a byte behind the header": framed(honest + b"\x00", DATA),
        "no header": b"\x00",
        "a header of another length": (1 << 15).to_bytes(2, "big") + honest + b"".join(DATA),
    }


@pytest.mark.parametrize("lie", lies())
def test_a_relay_that_lies_is_charged_and_asked_no_more(tmp_path: Path, lie: str) -> None:
    near = node(tmp_path)

    async def answering(peer: str, request: bytes) -> bytes:
        return lies()[lie]

    seen = asked_for(near.wire, "liar", answering)

    async def act() -> None:
        assert await near.bundles.fetch(PIECES) == PIECES
        assert await near.bundles.fetch(PIECES) == PIECES  # a banned peer is not asked again

    asyncio.run(act())
    assert near.wire.reported == ["liar"]
    assert len(seen) == 1
    assert not any(near.blobs.has(p.blob) for p in PIECES)
    assert near.bundles.fetched == 0


def test_beside_a_wrong_body_the_right_ones_are_kept(tmp_path: Path) -> None:
    near, far = node(tmp_path / "near"), node(tmp_path / "far", *DATA)

    async def lie(peer: str, request: bytes) -> bytes:
        return answer([p.size for p in PIECES], [DATA[0], b"THE SECOND", DATA[2]])

    near.wire.servers["a liar"] = lie
    seen = asked_for(near.wire, "honest", serving(far))
    assert asyncio.run(near.bundles.fetch(PIECES)) == []
    assert near.wire.reported == ["a liar"]
    assert seen == [[PIECES[1]]]


def test_more_than_was_asked_for_is_not_taken(tmp_path: Path) -> None:
    near = node(tmp_path)

    async def flood(peer: str, request: bytes) -> bytes:
        return answer([p.size for p in PIECES], [*DATA, bytes(1024)])

    near.wire.servers["flood"] = flood
    assert asyncio.run(near.bundles.fetch(PIECES)) == PIECES
    assert near.bundles.fetched == 0


def test_what_does_not_fit_comes_in_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BLOB_BYTES", 64)
    large = [bytes([i]) * 30 for i in range(3)]
    pieces = [piece(data) for data in large]
    far, near = node(tmp_path / "far", *large), node(tmp_path / "near")
    seen = asked_for(near.wire, "far", serving(far))
    assert asyncio.run(near.bundles.fetch(pieces)) == []
    assert seen == [pieces, pieces[2:]]
    assert near.bundles.fetched == 2


def test_a_size_that_only_the_chain_has_wrong_is_nobodys_lie(tmp_path: Path) -> None:
    far, near = node(tmp_path / "far", *DATA), node(tmp_path / "near")
    near.wire.servers["far"] = serving(far)
    wrong = piece(DATA[0], 4)  # as its learner committed to it
    assert asyncio.run(near.bundles.fetch([wrong, PIECES[1]])) == [wrong]
    assert near.wire.reported == []
    assert near.blobs.has(PIECES[1].blob)


def test_who_gave_a_bundle_before_is_asked_first(tmp_path: Path) -> None:
    far, near = node(tmp_path / "far", *DATA), node(tmp_path / "near")
    near.wire.servers["empty"] = serving(node(tmp_path / "empty"))
    near.wire.servers["far"] = serving(far)

    async def act() -> None:
        await near.bundles.fetch(PIECES[:1])
        near.wire.asked.clear()
        await near.bundles.fetch(PIECES[1:])

    asyncio.run(act())
    assert near.wire.asked == ["far"]


def test_a_full_store_is_no_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = node(tmp_path / "far", *DATA), node(tmp_path / "near")
    near.wire.servers["far"] = serving(far)
    monkeypatch.setattr(blobs_module, "MAX_STORE_BYTES", 6)
    with pytest.raises(StorageError):
        asyncio.run(near.bundles.fetch(PIECES))
    asyncio.run(near.bundles.have(PIECES, MOST))  # logged: it is asked for again when it is needed
    assert near.wire.reported == []


HOSTILE = {
    "nothing": BundleRequest(()),
    "the same twice": BundleRequest((PIECES[0], PIECES[0])),
    "an empty blob": BundleRequest((piece(b""),)),
    "more than a blob may have": BundleRequest((piece(b"x", limits.MAX_BLOB_BYTES + 1),)),
}


@pytest.mark.parametrize("name", [*HOSTILE, "no request", "too many"])
def test_a_hostile_request_is_charged(tmp_path: Path, name: str) -> None:
    far = node(tmp_path, *DATA)
    many = tuple(piece(bytes([i])) for i in range(limits.MAX_DELTAS))
    full = encode(BundleRequest(many))
    assert len(full) <= bundles.MAX_REQUEST_BYTES
    # one more than 64 in the array's length, and a 65th piece
    grown = full.replace(b"\xdc\x00\x40", b"\xdc\x00\x41", 1) + encode(PIECES[0])
    raw = {"no request": b"\xc1", "too many": grown}
    request = raw[name] if name in raw else encode(HOSTILE[name])
    assert asyncio.run(far.wire.handler("asker", request)) == b""
    assert far.wire.reported == ["asker"]
    assert asyncio.run(far.wire.handler("friend", full)) == b""  # none of these is here
    assert far.wire.reported == ["asker"]


def test_the_largest_header_fits(tmp_path: Path) -> None:
    sizes = (limits.MAX_BLOB_BYTES,) * limits.MAX_DELTAS
    assert len(encode(BundleHeader(sizes, ZERO_HASH))) <= bundles.MAX_HEADER_BYTES
    far = node(tmp_path, *DATA)
    request = encode(BundleRequest(tuple(PIECES)))
    raw = b"".join(parts_of(asyncio.run(far.wire.handler("asker", request))))
    assert raw == answer([p.size for p in PIECES], DATA)


def test_a_relay_asks_once_for_each_new_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = node(tmp_path / "far", *DATA), node(tmp_path / "near")
    seen = asked_for(near.wire, "far", serving(far))

    def state(pieces: Sequence[BundlePiece]) -> Any:
        records = [SimpleNamespace(blob=p.blob, blob_bytes=p.size) for p in pieces]
        current = SimpleNamespace(number=0, deltas=range(len(records)))
        return SimpleNamespace(round=lambda: current, delta=records.__getitem__)

    bound: Any = SimpleNamespace(of_round=lambda state, number: MOST)
    have, asked = near.bundles.have, []

    async def act() -> None:
        done = asyncio.Event()

        async def having(pieces: Sequence[BundlePiece], most: int) -> None:
            await have(pieces, most)
            asked.append(pieces)
            done.set()

        monkeypatch.setattr(near.bundles, "have", having)
        relay = bundles.Relay(near.bundles, bound, state(PIECES[:1]))
        running = asyncio.create_task(relay.run())
        await done.wait()
        for pieces in (PIECES[:1], PIECES):  # another block without a commit, then two commits
            done.clear()
            relay.committed(state(pieces))
        await done.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(act())
    assert asked == [*seen[:1], PIECES]
    assert seen == [PIECES[:1], PIECES[1:]]
