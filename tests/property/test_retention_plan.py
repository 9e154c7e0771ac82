"""Retention without I/O: what may be asked for stays to be had, and little more stays.

The oracle keeps a disk of its own, applies each plan to it, and rebuilds by walking back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.hashes import Hash32
from node.services.retention_plan import Held, Keep, RetentionRule, retention, window
from node.services.versions import GENESIS_ROUND, ShardVersion


def root(number: int) -> Hash32:
    return Hash32(hashlib.sha256(b"version %d" % number).digest())


def version(number: int, round_: int, name: int | None = None) -> ShardVersion:
    return ShardVersion(number, root(number if name is None else name), round_, 10 * round_, ())


@dataclass
class Disk:
    """A shard's versions as a node lives through the rounds."""

    rule: RetentionRule
    chain: list[ShardVersion] = field(default_factory=lambda: [version(0, GENESIS_ROUND)])
    whole: set[Hash32] = field(default_factory=lambda: {root(0)})
    stepped: set[Hash32] = field(default_factory=set)

    def learn(self, round_: int, *, held: bool, steps: bool) -> None:
        """A round that made a version of the shard."""
        made = version(len(self.chain), round_)
        if held:
            self.whole.add(made.root)
            if steps and self.can_be_had(self.chain[-1]):
                self.stepped.add(made.root)
        self.chain.append(made)

    def plan(self, round_: int, pinned: frozenset[Hash32] = frozenset()) -> dict[Hash32, Keep]:
        versions = window(reversed(self.chain), round_, self.rule)
        return retention(versions, round_, self.rule, Held(self.whole, self.stepped), pinned)

    def apply(self, plan: dict[Hash32, Keep]) -> None:
        for name in self.whole | self.stepped:
            keep = plan.get(name, Keep.NOTHING)
            if keep == Keep.STEPS:
                self.whole.discard(name)
            elif keep == Keep.NOTHING:
                self.whole.discard(name)
                self.stepped.discard(name)

    def way(self, wanted: ShardVersion) -> int | None:
        """Steps from the nearest whole version before, or None if there is no way."""
        for count, back in enumerate(reversed(self.chain[: wanted.number + 1])):
            if back.root in self.whole:
                return count
            if back.root not in self.stepped:
                return None
        return None

    def can_be_had(self, wanted: ShardVersion) -> bool:
        return self.way(wanted) is not None

    def base_of(self, round_: int) -> ShardVersion:
        return next(v for v in reversed(self.chain) if v.round < round_)


RULES = st.builds(
    RetentionRule,
    keep_versions=st.integers(1, 4),
    retention_rounds=st.integers(1, 20),
    snapshot_every=st.integers(1, 8),
)
# of each round: nothing changed; a version without steps; one that is not held; an ordinary one
ROUNDS = st.lists(st.sampled_from("-sh" + 9 * "o"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(RULES, st.lists(st.booleans(), max_size=60))
def test_who_records_every_step_can_give_every_round_of_the_window(
    rule: RetentionRule, changes: list[bool]
) -> None:
    disk = Disk(rule)
    for round_, changed in enumerate(changes):
        if changed:
            disk.learn(round_, held=True, steps=True)
        current = round_ + 1
        disk.apply(disk.plan(current))
        for asked in range(max(0, current - rule.retention_rounds), current + 1):
            count = disk.way(disk.base_of(asked))
            assert count is not None, f"round {current}: the base of round {asked} is gone"
            assert count < rule.snapshot_every, "a snapshot was left out"


@settings(max_examples=150, deadline=None)
@given(RULES, ROUNDS)
def test_the_disk_stays_bounded_and_nothing_is_kept_in_vain(
    rule: RetentionRule, rounds: list[str]
) -> None:
    disk = Disk(rule)
    for round_, what in enumerate(rounds):
        if what != "-":
            disk.learn(round_, held=what != "h", steps=what == "o")
        current = round_ + 1
        plan = disk.plan(current)
        disk.apply(plan)
        assert disk.plan(current) == plan, "the same question, another answer"
        blocks = rule.retention_rounds // rule.snapshot_every + 2
        assert len(disk.whole) <= rule.keep_versions + 2 + blocks
        assert len(disk.whole | disk.stepped) <= len(disk.chain)
        for name, keep in plan.items():
            made = next(v for v in disk.chain if v.root == name)
            if keep == Keep.STEPS:
                assert disk.can_be_had(made), f"steps of {made.number} lead from nothing"
            if keep == Keep.SNAPSHOT:
                assert name in disk.whole
        for made in disk.chain[-rule.keep_versions :]:
            assert plan[made.root] == Keep.WHOLE


@settings(max_examples=100, deadline=None)
@given(RULES, ROUNDS, st.sets(st.integers(0, 60)))
def test_what_is_pinned_stays_whole(
    rule: RetentionRule, rounds: list[str], pinned: set[int]
) -> None:
    disk, pins = Disk(rule), frozenset(map(root, pinned))
    for round_, what in enumerate(rounds):
        if what != "-":
            disk.learn(round_, held=what != "h", steps=what == "o")
        before = set(disk.whole)
        disk.apply(disk.plan(round_ + 1, pins))
        assert before & pins <= disk.whole


def test_an_ordinary_run_by_hand() -> None:
    rule = RetentionRule(keep_versions=2, retention_rounds=5, snapshot_every=4)
    disk = Disk(rule)
    for round_ in range(12):
        disk.learn(round_, held=True, steps=True)
        disk.apply(disk.plan(round_ + 1))
    names = {v.root: v.number for v in disk.chain}
    plan = {names[name]: keep for name, keep in disk.plan(12).items()}
    # rounds 7 to 12 had the versions 7 to 12 as their base; 7 comes from 4
    assert plan == {
        4: Keep.SNAPSHOT,
        **dict.fromkeys((5, 6, 7), Keep.STEPS),
        8: Keep.SNAPSHOT,
        **dict.fromkeys((9, 10), Keep.STEPS),
        **dict.fromkeys((11, 12), Keep.WHOLE),
    }
    assert sorted(names[name] for name in disk.whole) == [4, 8, 11, 12]


def test_a_version_equal_to_an_older_one_is_kept_for_the_better_reason() -> None:
    """A fraud proof writes a version equal to the base: one root, two numbers."""
    rule = RetentionRule(keep_versions=1, retention_rounds=9, snapshot_every=8)
    chain = [version(i, i - 1, name) for i, name in enumerate([0, 1, 2, 1])]
    held = Held({root(0), root(1), root(2)}, {root(1), root(2)})
    plan = retention(window(reversed(chain), 9, rule), 9, rule, held)
    assert plan == {root(0): Keep.SNAPSHOT, root(1): Keep.WHOLE, root(2): Keep.STEPS}


def test_a_late_comer_starts_with_the_first_version_it_holds() -> None:
    rule = RetentionRule(keep_versions=1, retention_rounds=20, snapshot_every=8)
    chain = [version(i, i - 1) for i in range(14)]
    held = Held({root(i) for i in range(10, 14)}, {root(i) for i in (11, 12, 13)})
    plan = retention(window(reversed(chain), 13, rule), 13, rule, held)
    kept = {number: plan[root(number)] for number in range(14)}
    assert kept == {
        **dict.fromkeys(range(10), Keep.NOTHING),
        10: Keep.SNAPSHOT,
        11: Keep.STEPS,
        12: Keep.WHOLE,
        13: Keep.WHOLE,
    }
