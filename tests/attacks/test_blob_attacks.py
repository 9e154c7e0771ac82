"""Filling a node's blob store, censoring a learner by naming its blob, and manifests that cost
more to read than to send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chain import limits
from chain import records as r
from chain.errors import DecodeError, StorageError, UnreachableError, VerifyError
from chain.hashes import BLOB, DATASET, ZERO_HASH, Hash32
from chain.types import BlobId, Height, PubKey
from corpus import dataset as corpus
from corpus.dataset import Dataset, build
from corpus.ingest import Document
from node import data as reading
from node.api.app import create_app
from node.data import fetch_dataset
from node.net.requests import parts_of
from node.services import blobs as store
from node.services.blob_keeping import BEHIND_S, BlobKeeping
from node.services.blobs import GRACE_S, BlobService
from node.services.bundles import BundlePiece, BundleService, pieces_of
from node.services.duty_context import DutyContext
from node.services.payload_bound import PayloadBound
from tests.kit.http import ask
from tests.kit.local_chain import LocalChain
from tests.kit.net import exchange, stations
from tests.kit.wire import Wire

HONEST = b"h" * 70_000
TOKEN = {"Authorization": "Bearer kit-token"}


class Network(Wire):
    """Peers with all their protocols. As with a link, who answers with more than there is room for
    loses the connection and 50 points."""

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, Any] = {}
        self.sent = 0

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.own[protocol] = handler

    async def fetch(
        self, peer: str, protocol: str, data: bytes, *, into: memoryview, progress: Any, **_: Any
    ) -> int:
        self.asked.append(peer)
        answer = b"".join(parts_of(await self.servers[peer][protocol]("asker", data)))
        if len(answer) > len(into):
            self.report(peer, "too much", 50)
            raise UnreachableError("the link is closed")
        into[: len(answer)] = answer
        self.sent += len(answer)
        progress(len(answer))
        return len(answer)


class Node:
    def __init__(self, directory: Path, *held: bytes, now: list[float] | None = None) -> None:
        self.net = Network()
        times = now or [1e9]
        self.blobs = BlobService(directory, self.net, lambda: times[0])
        self.bundles = BundleService(self.blobs, self.net)
        for data in held:
            self.blobs.put(data)


def name(data: bytes) -> BlobId:
    return BlobId(BLOB.hash(data))


def record(blob: bytes, size: int) -> Any:
    return SimpleNamespace(blob=name(blob), blob_bytes=size, round=0, salt=bytes(32))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        for _ in range(3):
            made.learn()
        yield made


# --- naming another's blob ------------------------------------------------------------------


def test_who_names_anothers_blob_keeps_it_from_nobody(tmp_path: Path) -> None:
    """Eve's commit stands first, with the honest learner's blob and a size of one byte."""
    host, validator = Node(tmp_path / "host", HONEST), Node(tmp_path / "validator")
    validator.net.servers = {"the learner's host": host.net.own}
    commits = [record(HONEST, 1), record(HONEST, len(HONEST))]
    pieces = pieces_of(commits, 1 << 20)
    assert pieces == [BundlePiece(name(HONEST), len(HONEST))]
    asyncio.run(validator.bundles.have(pieces, 1 << 20))
    assert validator.blobs.has(name(HONEST))
    assert validator.bundles.fetched == 1
    assert validator.net.reported == []


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_size_that_somebody_else_said_is_no_reason_to_ban(tmp_path: Path, size: int) -> None:
    host, validator = Node(tmp_path / "host", HONEST), Node(tmp_path / "validator")
    validator.net.servers = {"the learner's host": host.net.own}
    asyncio.run(validator.bundles.have([BundlePiece(name(HONEST), size)], 1 << 20))
    assert validator.blobs.has(name(HONEST))
    assert validator.net.reported == []


def test_whoever_expects_little_lets_the_others_have_it(tmp_path: Path) -> None:
    host, validator = Node(tmp_path / "host", HONEST), Node(tmp_path / "validator")
    validator.net.servers = {"the learner's host": host.net.own}

    async def act() -> list[Any]:
        once, request = validator.blobs._once, b"\0" + name(HONEST)
        asks = (once(request, most, HONEST.__eq__) for most in (1, len(HONEST), 2, len(HONEST)))
        return await asyncio.gather(*asks, return_exceptions=True)

    little, honest, less, again = asyncio.run(act())
    assert isinstance(little, UnreachableError)
    assert isinstance(less, UnreachableError)
    assert honest == again == HONEST
    assert validator.net.reported == []
    assert len(validator.net.asked) == 2  # one transfer for all who take as much
    assert validator.blobs._rates["the learner's host"].paused_until == 0


@pytest.mark.parametrize("options", [{}, {"link_port": 0}], ids=["libp2p", "links"])
def test_an_honest_host_stays_connected(tmp_path: Path, options: dict[str, Any]) -> None:
    """Over the real network, with a blob that is more than was expected by far."""
    data = HONEST * 50

    async def scenario() -> None:
        async with stations("a", "b", **options) as (a, b):
            near = BlobService(tmp_path / "near", a.net)
            far = BlobService(tmp_path / "far", b.net)
            if options:
                await a.until_linked(b)
            far.put(data)
            for most in (1, len(data) - 1):
                with pytest.raises(UnreachableError, match=f"more than {most} bytes"):
                    await near.get(name(data), most=most)
            assert await near.get(name(data), most=len(data)) == data
            assert [p.violations for p in a.net.peers()] == [0]
            assert [p.violations for p in b.net.peers()] == [0]
            await exchange(a, b)

    asyncio.run(scenario())


# --- filling the store ----------------------------------------------------------------------


def test_no_more_than_a_payload_may_have_is_fetched(tmp_path: Path, chain: LocalChain) -> None:
    """64 commits of 64 MiB would have every validator store 4 GiB a round."""
    state = chain.state
    bound = PayloadBound(chain.genesis).of_round(state, state.head.round)
    real = max(len(chain.blobs.held[d.blob]) for d in _deltas(chain, 0))
    assert real <= bound < 1 << 20
    huge = [record(bytes([i]), limits.MAX_BLOB_BYTES) for i in range(64)]
    assert pieces_of([*huge, record(HONEST, bound), record(b"", 0)], bound) == [
        BundlePiece(name(HONEST), bound)
    ]
    fat = bytes(bound + 1)
    host, validator = Node(tmp_path / "host", fat), Node(tmp_path / "validator")
    validator.net.servers = {"host": host.net.own}
    asyncio.run(validator.bundles.have([BundlePiece(name(fat), 1)], bound))
    assert not validator.blobs.has(name(fat))
    assert validator.net.reported == []

    context: Any = SimpleNamespace(
        bound=PayloadBound(chain.genesis),
        state=lambda: state,
        node=SimpleNamespace(blobs=validator.blobs),
    )
    validator.net.asked.clear()
    with pytest.raises(VerifyError, match="a payload of"):
        asyncio.run(DutyContext.payload(context, huge[0]))
    assert validator.net.asked == []
    with pytest.raises(UnreachableError):
        asyncio.run(DutyContext.payload(context, record(fat, 1)))


def _deltas(chain: LocalChain, number: int) -> list[r.DeltaRecord]:
    return [chain.state.delta(d) for d in chain.state.round(number).deltas]


def test_strangers_do_not_choose_what_a_node_fetches(tmp_path: Path, chain: LocalChain) -> None:
    """A page of another site needs no more than `<img>` for this."""
    evil, node = Node(tmp_path / "evil", HONEST), Node(tmp_path / "node", b"held")
    evil.blobs.put_checkpoint(Hash32(bytes(32)), b"state")
    node.net.servers = {"evil": evil.net.own}
    before, chain.blobs = chain.blobs, node.blobs  # type: ignore[assignment]
    try:
        app = create_app(chain)
        assert ask(app, "GET", f"/api/v1/blobs/{name(b'held').hex()}").content == b"held"
        for path in (f"blobs/{name(HONEST).hex()}", f"checkpoints/{bytes(32).hex()}"):
            refused = ask(app, "GET", f"/api/v1/{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unreachable")
            assert "api-token" in refused.json()["error"]["message"]
            assert node.net.asked == []
            assert ask(app, "GET", f"/api/v1/{path}", headers=TOKEN).status_code == 200
            assert node.net.asked == ["evil"]
            node.net.asked.clear()
    finally:
        chain.blobs = before
    assert not node.blobs.has(name(HONEST))


def test_a_full_store_passes_on_what_is_needed_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_STORE_BYTES", 1000)
    host, node = Node(tmp_path / "host"), Node(tmp_path / "node", bytes(990))
    wanted = host.blobs.put(b"w" * 100)
    node.net.servers = {"host": host.net.own}
    assert asyncio.run(node.blobs.get(wanted)) == b"w" * 100
    assert not node.blobs.has(wanted)


def test_what_nothing_names_any_more_is_dropped(tmp_path: Path, chain: LocalChain) -> None:
    """The payloads of a round go with the window, whatever was handed in has its grace."""
    now = [1e9]
    node = Node(tmp_path / "node", now=now)
    keeping = BlobKeeping(node.blobs, chain.chain, retention_rounds=2, clock=lambda: 0.0)
    payloads = [[chain.blobs.held[d.blob] for d in _deltas(chain, n)] for n in range(3)]
    assert chain.state.head.round == 3
    for data in (*payloads[0], *payloads[1], *payloads[2]):
        node.blobs.keep(data)
    node.blobs.keep(b"stray")
    mine = node.blobs.put(b"not on the chain yet")
    assert keeping.tidy() == len(payloads[0]) + 1
    assert not node.blobs.has(name(b"stray"))
    assert [[node.blobs.has(name(d)) for d in of] for of in payloads] == [
        [False] * len(payloads[0]),
        *([True] * len(of) for of in payloads[1:]),
    ]
    now[0] += GRACE_S - 1
    assert keeping.tidy() == 0
    assert node.blobs.put(b"not on the chain yet") == mine  # handed in again
    now[0] += GRACE_S - 1
    assert keeping.tidy() == 0
    now[0] += 1
    assert keeping.tidy() == 1
    assert not node.blobs.has(mine)


def test_a_full_store_makes_room_oldest_round_first(
    tmp_path: Path, chain: LocalChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "node")
    keeping = BlobKeeping(node.blobs, chain.chain, retention_rounds=32, clock=lambda: 0.0)
    payloads = [[chain.blobs.held[d.blob] for d in _deltas(chain, n)] for n in range(3)]
    dataset = chain.state.dataset(chain.state.round(2).datasets[0])
    manifest = chain.blobs.held[dataset.manifest]
    kept = [manifest, *payloads[1], *payloads[2]]
    for data in (*kept, *payloads[0], b"stray"):
        node.blobs.keep(data)
    monkeypatch.setattr(store, "MAX_STORE_BYTES", sum(map(len, kept + payloads[0])) + 5)
    node.blobs.keep(b"of this round")  # the stray one gives way, then the first round does
    assert not node.blobs.has(name(b"stray"))
    assert not all(node.blobs.has(name(d)) for d in payloads[0])
    assert all(node.blobs.has(name(d)) for d in kept)
    assert keeping.dropped > 0
    monkeypatch.setattr(store, "MAX_STORE_BYTES", len(manifest) + 10)
    with pytest.raises(StorageError, match="quota"):
        node.blobs.keep(b"more than all of them")
    assert list(node.blobs.held()) == [dataset.manifest]


def test_a_manifest_that_rots_takes_no_chunk_with_it(tmp_path: Path, chain: LocalChain) -> None:
    """Across a restart, after which nothing is known but what lies on disk."""
    dataset = build([Document("a.txt", b"some text\n" * 200_000)], "CC0-1.0", "a dataset")
    record, node = submitted(dataset), Node(tmp_path / "node", dataset.manifest_bytes)
    chunks = frozenset(map(name, dataset.chunks))
    first = BlobKeeping(node.blobs, chain.chain, 2, lambda: 0.0)
    assert first._chunks_of(record) == chunks
    path = tmp_path / "node" / "blob" / name(dataset.manifest_bytes).hex()
    path.write_bytes(b"!" + dataset.manifest_bytes[1:])
    for _ in range(2):  # it is removed where it is read first
        again = BlobKeeping(node.blobs, chain.chain, 2, lambda: 0.0)
        assert again._chunks_of(record) == chunks
    assert not path.exists()
    again._forget_lists([record.id])
    assert again._chunks_of(record) == chunks
    again._forget_lists([])  # it was rejected
    assert again._chunks_of(record) is None


def test_a_node_that_is_catching_up_drops_nothing(tmp_path: Path, chain: LocalChain) -> None:
    """Later blocks, which it has not yet, may name what it hosts."""
    head_s = chain.state.head.time_ms / 1000
    node = Node(tmp_path / "node")
    node.blobs.keep(b"stray")
    for behind_s, dropped in ((2 * BEHIND_S, 0), (BEHIND_S - 1, 1)):
        keeping = BlobKeeping(node.blobs, chain.chain, 2, lambda s=behind_s: head_s + s)
        assert keeping.tidy() == dropped


def test_a_restart_knows_what_was_handed_in_of_late(tmp_path: Path, chain: LocalChain) -> None:
    node = Node(tmp_path / "node", b"mine")
    (tmp_path / "node" / "tmp-cut-short").write_bytes(b"half")
    written = (tmp_path / "node" / "blob" / name(b"mine").hex()).stat().st_mtime
    for age, dropped in ((GRACE_S - 60, 0), (GRACE_S + 60, 1)):
        again = Node(tmp_path / "node", now=[written + age])
        keeping = BlobKeeping(again.blobs, chain.chain, retention_rounds=2, clock=lambda: 0.0)
        assert keeping.tidy() == dropped
    kept = sorted(p.name for p in (tmp_path / "node").iterdir())
    assert kept == ["blob", "checkpoint", "chunks"]
    assert not node.blobs.has(name(b"mine"))


# --- datasets -------------------------------------------------------------------------------


def made() -> Dataset:
    text = b"A line of text that is worth something.\n" * 60_000
    return build([Document("a.txt", text)], "MIT", "lines")


def submitted(dataset: Dataset, **changes: Any) -> r.DatasetRecord:
    manifest = dataset.manifest
    found = r.DatasetRecord(
        dataset.id,
        PubKey(bytes(32)),
        Height(1),
        name(dataset.manifest_bytes),
        len(dataset.manifest_bytes),
        manifest.size_bytes,
        1,
        manifest.license,
        manifest.title,
        r.DatasetStatus.PENDING,
        Height(0),
        ZERO_HASH,
        (),
    )
    return replace(found, **changes)


class Source:
    """What a dataset is fetched from; notes how much was asked for, and what was to be kept."""

    def __init__(self, *held: bytes) -> None:
        self.held = {name(data): data for data in held}
        self.asked: dict[BlobId, int] = {}
        self.kept: list[bytes] = []

    async def fetch(self, blob: BlobId, most: int) -> bytes:
        self.asked[blob] = most
        return self.held[blob]

    async def keep(self, data: bytes) -> None:
        self.kept.append(data)


def test_of_a_dataset_no_more_is_asked_for_than_was_submitted() -> None:
    dataset = made()
    source = Source(dataset.manifest_bytes, *dataset.chunks)
    asyncio.run(fetch_dataset(submitted(dataset), source.fetch, source.keep))
    assert source.asked == {name(d): len(d) for d in (dataset.manifest_bytes, *dataset.chunks)}
    assert sorted(source.kept) == sorted((dataset.manifest_bytes, *dataset.chunks))


def test_what_is_no_part_of_a_dataset_is_not_kept() -> None:
    dataset = made()
    cases = [
        (submitted(dataset, id=Hash32(b"x" * 32)), 0),
        (submitted(dataset, title="another"), 0),
        (submitted(dataset), 1),  # a chunk is longer than its place in the text
    ]
    for wanted, kept in cases:
        source = Source(dataset.manifest_bytes, *dataset.chunks)
        source.held[name(dataset.chunks[0])] += b"!"
        with pytest.raises(VerifyError):
            asyncio.run(fetch_dataset(wanted, source.fetch, source.keep))
        assert len([d for d in source.kept if d not in dataset.chunks]) == kept
        assert dataset.chunks[0] + b"!" not in source.kept


def test_a_manifest_over_the_limit_is_not_even_asked_for() -> None:
    size = corpus.MAX_MANIFEST_BYTES + 1
    source = Source()
    with pytest.raises(VerifyError, match="a manifest of"):
        asyncio.run(fetch_dataset(submitted(made(), manifest_bytes=size), source.fetch))
    assert source.asked == {}
    with pytest.raises(DecodeError):
        corpus.decode_manifest(bytes(size))


def test_a_hostile_manifest_is_not_read_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    items = 1 << 16
    raw = b"\xdd" + items.to_bytes(4, "big") + b"\x01" * items
    wanted = submitted(made(), id=DATASET.hash(raw), manifest=name(raw), manifest_bytes=len(raw))
    decode, threads = reading.decode_manifest, []

    def note(data: bytes) -> Any:
        threads.append(threading.current_thread())
        return decode(data)

    monkeypatch.setattr(reading, "decode_manifest", note)
    source = Source(raw)
    with pytest.raises(DecodeError):
        asyncio.run(fetch_dataset(wanted, source.fetch, source.keep))
    assert threads
    assert threading.main_thread() not in threads
    assert source.kept == []
