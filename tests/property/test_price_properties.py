"""Whatever is sent in whatever order: stamps keep to their quarter, a leader's tries leave no
trace, and what follows the load stays within its bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain import stamps
from chain.codec import encode
from chain.costs import NO_ROOM, STAMP_SHARE, Room, Spend, StampClass, spend
from chain.errors import TxError
from chain.execute import Execution
from chain.limits import MAX_BLOCK_BYTES
from chain.price_records import StampLoad, stamp_class_key
from chain.transactions import Transfer
from chain.types import Grains
from tests.kit.machine import Machine, key
from tests.kit.stamps import context, stamped

NAMES = ("ann", "ben", "eve", "zoe")
spends = st.builds(
    Spend,
    us=st.integers(1, 300_000),
    bytes=st.integers(1, 266_240),
    kind=st.sampled_from(StampClass),
    stamped=st.booleans(),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(spends, max_size=60), st.integers(500_000, 10**7))
def test_room_is_never_exceeded_and_never_refused_while_there_is_some(
    asked: list[Spend], budget: int
) -> None:
    room, taken = Room(budget), list[Spend]()
    for one in asked:
        us = sum(x.us for x in taken) + one.us
        size = sum(x.bytes for x in taken) + one.bytes
        own = [x for x in taken if x.stamped] + [one]
        fits = us <= budget and size <= MAX_BLOCK_BYTES
        if one.stamped:
            fits &= sum(x.us for x in own) <= budget // STAMP_SHARE
            fits &= sum(x.bytes for x in own) <= MAX_BLOCK_BYTES // STAMP_SHARE
        if fits:
            room.check(one)
            room.take(one)
            taken.append(one)
        else:
            with pytest.raises(TxError) as refused:
                room.check(one)
            assert refused.value.code in NO_ROOM


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.integers(0, 40))
def test_a_difficulty_moves_by_two_at_most_and_never_below_its_floor(
    loads: list[int], bits: int
) -> None:
    machine = Machine(stamp_retarget_blocks=1, stamp_bits=bits)
    machine.block()
    state, params = machine.state, machine.genesis.params
    before = stamps.floor(params)
    for load in loads:
        stamps.advance(state, params, {StampClass.DATASETS: load})
        held = state.get(StampLoad, stamp_class_key(StampClass.DATASETS))
        now = held.difficulty if held is not None else stamps.floor(params)
        assert stamps.floor(params) <= now <= stamps.MAX_DIFFICULTY
        assert before // 2 <= now <= 2 * before
        before = now


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_leaders_tries_leave_no_trace_and_order_between_senders_does_not_count(
    seed: int,
) -> None:
    dice = random.Random(seed)
    machine = Machine(funded=NAMES, stamp_bits=0, stamp_new_account_bits=0, quota_newcomer=3)
    machine.block()
    machine.block()
    raws: dict[str, list[bytes]] = {}
    for name in NAMES:
        raws[name] = []
        for nonce in range(dice.randrange(6)):
            payload = Transfer(key("bob").public, Grains(dice.choice((1, 5, 10**18))))
            if dice.random() < 0.5:
                tx = stamped(machine, key(name), payload, work=0, nonce=nonce)
            else:
                tx = machine.tx(key(name), payload, nonce=nonce)
            raws[name].append(encode(tx))

    def build(names: list[str]) -> tuple[bytes, list[bytes]]:
        execution = Execution(machine.tree, machine.genesis, machine.rules, context(machine))
        kept = []
        for name in names:
            for raw in raws[name]:
                receipt = execution.try_apply(raw)
                if receipt.ok:
                    execution.keep(receipt)
                    kept.append(raw)
        return execution.finish().tree.root, kept

    root, kept = build(list(NAMES))
    other, same = build(dice.sample(NAMES, len(NAMES)))
    assert root == other
    assert sorted(kept) == sorted(same)
    replay = Execution(machine.tree, machine.genesis, machine.rules, context(machine))
    for raw in kept:
        assert replay.apply(raw).ok
    assert replay.finish().tree.root == root
    asked = spend(Transfer(key("bob").public, Grains(1)), 220, stamped=True)
    assert asked.units == 1
