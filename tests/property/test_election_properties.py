"""What the design promises of the election of custodians, for drawn stakes and capacities.

The oracles are the slow rules of `tests/reference/election.py` and counting; seeds are drawn by
hypothesis or fixed, so that a failure prints what repeats it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.errors import InvariantError
from chain.hashes import Hash32
from chain.types import PubKey, ShardIndex, TileIndex
from consensus.bounded import Assignment
from consensus.custodians import CustodyOrder
from consensus.election import Candidate, tile_subject
from consensus.ranking import PROBES, Layout
from tests.reference import election as reference

STAKES = st.lists(st.integers(0, 10**17), min_size=1, max_size=16).filter(any)
SEEDS = st.integers(0, 10**6).map(lambda i: Hash32(hashlib.sha256(b"seed %d" % i).digest()))
FEW = settings(max_examples=10, deadline=None)
FEWER = settings(max_examples=5, deadline=None)  # the reference takes a second for each


def account(i: int) -> PubKey:
    return PubKey(hashlib.sha256(b"candidate %d" % i).digest())


def candidates(weights: Sequence[int]) -> list[Candidate]:
    return [Candidate(account(i), w) for i, w in enumerate(weights)]


def subjects(count: int) -> list[bytes]:
    return [tile_subject(ShardIndex(i // 64), TileIndex(i % 64)) for i in range(count)]


# --- ranks ---------------------------------------------------------------------------------


@FEW
@given(weights=STAKES, seed=SEEDS)
def test_one_tile_many_tiles_and_the_reference_agree(weights: list[int], seed: Hash32) -> None:
    layout, tiles = Layout(seed, candidates(weights)), subjects(40)
    leading, lots = layout.leading(tiles, 5)
    stakes = dict(candidates(weights))
    table = reference.claims(seed, stakes)
    for row, tile in enumerate(tiles):
        order = layout.ranks(tile)
        assert order[:5] == tuple(layout.accounts[i] for i in leading[row].tolist() if i >= 0)
        assert int(lots[row]) == layout.lot(tile) == reference.lot(seed, tile)
        if row < 4:
            assert list(order) == reference.order(seed, tile, stakes, table)


@FEW
@given(weights=STAKES, seed=SEEDS)
def test_everyone_with_weight_has_one_rank(weights: list[int], seed: Hash32) -> None:
    layout = Layout(seed, candidates(weights))
    with_weight = sorted(c.account for c in candidates(weights) if c.weight)
    for tile in subjects(20):
        assert sorted(layout.ranks(tile)) == with_weight


@FEW
@given(weights=STAKES, seed=SEEDS, data=st.data())
def test_who_comes_or_goes_moves_nobody_else(
    weights: list[int], seed: Hash32, data: st.DataObject
) -> None:
    everyone = candidates(weights)
    whole, tiles = Layout(seed, everyone), subjects(40)
    gone = set(data.draw(st.lists(st.sampled_from([c.account for c in everyone]), max_size=4)))
    rest = [c for c in everyone if c.account not in gone]
    order = data.draw(st.permutations(rest))
    for left in (whole.without(gone), Layout(seed, order, whole.scale)):
        leading, _ = left.leading(tiles, 3)
        for row, tile in enumerate(tiles):
            expected = tuple(a for a in whole.ranks(tile) if a not in gone)
            assert left.ranks(tile) == expected
            found = [left.accounts[i] for i in leading[row].tolist() if i >= 0]
            assert tuple(found) == expected[:3]


@FEW
@given(weights=STAKES, seed=SEEDS, more=st.integers(1, 10**17), data=st.data())
def test_more_stake_moves_only_whom_it_lifts(
    weights: list[int], seed: Hash32, more: int, data: st.DataObject
) -> None:
    which = data.draw(st.integers(0, len(weights) - 1))
    richer = [w + more * (i == which) for i, w in enumerate(weights)]
    scale = sum(richer).bit_length()
    poor, rich = (Layout(seed, candidates(w), scale) for w in (weights, richer))
    for tile in subjects(40):
        before, after = poor.ranks(tile), rich.ranks(tile)
        assert [a for a in before if a != account(which)] == [
            a for a in after if a != account(which)
        ]
        if account(which) in before:
            assert after.index(account(which)) <= before.index(account(which))


def test_what_a_layout_refuses() -> None:
    seed = Hash32(bytes(32))
    with pytest.raises(InvariantError):
        Layout(seed, candidates([1]) * 2)
    with pytest.raises(InvariantError):
        Layout(seed, candidates([4]), scale=2)
    nobody = Layout(seed, candidates([0, 0]))
    assert nobody.ranks(b"") == ()
    assert Assignment(nobody, subjects(3), 2, [1, 1]).ranks(0) == ()
    # A weight of less than a cell is met by no probe and still has its rank.
    poor = Layout(seed, candidates([1, 2**60]))
    assert poor.ranks(b"") == (account(1), account(0))
    assert [m for _, met in poor.meetings(b"") for m in met].count(0) == 0


# --- shares --------------------------------------------------------------------------------


def test_shares_follow_stake() -> None:
    """For one seed within four standard deviations of the fair draw; on average within 1 % for
    stakes that differ by a factor of 400, one of them a third of all."""
    weights = [*(5 + 7 * i for i in range(60)), 6000]
    total, tiles, seeds = sum(weights), subjects(4000), 50
    wins = np.zeros(len(weights), np.int64)
    for i in range(seeds):
        seed = Hash32(hashlib.sha256(b"share %d" % i).digest())
        leading, _ = Layout(seed, candidates(weights)).leading(tiles, 1)
        once = np.bincount(leading[:, 0], minlength=len(weights))
        if not i:
            for count, w in zip(once.tolist(), weights, strict=True):
                chance = w / total
                assert abs(count - 4000 * chance) <= 4 * sqrt(4000 * chance * (1 - chance))
        wins += once
    draws = 4000 * seeds
    for count, w in zip(wins.tolist(), weights, strict=True):
        chance = w / total
        noise = sqrt(draws * chance * (1 - chance))
        assert abs(count - draws * chance) <= 4 * noise
        if w == 6000:
            assert abs(count / draws / chance - 1) <= 0.01


def test_the_second_rank_is_a_draw_without_the_first() -> None:
    weights = [40, 30, 20, 10]
    layout, count = Layout(Hash32(bytes(32)), candidates(weights)), 20_000
    leading, _ = layout.leading(subjects(count), 2)
    pairs = Counter(map(tuple, leading.tolist()))
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            chance = first / 100 * second / (100 - first) * (i != j)
            assert abs(pairs[i, j] - count * chance) <= 5 * sqrt(count * chance * (1 - chance))


def test_probes_nearly_always_do() -> None:
    """The tail by waits is for the poor and for tests: it costs a hash of each candidate."""
    layout = Layout(Hash32(bytes(32)), candidates([5 + i for i in range(300)]))
    for tile in subjects(50):
        met = list(islice(layout.meetings(tile), 20))
        assert len(met) == 20
        assert met[-1][0] < PROBES // 2


# --- capacities ----------------------------------------------------------------------------


@FEWER
@given(weights=STAKES, seed=SEEDS, depth=st.integers(1, 4), data=st.data())
def test_bounded_is_what_tiles_choose_one_after_another(
    weights: list[int], seed: Hash32, depth: int, data: st.DataObject
) -> None:
    """Whatever binds, and after any departures: as if the departed had never been there."""
    everyone, tiles = candidates(weights), subjects(60)
    layout = Layout(seed, everyone)
    fair = 60 * depth // len(weights)
    room = [data.draw(st.integers(0, 2 * fair + 2)) for _ in weights]
    kept = Assignment(layout, tiles, depth, room)
    leaving = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=3, unique=True))
    for gone in [None, *leaving]:
        if gone is not None:
            held = sum(account(gone) in kept.ranks(row) for row in range(60))
            own, overflow = kept.depart(account(gone))
            room[gone] = 0
            assert own == held
            assert overflow >= 0
        by_name = {c.account: room[i] for i, c in enumerate(everyone)}
        expected = reference.bounded(seed, tiles, dict(everyone), by_name, depth)
        found = [kept.ranks(row) for row in range(60)]
        assert found == [tuple(expected[t]) for t in tiles]
        loads = Counter(a for ranked in found for a in ranked)
        assert kept.loads() == [loads[c.account] for c in everyone]
        assert all(loads[a] <= by_name[a] for a in loads)
        again = Assignment(layout, tiles, depth, room)
        assert (again.cutoffs, again.table.tolist()) == (kept.cutoffs, kept.table.tolist())


@FEWER
@given(weights=STAKES, seed=SEEDS, data=st.data())
def test_bounded_does_not_depend_on_any_order(
    weights: list[int], seed: Hash32, data: st.DataObject
) -> None:
    everyone, tiles = candidates(weights), subjects(60)
    room = {c.account: data.draw(st.integers(0, 40)) for c in everyone}
    kept = Assignment(Layout(seed, everyone), tiles, 3, [room[c.account] for c in everyone])
    mixed, asked = data.draw(st.permutations(everyone)), data.draw(st.permutations(tiles))
    other = Assignment(Layout(seed, mixed), asked, 3, [room[c.account] for c in mixed])
    assert {t: kept.ranks(i) for i, t in enumerate(tiles)} == {
        t: other.ranks(i) for i, t in enumerate(asked)
    }


@FEWER
@given(weights=STAKES, seed=SEEDS, data=st.data())
def test_one_tile_s_custodians_follow_from_the_cutoffs(
    weights: list[int], seed: Hash32, data: st.DataObject
) -> None:
    """Nobody needs the other tiles to check one: its order and the cutoffs of the full do."""
    layout, tiles = Layout(seed, candidates(weights)), subjects(60)
    room = [data.draw(st.integers(0, 40)) for _ in weights]
    kept = Assignment(layout, tiles, 3, room)
    cutoffs = kept.cutoffs
    for row, tile in enumerate(tiles):
        lot = layout.lot(tile), tile
        may = [
            a
            for a in layout.ranks(tile)
            if a not in cutoffs or ((c := cutoffs[a]) is not None and lot < (layout.lot(c), c))
        ]
        assert kept.ranks(row) == tuple(may[:3])


@pytest.mark.parametrize(("nodes", "most"), [(5, 9), (9, 0), (80, 1), (80, 4)])
def test_the_full_stand_behind_those_with_room(nodes: int, most: int) -> None:
    """Also where too few have any, and where more stand than a tile asks; against the reference."""
    everyone, tiles = candidates([50 + i % 7 for i in range(nodes)]), subjects(30)
    seed, depth = Hash32(hashlib.sha256(b"full %d" % nodes).digest()), 3
    room = [most * (i % 3) for i in range(nodes)]
    layout = Layout(seed, everyone)
    by_name = dict(zip(layout.accounts, room, strict=True))
    expected, full = reference.custody_orders(seed, tiles, dict(everyone), by_name, depth)
    kept = Assignment(layout, tiles, depth, room)
    assert {a: t for a, t in kept.cutoffs.items() if t is not None} == {
        a: t for a, t in full.items() if by_name[a]
    }
    order = CustodyOrder(layout, {layout.accounts.index(a): t for a, t in full.items()})
    for row, tile in enumerate(tiles):
        assert order.ranks(tile) == tuple(expected[tile])
        with_room = kept.ranks(row)
        assert order.ranks(tile, depth)[: len(with_room)] == with_room
    for ahead in (1, depth, 12, 70):
        rows = order.leading(tiles, ahead).tolist()
        found = [[layout.accounts[i] for i in row if i >= 0] for row in rows]
        assert found == [expected[tile][:ahead] for tile in tiles]


def test_nobody_asks_further_than_it_reaches() -> None:
    """Tiles that find no room cost no more than their reach, however many stand."""
    layout = Layout(Hash32(bytes(32)), candidates([7] * 300))
    kept = Assignment(layout, subjects(200), 4, [1] * 300)
    assert sum(kept.loads()) == 300
    assert (kept.table < 0).any(axis=1).sum() >= 200 - 300 // 4
    assert all(load <= 1 for load in kept.loads())


def test_a_departure_moves_its_own_and_at_most_twice_that() -> None:
    """With capacities that bind for a third to two thirds of the weight; any goes alone."""
    weights = [100 + 13 * (i % 40) for i in range(120)]
    layout, tiles, depth = Layout(Hash32(bytes(32)), candidates(weights)), subjects(3000), 4
    total = sum(weights)
    for tight in (90, 103):
        fair = [3000 * depth * w // total for w in weights]
        room = [f * (tight if i % 5 < 3 else 200) // 100 for i, f in enumerate(fair)]
        whole = Assignment(layout, tiles, depth, room)
        full = sum(weights[int(layout.accounts.index(a))] for a in whole.cutoffs) / total
        assert 0.3 < full < 0.67
        moves = []
        for gone in range(0, 120, 6):
            one = Assignment(layout, tiles, depth, room)
            moves.append(one.depart(account(gone)))
        assert any(overflow for _, overflow in moves)
        assert all(overflow <= 2 * own for own, overflow in moves)
        own, overflow = (sum(m) for m in zip(*moves, strict=True))
        assert overflow <= full / (1 - full) * own
