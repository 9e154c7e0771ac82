"""Blobs: named by their bytes, fetched from whoever does not lie, kept within a quota."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from chain.errors import StorageError, UnreachableError
from chain.hashes import BLOB, Hash32
from chain.types import BlobId
from node.services import blobs
from node.services.blobs import BlobService
from tests.kit.fast_time import passes, run_fast
from tests.kit.wire import Wire


def service(directory: Path) -> tuple[BlobService, Wire]:
    wire = Wire()
    return BlobService(directory, wire), wire


def test_a_blob_is_kept_under_the_hash_of_its_bytes(tmp_path: Path) -> None:
    held, _ = service(tmp_path)
    blob_id = held.put(b"some bytes")
    assert blob_id == BLOB.hash(b"some bytes")
    assert held.has(blob_id)
    assert held.put(b"some bytes") == blob_id
    assert asyncio.run(held.get(blob_id)) == b"some bytes"


def test_a_liar_is_charged_and_the_next_is_asked(tmp_path: Path) -> None:
    honest, far = service(tmp_path / "far")
    near, wire = service(tmp_path / "near")
    blob_id = honest.put(b"wanted")

    async def lie(peer: str, request: bytes) -> bytes:
        return b"unwanted"

    wire.servers = {"a liar": lie, "honest": far.handler}
    assert asyncio.run(near.get(blob_id)) == b"wanted"
    assert wire.reported == ["a liar"]
    assert near.has(blob_id)


def test_what_nobody_has_is_said_so_however_many_ask(tmp_path: Path) -> None:
    held, wire = service(tmp_path)
    other, far = service(tmp_path / "other")
    wire.servers = {"honest": far.handler}

    async def ask() -> list[Any]:
        missing = BlobId(bytes(32))
        return await asyncio.gather(held.get(missing), held.get(missing), return_exceptions=True)

    assert all(isinstance(e, UnreachableError) for e in asyncio.run(ask()))
    assert not other.has(BlobId(bytes(32)))


def test_damage_on_disk_is_noticed_and_refetched(tmp_path: Path) -> None:
    held, wire = service(tmp_path / "near")
    other, far = service(tmp_path / "far")
    blob_id = held.put(b"precious")
    other.put(b"precious")
    (tmp_path / "near" / "blob" / blob_id.hex()).write_bytes(b"preciouz")
    assert asyncio.run(wire.handler("asker", b"\x00" + blob_id)) == b""
    wire.servers = {"honest": far.handler}
    assert asyncio.run(held.get(blob_id)) == b"precious"


def test_a_disk_that_cannot_be_read_is_one_without_the_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = service(tmp_path)
    blob_id = held.put(b"some bytes")

    def refuse(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert held.local(blob_id) is None


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = service(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blobs.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        held.put(b"too much")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["blob", "checkpoint"]
    assert held.put(b"too much")


def test_the_quota_holds_and_settled_checkpoints_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_STORE_BYTES", 100)
    held, _ = service(tmp_path)
    name = Hash32(bytes(32))
    held.put_checkpoint(name, b"x" * 90)
    with pytest.raises(StorageError, match="quota"):
        held.put(b"y" * 20)
    assert held.drop_checkpoints(before_s=0.0) == 0
    assert held.drop_checkpoints(before_s=2e9 * 10) == 1
    assert held.local_checkpoint(name) is None
    assert held.put(b"y" * 20)


def test_a_checkpoint_is_checked_by_its_reader(tmp_path: Path) -> None:
    held, wire = service(tmp_path / "near")
    other, far = service(tmp_path / "far")
    name = Hash32(b"n" * 32)
    other.put_checkpoint(name, b"forged")
    wire.servers = {"far": far.handler}
    with pytest.raises(UnreachableError):
        asyncio.run(held.get_checkpoint(name, check=lambda data: data == b"real"))
    assert wire.reported == ["far"]


class Slow(Wire):
    """A network in virtual time whose peers send so many bytes a second, or nothing at all."""

    def __init__(self, data: bytes, **rates: float) -> None:
        super().__init__()
        self.data, self.rates = data, rates
        self.servers = dict.fromkeys(rates)

    async def fetch(
        self, peer: str, protocol: str, data: bytes, *, into: Any, progress: Any = None, **_: Any
    ) -> int:
        self.asked.append(peer)
        if not self.rates[peer]:
            await asyncio.get_running_loop().create_future()
        step = max(1, int(self.rates[peer] / 10))
        for start in range(0, len(self.data), step):
            await passes(0.1)
            end = min(start + step, len(self.data))
            into[start:end] = self.data[start:end]
            progress(end)
        return len(self.data)


def took(wire: Slow, directory: Path) -> float:
    """Virtual seconds until the blob is here."""
    held = BlobService(directory, wire)

    async def act() -> float:
        data = await held._fetch(b"\x00" + BLOB.hash(wire.data), 1 << 20, inline)
        assert data == wire.data
        return asyncio.get_running_loop().time()

    def inline(data: bytes) -> bool:
        return BLOB.hash(data) == BLOB.hash(wire.data)

    return run_fast(act())


def test_a_slow_peer_is_left_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def inline(check: Any, *args: Any) -> Any:
        return check(*args)

    monkeypatch.setattr(blobs.asyncio, "to_thread", inline)  # threads know no virtual time
    data = bytes(1 << 19)
    assert took(Slow(data, drips=1.0, silent=0.0, good=1e6), tmp_path) < 7
    wire = Slow(data, silent=0.0, steady=50e3)  # the only one that has it may take its time
    assert 10 < took(wire, tmp_path) < 45
    wire = Slow(data, steady=50e3, silent=0.0)
    assert 30 < took(wire, tmp_path) < 60
    assert wire.asked == ["steady", "silent", "steady"]
