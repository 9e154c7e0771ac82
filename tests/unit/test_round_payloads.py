"""Payloads of a round in a file without a name: read by all duties, decrypted once, and never taken
for what they are not."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from chain.errors import DecodeError, StorageError, UnreachableError, VerifyError
from chain.hashes import BLOB, ZERO_HASH, Hash32
from chain.records import DeltaRecord
from chain.transactions import PodlManifest
from chain.types import BlobId, Grains, Height, PubKey, ShardIndex, TxId
from node.sealed import seal
from node.services.round_payloads import AT_ONCE, ROUNDS, RoundPayloads
from tests.kit.duty_net import DutyNet
from tests.unit.test_learner_round import connected
from tiles.aggregate import aggregate_tile
from tiles.codings import INT8_NUMBER
from tiles.delta import CutPayload, PayloadTile, encode_delta, payload_root
from tiles.layout import ShardSpec, TensorSpec
from tiles.steps import DeltaSections
from tiles.stored import StoredPayload

SPECS = (
    ShardSpec(0, "first", "sparse", (TensorSpec("w", "F32", (150_000,)),)),
    ShardSpec(1, "other", "sparse", (TensorSpec("w", "F32", (70_000,)),)),
    ShardSpec(2, "norms", "dense", (TensorSpec("w", "F32", (300,)),)),
)


def made(seed: int, specs: tuple[ShardSpec, ...] = SPECS, number: int = INT8_NUMBER) -> bytes:
    draw = np.random.default_rng(seed)
    values = {
        s.index: (draw.standard_normal(s.elements) * 1e-3).astype(np.float32)
        for s in specs
        if (s.index + seed) % 3 or len(specs) == 1  # each delta lacks a shard
    }
    return encode_delta(ZERO_HASH, values, specs, number)[0]


class Blobs:
    """A node's blobs. `asked`: how often for each."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.asked = directory, dict[BlobId, int]()
        directory.mkdir()

    def put(self, payload: bytes, seed: int, round_: int = 0, **changes: Any) -> DeltaRecord:
        """A sealed payload, and the record of its delta."""
        salt = Hash32(seed.to_bytes(32, "big"))
        blob = seal(payload, salt)
        (self.directory / BLOB.hash(blob).hex()).write_bytes(blob)
        zeros = (ZERO_HASH,) * 3
        record = DeltaRecord(
            TxId((1000 * round_ + seed).to_bytes(32, "big")),
            round_,
            PubKey(bytes(32)),
            Height(1),
            *zeros,
            BlobId(BLOB.hash(blob)),
            len(blob),
            manifest(payload_root(payload)),
            salt,
            0,
            (),
            Grains(0),
        )
        return replace(record, **changes)

    def local(self, blob: BlobId) -> bytes | None:
        self.asked[blob] = self.asked.get(blob, 0) + 1
        path = self.directory / blob.hex()
        return path.read_bytes() if path.exists() else None

    async def get(self, blob: BlobId, most: int = 0) -> bytes:
        found = self.local(blob)
        if found is None:
            raise UnreachableError("nobody has it")
        assert len(found) <= most
        return found


def manifest(root: Hash32) -> PodlManifest:
    none, zeros = ZERO_HASH, (ZERO_HASH,) * 4
    learner = PubKey(bytes(32))
    return PodlManifest(0, learner, none, 0, (), none, "", 1, 1, none, (), *zeros, root, 64, ())


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def of(tmp_path: Path, blobs: Blobs) -> RoundPayloads:
    return RoundPayloads(tmp_path / "payloads", SPECS, blobs)


def check(stored: StoredPayload, payload: bytes) -> None:
    """It has what the payload in memory has."""
    cut = CutPayload(payload, SPECS)
    assert stored.root == payload_root(payload)
    assert stored.header == cut.header
    for spec in SPECS:
        assert stored.has(spec.index) == cut.has(spec.index)
        for tile in range(spec.tile_count):
            same = [DeltaSections(p, SPECS).tile(spec.index, tile) for p in (payload, stored)]
            assert same[0] == same[1]


def aggregated(payloads: list[StoredPayload] | list[bytes], shard: int) -> bytes:
    base = np.linspace(-1, 1, SPECS[shard].elements, dtype="<f4").tobytes()
    deltas = [PayloadTile(p, SPECS, shard, 0) for p in payloads]
    return aggregate_tile(base, deltas).new_tile


# --- sharing -------------------------------------------------------------------------------


def test_duties_share_one_decryption_and_find_the_same_bytes(tmp_path: Path, blobs: Blobs) -> None:
    raw = [made(seed) for seed in range(5)]
    records = [blobs.put(payload, seed) for seed, payload in enumerate(raw)]

    async def run() -> None:
        payloads = of(tmp_path, blobs)

        async def duty() -> list[StoredPayload]:
            return await asyncio.gather(*map(payloads.get, records))

        found = await asyncio.gather(*(duty() for _ in range(4)))
        assert all(a is b for other in found[1:] for a, b in zip(found[0], other, strict=True))
        assert payloads.local(records[3]) is found[0][3]
        assert set(blobs.asked.values()) == {1}
        for stored, payload in zip(found[0], raw, strict=True):
            check(stored, payload)
        here = [i for i, p in enumerate(found[0]) if p.has(1)]
        whole_tile = aggregated([raw[i] for i in here], 1)
        assert aggregated([found[0][i] for i in here], 1) == whole_tile
        status = os.fstat(payloads._rounds[0].file._fd)
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 0)
        assert stat.S_IMODE((tmp_path / "payloads").stat().st_mode) == 0o700
        assert not list((tmp_path / "payloads").iterdir())
        await payloads.close()

    asyncio.run(run())


def test_a_duty_that_is_dropped_takes_nothing_from_the_others(tmp_path: Path, blobs: Blobs) -> None:
    payload = made(1)
    record, missing = blobs.put(payload, 1), blobs.put(made(2), 2)
    (blobs.directory / missing.blob.hex()).unlink()

    async def run() -> None:
        payloads = of(tmp_path, blobs)
        dropped = asyncio.create_task(payloads.get(record))
        kept = asyncio.create_task(payloads.get(record))
        await asyncio.sleep(0)
        dropped.cancel()
        check(await kept, payload)
        assert blobs.asked[record.blob] == 1
        for _ in range(2):  # what failed is tried again
            found = await asyncio.gather(
                payloads.get(missing), payloads.get(missing), return_exceptions=True
            )
            assert [type(e) for e in found] == [UnreachableError] * 2
        assert blobs.asked[missing.blob] == 2
        assert payloads.local(missing) is None
        await payloads.close()

    asyncio.run(run())


def test_files_go_with_their_round_and_their_last_reader(tmp_path: Path, blobs: Blobs) -> None:
    raw = [made(seed) for seed in range(4)]
    records = [blobs.put(payload, i, round_=i) for i, payload in enumerate(raw)]
    payloads, before = of(tmp_path, blobs), descriptors()
    for record in records:
        assert payloads.local(record) is not None
        assert descriptors() - before <= ROUNDS
    assert list(payloads._rounds) == [2, 3]
    assert payloads.local(records[0]) is not None  # an old version is written
    assert list(payloads._rounds) == [3, 0]
    reading = payloads.local(records[3])
    assert reading is not None
    payloads.forget_before(4)
    assert descriptors() - before == 1
    check(reading, raw[3])
    del reading
    assert descriptors() == before


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# --- what can go wrong -----------------------------------------------------------------------


def test_what_is_not_as_promised_is_refused_and_not_kept(tmp_path: Path, blobs: Blobs) -> None:
    payload = made(1)
    record = blobs.put(payload, 1)
    foreign = made(1, (replace(SPECS[0], index=7),))
    bad: list[tuple[DeltaRecord, type[Exception], str]] = [
        (replace(record, manifest=manifest(ZERO_HASH)), VerifyError, "not the one that its man"),
        (replace(record, manifest=None), VerifyError, "not the one that its manifest names"),
        (replace(record, salt=Hash32(bytes(32))), VerifyError, "does not open with the revealed"),
        (blobs.put(foreign, 2), DecodeError, "shard 7, which the model has not"),
    ]
    payloads = of(tmp_path, blobs)
    for wrong, kind, reason in bad:
        for _ in range(2):
            with pytest.raises(kind, match=reason):
                payloads.local(wrong)
    assert payloads._rounds[0].file.size == 0
    stored = payloads.local(record)
    assert stored is not None
    check(stored, payload)


def test_a_full_disk_is_said_and_no_half_of_a_payload_is_kept(
    tmp_path: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [made(seed) for seed in range(3)]
    records = [blobs.put(payload, seed) for seed, payload in enumerate(raw)]
    payloads = of(tmp_path, blobs)
    assert payloads.local(records[0]) is not None
    file = payloads._rounds[0].file
    write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_disk(write, fails=errno.ENOSPC))
        with pytest.raises(StorageError, match=r"the disk is full: .* bytes of a payload.*free"):
            payloads.local(records[1])
        assert (file.size, os.fstat(file._fd).st_size) == (len(raw[0]),) * 2
        patch.setattr(os, "pwrite", full_disk(write, fails=errno.EIO))
        with pytest.raises(StorageError, match=r"payload cannot be written in .*: Input/output"):
            payloads.local(records[1])
    monkeypatch.setattr(os, "pwrite", in_pieces(write))
    for record, payload in zip(records, raw, strict=True):
        stored = payloads.local(record)
        assert stored is not None
        check(stored, payload)
    assert file.size == sum(map(len, raw))


Write = Callable[[int, Any, int], int]


def full_disk(write: Write, fails: int) -> Write:
    """Takes a part of the first write, and nothing more."""
    taken: list[int] = []

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if taken:
            raise OSError(fails, os.strerror(fails))
        taken.append(write(fd, data[:1000], offset))
        return taken[0]

    return pwrite


def in_pieces(write: Write) -> Write:
    return lambda fd, data, offset: write(fd, data[:30_000], offset)


def test_bytes_that_come_back_damaged_are_found_and_made_anew(tmp_path: Path, blobs: Blobs) -> None:
    payload = made(2)
    record = blobs.put(payload, 2)
    payloads = of(tmp_path, blobs)
    stored = payloads.local(record)
    assert stored is not None
    file = payloads._rounds[0].file
    os.pwrite(file._fd, b"\xff\x00\xff", len(payload) - 400)
    with pytest.raises(StorageError, match=r"section 0 of shard 2 .* came back damaged"):
        stored.section(2, 0)
    os.ftruncate(file._fd, len(payload) // 2)
    with pytest.raises(StorageError, match="came back damaged"):
        DeltaSections(stored, SPECS).tile(0, 0)
    again = payloads.local(record)
    assert again is not None
    assert again is not stored
    check(again, payload)
    assert payloads.local(record) is again


KILLED = """
import os, signal, sys
from pathlib import Path
from node.services.round_payloads import _NamelessFile

write = os.pwrite
def half(fd, data, offset):
    write(fd, data[: len(data) // 2], offset)
    os.kill(os.getpid(), signal.SIGKILL)
os.pwrite = half
_NamelessFile(Path(sys.argv[1])).append(bytes(1 << 20))
"""


def test_a_kill_leaves_nothing(tmp_path: Path, blobs: Blobs) -> None:
    payloads = of(tmp_path, blobs)
    directory = tmp_path / "payloads"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(directory)]
    ended = subprocess.run(command, env=environment, cwd=root, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not list(directory.iterdir())
    (directory / ".part-x").touch()  # killed before its name was taken away
    del payloads
    of(tmp_path, blobs)
    assert not list(directory.iterdir())


# --- memory --------------------------------------------------------------------------------


def test_memory_does_not_grow_with_what_a_round_accepts(tmp_path: Path, blobs: Blobs) -> None:
    """Four duties over 24 payloads of 1 MB, made inside the measured part: together no more than
    those that are opened at once, where each duty once held all of them. A payload counts three
    times while it is decrypted, and until its thread has left the next one may be decrypted."""
    one = (replace(SPECS[0], tensors=(TensorSpec("w", "F32", (1_000_000,)),)),)

    async def duty(payloads: RoundPayloads, records: list[DeltaRecord]) -> bytes:
        found = await asyncio.gather(*map(payloads.get, records))
        sections = [part for p in found for part in DeltaSections(p, one).tile(0, 0)[:1]]
        return b"".join(section[:100] for section in sections)

    async def run() -> list[bytes]:
        records = [blobs.put(payload, seed) for seed in range(24)]
        payloads = RoundPayloads(tmp_path / "payloads", one, blobs)
        found = await asyncio.gather(*(duty(payloads, records) for _ in range(4)))
        assert set(blobs.asked.values()) == {1}
        await payloads.close()
        return found

    payload = made(3, one)
    assert len(payload) > 1_000_000
    asyncio.run(run())  # what is imported and cached on the way does not count
    blobs.asked.clear()
    tracemalloc.start()
    try:
        found = asyncio.run(run())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [CutPayload(payload, one).section(0, 0)[:100].tobytes() * 24] * 4
    assert most < (3 * AT_ONCE + 0.5) * len(payload)


# --- the duties ----------------------------------------------------------------------------


def test_a_round_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each validator's disk is full when it first wants to aggregate: the duty fails, is tried
    again, and the round is merged."""
    monkeypatch.setattr("node.submission.POLL_S", 0.05)
    monkeypatch.setattr("node.services.duties.RETRY_FIRST_S", 0.01)
    write, full = os.pwrite, set[int]()

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if os.fstat(fd).st_nlink == 0 and fd not in full:
            full.add(fd)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)

    async def run() -> None:
        async with DutyNet(tmp_path, learners=1) as net, connected(net, tmp_path) as run:
            await run.add_dataset()
            summary = await run.train(0)
            assert summary.status == "merged"
            failed = [d.metrics()["duties_failed"] for d in net.duties]
            assert min(failed) >= 1
            assert sum(d.metrics()["duties_crashed"] for d in net.duties) == 0
            for node in net.nodes:
                folder = node.home.path / "duties" / "payloads"
                assert not list(folder.iterdir())

    asyncio.run(run())
    assert len(full) == 4


def test_a_record_of_shards_is_what_the_header_says() -> None:
    """`StoredPayload` reads nothing while it is made, and asks for single sections after."""
    payload, asked = made(1), list[tuple[int, int]]()

    def read(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return payload[offset : offset + count]

    stored = StoredPayload(payload, SPECS, read)
    assert not asked
    entries = {e.shard: e.lengths for e in stored.header.shards}
    assert stored.section(1, 1) == CutPayload(payload, SPECS).section(1, 1)
    assert [count for _, count in asked] == [entries[cast(ShardIndex, 1)][1]]
