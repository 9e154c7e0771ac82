"""Snapshots and the disk: a crash leaves the old chain or the new one, and a full disk is told."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from chain.store import ChainStore
from node.services import snapshot_entry
from node.services.snapshot_entry import adopt
from tests.kit.local_chain import LocalChain
from tests.kit.sync_nodes import SyncNode, SyncPort, serve_chain

BLOCKS, NEWEST = 18, 16


class Crash(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    path = tmp_path_factory.mktemp("source")
    with LocalChain(path, epoch_blocks=4, snapshot_epochs=2) as made:
        made.blocks(BLOCKS)
        yield made


@pytest.fixture
def node(tmp_path: Path, source: LocalChain) -> Iterator[SyncNode]:
    others: dict[str, SyncPort] = {}
    serve_chain(source, "server", others)
    made = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    yield made
    made.close()


def tip_of(path: Path) -> int:
    with ChainStore(path) as store:
        tip = store.tip()
        return -1 if tip is None else tip.height


def test_a_crash_at_any_point_is_mended_by_the_next_start(
    node: SyncNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncio.run(node.entry.enter())
    node.close()
    home, crashes = tmp_path / "node", 0
    for step in range(20):
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(home, copy)
        (copy / "chain.db-wal").write_bytes(b"the log of the old file, which a crash has left")
        left = step

        def crash(path: Path) -> None:
            nonlocal left
            if not left:
                raise Crash
            left -= 1

        with monkeypatch.context() as failing:
            failing.setattr(snapshot_entry, "_sync_directory", crash)
            try:
                assert adopt(copy / "sync", copy / "chain.db")
            except Crash:
                crashes += 1
        adopt(copy / "sync", copy / "chain.db")
        assert tip_of(copy / "chain.db") == NEWEST
        if left:
            break
    assert crashes > 2
    node.open()


def test_nothing_is_adopted_that_is_not_whole(node: SyncNode, tmp_path: Path) -> None:
    home = tmp_path / "node"
    (home / "sync").mkdir()
    (home / "sync" / "building.db").write_bytes(b"half of it")
    assert not adopt(home / "sync", home / "chain.db")
    node.reopen()
    assert node.chain.tip.height == 0
    assert asyncio.run(node.entry.enter())  # what was left there is in nobody's way


def test_too_little_room_is_told_before_anything_is_fetched(
    node: SyncNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert not asyncio.run(node.entry.enter())
    assert "free some room" in str(node.entry.problem)
    assert not (tmp_path / "node" / "sync" / "chunks").exists()


def test_a_disk_that_fills_up_keeps_what_was_fetched(
    node: SyncNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "write_bytes", full)
        assert not asyncio.run(node.entry.enter())
    assert "the disk is full" in str(node.entry.problem)
    assert "it goes on where it was" in str(node.entry.problem)
    assert node.port.reported == []  # nobody else's fault
    assert asyncio.run(node.entry.enter())
