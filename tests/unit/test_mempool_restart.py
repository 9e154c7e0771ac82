"""What a node acknowledged, after it was killed: it waits again, or there is a reason."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from chain.errors import QuotaError, StorageError, TxError
from chain.types import TxId
from node import mempool
from node.mempool import REANNOUNCE_BLOCKS, Mempool
from node.pool_journal import PoolJournal
from tests.kit.pools import Pooled, check


class Site(Pooled):
    """A pool with a journal in a directory. `kill` starts it again from what is on disk."""

    def __init__(self, directory: Path, accounts: int = 4) -> None:
        self.directory = directory
        self.journal = PoolJournal(directory)
        self.final: set[TxId] = set()
        super().__init__(accounts, self.journal)

    def take(self, *raws: bytes) -> list[TxId]:
        """As the API does: it answers when this returns."""

        async def act() -> list[TxId]:
            ids = [self.pool.submit(raw) for raw in raws]
            await self.pool.durable(ids)
            return ids

        return asyncio.run(act())

    def kill(self) -> Mempool:
        """Nothing is closed; what was not flushed is lost."""
        self.journal = PoolJournal(self.directory)
        self.announced.clear()
        self.pool = self.new_pool(self.journal)
        self.pool.restore(
            self.journal.txs(), self.journal.refused(), lambda tx_id: tx_id in self.final
        )
        return self.pool

    def block(self, *raws: bytes) -> None:
        super().block(*raws)
        assert self.machine.done is not None
        self.final |= {r.tx_id for r in self.machine.done.receipts if r.ok}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_was_acknowledged_waits_again(site: Site) -> None:
    raws = [site.raw(site.keys[0], nonce) for nonce in (0, 1, 3)]
    ids = site.take(*raws)
    foreign = site.pool.submit(site.raw(site.keys[1], 0), local=False)
    pool = site.kill()
    assert [raw for _, raw in pool.pending()] == raws
    assert [pool.status(t) for t in ids] == ["pending"] * 3
    assert pool.status(foreign) is None  # whoever acknowledged it has it
    assert site.announced == raws
    assert site.fill() == tuple(raws[:2])
    check(pool)


def test_what_came_from_a_peer_first_is_kept_once_a_client_is_told(site: Site) -> None:
    raw = site.raw(site.keys[0], 0)
    site.pool.submit(raw, local=False)
    site.take(raw)
    assert [r for _, r in site.kill().pending()] == [raw]


def test_what_is_final_or_taken_by_another_comes_back_as_that(site: Site) -> None:
    done, stale = site.take(site.raw(site.keys[0], 0), site.raw(site.keys[1], 0))
    site.block(site.raw(site.keys[0], 0), site.raw(site.keys[1], 0, amount=7))
    assert site.pool.size == 0
    pool = site.kill()
    assert pool.status(done) is None  # the chain tells
    assert pool.status(stale) == "dropped:bad_nonce: the nonce is 0; 1 is next"
    pool = site.kill()  # nor does it come back later
    assert (pool.size, pool.status(done)) == (0, None)
    assert str(pool.status(stale)).startswith("dropped:bad_nonce")


def test_reasons_survive(site: Site) -> None:
    (old,) = site.take(site.raw(site.keys[0], 0))
    (new,) = site.take(site.raw(site.keys[0], 0, fee=2000))
    pool = site.kill()
    assert str(pool.status(old)).startswith("dropped:replaced: by ")
    assert pool.status(new) == "pending"
    for _ in range(mempool.MAX_AGE_BLOCKS + 1):
        site.block()
    site.take(site.raw(site.keys[1], 0))
    assert str(site.kill().status(new)).startswith("dropped:expired")


def test_its_age_counts_from_when_it_came(site: Site) -> None:
    (tx_id,) = site.take(site.raw(site.keys[0], 1))
    for _ in range(mempool.MAX_AGE_BLOCKS):
        site.block()
        if site.machine.height % 90 == 0:
            site.kill()
    assert site.kill().status(tx_id) == "pending"
    site.block()
    assert str(site.pool.status(tx_id)).startswith("dropped:expired")


def test_what_is_dropped_before_its_sender_is_told_has_a_reason_too(site: Site) -> None:
    async def act() -> TxId:
        tx_id = site.pool.submit(site.raw(site.keys[0], 0))
        site.pool.submit(site.raw(site.keys[0], 0, fee=9999), local=False)
        await site.pool.durable([tx_id])
        return tx_id

    assert str(site.kill().status(asyncio.run(act()))).startswith("dropped:replaced")


def test_a_disk_that_takes_nothing_is_told_and_the_node_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = site.raw(site.keys[0], 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(site.journal._files, "write", full)
        for _ in range(2):
            with pytest.raises(QuotaError, match="free space"):
                site.take(raw)
    assert site.fill() == (raw,)  # it waits all the same
    site.take(raw)
    assert [r for _, r in site.kill().pending()] == [raw]
    assert issubclass(QuotaError, StorageError)


def test_it_is_said_again_while_it_waits(site: Site) -> None:
    raws = [site.raw(site.keys[0], nonce) for nonce in range(3)]
    site.take(*raws)
    site.pool.submit(site.raw(site.keys[1], 0), local=False)
    site.announced.clear()
    for _ in range(REANNOUNCE_BLOCKS - 1):
        site.block()
    assert site.announced == []
    site.block()
    assert site.announced == raws  # not what a peer brought
    for _ in range(REANNOUNCE_BLOCKS):
        site.block()
    assert site.announced == raws * 2
    site.kill()
    assert site.announced == raws
    site.block()
    assert site.announced == raws * 2  # at once: nobody may have been there at the start


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    site, dice = Site(tmp_path), random.Random(seed)
    told: set[TxId] = set()
    for step in range(60):
        what = dice.random()
        if what < 0.7:
            sender = dice.choice(site.keys)
            nonce = site.pool.next_nonce(sender.public) - dice.choice((0, 0, 0, 1))
            raw = site.raw(sender, max(nonce, 0), fee=dice.choice((1000, 1500, 3000)))
            with suppress(TxError):
                told.update(site.take(raw))
        elif what < 0.85:
            site.block(*site.fill(dice.choice((500, 2000))))
        else:
            site.kill()
        for tx_id in told - site.final:
            assert site.pool.status(tx_id) is not None, f"seed {seed}, step {step}"
        check(site.pool)
    for _ in range(10):
        site.block(*site.fill())
    assert all(t in site.final or site.kill().status(t) != "pending" for t in told)
