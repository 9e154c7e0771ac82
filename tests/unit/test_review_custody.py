"""What a review of custody found, each as the attack or accident that it allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from chain import custody, limits
from chain import records as r
from chain.codec import encode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.errors import GenesisError, TxError
from chain.execute import Executed
from chain.ledger import put_unbonding
from chain.params import parse_genesis
from chain.state import CUSTODY_BONDS, REWARD_POOL
from chain.tree import StateTree
from chain.types import PubKey
from node.mempool import MAX_OPENINGS, Mempool
from node.pool_value import least_to_replace
from node.services.custody_plan import OpenCustody, owed
from node.services.duties import CUSTODY_AT_ONCE
from node.services.placement import Placement, _Plan
from node.services.placement_plan import Keep
from node.services.sender import DutySender
from node.stamping import spend_of
from tests.kit.custody_run import BOND, CustodyRun
from tests.kit.machine import STAKE, TEMPLATE, key, leaving
from tests.kit.net import exchange, stations


@pytest.fixture
def lied() -> CustodyRun:
    return CustodyRun.with_a_lie()


def pool_of(run: CustodyRun, announce: Callable[[bytes], None] = lambda raw: None) -> Mempool:
    return Mempool(run.m.genesis, run.m.rules, lambda: run.m.state, announce)


# --- genesis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "match"),
    [
        # Drawn two epochs after the anchor, when the asked epoch is gone: no block any more.
        ({"epoch_blocks": 16, "seed_blocks": 32}, "seed_blocks"),
        # A dispute never comes in time, or its answer would have to stand in the very next block.
        ({"custody_open": {"blocks": 1, "ms": 0}}, "custody_open"),
        ({"custody_open": {"blocks": 3, "ms": 0}}, "custody_open"),
    ],
)
def test_a_genesis_that_custody_could_not_bear_is_refused(
    params: dict[str, Any], match: str
) -> None:
    document = json.loads(TEMPLATE.read_text())
    document["params"].update(params)
    with pytest.raises(GenesisError, match=match):
        parse_genesis(json.dumps(document))


@pytest.mark.parametrize("validators", [1, 2])
@pytest.mark.parametrize("shards", [(b"",), (b"x",), (b"", b"x", b""), (b"x", b"")])
def test_the_least_of_models_and_sets(validators: int, shards: tuple[bytes, ...]) -> None:
    """Epochs as short as seeds are long; every event ends, and all blocks execute."""
    params = {"epoch_blocks": 4, "unbonding_blocks": 17, "seed_blocks": 4}
    run = CustodyRun(shards=shards, validators=validators, **params)
    total, ended = run.m.grains(), 0
    for _ in range(60):
        if run.phase() == CustodyPhase.COMMIT and ended:
            run.commit(*range(len(run.event.members)))
        else:
            run.m.block()
        assert run.m.done is not None
        ended += sum(e.kind == "custody" for e in run.m.done.events)
    assert ended >= 2
    assert run.m.grains() == total


# --- stake --------------------------------------------------------------------------------


def test_a_liar_s_stake_is_not_paid_out_while_the_event_goes_on() -> None:
    """Windows may be longer than unbonding: who left in time would lie for nothing."""
    run = CustodyRun(custody_open={"blocks": 40, "ms": 0})
    run.until(CustodyPhase.COMMIT)
    liar, honest = run.account(run.custodian(0)), run.account(run.custodian(0, 1))
    state = run.m.state
    for account in (liar, honest):
        for ahead in (4, 5, 7):
            release = run.m.height + ahead
            put_unbonding(state, leaving(account, release, 10))
        state.put_account(account, bonded=STAKE - 30)
    run.m.tree = state.commit()
    total = run.m.grains()
    run.to_disputes(lies={run.custodian(0): (0,)})
    before = run.m.state.account(liar).balance
    for _ in range(20):
        run.m.block()
        assert run.m.state.account(liar).balance == before
    assert run.m.grains() == total
    permille = run.m.genesis.params.custody_slash_permille
    assert run.send_duty(run.keys_of(run.custodian(0, 1)), run.opening(0, liar)) == "ok"
    assert run.m.state.account(liar).bonded == STAKE - 30 - (STAKE - 30) * permille // 1000
    run.m.block()
    assert run.m.state.account(liar).balance == before + 30  # 1 % of 30 grains is none
    kept = run.m.state.account(honest).balance
    run.until(None)
    run.m.block()
    run.m.block()
    assert run.m.state.account(honest).balance == kept + 30
    assert not [*run.m.state.items(r.UNBONDING), *run.m.state.items(b"udue/")]
    assert run.m.grains() == total


def test_a_conviction_costs_the_same_however_many_unbond(
    lied: CustodyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second for 100,000 who do, for one opening that costs nothing."""
    run, read = lied, 0
    state = run.m.state
    for i in range(500):
        account = PubKey(i.to_bytes(32, "big"))
        put_unbonding(state, leaving(account, run.m.height + 1 + i % 9, 1))
    run.m.tree = state.commit()
    items = StateTree.items

    def counted(tree: StateTree, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        nonlocal read
        for row in items(tree, prefix):
            read += 1
            yield row

    monkeypatch.setattr(StateTree, "items", counted)
    opening = run.opening(0, run.account(run.custodian(0)))
    assert run.send_duty(run.keys_of(run.custodian(0, 1)), opening) == "ok"
    assert read < 80  # of which 56 are due in this very block


def test_disputes_of_one_s_own_are_not_free(lied: CustodyRun) -> None:
    """All slots could be held for ever by disputes that their owner answers itself."""
    run, honest = lied, lied.custodian(0, 1)
    owner, ann = run.account(honest), key("ann").public

    def held() -> int:
        return run.m.state.account(owner).balance + run.m.state.account(ann).balance

    while run.m.validators[(run.m.height + 1) % len(run.m.validators)].account.public == owner:
        run.m.block()  # else the fee comes back to it as the block's proposer
    before, pool = held(), run.m.state.account(REWARD_POOL).balance
    assert run.dispute("ann", 0, honest, bond=BOND + 1) == "ok"
    assert run.send_duty(run.keys_of(honest), run.opening(0, owner)) == "ok"
    assert run.m.state.account(CUSTODY_BONDS).balance == 0
    assert before - held() == 1000 + BOND // 2 + 1
    assert run.m.state.account(REWARD_POOL).balance == pool + BOND // 2 + 1


# --- what floods do -------------------------------------------------------------------------


def test_one_sender_s_copies_of_an_opening_are_few(lied: CustodyRun) -> None:
    """With 33 nonces that may wait and 16 replacements of each it could make everyone pass on
    140 MB for one lie of its own."""
    passed: list[bytes] = []
    pool, finder = pool_of(lied, passed.append), lied.keys_of(lied.custodian(0, 1))
    opening = lied.opening(0, lied.account(lied.custodian(0)))
    raws = [lied.m.duty(finder, opening, ahead=i) for i in range(20)]
    for raw in raws[:MAX_OPENINGS]:
        pool.submit(raw, local=False)
    assert pool.size == 1
    for raw in raws[MAX_OPENINGS:]:
        with pytest.raises(TxError, match="show the same"):
            pool.submit(raw, local=False)
    assert passed == raws[:MAX_OPENINGS]
    fee = 1000 * spend_of(opening).units
    for number in range(20):
        raw = encode(lied.m.tx(key("eve"), opening, fee=fee))
        fee = least_to_replace(fee)
        if number < MAX_OPENINGS:
            pool.submit(raw, local=False)
        else:
            with pytest.raises(TxError, match="show the same"):
                pool.submit(raw, local=False)
    assert pool.size == 2


def test_openings_that_come_too_late_leave_every_pool(lied: CustodyRun) -> None:
    run = lied
    opening = run.opening(0, run.account(run.custodian(0)))
    pool, late = pool_of(run), run.m.duty(run.keys_of(run.custodian(0, 2)), opening)
    tx_id = pool.submit(late, local=False)
    pool.submit(encode(run.m.tx(key("eve"), opening)), local=False)
    run.m.block(run.m.duty(run.keys_of(run.custodian(0, 1)), opening))
    assert run.m.done is not None
    pool.committed(run.m.done.receipts, run.m.done.changes)
    assert (pool.size, pool.bytes) == (0, 0)
    assert str(pool.status(tx_id)).startswith("dropped:decided")


def test_an_answer_leaves_when_its_dispute_is_over(lied: CustodyRun) -> None:
    """Disputed anew, the same place can be answered anew."""
    run, honest = lied, lied.custodian(0, 1)
    answer = run.opening(0, run.account(honest))
    pool, owner = pool_of(run), run.keys_of(honest)
    for _ in range(2):
        assert run.dispute("ann", 0, honest) == "ok"
        for _ in range(MAX_OPENINGS):
            pool.submit(run.m.duty(owner, answer), local=False)
            pool.withdraw(next(pool.pending())[0])
        with pytest.raises(TxError, match="show the same"):
            pool.submit(run.m.duty(owner, answer), local=False)
        assert run.send_duty(owner, answer) == "ok"
        assert run.m.done is not None
        pool.committed(run.m.done.receipts, run.m.done.changes)


# --- honest custodians ----------------------------------------------------------------------


class Chain:
    """Tells its listener of blocks."""

    def finalized(self, callback: Callable[..., None]) -> None:
        self.tell = callback


def test_a_duty_that_came_second_does_not_hold_up_those_behind_it(lied: CustodyRun) -> None:
    """A liar lets itself be opened by another: the honest finder's nonce would stay where it is
    until the finder leads, and its answers to disputes behind it."""
    run, me = lied, lied.custodian(0, 1)
    keys, opening = run.keys_of(me), run.opening(0, run.account(run.custodian(0)))
    pool, chain = pool_of(run), Chain()
    sender = DutySender(
        run.m.genesis.chain_id,
        keys.account.public,
        keys.node,
        chain,  # type: ignore[arg-type]
        pool,
    )

    async def body() -> None:
        first = asyncio.create_task(sender.submit(opening))
        await asyncio.sleep(0)
        other = run.keys_of(run.custodian(0, 2))
        run.m.block(run.m.duty(other, opening))
        assert run.dispute("ann", 0, me) == "ok"
        answer = asyncio.create_task(sender.submit(run.opening(0, run.account(me))))
        await asyncio.sleep(0)
        tell(run.m.done)
        with pytest.raises(TxError):
            await first
        raws = [raw for _, raw in pool.pending()]
        assert [x.code for x in run.m.block(*raws)] == ["ok"]
        tell(run.m.done)
        assert (await answer).ok

    def tell(done: Executed | None) -> None:
        assert done is not None
        chain.tell(None, done)  # before the pool hears of it
        pool.committed(done.receipts, done.changes)
        chain.tell(None, done)

    asyncio.run(body())
    assert run.status(me) == CustodyStatus.COMMITTED


def test_eight_disputes_against_one_custodian_are_answered_at_once() -> None:
    """Two at a time, each waiting for its block, were done when the window had passed; and what
    others lied about came first."""
    assert CUSTODY_AT_ONCE >= 2 * limits.MAX_CUSTODY_DISPUTES
    run = CustodyRun(shards=(bytes(300), *(bytes([i]) * 700 for i in range(15))))
    run.until(CustodyPhase.COMMIT)
    me = max(range(len(run.event.members)), key=lambda i: len(custody.positions(run.event, i)))
    mine = custody.positions(run.event, me)
    assert len(mine) >= 8
    liar = next(i for i in run.event.places[mine[0]].custodians if i != me)
    run.to_disputes(lies={liar: (mine[0],)})
    state = run.m.state
    for at in mine[:8]:
        state.put_account(key(f"sybil-{at}").public, bonded=10**6, balance=10**9)
    run.m.tree = state.commit()
    for at in mine[:4]:
        assert run.dispute(f"sybil-{at}", at, me) == "ok"
    wrong = ((run.account(liar), mine[0]),)
    plan = list(owed(run.m.state, run.account(me), lambda _: wrong))
    answers = [OpenCustody(run.event.seed, run.account(me), at) for at in mine[:4]]
    assert set(plan[:4]) == set(answers)
    assert plan[4:] == [OpenCustody(run.event.seed, run.account(liar), mine[0])]


def test_what_an_event_asks_for_is_not_evicted_when_its_epoch_is_over(lied: CustodyRun) -> None:
    """Placement keeps the tiles of this epoch and the next; an event may outlast both."""
    run, account = lied, lied.account(0)
    placement = object.__new__(Placement)
    placement._account, placement._plan = account, _Plan(kept=Keep(frozenset({(7, 7)}), 0))
    placement.cache = SimpleNamespace(pinned=None)  # type: ignore[assignment]
    placement._pin(run.m.state)
    named = {(p.shard, p.tile) for p in run.event.places if 0 in p.custodians}
    assert named
    assert placement.cache.pinned == {(7, 7), *named}
    run.until(None)
    placement._pin(run.m.state)
    assert placement.cache.pinned == {(7, 7)}


def test_what_was_said_too_early_is_heard_when_it_is_said_again() -> None:
    """Peers that are a block behind refuse an answer; saying it again went nowhere for minutes."""

    async def scenario() -> None:
        async with stations("a", "b") as (a, b):
            heard: list[bytes] = []

            async def judge(peer: str, data: bytes) -> bool | None:
                heard.append(data)
                return True if len(heard) > 1 else None

            b.net.subscribe("answers", judge)
            a.net.subscribe("answers", judge)
            await exchange(a, b)
            await a.net.publish("answers", b"an answer")
            await b.until(lambda: len(heard) == 1)
            await a.net.publish("answers", b"an answer")
            await b.until(lambda: len(heard) == 2)
            await a.net.publish("answers", b"an answer")  # accepted: nothing new to anyone
            await a.net.publish("answers", b"last")
            await b.until(lambda: heard[-1] == b"last")
            assert len(heard) == 3

    asyncio.run(scenario())


def test_at_stake_are_those_that_may_still_be_convicted(lied: CustodyRun) -> None:
    run, liar = lied, lied.account(lied.custodian(0))
    everyone = {m.account for m in run.event.members}
    assert custody.at_stake(run.m.state) == everyone
    assert run.send_duty(run.keys_of(run.custodian(0, 1)), run.opening(0, liar)) == "ok"
    assert custody.at_stake(run.m.state) == everyone - {liar}
    run.until(None)
    assert custody.at_stake(run.m.state) == set()
    assert custody.at_stake(CustodyRun().m.state) == set[PubKey]()
