"""A round's writing, thinning, compacting and dropping, cut short at every durable step: by a kill,
and by the loss of power."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from node.services.retention_plan import Keep
from tests.kit.faulty_disk import Crash, FaultyDisk
from tests.kit.follower import Follower
from tests.kit.local_chain import LocalChain

ROUNDS = 7
POWER_SEEDS = (1, 2)
SPARSE, DENSE = 3, 2  # an expert, and the router, whose tiles are shorter than their steps


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        for _ in range(ROUNDS):
            made.learn()
        yield made


def resumed(chain: LocalChain, directory: Path, at: int, shard: int, disk: FaultyDisk) -> Follower:
    """A node that starts on what is in a directory."""
    follower = Follower(chain, directory, disk=disk, at=at, only=(shard,))
    follower.history.height = follower.newest.height
    return follower


def act(chain: LocalChain, directory: Path, shard: int, disk: FaultyDisk) -> None:
    """The last round: it writes a version, thins one, makes a snapshot of one, and drops four."""
    with suppress(Crash):
        follower = resumed(chain, directory, ROUNDS - 1, shard, disk)
        try:
            follower.follow()
        finally:
            follower.store.close()


def check(chain: LocalChain, directory: Path, shard: int) -> None:
    """What counts is there, before and after the round is done again; nothing is left over."""
    follower = resumed(chain, directory, ROUNDS, shard, FaultyDisk(directory))
    store, past = follower.store, follower.past
    try:
        assert store.scrub() == []
        for model in past[3:ROUNDS]:
            assert store.read_shard(shard, model.roots[shard]) == model.shards[shard]
        follower.write()
        follower.tidy()
        plan = follower.retention.plan(shard, follower.round)
        kept = {model.roots[shard] for model in past[3:]}
        assert {root for root, keep in plan.items() if keep != Keep.NOTHING} == kept
        assert {*store.versions(shard)} == kept
        assert store.partial_versions(shard) == ()
        for model in past[3:]:
            assert store.read_shard(shard, model.roots[shard]) == model.shards[shard]
        assert store.scrub() == []
        assert sorted(p.name for p in directory.glob("*/*")) == sorted(names(directory))
    finally:
        store.close()


def names(directory: Path) -> list[str]:
    """The files of a node that was never cut short."""
    return [p.name for p in (directory.parent / "whole").glob("*/*")]


@pytest.mark.parametrize("shard", [SPARSE, DENSE])
def test_a_crash_at_any_step_of_a_round(chain: LocalChain, tmp_path: Path, shard: int) -> None:
    start = tmp_path / "start"
    start.mkdir()
    before = Follower(chain, start, only=(shard,))
    before.follow(ROUNDS - 1)
    before.store.close()
    whole = tmp_path / "whole"
    shutil.copytree(start, whole)
    act(chain, whole, shard, FaultyDisk(whole))
    cut_short = 0
    for stop_at in count(1):
        directory = tmp_path / "cut"
        shutil.copytree(start, directory)
        disk = FaultyDisk(directory, stop_at)
        act(chain, directory, shard, disk)
        for seed in POWER_SEEDS:
            failed = tmp_path / "failed"
            failed.mkdir()
            disk.lose_power(seed, failed)
            check(chain, failed, shard)
            shutil.rmtree(failed)
        check(chain, directory, shard)
        shutil.rmtree(directory)
        if not disk.is_dead:
            break
        cut_short += 1
    assert cut_short > 20
