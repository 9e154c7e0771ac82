"""Leaders, custodians and committees, drawn from a seed and stakes (docs/spec/election.md).

Ranking is weighted rendezvous hashing in integers. Each candidate waits -log2(u) / weight, with u
drawn from its own hash, and the shortest wait is rank 0. Waits are independent, so

- candidate i is rank 0 with probability weight_i / sum of weights, and the ranks are a draw
  without replacement (Efraimidis and Spirakis, 2006);
- a candidate that leaves or changes weight moves itself only: the others keep their order;
- the next rank takes over from a silent one without any new vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chain.errors import InvariantError, invariant
from chain.hashes import COMMITTEE, Context, Hash32
from chain.types import PubKey, ShardIndex, TileIndex, ValidatorSet, View, u64_be

RANK = Context("rank")
LEADER = Context("leader")

LOG_BITS = 48  # fractional bits of a logarithm; see `log2_fixed` for its error
_UNIFORM_BITS = 128  # of each candidate's hash
_WAIT_SHIFT = 128  # fractional bits of a wait, above any weight's size


class Candidate(NamedTuple):
    """Someone electable. `weight` is in any unit, the same for all; 0 is never elected."""

    account: PubKey
    weight: int


def ranks(seed: Hash32, subject: bytes, candidates: Sequence[Candidate]) -> tuple[PubKey, ...]:
    """All candidates with weight in order for `subject`: the primary first, then secondaries."""
    digests = ((c, RANK.hash(seed, c.account, subject)) for c in candidates)
    return _by_wait(digests)


def ahead(
    seed: Hash32, subject: bytes, candidates: Sequence[Candidate], account: PubKey, most: int
) -> tuple[PubKey, ...] | None:
    """Who stands before `account` in `ranks`, in the candidates' order; None if `most` or more do,
    or if it is no candidate with weight.

    The same order at a fraction of its cost: about `most * (1 + ln(n / most))` of n candidates are
    looked at on average, since the search ends with the `most`-th that stands before it.
    """
    own = next((c for c in candidates if c.account == account and c.weight > 0), None)
    if own is None:
        return None
    place = (_wait(RANK.hash(seed, account, subject), own.weight), account)
    found: list[PubKey] = []
    for other in candidates:
        if other.weight <= 0 or other.account == account:
            continue
        wait = _wait(RANK.hash(seed, other.account, subject), other.weight)
        if (wait, other.account) < place:
            found.append(other.account)
        if len(found) >= most:
            return None
    return tuple(found) if most > 0 else None


def draw(seed: Hash32, candidates: Sequence[Candidate], size: int) -> tuple[PubKey, ...]:
    """A committee of `size` by weight without replacement; all with weight if they are fewer."""
    invariant(size >= 0, "a committee has no negative size")
    digests = ((c, COMMITTEE.hash(seed, c.account)) for c in candidates)
    return _by_wait(digests)[:size]


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


def _by_wait(digests: Iterable[tuple[Candidate, Hash32]]) -> tuple[PubKey, ...]:
    waits = [(_wait(d, c.weight), c.account) for c, d in digests if c.weight > 0]
    invariant(len({account for _, account in waits}) == len(waits), "a candidate stands once")
    return tuple(account for _, account in sorted(waits))


def _wait(digest: Hash32, weight: int) -> int:
    """-log2(u) / weight, where u = (2x + 1) / 2**129 for the first 128 bits x of the digest."""
    x = int.from_bytes(digest[: _UNIFORM_BITS // 8], "big")
    exponent = ((_UNIFORM_BITS + 1) << LOG_BITS) - log2_fixed(2 * x + 1)
    return (exponent << _WAIT_SHIFT) // weight
