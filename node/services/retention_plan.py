"""Which versions of a shard a node keeps, and how, as a pure function (docs/spec/versions.md).

    number   32        33 … 47  48        49 … 61  62     63        snapshot_every = 16
    keep     SNAPSHOT  STEPS    SNAPSHOT  STEPS    WHOLE  WHOLE     keep_versions = 2

The newest are whole, every S-th is a snapshot, those between are steps from the one before, and
what no round of the window used is dropped. The rule looks at a version's number and not at what
was decided before, so it may be interrupted, repeated or changed at any time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from chain.hashes import Hash32
from node.services.versions import ShardVersion

OPEN_ROUNDS = 1  # settled rounds that somebody may still ask the base of


class Keep(IntEnum):
    """How a version is kept; of two reasons the higher counts."""

    NOTHING = 0
    STEPS = 1  # rebuilt from the version before it
    SNAPSHOT = 2  # whole, in one file, since others are rebuilt from it
    WHOLE = 3  # as it was written


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """What an operator chooses (docs/spec/versions.md): versions, rounds, versions."""

    keep_versions: int = 2
    retention_rounds: int = 32
    snapshot_every: int = 16

    def block(self, version: ShardVersion) -> int:
        """Which S numbers a version is of: the first of each is a snapshot. That is the multiple of
        S, unless a round was rolled back just there."""
        return version.number // self.snapshot_every


@dataclass(frozen=True, slots=True)
class Held:
    """Shard roots of which the store has all that this node keeps, and those it has steps to."""

    whole: Collection[Hash32]
    stepped: Collection[Hash32]


def window(
    newest_first: Iterable[ShardVersion], round_: int, rule: RetentionRule
) -> list[ShardVersion]:
    """The versions that matter, ascending: the newest ones, those that were the base of one of the
    last `retention_rounds` rounds, and what the oldest of them is rebuilt from."""
    taken: list[ShardVersion] = []
    used_until = round_  # the last round that had the version as its base
    for version in newest_first:
        supports = bool(taken) and rule.block(version) == rule.block(taken[-1])
        inside = len(taken) < rule.keep_versions or used_until >= round_ - rule.retention_rounds
        if not inside and not supports:
            break
        taken.append(version)
        used_until = version.round
    return taken[::-1]


def retention(
    versions: Sequence[ShardVersion],
    round_: int,
    rule: RetentionRule,
    held: Held,
    pinned: Collection[Hash32] = (),
) -> dict[Hash32, Keep]:
    """How each version of `window` is kept, by shard root; any other is kept not at all.

    `pinned`: roots that something in progress needs whole. A version that cannot be rebuilt,
    because the way to it is not complete here, is kept as the first of its S that is whole, or
    else not at all: peers may have it, and the disk stays bounded.
    """
    kept = dict.fromkeys(pinned, Keep.WHOLE)
    rooted = False  # whether the version before can be had from what is kept
    anchored = -1  # the block of S that has a snapshot
    for place, version in enumerate(versions):
        after = versions[place + 1] if place + 1 < len(versions) else None
        used_until = round_ if after is None else after.round
        block = rule.block(version)
        first = place == 0 or block != rule.block(versions[place - 1])
        way = rooted and version.root in held.stepped
        whole = version.root in held.whole
        if (
            place >= len(versions) - rule.keep_versions
            or used_until >= round_ - OPEN_ROUNDS
            or version.root in pinned
        ):
            keep, rooted = Keep.WHOLE, whole or way
        elif whole and first:
            keep, rooted = Keep.SNAPSHOT, True
        elif way:
            keep = Keep.STEPS
        elif whole and block != anchored:
            keep, rooted = Keep.SNAPSHOT, True
        else:
            keep, rooted = Keep.NOTHING, False
        if keep == Keep.SNAPSHOT:
            anchored = block
        kept[version.root] = max(keep, kept.get(version.root, Keep.NOTHING))
    return kept
