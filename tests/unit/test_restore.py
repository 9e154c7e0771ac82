"""A home that was restored from a backup never signs against what it has signed since."""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from chain.codec import decode
from chain.errors import StorageError
from chain.types import Height, ProposalSeal, Vote, VoteKind
from consensus.simplex.messages import Record
from node.services import doubt
from node.services.doubt import DOUBT_NAME, PLACE_NAME, Doubt, trust
from node.wal import BEGUN_NAME, LOG_NAME, WriteAheadLog
from tests.kit.local_chain import LocalChain
from tests.kit.validators import Member, until_height, until_met, validators
from tests.kit.waiting import reached
from tests.unit.test_consensus_service import NoPeers, service

EPOCH = 8
QUICK = {"epoch_blocks": EPOCH, "empty_interval_ms": 50, "delta_floor_ms": 100}


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    place = tmp_path / "wal"
    log = WriteAheadLog(place)
    log.append([b"a vote"])
    log.close()
    Doubt(place).settle()
    return place


def test_a_log_that_stays_is_not_doubted(wal: Path) -> None:
    for _ in range(3):
        found = Doubt(wal)
        found.settle()
        assert found.since_ms is None
        assert not found.covers(0)
    wal.rename(wal.with_name("moved"))  # the same files at another name
    assert Doubt(wal.with_name("moved")).since_ms is None


def test_a_new_home_is_not_doubted(tmp_path: Path) -> None:
    WriteAheadLog(tmp_path / "wal").close()
    found = Doubt(tmp_path / "wal")
    found.settle()
    assert found.since_ms is None


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copy])
def test_a_copy_is_doubted_until_an_epoch_has_begun_since(
    wal: Path, tmp_path: Path, copy: Callable[[str, str], object]
) -> None:
    other = tmp_path / "copy"
    shutil.copytree(wal, other, copy_function=copy)
    found = Doubt(other)
    since = found.since_ms
    assert since is not None
    found.settle()
    again = Doubt(other)  # it is remembered, though the place is known now
    assert again.since_ms == since
    assert again.covers(0)
    assert again.covers(since + doubt.MARGIN_MS)
    assert not again.covers(since + doubt.MARGIN_MS + 1)
    assert Doubt(other).since_ms is None
    assert Doubt(wal).since_ms is None


def test_a_crash_before_it_is_settled_asks_again(wal: Path, tmp_path: Path) -> None:
    shutil.copytree(wal, tmp_path / "copy")
    Doubt(tmp_path / "copy")
    (tmp_path / "copy" / DOUBT_NAME).unlink()
    assert Doubt(tmp_path / "copy").since_ms is not None


def test_an_operator_may_vouch_for_a_copy(wal: Path, tmp_path: Path) -> None:
    shutil.copytree(wal, tmp_path / "copy")
    trust(tmp_path / "copy")
    assert Doubt(tmp_path / "copy").since_ms is None


def test_a_note_that_cannot_be_read_stops_the_node(wal: Path) -> None:
    (wal / DOUBT_NAME).write_text("soon")
    with pytest.raises(StorageError, match="may not sign"):
        Doubt(wal)


def test_a_copied_home_is_silent_and_its_original_is_not(tmp_path: Path) -> None:
    with LocalChain(tmp_path, validators=1, **QUICK) as local:

        async def main() -> None:
            node = service(local, tmp_path / "wal")
            node.start()
            await reached(lambda: local.chain.tip.height >= 3, 120, "blocks")
            node.stop()
            service(local, tmp_path / "wal").stop()  # knows its place from here on
            shutil.copytree(tmp_path / "wal", tmp_path / "copy")
            for place, silent in (("wal", False), ("copy", True), ("copy", True)):
                node = service(local, tmp_path / place, NoPeers())
                assert (node.info()["abstains"] is not None) == silent
                node.stop()
            trust(tmp_path / "copy")
            node = service(local, tmp_path / "copy")
            assert node.info()["abstains"] is None
            node.stop()

        asyncio.run(main())


# --- four validators, one of which comes back from a backup ---------------------------------------


class Signed:
    """What one key has signed, by its logs; contradictions are double signing."""

    def __init__(self) -> None:
        self.votes: dict[tuple[int, int, int], set[bytes]] = defaultdict(set)
        self.seals: dict[tuple[int, int], set[bytes]] = defaultdict(set)

    def take(self, member: Member) -> None:
        own = member.keys.consensus.public
        path = member.directory / "wal" / LOG_NAME
        log = WriteAheadLog(path.parent)
        for raw in log.records():
            record = decode(Record, raw)
            if isinstance(record, Vote) and record.signer == own:
                self.votes[record.epoch, record.view, record.kind].add(record.block_hash)
            elif isinstance(record, ProposalSeal) and record.signer == own:
                self.seals[record.epoch, record.view].add(record.block_hash)
        log.close()

    def contradictions(self) -> list[object]:
        found: list[object] = [
            k for k, v in (*self.votes.items(), *self.seals.items()) if len(v) > 1
        ]
        finals = {k[:2] for k in self.votes if k[2] == VoteKind.FINALIZE}
        nulls = {k[:2] for k in self.votes if k[2] == VoteKind.NULLIFY}
        return [*found, *sorted(finals & nulls)]

    def count(self) -> int:
        return sum(map(len, (*self.votes.values(), *self.seals.values())))


HELD = ("chain.db", "wal")  # what a backup of a home has of its chain, if it is a plain copy


def copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in HELD:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy2(source / name, target / name)


def test_a_validator_restored_from_a_plain_copy_never_signs_twice(tmp_path: Path) -> None:
    """The copy is minutes old, and the chain is still in the same epoch: the worst case."""
    params = {**QUICK, "epoch_blocks": 128}
    home, backup, signed = tmp_path / "v3", tmp_path / "backup", Signed()

    async def run(more: int, look: Callable[[list[Member]], None] = lambda members: None) -> None:
        async with validators(tmp_path, 4, **params) as members:
            await until_met(members)
            look(members)
            await until_height(members, max(m.height for m in members) + more)
            assert all(m.consensus.halted == "" for m in members)
            assert all(not len(m.consensus._evidence) for m in members)

    def last(members: list[Member]) -> None:
        silent = [m.consensus.info()["abstains"] is not None for m in members]
        assert silent == [False, False, False, True]

    async def main() -> None:
        await run(3)
        copy(home, backup)
        await run(6)
        with_member = Member(home, 3, 4, **params)
        signed.take(with_member)
        before = signed.count()
        with_member.consensus.stop()
        with_member.local.close()
        for path in (home / "chain.db-wal", home / "chain.db-shm"):
            path.unlink(missing_ok=True)
        copy(backup, home)
        await run(6, last)
        with_member = Member(home, 3, 4, **params)
        assert with_member.consensus.info()["abstains"] is not None
        signed.take(with_member)
        with_member.consensus.stop()
        with_member.local.close()
        assert before > 10
        assert signed.count() == before  # it has learned of some of its own votes, and made none
        assert signed.contradictions() == []

    asyncio.run(main())


def test_it_is_silent_in_every_epoch_that_may_have_begun_before(tmp_path: Path) -> None:
    """The store is older than the log ever was: it goes through epochs that it has seen before."""
    wal = tmp_path / "wal"
    with LocalChain(tmp_path, validators=1, **QUICK) as local:

        def grow(height: int) -> None:
            while local.chain.tip.height < height:
                local.block()

        async def main() -> None:
            grow(3)
            wal.mkdir()
            (wal / BEGUN_NAME).touch()
            node = service(local, wal)
            node.start()
            for height in (EPOCH + 2, 2 * EPOCH, 3 * EPOCH + 1):
                grow(height)
                tip = local.chain.tip
                certificate = local.store.certificate(Height(height))
                assert certificate is not None
                node.advance_to(tip, certificate)
                assert node.info()["epoch"] == height // EPOCH
                assert node.info()["abstains"] is not None
                for timer in node._timers.running:
                    node._fire(timer)
                node._try_build()
                assert local.chain.tip == tip
            node._doubt.since_ms = local.chain.tip.time_ms - doubt.MARGIN_MS
            grow(4 * EPOCH + 1)
            certificate = local.store.certificate(Height(4 * EPOCH + 1))
            assert certificate is not None
            node.advance_to(local.chain.tip, certificate)
            assert node.info()["abstains"] is None
            await reached(lambda: local.chain.tip.height > 4 * EPOCH + 2, 120, "blocks of its own")
            node.stop()
            assert not (wal / DOUBT_NAME).exists()
            assert (wal / PLACE_NAME).exists()

        asyncio.run(main())
