"""Custody as nodes go about it: an event among four validators with their real duties and stores,
of whom one lies, one is silent, one disputes falsely; and what each of them plans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chain import custody
from chain import custody_records as c
from chain import records as r
from chain.codec import decode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.errors import StorageError
from chain.hashes import Hash32
from chain.state import State
from chain.transactions import Custody, CustodyDispute, CustodyOpening
from chain.types import Grains, PubKey
from node.services.custody_plan import (
    CheckCustody,
    CommitCustody,
    CustodyChecks,
    OpenCustody,
    owed,
    unchecked,
)
from tests.kit.custody_run import CustodyRun
from tests.kit.duty_net import DutyNet

LIAR, SILENT, HONEST, DOUBTER = range(4)
PARAMS: dict[str, Any] = {
    "custody_interval_blocks": 4,
    "custody_commit": {"blocks": 4, "ms": 0},
    "custody_open": {"blocks": 8, "ms": 0},
    "custody_bond_grains": 10**6,
    "seed_blocks": 2,
}
QUIET_TURNS = 50  # of the loop, without a duty in hand


def play(directory: Path, body: Callable[[Net], Awaitable[None]]) -> None:
    async def main() -> None:
        async with DutyNet(directory, **PARAMS) as net:
            await asyncio.wait_for(body(Net(net)), 120)

    asyncio.run(main())


class Net:
    """A network whose blocks come when its duties are done with the last."""

    def __init__(self, net: DutyNet) -> None:
        self.net = net

    @property
    def state(self) -> State:
        return self.net.state

    @property
    def event(self) -> c.CustodyEvent:
        found = custody.current(self.state)
        assert found is not None
        return found

    def account(self, node: int) -> PubKey:
        return self.net.nodes[node].account

    def known(self, node: int) -> c.CustodianRecord:
        return self.state.need(c.CustodianRecord, c.custodian_key(self.account(node)))

    async def block(self) -> None:
        self.net.local.block()
        await self.quiet()

    async def quiet(self) -> None:
        """Until nothing is under way that does not wait for a further block."""
        still = 0
        while still < QUIET_TURNS:
            busy = any(d.in_hand() for d in self.net.duties) or self.net.local.pool.size
            still = 0 if busy else still + 1
            await asyncio.sleep(0)

    async def until(self, reached: Callable[[State], bool]) -> None:
        for _ in range(60):
            if reached(self.state):
                return
            await self.block()
        raise AssertionError("not within 60 blocks")

    async def until_phase(self, phase: CustodyPhase | None) -> None:
        def there(state: State) -> bool:
            event = custody.current(state)
            return (None if event is None else event.phase) == phase

        await self.until(there)

    def sent(self, node: int, kind: type) -> list[Any]:
        return [p for p in self.net.nodes[node].sent if isinstance(p, kind)]


def gone(*_: Any) -> bytes:
    raise StorageError("the disk is empty")


def grains(state: State) -> int:
    accounts = [decode(r.Account, raw) for _, raw in state.items(b"acct/")]
    return int(sum(a.balance + a.bonded for a in accounts))


def test_honest_custodians_commit_in_time_and_post_nothing_else(tmp_path: Path) -> None:
    async def body(net: Net) -> None:
        await net.until_phase(CustodyPhase.DISPUTE)
        assert {m.status for m in net.event.members} == {CustodyStatus.COMMITTED}
        await net.until_phase(None)
        for node in range(4):
            assert (net.known(node).asked, net.known(node).missed) == (1, 0)
            assert len(net.sent(node, Custody)) == 1
            assert not net.sent(node, CustodyOpening)

    play(tmp_path, body)


def test_a_liar_is_slashed_the_silent_noted_and_a_false_disputer_pays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(net: Net) -> None:
        nodes, total = net.net.nodes, grains(net.state)
        monkeypatch.setattr(nodes[LIAR].tiles.store, "read_subtiles", lambda *_: b"made up")
        monkeypatch.setattr(nodes[SILENT].tiles.store, "read_subtiles", gone)
        stakes = [net.state.account(net.account(i)).bonded for i in range(4)]
        doubter = net.net.local.validators[DOUBTER].account
        await net.until_phase(CustodyPhase.COMMIT)
        await net.until_phase(CustodyPhase.DISPUTE)
        event, honest = net.event, custody.member_of(net.event, net.account(HONEST))
        assert honest is not None
        (position, *_) = custody.positions(event, honest)
        net.net.local.send(
            CustodyDispute(event.seed, net.account(HONEST), position, Grains(10**6)), doubter
        )
        await net.until_phase(None)
        bonded = [net.state.account(net.account(i)).bonded for i in range(4)]
        assert bonded[LIAR] == stakes[LIAR] - stakes[LIAR] // 100
        assert bonded[1:] == stakes[1:]
        assert [net.known(i).convicted for i in range(4)] == [1, 0, 0, 0]
        assert [net.known(i).missed for i in range(4)] == [0, 1, 0, 0]
        assert not net.sent(SILENT, Custody)
        told = net.net.local.store.history("custody_dispute", event.seed)
        by_kind = {row.data["what"]: row.data for row in told}
        assert sorted(by_kind) == ["disputed", "shown", "wrong"]
        assert by_kind["shown"]["custodian"] == net.account(HONEST).hex()
        assert by_kind["shown"]["bond"] == 10**6
        assert by_kind["wrong"]["custodian"] == net.account(LIAR).hex()
        finders = {net.account(HONEST).hex(), net.account(DOUBTER).hex()}
        assert by_kind["wrong"]["finder"] in finders
        assert grains(net.state) == total

    play(tmp_path, body)
    assert "which is not here: the disk is empty" in caplog.text


def test_the_others_answer_for_a_custodian_that_went_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has committed rightly; whoever disputes that does not win by its crash."""

    async def body(net: Net) -> None:
        await net.until_phase(CustodyPhase.DISPUTE)
        event, local = net.event, net.net.local
        down = custody.member_of(event, net.account(HONEST))
        assert down is not None
        (position, *_) = custody.positions(event, down)
        monkeypatch.setattr(net.net.nodes[HONEST].tiles.store, "read_subtiles", gone)
        claim = CustodyDispute(event.seed, net.account(HONEST), position, Grains(10**6))
        local.send(claim, local.validators[DOUBTER].account)
        stake = net.state.account(net.account(HONEST)).bonded
        await net.until_phase(None)
        assert net.state.account(net.account(HONEST)).bonded == stake
        assert net.known(HONEST).convicted == 0
        assert not net.sent(HONEST, CustodyOpening)

    play(tmp_path, body)


# --- the plan -----------------------------------------------------------------------------


@pytest.fixture
def run() -> CustodyRun:
    found = CustodyRun()
    found.until(CustodyPhase.COMMIT)
    return found


def plan(run: CustodyRun, member: int, wrong: tuple[Any, ...] | None = None) -> list[object]:
    account = run.event.members[member].account
    return list(owed(run.m.state, account, unchecked if wrong is None else lambda _: wrong))


def test_commitments_are_owed_until_made_and_by_custodians_alone(run: CustodyRun) -> None:
    seed = run.event.seed
    assert plan(run, 0) == [CommitCustody(seed)]
    assert run.commit(0) == ["ok"]
    assert plan(run, 0) == []
    assert list(owed(run.m.state, PubKey(bytes(32)), unchecked)) == []
    run.until(CustodyPhase.DISPUTE)
    assert plan(run, 1) == [CheckCustody(seed)]  # it may check though it was silent
    assert plan(run, 1, ()) == []


def test_openings_are_posted_in_turn(run: CustodyRun) -> None:
    run.to_disputes(lies={run.custodian(0): (0,)})
    liar, first, second = run.event.places[0].custodians
    account, seed = run.event.members[liar].account, run.event.seed
    wrong = ((account, 0),)
    opening = OpenCustody(seed, account, 0)
    assert plan(run, first, wrong) == [opening]
    assert plan(run, second, wrong) == []
    run.m.block()
    run.m.block()
    assert plan(run, second, wrong) == [opening]
    assert run.send_duty(run.keys_of(first), run.opening(0, account)) == "ok"
    assert plan(run, second, wrong) == plan(run, first, wrong) == []


def test_a_dispute_is_answered_by_its_custodian_at_once_by_others_later(run: CustodyRun) -> None:
    run.to_disputes()
    _, honest, other = run.event.places[0].custodians
    opening = OpenCustody(run.event.seed, run.event.members[honest].account, 0)
    assert run.dispute("ann", 0, honest) == "ok"
    assert plan(run, honest, ()) == [opening]
    assert plan(run, other, ()) == []
    for _ in range(3):
        run.m.block()
    assert plan(run, other, ()) == [opening]


def test_what_was_found_belongs_to_one_event() -> None:
    checks, seed = CustodyChecks(), Hash32(b"s" * 32)
    assert checks.found(seed) is None
    checks.note(seed, ())
    assert checks.found(seed) == ()
    checks.note(Hash32(b"t" * 32), ((PubKey(bytes(32)), 3),))
    assert checks.found(seed) is None


def test_several_lies_of_one_custodian_are_one_opening(run: CustodyRun) -> None:
    liar = next(
        i for i in range(len(run.event.members)) if len(custody.positions(run.event, i)) > 1
    )
    places = custody.positions(run.event, liar)
    run.to_disputes(lies={liar: tuple(places)})
    event = run.event
    finder = next(i for i in event.places[places[0]].custodians if i != liar)
    wrong = tuple((event.members[liar].account, at) for at in places)
    both = [at for at in places if finder in event.places[at].custodians]
    for _ in range(3):
        run.m.block()
    mine = tuple(w for w in wrong if w[1] in both)
    assert plan(run, finder, mine) == [OpenCustody(event.seed, mine[0][0], both[0])]
