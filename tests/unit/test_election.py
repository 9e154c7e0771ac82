"""Elections against their reference, and the statistics that the design promises.

Seeds are fixed, so the statistical tests give the same figures every time; their bounds are
five standard deviations of the fair draw.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from math import sqrt
from typing import Any

import pytest

from chain.errors import InvariantError
from chain.hashes import Hash32
from chain.standings import REPUTATION_ONE
from chain.types import PubKey, ShardIndex, Stake, TileIndex, Validator, ValidatorSet, View
from consensus.bounded import Assignment
from consensus.custodians import CustodyOrder
from consensus.election import (
    LATENCY_CLASSES,
    LOG_BITS,
    Candidate,
    draw,
    leader,
    log2_fixed,
    tile_subject,
    watchers,
    weight,
)
from consensus.ranking import Layout, ranks
from tests.reference import election as reference

VECTORS: list[dict[str, Any]] = json.loads(reference.VECTORS.read_text())
SEED = Hash32(hashlib.sha256(b"a seed").digest())


def _account(i: int) -> PubKey:
    return PubKey(hashlib.sha256(b"node %d" % i).digest())


def _set(stakes: list[int]) -> ValidatorSet:
    return ValidatorSet(
        tuple(
            Validator(_account(i), _account(i), _account(i), f"node {i}", Stake(stake))
            for i, stake in enumerate(stakes)
        )
    )


CANDIDATES = [Candidate(_account(i), 100 * (1 + i % 5)) for i in range(20)]
SUBJECTS = [tile_subject(ShardIndex(i // 50), TileIndex(i % 50)) for i in range(1500)]


def _within(count: int, draws: int, chance: float) -> bool:
    return abs(count - draws * chance) <= 5 * sqrt(draws * chance * (1 - chance))


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors()[:4] == VECTORS[:4]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: str(len(case["candidates"])))
def test_vectors(case: dict[str, Any]) -> None:
    seed = Hash32(bytes.fromhex(case["seed"]))
    candidates = [Candidate(PubKey(bytes.fromhex(a)), w) for a, w in case["candidates"]]
    for subject, expected in case["ranks"].items():
        for order in (candidates, candidates[::-1]):
            found = ranks(seed, bytes.fromhex(subject), order)
            assert [a.hex() for a in found] == expected
    layout, subjects = Layout(seed, candidates), [bytes.fromhex(s) for s in case["bounded"]]
    for capacities, listed in ((case["capacities"], case["bounded"]), (None, case["ranks"])):
        kept = Assignment(layout, subjects, 3, capacities)
        for row, subject in enumerate(subjects[: len(listed)]):
            expected = listed[subject.hex()][:3]
            assert [a.hex() for a in kept.ranks(row)] == expected
    refused = Assignment(layout, subjects, 3, case["capacities"]).cutoffs
    cutoffs = {a.hex(): tile.hex() for a, tile in refused.items() if tile is not None}
    assert cutoffs == case["cutoffs"]
    full = {layout.accounts.index(a): tile for a, tile in refused.items() if tile is not None}
    custody = CustodyOrder(layout, full)
    assert [[a.hex() for a in custody.ranks(s)] for s in subjects] == list(case["orders"].values())
    for depth in (1, 3, len(candidates) + 1):
        rows = custody.leading(subjects, depth).tolist()
        expected = [listed[:depth] for listed in case["orders"].values()]
        assert [[layout.accounts[i].hex() for i in row if i >= 0] for row in rows] == expected
    assert [a.hex() for a in draw(seed, candidates, 5)] == case["committee_of_5"]
    judged = [candidates[0].account]
    assert [a.hex() for a in watchers(seed, candidates, 3, judged)] == case["watchers"]
    members = _set([w for _, w in case["candidates"]])
    assert [leader(seed, View(v), members) for v in range(16)] == case["leaders"]


def test_logarithm_error_is_below_what_it_says() -> None:
    numbers = [*range(1, 200), 2**64 - 1, 2**129 - 1, 2**129 - 3, *(3**i for i in range(1, 80))]
    numbers += [int.from_bytes(hashlib.sha256(b"%d" % i).digest()[:16], "big") for i in range(500)]
    unit = Decimal(2) ** LOG_BITS
    for n in numbers:
        exact = Decimal(n).ln() / Decimal(2).ln() * unit
        below = exact - log2_fixed(n)
        assert Decimal("-1e-20") <= below < Decimal("1.001")
    assert [log2_fixed(1 << i) for i in (0, 1, 128)] == [0, 1 << LOG_BITS, 128 << LOG_BITS]


def test_shares_follow_stake() -> None:
    total = sum(c.weight for c in CANDIDATES)
    wins = dict.fromkeys((c.account for c in CANDIDATES), 0)
    second = dict(wins)
    for subject in SUBJECTS:
        order = ranks(SEED, subject, CANDIDATES)
        assert len(set(order)) == len(CANDIDATES)
        wins[order[0]] += 1
        second[order[1]] += 1
    for c in CANDIDATES:
        assert _within(wins[c.account], len(SUBJECTS), c.weight / total)
        others = [d.weight for d in CANDIDATES if d.account != c.account]
        chance = sum(w / total * c.weight / (total - w) for w in others)
        assert _within(second[c.account], len(SUBJECTS), chance)  # without replacement


def test_a_departure_moves_only_its_own_tiles() -> None:
    gone = CANDIDATES[7].account
    rest = [c for c in CANDIDATES if c.account != gone]
    for subject in SUBJECTS[:300]:
        before = ranks(SEED, subject, CANDIDATES)
        after = ranks(SEED, subject, rest)
        assert after == tuple(a for a in before if a != gone)  # failover is the next rank


def test_more_stake_only_attracts_tiles() -> None:
    richer = [c._replace(weight=c.weight * 2) if i == 3 else c for i, c in enumerate(CANDIDATES)]
    rich, moved = CANDIDATES[3].account, 0
    for subject in SUBJECTS[:300]:
        before, after = ranks(SEED, subject, CANDIDATES), ranks(SEED, subject, richer)
        assert [a for a in before if a != rich] == [a for a in after if a != rich]
        assert after.index(rich) <= before.index(rich)
        moved += before[0] != after[0]
    assert 0 < moved < 60


def test_weights_twice_as_large_change_nothing() -> None:
    for unit in (2, 2**20, 2**64):
        scaled = [c._replace(weight=c.weight * unit) for c in CANDIDATES]
        for subject in SUBJECTS[:50]:
            assert ranks(SEED, subject, scaled) == ranks(SEED, subject, CANDIDATES)


def test_committees_include_by_stake() -> None:
    draws = 1000
    times = dict.fromkeys((c.account for c in CANDIDATES), 0)
    for i in range(draws):
        committee = draw(Hash32(hashlib.sha256(b"%d" % i).digest()), CANDIDATES, 7)
        assert len(set(committee)) == 7
        for account in committee:
            times[account] += 1
    poor = [times[c.account] for c in CANDIDATES if c.weight == 100]
    rich = [times[c.account] for c in CANDIDATES if c.weight == 500]
    assert max(poor) < min(rich)
    first = [draw(Hash32(hashlib.sha256(b"%d" % i).digest()), CANDIDATES, 1)[0] for i in range(900)]
    for c in CANDIDATES:
        assert _within(first.count(c.account), 900, c.weight / 6000)


def test_nobody_judges_its_own_work_and_few_are_all() -> None:
    own = CANDIDATES[4].account
    for i in range(50):
        seed = Hash32(hashlib.sha256(b"%d" % i).digest())
        for chosen in (draw(seed, CANDIDATES, 19, [own]), watchers(seed, CANDIDATES, 30, [own])):
            assert len(chosen) == len(set(chosen)) == 19
            assert own not in chosen
        # Without those who are judged the others stand as they did.
        whole = draw(seed, CANDIDATES, 20)
        assert draw(seed, CANDIDATES, 6, [own]) == tuple(a for a in whole if a != own)[:6]
    few = [Candidate(_account(i), 5 * (i > 0)) for i in range(4)]
    assert set(watchers(SEED, few, 19, [_account(1)])) == {_account(2), _account(3)}
    assert watchers(SEED, few, 19, [c.account for c in few]) == ()


def test_watchers_are_not_the_committee_over_again() -> None:
    both = draws = 0
    for i in range(300):
        seed = Hash32(hashlib.sha256(b"%d" % i).digest())
        both += draw(seed, CANDIDATES, 1) == watchers(seed, CANDIDATES, 1, ())
        draws += 1
    chance = sum((c.weight / 6000) ** 2 for c in CANDIDATES)
    assert _within(both, draws, chance)


def test_weight_is_stake_times_reputation_scaled_by_latency() -> None:
    assert weight(7, 3 * REPUTATION_ONE) == 3 * weight(7) == 21 * weight(1)
    assert [weight(4, latency_class=k) * 16 // weight(4) for k in range(LATENCY_CLASSES)] == [
        *(16, 15, 14, 13, 12)
    ]
    assert weight(0) == weight(9, 0) == 0
    for wrong in ((-1, 1, 0), (1, -1, 0), (1, 1, LATENCY_CLASSES), (1, 1, -1)):
        with pytest.raises(InvariantError):
            weight(*wrong)


def test_leaders_follow_stake_and_change_with_the_view() -> None:
    stakes = [10, 20, 30, 40]
    members, views = _set(stakes), 4000
    counts = [0] * 4
    for view in range(views):
        counts[leader(SEED, View(view), members)] += 1
    for stake, count in zip(stakes, counts, strict=True):
        assert _within(count, views, stake / 100)
    other = Hash32(hashlib.sha256(b"another seed").digest())
    assert any(leader(SEED, View(v), members) != leader(other, View(v), members) for v in range(9))


def test_edges() -> None:
    one = [Candidate(_account(0), 1)]
    assert ranks(SEED, b"", []) == ()
    assert ranks(SEED, b"", one) == draw(SEED, one, 5) == (_account(0),)
    assert draw(SEED, CANDIDATES, 0) == ()
    assert len(draw(SEED, CANDIDATES, 99)) == 20
    assert ranks(SEED, b"", [*one, Candidate(_account(1), 0)]) == (_account(0),)
    with pytest.raises(InvariantError):
        ranks(SEED, b"", one * 2)
    with pytest.raises(InvariantError):
        draw(SEED, one, -1)
    with pytest.raises(InvariantError):
        leader(SEED, View(0), _set([0, 0]))
    assert leader(SEED, View(2**64 - 1), _set([0, 5, 0])) == 1
