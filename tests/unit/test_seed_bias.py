"""What whoever leads an epoch's last views, or grinds an identity, gains over the epoch seed.

docs/spec/election.md states the bounds; here real VRF chains are drawn and every strategy is tried.
Seeds are fixed. Bounds are four standard deviations of the exact chance.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from math import comb, sqrt

import pytest

from chain import records as r
from chain.hashes import EPOCH_SEED, EVENT_SEED, VRF_INPUT, Hash32
from chain.types import PubKey, Stake, Validator, ValidatorSet, View, u64_be
from chain.validator_sets import freeze_set
from consensus import vrf
from consensus.election import leader
from tests.kit.machine import STAKE, Machine, keys

EPOCH = 5
LIAR, HONEST = bytes([1] * 32), bytes([2] * 32)  # VRF seeds


def account(i: int) -> PubKey:
    return PubKey(hashlib.sha256(b"member %d" % i).digest())


def set_of(stakes: list[int]) -> ValidatorSet:
    members = (
        Validator(account(i), account(i), account(i), "", Stake(s)) for i, s in enumerate(stakes)
    )
    return ValidatorSet(tuple(sorted(members, key=lambda v: v.consensus_key)))


SET = set_of([1, 1, 2])  # the liar is the third: half of the stake, so that samples are small


def output(key: bytes, before: bytes, view: int) -> bytes:
    """The VRF output of a block in `view` on a parent whose output is `before`."""
    alpha = VRF_INPUT.hash(before, u64_be(EPOCH), u64_be(view))
    return vrf.output(vrf.prove(key, alpha))


def seed_of(last: bytes) -> Hash32:
    """The seed of e+2 from the output of the last block of e (docs/spec/state.md)."""
    return EPOCH_SEED.hash(EVENT_SEED.hash(last), u64_be(EPOCH + 2))


def wins(seed: Hash32, views: int) -> bool:
    """What the liar wants, as an example: to lead each of the first `views` of the epoch."""
    chosen = (leader(seed, View(v), SET) for v in range(1, views + 1))
    return all(SET.members[i].account == account(2) for i in chosen)


def redraws(before: bytes, slots: int, blocks: int) -> Iterator[Hash32]:
    """Every seed that the liar, leading views 1 … `slots`, can see before it chooses: `blocks` are
    left to the end of the epoch, and it proposes in as many of its views."""
    for views in combinations(range(1, slots + 1), blocks):
        last = before
        for view in views:
            last = output(LIAR, last, view)
        yield seed_of(last)


def test_the_liar_can_choose_among_as_many_seeds_as_it_has_ways_to_be_silent() -> None:
    for slots in range(1, 6):
        for blocks in range(1, slots + 1):
            seen = list(redraws(bytes(64), slots, blocks))
            assert len(set(seen)) == len(seen) == comb(slots, blocks)
            assert len(seen) <= comb(slots, slots // 2) < 2**slots


@pytest.mark.parametrize(("slots", "blocks"), [(0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2)])
def test_what_a_withholding_proposer_gains(slots: int, blocks: int) -> None:
    """Exactly 1 − (1 − p)^(m + 1), m = C(slots, blocks): the seeds that it sees, and if it likes
    none of them the one that an honest leader draws because the liar left its slots."""
    trials, hits = 150, 0
    p = 1 / 4  # half of the stake, two views
    for trial in range(trials):
        before = hashlib.sha512(b"trial %d" % trial).digest()
        seen = redraws(before, slots, blocks) if slots else iter(())
        fresh = seed_of(output(HONEST, before, slots + 1))  # nobody could know it in time
        hits += any(wins(seed, 2) for seed in seen) or wins(fresh, 2)
    exact = 1 - (1 - p) ** ((comb(slots, blocks) if slots else 0) + 1)
    assert abs(hits / trials - exact) <= 4 * sqrt(exact * (1 - exact) / trials)


def draws(runs: list[int], blocks: int) -> int:
    """The most seeds that the liar ever sees before an epoch's last block is made, with `blocks` to
    go. It leads runs[0] views, an honest leader one, it leads runs[1] views, and so on; all of that
    is known in advance. In each run it may end the epoch, if enough views are left in it, or
    propose in fewer of them and pass; an honest leader always proposes."""
    after = [1] * (blocks + 1)  # by blocks to go; the fresh seed of an honest last block
    for run in reversed(runs):
        now = [1]
        for left in range(1, blocks + 1):
            passing = max(after[left - 1 - used] for used in range(min(run, left - 1) + 1))
            now.append(comb(run, left) + passing)
        after = now
    return after[blocks]


@pytest.mark.parametrize(("percent", "mean"), [(10, 1.9), (20, 3.2), (33, 8.6)])
def test_what_foresight_over_a_whole_epoch_gains(percent: int, mean: float) -> None:
    """128 blocks: leaving views unused moves the epoch's end into the liar's longest run."""
    dice = random.Random(1)

    def run() -> int:
        length = 0
        while dice.random() < percent / 100:
            length += 1
        return length

    found = [draws([run() for _ in range(128)], 128) for _ in range(60)]
    assert sum(found) / len(found) == pytest.approx(mean, abs=0.1)


def test_the_game_is_the_simple_one_when_there_is_one_run() -> None:
    for slots in range(6):
        for blocks in range(1, 6):
            alone = draws([slots] + [0] * 6, blocks)
            assert alone == comb(slots, blocks) + 1


def test_a_ground_identity_gains_nothing() -> None:
    """The seed is drawn after the set has frozen. The best of many keys, chosen by any rule that
    does not know the seed, leads as often as its stake says: here the one that would have led most
    often under the seeds of the past."""
    honest = [account(i) for i in range(6)]
    past = [Hash32(hashlib.sha256(b"past %d" % i).digest()) for i in range(60)]
    future = [Hash32(hashlib.sha256(b"future %d" % i).digest()) for i in range(3000)]

    def led(key: PubKey, seeds: list[Hash32]) -> int:
        members = [Validator(k, k, k, "", Stake(1)) for k in (*honest, key)]
        members.sort(key=lambda v: v.consensus_key)
        frozen = ValidatorSet(tuple(members))
        return sum(frozen.members[leader(s, View(1), frozen)].account == key for s in seeds)

    ground = max((account(100 + i) for i in range(40)), key=lambda k: led(k, past))
    share = 1 / 7
    assert led(ground, past) > share * len(past)  # it has been lucky …
    rate = led(ground, future) / len(future)  # … and is not any more
    assert abs(rate - share) <= 4 * sqrt(share * (1 - share) / len(future))


def test_splitting_stake_into_many_identities_gains_nothing() -> None:
    seeds = [Hash32(hashlib.sha256(b"split %d" % i).digest()) for i in range(3000)]
    rates = []
    for parts in (1, 10):
        frozen = set_of([30, 30] + [30 // parts] * parts)
        own = {account(2 + i) for i in range(parts)}
        led = sum(frozen.members[leader(s, View(1), frozen)].account in own for s in seeds)
        rates.append(led / len(seeds))
    bound = 4 * sqrt(1 / 3 * 2 / 3 / len(seeds))
    assert all(abs(rate - 1 / 3) <= bound for rate in rates)


def test_keys_and_stakes_are_frozen_before_anything_of_the_seed_is_known() -> None:
    """The set of e+2 freezes at the first block of e; its seed is the output at the last. What is
    ground in between comes into the set of e+3."""
    machine = Machine(epoch_blocks=4, unbonding_blocks=17)
    while machine.height < 5:
        machine.block()
    frozen = machine.state.epoch(3)
    assert frozen.seed == bytes(32)
    state = machine.state
    late = keys("late")
    record = state.need(r.NodeRecord, r.node_key(machine.validators[0].account.public))
    state.put_account(late.account.public, bonded=STAKE)
    ground = replace(
        record,
        account=late.account.public,
        consensus_key=late.consensus.public,
        vrf_key=late.vrf.public,
    )
    state.put(r.node_key(late.account.public), ground)
    machine.tree = state.commit()
    while machine.height < 8:
        machine.block()
    drawn = machine.state.epoch(3)
    assert drawn.seed != bytes(32)
    assert drawn.validators == frozen.validators
    coming = freeze_set(machine.state, machine.genesis.params, 4)
    assert late.account.public in {v.account for v in coming.members}
