"""Which blocks are asked of whom: nothing twice without need, nothing left out, little ahead."""

from __future__ import annotations

import random

import pytest

from chain.hashes import ZERO_HASH, Hash32
from chain.types import Block, CertifiedBlock
from node.services import sync_plan
from node.services.sync_plan import AHEAD, HEDGE_S, LEAST_BLOCKS, MOST_BLOCKS, BlockPlan
from tests.kit.snapshots import header_of

ITEM = CertifiedBlock(Block(header_of(Hash32(ZERO_HASH)), (), ()), None)
FAST = 100e6


def some(count: int) -> tuple[CertifiedBlock, ...]:
    return (ITEM,) * count


def test_ranges_follow_one_another_and_are_bounded() -> None:
    plan = BlockPlan(10)
    plan.tips = {"a": 10_000, "b": 10_000}
    asked = [plan.ask("a", FAST, 0.0) for _ in range(AHEAD + 3)]
    made = [r for r in asked if r is not None]
    assert len(made) == AHEAD
    assert [r.first for r in made] == [11 + MOST_BLOCKS * i for i in range(AHEAD)]
    assert all(r.count == MOST_BLOCKS for r in made)
    assert plan.head(10) is None


def test_slow_peers_get_short_ranges() -> None:
    plan = BlockPlan(0)
    assert plan.length(FAST) == MOST_BLOCKS
    assert plan.length(20_000) == 19
    assert plan.length(0) == LEAST_BLOCKS


def test_large_blocks_make_short_ranges() -> None:
    plan = BlockPlan(0)
    wanted = plan.ask("a", FAST, 0.0)
    assert wanted is not None
    for _ in range(20):
        plan.came(wanted, "a", some(10), 10 * 1_000_000, 0.0)
    assert plan.length(FAST) == LEAST_BLOCKS


def test_a_short_answer_leaves_its_rest_to_others() -> None:
    plan = BlockPlan(0)
    plan.tips = {"a": 100, "b": 100}
    wanted = plan.ask("a", FAST, 0.0)
    assert wanted is not None
    assert (wanted.first, wanted.last) == (1, 100)
    plan.came(wanted, "a", some(30), 30_000, 0.0)
    assert plan.head(0) is wanted
    assert plan.ask("a", FAST, 0.1) is None  # it gave little: others first
    rest = plan.ask("b", FAST, 0.1)
    assert rest is not None
    assert (rest.first, rest.last) == (31, 100)
    assert plan.head(30) is None
    plan.came(rest, "b", some(75), 75_000, 0.2)  # on to the next certificate
    assert plan.head(30) is rest
    assert plan.head(105) is None
    assert not plan.wants("a")


def test_the_range_that_others_wait_for_is_asked_of_a_second_peer() -> None:
    plan = BlockPlan(0)
    plan.tips = {"slow": 1000, "quick": 1000}
    first = plan.ask("slow", FAST, 0.0)
    while plan.ask("quick", FAST, 0.0) is not None:
        pass
    assert plan.ask("quick", FAST, HEDGE_S - 0.1) is None
    assert plan.ask("quick", FAST, HEDGE_S) is first
    assert plan.ask("quick", FAST, HEDGE_S + 9) is None  # not twice of the same
    assert first is not None
    plan.came(first, "quick", some(first.count), 1000, 3.0)
    plan.came(first, "slow", some(first.count), 1000, 4.0)  # too late
    assert first.sender == "quick"


def test_what_does_not_hold_is_asked_of_another() -> None:
    plan = BlockPlan(0)
    plan.tips = {"liar": 50, "other": 50}
    wanted = plan.ask("liar", FAST, 0.0)
    assert wanted is not None
    plan.came(wanted, "liar", some(50), 50_000, 0.0)
    assert plan.refuse(wanted) == "liar"
    assert plan.head(0) is None
    assert plan.ask("other", FAST, 0.0) is wanted


def test_a_height_that_only_a_boaster_has_is_forgotten_with_it() -> None:
    plan = BlockPlan(0)
    plan.tips = {"boaster": 10**9, "honest": 20}
    near = plan.ask("honest", FAST, 0.0)
    assert near is not None
    plan.came(near, "honest", some(20), 2_000, 0.0)
    far = plan.ask("boaster", FAST, 0.0)
    assert far is not None
    assert far.first == 21
    plan.nothing_came(far, "boaster")
    assert not plan.wants("honest")
    del plan.tips["boaster"]
    assert plan.target == 20


@pytest.mark.parametrize("seed", range(20))
def test_every_block_comes_whatever_peers_do(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that fail, give little, lie, or give more than was asked, beside one that is honest."""
    print(f"seed {seed}")
    monkeypatch.setattr(sync_plan, "HEDGE_S", 0.5)
    draw = random.Random(seed)
    goal, tip, now = draw.randrange(1, 3000), 0, 0.0
    plan = BlockPlan(0)
    peers = ["honest", "flaky", "miser", "liar"]
    out: list[tuple[str, sync_plan.Range]] = []
    liars: set[str] = set()
    for _ in range(20_000):
        now += 0.01
        for peer in peers:
            if peer not in liars and sum(p == peer for p, _ in out) < 2:
                plan.tips.setdefault(peer, goal)
                wanted = plan.ask(peer, draw.choice([1e3, 1e6, FAST]), now)
                if wanted is not None:
                    out.append((peer, wanted))
        if out:
            peer, wanted = out.pop(draw.randrange(len(out)))
            whole = wanted.last - wanted.first + 1
            more = min(draw.randrange(4), goal - wanted.last)
            if peer == "flaky" and draw.random() < 0.7:
                plan.nothing_came(wanted, peer)
            else:
                count = draw.randrange(1, whole + 1) if peer == "miser" else whole + more
                plan.came(wanted, peer, some(count), 500 * count, now)
        while (ready := plan.head(tip)) is not None:
            if ready.sender == "liar":
                liars.add(plan.refuse(ready))
                continue
            assert ready.first <= tip + 1
            tip = max(tip, ready.first + len(ready.blocks) - 1)
        assert len(plan._ranges) <= 3 * AHEAD
        if tip >= goal:
            return
    raise AssertionError(f"at {tip} of {goal}")
