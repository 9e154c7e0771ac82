"""The mempool under any sequence of what can happen to it: its counts match, nonces stay in order,
duties stay, and what leaves has a reason."""

from __future__ import annotations

import os
import random
from contextlib import suppress

import pytest

from chain.codec import encode
from chain.errors import BlyanError, TxError
from chain.hashes import BLOB, DATASET, TX, Hash32
from chain.transactions import AuditReport, DatasetSubmit, Verdict
from chain.types import BlobId, TxId
from node import mempool
from node.pool_value import RAISE_DEN, RAISE_NUM
from tests.kit.pools import Pooled, check

SEQUENCES = int(os.environ.get("MEMPOOL_SEQUENCES", "25"))
STEPS = 60
DATASET_ID = DATASET.hash(b"a dataset")


class Run(Pooled):
    """`duties`: ids of free duties that were taken and are not done."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(5)
        self.dice = dice
        blob = BlobId(BLOB.hash(b"m"))
        submit = DatasetSubmit(DATASET_ID, blob, 10, 1000, 3, "CC0-1.0", "a dataset")
        self.machine.ok(encode(self.machine.tx(self.keys[0], submit)))
        self.taken: set[TxId] = set()
        self.duties: set[TxId] = set()
        self.final: set[TxId] = set()

    def step(self) -> None:
        what = self.dice.choices(
            (self.transfer, self.stamped, self.duty, self.blocks, self.leads), (20, 4, 2, 3, 1)
        )
        what[0]()

    def submit(self, raw: bytes) -> bool:
        before = dict(self.pool._index.ids)
        tx_id = None
        with suppress(TxError):
            tx_id = self.pool.submit(raw, local=self.dice.random() < 0.3)
        if tx_id is None:
            assert dict(self.pool._index.ids) == before, "what is refused changes nothing"
            return False
        self.taken.add(tx_id)
        self.displaced(before, tx_id)
        return True

    def displaced(self, before: dict[TxId, object], tx_id: TxId) -> None:
        """What left for it was worth less, or was early, or had its nonce."""
        index = self.pool._index
        new = index.ids[tx_id]
        for old in (w for i, w in before.items() if i not in index.ids):
            assert isinstance(old, type(new))
            if (old.sender, old.nonce) == (new.sender, new.nonce):
                assert old.bid == 0 or new.bid * RAISE_DEN >= old.bid * RAISE_NUM
            else:
                assert old.kind is new.kind
                if old.is_ready:
                    assert new.worth * RAISE_DEN >= old.worth * RAISE_NUM
                sender = index.senders.get(old.sender)
                assert sender is None or sender.last < old.nonce, "no hole is left"

    def transfer(self) -> None:
        sender = self.dice.choice(self.keys)
        base = self.machine.state.account(sender.public).nonce
        nonce = base + self.dice.choice((0, 0, 1, 1, 2, 3, 4, 7, 33))
        amount = self.dice.choice((1, 1, 1, 4 * 10**9, 9 * 10**9))
        fee = self.dice.choice((1000, 1000, 1100, 1210, 2000, 5000, 10**6))
        self.submit(self.raw(sender, nonce, fee, amount))

    def stamped(self) -> None:
        sender = self.dice.choice(self.keys)
        raw = self.raw(sender, self.pool.next_nonce(sender.public), stamp=True)
        self.block()  # a stamp names a block before the newest
        self.submit(raw)

    def duty(self) -> None:
        report = AuditReport(
            DATASET_ID, Verdict.YES, self.dice.randrange(100), (), Hash32(b"r" * 32)
        )
        validator = self.dice.choice(self.machine.validators)
        nonce = self.pool.next_nonce(validator.account.public)
        if nonce > self.machine.state.account(validator.account.public).nonce:
            return
        raw = self.machine.duty(validator, report)
        if self.submit(raw):
            self.duties.add(TxId(TX.hash(raw)))

    def blocks(self) -> None:
        """A leader's block of what waits, now and then with something that does not."""
        raws = list(self.fill(self.dice.choice((600, 3000, 10**6))))
        check(self.pool)
        if self.dice.random() < 0.3:
            sender = self.dice.choice(self.keys)
            nonce = self.machine.state.account(sender.public).nonce
            raws.insert(0, self.raw(sender, nonce, amount=self.dice.randrange(1, 10**9)))
        if self.dice.random() < 0.3 and self.pool.size:  # too early: a leader that means ill
            raws.append(self.dice.choice([raw for _, raw in self.pool.pending()]))
        self.block(*raws)
        assert self.machine.done is not None
        self.final |= {r.tx_id for r in self.machine.done.receipts if r.ok}

    def leads(self) -> None:
        """Blocks without us, for what is too old."""
        for _ in range(self.dice.choice((1, mempool.MAX_AGE_BLOCKS // 4))):
            self.block()

    def check(self) -> None:
        check(self.pool)
        for tx_id in self.taken:
            status = self.pool.status(tx_id)
            assert status is not None or tx_id in self.final, "what was taken has an answer"
            if status == "pending":
                assert tx_id not in self.final
        for tx_id in self.duties - self.final:
            status = self.pool.status(tx_id) or ""
            assert not status.startswith("dropped:outbid"), "a duty is never pushed out"


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_any_sequence_keeps_what_must_hold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_TXS", 16)  # twelve that pay, four stamps
    monkeypatch.setattr(mempool, "MAX_PER_SENDER", 7)
    monkeypatch.setattr(mempool, "MAX_BYTES", 6000)
    run = Run(random.Random(seed))
    for step in range(STEPS):
        try:
            run.step()
            run.check()
        except (AssertionError, KeyError, BlyanError) as error:
            raise AssertionError(f"seed {seed}, step {step}: {error}") from error
