"""A mempool over a state machine, many funded accounts, and what must hold of it at any time."""

from __future__ import annotations

from collections import Counter

from chain.codec import encode
from chain.execute import Context, Execution
from chain.transactions import Payload, Transfer
from chain.types import Epoch, Grains, Height, PubKey, TimeMs, View
from node import mempool
from node.mempool import Journal, Mempool
from node.pool_value import Kind
from tests.kit.machine import Machine, key
from wallet.keys import KeyPair

SINK = key("sink").public


class Pooled:
    """`keys`: accounts with 100 BLY each."""

    def __init__(self, accounts: int = 4, journal: Journal | None = None) -> None:
        names = [f"payer {i}" for i in range(accounts)]
        self.keys = [key(name) for name in names]
        self.machine = Machine(funded=tuple(names))
        self.announced: list[bytes] = []
        self.pool = self.new_pool(journal)

    def new_pool(self, journal: Journal | None = None) -> Mempool:
        m = self.machine
        pool = Mempool(m.genesis, m.rules, lambda: m.state, self.announced.append, journal)
        pool.build_budget_s = 60.0  # no leader waits here, and a busy machine is slow
        return pool

    def raw(
        self,
        sender: KeyPair,
        nonce: int,
        fee: int = 1000,
        amount: int = 1,
        *,
        stamp: bool = False,
        payload: Payload | None = None,
    ) -> bytes:
        what = payload or Transfer(SINK, Grains(amount))
        return encode(self.machine.tx(sender, what, nonce=nonce, fee=fee, stamp=stamp))

    def execution(self) -> Execution:
        m = self.machine
        height = Height(m.state.head.height + 1)
        times = TimeMs(m.state.head.time_ms + 1)
        zero = PubKey(bytes(32))
        ctx = Context(height, times, Epoch(0), View(1), m.parent, zero, b"")
        return Execution(m.tree, m.genesis, m.rules, ctx)

    def fill(self, most_bytes: int = 10**6) -> tuple[bytes, ...]:
        return self.pool.fill(self.execution(), most_bytes)

    def block(self, *raws: bytes) -> None:
        """A final block of these, and what the pool makes of it."""
        receipts = self.machine.block(*raws)
        assert self.machine.done is not None
        self.pool.committed(receipts, self.machine.done.changes)


def check(pool: Mempool) -> None:
    """Every count is what there is, and every order is what it should be."""
    index, state = pool._index, pool._state()
    waiting = [w for s in index.senders.values() for w in s.txs.values()]
    assert {w.tx_id: w for w in waiting} == dict(index.ids)
    assert len(waiting) == pool.size
    assert sum(len(w.raw) for w in waiting) == pool.bytes
    assert Counter(w.kind for w in waiting) == Counter(
        {kind: n for kind, n in zip(Kind, index.count, strict=True) if n}
    )
    for kind in Kind:
        assert sum(len(w.raw) for w in waiting if w.kind is kind) == index.bytes[kind]
    assert index.count[Kind.PAID] <= mempool.MAX_TXS * 3 // 4
    assert index.count[Kind.STAMPED] <= mempool.MAX_TXS // 4
    assert index.bytes[Kind.PAID] <= mempool.MAX_BYTES * 3 // 4
    for account, sender in index.senders.items():
        assert sender.txs, "who has nothing waiting is forgotten"
        assert len(sender.txs) <= mempool.MAX_PER_SENDER
        known = state.account(account)
        assert sender.spends == sum(w.spends for w in sender.txs.values()) <= known.balance
        end = known.nonce
        while end in sender.txs:
            end += 1
        assert pool.next_nonce(account) == end
        least: dict[Kind, float] = {}
        for nonce in sorted(sender.txs):
            w = sender.txs[nonce]
            assert (w.sender, w.nonce, w.is_ready) == (account, nonce, nonce < end)
            least[w.kind] = min(least.get(w.kind, w.own_worth), w.own_worth)
            assert w.worth == least[w.kind]
        assert sender.last == max(sender.txs)
        assert sender.duties == sum(w.kind is Kind.DUTY for w in sender.txs.values())
    for kind in (Kind.PAID, Kind.STAMPED):
        cheapest = [(w.is_ready, w.worth) for w in index.cheapest(kind)]
        assert cheapest == sorted(cheapest), "the cheapest come first"
    assert not {t for t in index.ids if pool.status(t) != "pending"}
