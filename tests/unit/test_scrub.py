"""Damage on disk: found by a scrub whatever was done to the files, mended from steps, from the seed
or from peers, and said where nobody can."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from chain.errors import InputError, UnreachableError
from chain.hashes import Hash32
from node.scrub import CHAIN_STORE, FETCHED, LEFT, REBUILT, ScrubReport, read_report, scrub_store
from node.services import scrub as module
from node.services.scrub import ScrubService
from tests.kit.follower import Follower
from tests.kit.local_chain import LocalChain
from tests.kit.waiting import reached
from tiles.layout import ShardSpec
from tiles.store import TileStore

ROUNDS = 7
SHARD = 3  # one expert of one tile
# Models by number: 3 is the file that 4 and 5 are made from, 6 a file that steps lead to as well,
# 7 a pack with steps.
OLDEST, THIN, SNAPSHOT, NEWEST = 3, 4, 6, 7


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        for _ in range(ROUNDS):
            made.learn()
        yield made


@pytest.fixture(scope="module")
def saved(chain: LocalChain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a node that has followed all rounds, and is closed."""
    follower = Follower(chain, tmp_path_factory.mktemp("lived"))
    follower.follow(ROUNDS)
    follower.store.close()
    return follower.directory


@pytest.fixture
def node(chain: LocalChain, saved: Path, tmp_path: Path) -> Iterator[Follower]:
    directory = tmp_path / "tiles"
    shutil.copytree(saved, directory)
    made = Follower(chain, directory, at=ROUNDS)
    made.history.height = made.newest.height
    yield made
    made.store.close()


def file_of(node: Follower, model: int, suffix: str = ".safetensors") -> Path:
    """A file of a version of SHARD; its pack, if it has no file of its own."""
    folder = node.directory / f"{SHARD:05d}"
    path = folder / (node.past[model].roots[SHARD].hex() + suffix)
    if path.exists():
        return path
    (pack,) = folder.glob("*.pack.safetensors")
    return pack


def flip(path: Path) -> None:
    """A bit of the data: the middle of the last tile, before what a pack has behind it."""
    raw = bytearray(path.read_bytes())
    raw[4096 + 700] ^= 4
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 + 512])


def wipe(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + bytes(len(raw) - 4096))


DAMAGES = {"flipped": flip, "cut": cut, "deleted": Path.unlink, "zeroed": wipe}
Damager = Callable[[Path], None]


class Tiles:
    """The node's tiles; a peer has those of the chain's own store, if there is a peer."""

    def __init__(self, node: Follower, peer: bool = True) -> None:
        self._node, self._peer = node, peer
        self.asked: list[tuple[int, int]] = []

    @property
    def store(self) -> TileStore:
        return self._node.store

    @property
    def specs(self) -> tuple[ShardSpec, ...]:
        return self._node.chain.specs

    async def ensure(self, index: int, root: Hash32, tiles: Iterable[int] | None = None) -> None:
        theirs = self._node.chain.tiles.store
        self.store.begin(index, root, theirs.tile_roots(index, root))
        for tile in tiles or ():
            self.asked.append((index, tile))
            if not self._peer:
                raise UnreachableError("none of 0 connected peers has it")
            self.store.put_tile(index, root, tile, theirs.read_tile(index, root, tile))


def service(node: Follower, tiles: Tiles) -> ScrubService:
    record = node.directory.parent / "scrub.json"
    return ScrubService(tiles, node.retention.missing, node.rebuild.tile, record, 0.0)


def online(node: Follower, *, peer: bool = True) -> tuple[ScrubReport, Tiles]:
    tiles = Tiles(node, peer)
    return asyncio.run(service(node, tiles).scrub(None)), tiles


def offline(node: Follower) -> ScrubReport:
    return scrub_store(
        node.store, CHAIN_STORE, node.retention.missing, node.rebuild.tile, "at the next start"
    )


def restart(node: Follower) -> None:
    node.store.close()
    node.open()


def whole(node: Follower) -> None:
    """Everything is there again, also after a restart."""
    restart(node)
    assert node.retained() == node.past[3:]
    node.check()
    assert node.store.scrub() == []


def places(report: ScrubReport, node: Follower) -> list[tuple[int, int, str]]:
    """(model, tile, action) of each repair."""
    names = {m.roots[SHARD]: i for i, m in enumerate(node.past)}
    found = [(r.finding.place, r.action) for r in report.repairs]
    assert all(place[0] == SHARD for place, _ in found)
    return sorted((names[place[1]], place[2], action) for place, action in found)


def test_a_sound_store_is_clean(node: Follower) -> None:
    for report in (offline(node), online(node)[0]):
        assert report.clean
        assert report.repairs == []
        assert report.tiles >= 4 * len(node.chain.specs)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("model", [OLDEST, SNAPSHOT, NEWEST])
def test_damage_under_a_running_node_is_fetched_again(
    node: Follower, kind: str, model: int
) -> None:
    path = file_of(node, model)
    DAMAGES[kind](path)
    report, tiles = online(node)
    assert report.clean
    expected = FETCHED if model == OLDEST else REBUILT
    assert places(report, node) == [(model, 0, expected)]
    assert len(tiles.asked) == (expected == FETCHED)
    whole(node)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("model", [OLDEST, SNAPSHOT, NEWEST])
def test_damage_while_the_node_is_stopped(node: Follower, kind: str, model: int) -> None:
    node.store.close()
    DAMAGES[kind](file_of(node, model))
    node.open()
    report = offline(node)
    if model == OLDEST:
        assert not report.clean
        found = [(OLDEST, 0, LEFT), *((thin, 0, LEFT) for thin in (4, 5))]
        assert places(report, node) == found
        again, tiles = online(node)
        assert again.clean
        assert len(tiles.asked) == 1  # the others are made from it
    assert online(node)[0].clean
    whole(node)


def test_a_damaged_step_is_found(node: Follower) -> None:
    flipped = file_of(node, THIN, ".thin.safetensors")
    raw = bytearray(flipped.read_bytes())
    raw[4096 + 90] ^= 1
    flipped.write_bytes(raw)
    report, tiles = online(node)
    assert report.clean
    assert places(report, node)[0] == (THIN, 0, FETCHED)
    assert tiles.asked == [(SHARD, 0)]
    whole(node)


def test_without_peers_damage_is_left_and_said(node: Follower) -> None:
    flip(file_of(node, OLDEST))
    report, _ = online(node, peer=False)
    assert not report.clean
    assert places(report, node) == [(model, 0, LEFT) for model in (OLDEST, 4, 5)]
    assert {r.detail for r in report.repairs} == {"none of 0 connected peers has it"}
    assert read_report(node.directory.parent / "scrub.json") == report.to_json(node.chain.specs)
    later, _ = online(node)  # it counts as missing now
    assert later.clean
    assert places(later, node) == [(OLDEST, 0, FETCHED), (4, 0, REBUILT), (5, 0, REBUILT)]
    whole(node)


def test_genesis_tiles_need_no_peer(chain: LocalChain, tmp_path: Path) -> None:
    node = Follower(chain, tmp_path / "tiles")
    path = node.store.path(SHARD, node.past[0].roots[SHARD])
    flip(path)
    report, tiles = online(node, peer=False)
    assert [r.action for r in report.repairs] == [REBUILT]
    assert tiles.asked == []
    assert node.shards(node.past[0]) == list(node.past[0].shards)
    node.store.close()


def test_the_service_reports_progress_and_scrubs_when_asked(node: Follower) -> None:
    tiles = Tiles(node)
    flip(file_of(node, NEWEST))

    async def act() -> None:
        made = service(node, tiles)
        assert made.info() == {"running": False, "done_tiles": 0, "total_tiles": 0, "last": None}
        task = asyncio.create_task(made.run())
        assert made.start()["running"]
        await reached(lambda: not made.info()["running"] or None, 20, "the end of the scrub")
        info = made.info()
        assert info["last"]["clean"]
        assert info["last"]["damaged"] == 1
        assert info["done_tiles"] == info["last"]["tiles"]
        assert made.metrics() == {"scrub_damaged": 1, "scrub_mended": 1}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service(node, tiles).info()["last"] == info["last"]

    asyncio.run(act())


def test_a_disk_that_refuses_the_report_ends_nothing(
    node: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_private", refuse)
    report, _ = online(node)
    assert report.clean


def test_versions_that_go_while_they_are_looked_for_end_nothing(
    node: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_AFTER_S", 0.0)
    looked = threading.Event()

    def missing() -> Iterator[tuple[int, Hash32, int]]:
        looked.set()
        raise InputError("this version is not held here")

    async def act() -> None:
        record = node.directory.parent / "scrub.json"
        made = ScrubService(Tiles(node), missing, node.rebuild.tile, record, 0.0)
        task = asyncio.create_task(made.run())
        assert await asyncio.to_thread(looked.wait, 20)
        made.start()
        await reached(lambda: made.info()["last"], 20, "the end of the scrub")
        assert "not held here" in made.info()["last"]["error"]
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(act())


def test_a_node_that_stops_ends_its_scrub(node: Follower) -> None:
    async def act() -> ScrubReport:
        made = service(node, Tiles(node))
        made.close()
        return await made.scrub(1)

    report = asyncio.run(act())
    assert report.error == "the node was stopped before the scrub had ended"
    assert not report.clean


def test_a_report_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "scrub.json"
    assert read_report(path) is None
    for text in ("", "[]", "{}", '{"ended_ms": "1", "left": 0, "error": ""}', "\x00"):
        path.write_text(text)
        assert read_report(path) is None
