"""Leaders, committees and watchers, drawn from a seed and stakes (docs/spec/election.md).

A committee is drawn by weighted rendezvous in integers. Each candidate waits -log2(u) / weight,
with u drawn from its own hash, and those with the shortest waits are in. Waits are independent, so
this is a draw without replacement (Efraimidis and Spirakis, 2006), and a candidate that leaves or
changes weight moves itself only. Custodians of tiles: `consensus/ranking.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from chain.errors import InvariantError, invariant
from chain.hashes import COMMITTEE, Context, Hash32
from chain.latency import FARTHEST
from chain.standings import REPUTATION_ONE
from chain.types import PubKey, ShardIndex, TileIndex, ValidatorSet, View, u64_be

LEADER = Context("leader")
WATCHER = Context("watcher")

LOG_BITS = 48  # fractional bits of a logarithm; see `log2_fixed` for its error
_UNIFORM_BITS = 128  # of each candidate's hash
_WAIT_SHIFT = 128  # fractional bits of a wait, above any weight's size

LATENCY_CLASSES = FARTHEST + 1  # class k counts (16 - k) / 16, so 3/4 at the least


class Candidate(NamedTuple):
    """Someone electable. `weight` is in any unit, the same for all; 0 is never elected."""

    account: PubKey
    weight: int


def weight(stake: int, reputation: int = REPUTATION_ONE, latency_class: int = 0) -> int:
    """What a custodian weighs: stake x reputation, scaled between 3/4 and 1 by its latency class.

    `reputation` in units of 1 / REPUTATION_ONE. The unit of the result is the same for all.
    """
    invariant(stake >= 0 and reputation >= 0, "stake and reputation are not negative")
    invariant(0 <= latency_class < LATENCY_CLASSES, "a latency class is 0 to 4")
    return stake * reputation * (16 - latency_class)


def draw(
    seed: Hash32,
    candidates: Sequence[Candidate],
    size: int,
    judged: Collection[PubKey] = (),
) -> tuple[PubKey, ...]:
    """A committee of `size` by weight without replacement; all with weight if they are fewer.

    `judged`: whose work it judges; nobody judges its own.
    """
    return _drawn(COMMITTEE, seed, candidates, size, judged)


def watchers(
    seed: Hash32,
    candidates: Sequence[Candidate],
    size: int,
    judged: Collection[PubKey],
) -> tuple[PubKey, ...]:
    """Who looks after a committee; drawn as one, but not by the same hashes, so that whoever is in
    the one is not therefore in the other. `judged`: as in `draw`."""
    return _drawn(WATCHER, seed, candidates, size, judged)


def leader(epoch_seed: Hash32, view: View, validators: ValidatorSet) -> int:
    """The index of the leader of `view`, drawn by stake from (epoch seed, view) alone."""
    total = sum(v.stake for v in validators.members)
    invariant(total > 0, "a validator set has stake")
    # 256 bits modulo at most 2**73 of stake: the bias is below 2**-183.
    point = int.from_bytes(LEADER.hash(epoch_seed, u64_be(view)), "big") % total
    for index, validator in enumerate(validators.members):
        point -= validator.stake
        if point < 0:
            return index
    raise InvariantError("the point lies below the total stake")


def tile_subject(shard: ShardIndex, tile: TileIndex) -> bytes:
    """What a tile is called in `ranks`: shard and tile as 4 bytes big-endian each."""
    return shard.to_bytes(4, "big") + tile.to_bytes(4, "big")


def named_by(subject: bytes) -> tuple[ShardIndex, TileIndex]:
    """The tile that `tile_subject` has named so."""
    return (
        ShardIndex(int.from_bytes(subject[:4], "big")),
        TileIndex(int.from_bytes(subject[4:], "big")),
    )


def log2_fixed(n: int) -> int:
    """floor-like log2(n) * 2**LOG_BITS for n > 0, in integers only.

    The result is never above the true value and less than 1.001 units below it: one unit of
    truncation, and 2**-64 of relative error a squaring, which shrinks with each bit.
    """
    whole = n.bit_length() - 1
    mantissa = n << 64 >> whole  # in [1, 2) with 64 fractional bits
    fraction = 0
    for _ in range(LOG_BITS):
        mantissa = mantissa * mantissa >> 64
        fraction <<= 1
        if mantissa >> 65:  # squared to 2 or more: this bit of the logarithm is one
            mantissa >>= 1
            fraction |= 1
    return whole << LOG_BITS | fraction


def _drawn(
    context: Context,
    seed: Hash32,
    candidates: Sequence[Candidate],
    size: int,
    judged: Collection[PubKey],
) -> tuple[PubKey, ...]:
    invariant(size >= 0, "a committee has no negative size")
    waits = [
        (wait_of(context.hash(seed, c.account), c.weight), c.account)
        for c in candidates
        if c.weight > 0 and c.account not in judged
    ]
    invariant(len({account for _, account in waits}) == len(waits), "a candidate stands once")
    return tuple(account for _, account in sorted(waits)[:size])


def wait_of(digest: Hash32, weight: int) -> int:
    """-log2(u) / weight, where u = (2x + 1) / 2**129 for the first 128 bits x of the digest."""
    x = int.from_bytes(digest[: _UNIFORM_BITS // 8], "big")
    exponent = ((_UNIFORM_BITS + 1) << LOG_BITS) - log2_fixed(2 * x + 1)
    return (exponent << _WAIT_SHIFT) // weight
