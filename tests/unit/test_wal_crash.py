"""The log at every numbered crash point of a disk that forgets, tears and misdirects."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from chain.errors import StorageError
from node.wal import LOG_NAME, WriteAheadLog
from tests.sim.disk import POINTS, Crash, FaultyDisk
from tests.sim.ledger import Law

BATCHES = [[b"%d" % i * (90 * i), b"second"] for i in range(1, 8)]
ROTATE_AFTER = 4  # batches
ABSTAIN = b"sign nothing"


class Machine:
    """One log, and what it has promised: appends that returned, or what a rotation kept."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        genesis = Law(0, 4, 10).genesis()
        self.disk = FaultyDisk(genesis, random.Random(seed), self.counts)
        self.promised: list[list[bytes]] = []
        self.attempted = list(self.promised)

    def open(self) -> WriteAheadLog:
        return WriteAheadLog(
            Path(), abstain=[ABSTAIN], expected=bool(self.promised), files=self.disk
        )

    def work(self) -> None:
        log = self.open()
        for number, batch in enumerate(BATCHES):
            self.attempted = [*self.promised, batch]
            log.append(batch)
            self.promised = self.attempted
            if number + 1 == ROTATE_AFTER:
                self.attempted = self.promised[-2:]
                log.rotate([r for kept in self.attempted for r in kept])
                self.promised = self.attempted

    def check(self) -> None:
        """All that was promised is there, then at most what was being done; nothing is missed."""
        log = self.open()
        assert log.loss == ""
        allowed = [[r for b in batches for r in b] for batches in (self.promised, self.attempted)]
        assert list(log.records()) in allowed


@pytest.mark.parametrize("power", [False, True])
def test_no_crash_point_loses_what_was_promised(power: bool) -> None:
    reached: Counter[str] = Counter()
    for point in range(200):
        for seed in range(8 if power else 1):
            machine = Machine(seed)
            machine.disk.fuse = point
            try:
                machine.work()
            except Crash:
                machine.disk.die(power=power)
                machine.check()
                machine.disk.die(power=True)  # nothing that was read once is forgotten later
                machine.check()
            reached += machine.counts
    assert {f"crash {p}" for p in POINTS if "commit" not in p} <= set(reached)


@pytest.mark.parametrize("power", [False, True])
def test_at_no_crash_point_a_log_that_is_moved_away_is_forgotten(power: bool) -> None:
    """What was promised had left, so the home is not a new one, whatever its chain's height. What
    was not promised had not, so no crash by itself silences a new home (`check`)."""
    missed = 0
    for point in range(60):
        for seed in range(8 if power else 1):
            machine = Machine(seed)
            machine.disk.fuse = point
            try:
                machine.work()
            except Crash:
                machine.disk.die(power=power)
            machine.disk.remove(LOG_NAME)
            log = WriteAheadLog(Path(), abstain=[ABSTAIN], files=machine.disk)
            if machine.promised:
                missed += 1
                assert log.records() == (ABSTAIN,)
                assert log.loss == "is missing or empty"
    assert missed > 30


def test_what_was_read_after_a_failed_sync_is_durable() -> None:
    """The cache shows a write that its sync has given up: read, it counts, so it must stay."""
    machine = Machine(0)
    log = machine.open()
    log.append(BATCHES[0])
    machine.disk.failing_syncs = 1
    with pytest.raises(StorageError, match="cannot write"):
        log.append(BATCHES[1])
    machine.disk.die(power=False)
    seen = machine.open().records()
    assert seen == (*BATCHES[0], *BATCHES[1])
    machine.disk.die(power=True)
    assert machine.open().records() == seen


@pytest.mark.parametrize("seed", range(40))
def test_a_misdirected_write_is_noticed(seed: int) -> None:
    """Either the log refuses to open and says what to do, or it begins by forbidding to sign, or
    the wrong sector had no harm in it: then everything is there."""
    machine = Machine(seed)
    log = machine.open()
    where = seed % len(BATCHES)
    for number, batch in enumerate(BATCHES):
        machine.disk.strays = int(number == where)
        log.append(batch)
        machine.promised.append(batch)
    machine.disk.die(power=True)
    refusal, found = None, ()
    try:
        found = machine.open().records()
    except StorageError as error:
        refusal = error
    if refusal is not None:
        assert refusal.exit_code == 65
        assert "restore the file, or move it away" in str(refusal)
    else:
        whole = tuple(r for batch in BATCHES for r in batch)
        assert found == whole or found[-1] == ABSTAIN


def test_a_full_disk_refuses_to_open_and_says_what_to_do() -> None:
    machine = Machine(1)
    machine.disk.refusals = 1
    with pytest.raises(StorageError, match=r"cannot open .*free space or replace the disk"):
        machine.open()
    machine.check()
