"""The journal of acknowledged transactions: what comes back from it, whatever the disk did."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from chain.errors import QuotaError, StorageError
from chain.hashes import TX
from chain.types import TxId
from node import pool_journal
from node.pool_journal import NAME, PoolJournal
from node.wal_files import DirectoryFiles
from tests.sim.disk import POINTS, Crash, FaultyDisk
from tests.sim.ledger import Law


def raw_of(number: int, size: int = 200) -> bytes:
    return b"transaction %d " % number + bytes(size)


def id_of(number: int, size: int = 200) -> TxId:
    return TxId(TX.hash(raw_of(number, size)))


def add(journal: PoolJournal, *numbers: int) -> None:
    for number in numbers:
        journal.add(id_of(number), number, raw_of(number))


def held(journal: PoolJournal) -> list[int]:
    return [height for height, _ in journal.txs()]


def test_what_was_flushed_comes_back_in_order(tmp_path: Path) -> None:
    async def write() -> None:
        journal = PoolJournal(tmp_path)
        add(journal, 1, 2, 3)
        await journal.flush()
        add(journal, 4)
        journal.refuse(id_of(2), "outbid: others bid more")
        journal.forget(id_of(3))  # final: the chain knows, the file need not
        await journal.flush()
        await journal.close()

    asyncio.run(write())
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    again = PoolJournal(tmp_path)
    assert again.txs() == [(n, raw_of(n)) for n in (1, 3, 4)]
    assert again.refused() == [(id_of(2), "outbid: others bid more")]
    assert again.lost_bytes == 0


def test_one_sync_serves_all_who_wait(tmp_path: Path) -> None:
    async def act() -> int:
        journal = PoolJournal(tmp_path)

        async def client(number: int) -> None:
            add(journal, number)
            await journal.flush()
            assert raw_of(number) in (tmp_path / NAME).read_bytes()

        await asyncio.gather(*(client(n) for n in range(100)))
        await journal.close()
        return journal.syncs

    assert asyncio.run(act()) <= 3
    assert held(PoolJournal(tmp_path)) == list(range(100))


def test_nothing_new_costs_no_sync(tmp_path: Path) -> None:
    async def act() -> int:
        journal = PoolJournal(tmp_path)
        await journal.flush()
        await journal.flush()
        await journal.close()
        return journal.syncs

    assert asyncio.run(act()) == 0
    assert not (tmp_path / NAME).exists()


def test_it_is_written_anew_when_most_of_it_no_longer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_journal, "SLACK_BYTES", 10_000)

    async def act() -> None:
        journal = PoolJournal(tmp_path)
        for number in range(1000):
            add(journal, number)
            await journal.flush()
            if number >= 10:
                journal.forget(id_of(number - 10))
            assert (tmp_path / NAME).stat().st_size < 16_000 + 400
        await journal.close()

    asyncio.run(act())
    assert held(PoolJournal(tmp_path))[-10:] == list(range(990, 1000))


def test_reasons_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_journal, "MAX_REFUSED", 5)
    journal = PoolJournal(tmp_path)
    for number in range(20):
        journal.refuse(id_of(number), "expired: no block took it")
    assert [tx_id for tx_id, _ in journal.refused()] == [id_of(n) for n in range(15, 20)]


@pytest.mark.parametrize("cut", [1, 7, 15, 30, 60, 200])
def test_a_torn_tail_is_no_damage(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    _written(tmp_path, [1, 2], [3])
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[:-cut])
    with caplog.at_level(logging.INFO, "blyan.pool"):
        again = PoolJournal(tmp_path)
    assert held(again) == [1, 2]
    assert again.lost_bytes == 0
    assert "a crash interrupted" in caplog.text
    assert not list(tmp_path.glob("*.damaged"))


def test_what_holds_of_a_damaged_file_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _written(tmp_path, [1, 2], [3], [4, 5])
    file = tmp_path / NAME
    data = bytearray(file.read_bytes())
    data[data.index(raw_of(3)[:14])] ^= 1
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING, "blyan.pool"):
        again = PoolJournal(tmp_path)
    assert held(again) == [1, 2, 4, 5]
    assert "are left out" in caplog.text
    assert (tmp_path / (NAME + ".damaged")).read_bytes() == bytes(data)
    _flush(again, 6)
    whole = PoolJournal(tmp_path)
    assert (held(whole), whole.lost_bytes) == ([1, 2, 4, 5, 6], 0)


@pytest.mark.parametrize("bad", [b"", b"\0" * 5000, b"garbage" * 999, b"BLYAN-POOL-1\n", b"FRAM"])
def test_any_bytes_are_survived(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / NAME).write_bytes(bad)
    journal = PoolJournal(tmp_path)
    assert held(journal) == []
    _flush(journal, 1)
    assert held(PoolJournal(tmp_path)) == [1]


def test_random_damage_never_stops_it(tmp_path: Path) -> None:
    dice = random.Random(5)
    for _ in range(300):
        _written(tmp_path, [1], [2, 3], [4])
        file = tmp_path / NAME
        data = bytearray(file.read_bytes())
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            if dice.random() < 0.5:
                data[at] ^= 1 << dice.randrange(8)
            else:
                del data[at : at + dice.randrange(1, 300)]
        file.write_bytes(data)
        again = PoolJournal(tmp_path)
        assert all(raw == raw_of(height) for height, raw in again.txs())
        file.unlink()


def test_a_directory_in_its_place_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()
    journal = PoolJournal(tmp_path)
    assert "starting without it" in caplog.text
    add(journal, 1)
    with pytest.raises(StorageError, match="cannot be written"):
        asyncio.run(journal.flush())


class FullDisk(DirectoryFiles):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.error = 0

    def write(self, file: int, offset: int, data: bytes) -> None:
        if self.error:
            super().write(file, offset, data[: len(data) // 2])
            raise OSError(self.error, "the disk takes nothing")
        super().write(file, offset, data)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, QuotaError), (errno.EIO, StorageError)]
)
def test_a_full_disk_is_told_and_later_all_is_written(
    tmp_path: Path, number: int, error: type[StorageError]
) -> None:
    async def act() -> None:
        files = FullDisk(tmp_path)
        journal = PoolJournal(tmp_path, files=files)
        add(journal, 1)
        await journal.flush()
        for started in (2, 3):
            files.error = number
            add(journal, started)
            with pytest.raises(error, match="send it again") as caught:
                await journal.flush()
            assert type(caught.value) is error
            with pytest.raises(error):  # who sends it again hears the same, while it lasts
                await journal.flush()
        files.error = 0
        await journal.flush()
        assert held(PoolJournal(tmp_path)) == [1, 2, 3]
        await journal.close()

    asyncio.run(act())


# --- crashes ------------------------------------------------------------------------------------


class Machine:
    """A journal on a disk that dies, and what it has promised."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.disk = FaultyDisk(Law(0, 4, 10).genesis(), random.Random(seed), self.counts)
        self.promised: set[int] = set()
        self.refused: set[int] = set()

    def open(self) -> PoolJournal:
        return PoolJournal(Path(), files=self.disk)

    def work(self) -> None:
        journal = self.open()
        for number in range(8):
            journal.add(id_of(number, 900), number, raw_of(number, 900))
            if number % 3 == 2:
                journal.refuse(id_of(number - 1, 900), "outbid: by others")
            anew, records = journal._job(journal._new)
            journal._new = []
            journal._write_now(anew, records)
            self.promised.add(number)
            if number % 3 == 2:
                self.refused.add(number - 1)
            if number == 5:
                journal._close()  # the next one is written anew

    def check(self) -> None:
        journal = self.open()
        waiting, refused = set(held(journal)), {i for i, _ in journal.refused()}
        assert self.promised - waiting == {n for n in self.promised if id_of(n, 900) in refused}
        assert self.refused <= {n for n in range(8) if id_of(n, 900) in refused}
        assert journal.lost_bytes == 0 or self.counts["torn sectors"]


@pytest.mark.parametrize("power", [False, True])
def test_no_crash_point_loses_what_was_acknowledged(
    power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_journal, "SLACK_BYTES", 3000)
    reached: Counter[str] = Counter()
    for point in range(140):
        for seed in range(6 if power else 1):
            machine = Machine(seed)
            machine.disk.fuse = point
            try:
                machine.work()
            except Crash:
                machine.disk.die(power=power)
                machine.check()
                machine.disk.die(power=True)
                machine.check()
            reached += machine.counts
    assert {f"crash {p}" for p in POINTS if "commit" not in p} <= set(reached)


# --- inside -------------------------------------------------------------------------------------


def _flush(journal: PoolJournal, *numbers: int) -> None:
    async def act() -> None:
        add(journal, *numbers)
        await journal.flush()
        await journal.close()

    asyncio.run(act())


def _written(directory: Path, *frames: list[int]) -> None:
    async def act() -> None:
        journal = PoolJournal(directory)
        for numbers in frames:
            add(journal, *numbers)
            await journal.flush()
        await journal.close()

    asyncio.run(act())
