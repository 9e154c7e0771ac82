"""What elections cost, and how well they keep what they promise.

    python -m bench.election [--json] [--only NAME]... [--small]

Exit code 1 if a target is missed. One core. Times stand beside their floor from the same run: for
an election the hashes of its probes alone, for the VRF its curve operations alone. Seeds are
fixed, so shares and moves are the same on every machine.

`--only NAME` runs one group or one row; `--small` does little, for a look at whether it works.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `election` would be this file

from bench.measure import Row, at_most, in_turns, quantile, seconds
from chain.hashes import Hash32
from chain.types import PubKey, ShardIndex, TileIndex
from consensus import vrf
from consensus.bounded import Assignment
from consensus.election import Candidate, tile_subject
from consensus.ranking import FIRST_LOOK, LOT_BYTES, PROBE, Layout


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is elected."""

    tiles: int = 1_000_000
    nodes: int = 10_000
    departures: int = 20
    share_tiles: int = 40_000
    share_seeds: int = 100
    samples: int = 300


DEPTH = 4  # ranks 0-3
SMALL = Scale(tiles=2000, nodes=50, departures=3, share_tiles=2000, share_seeds=5, samples=10)


def elect(scale: Scale) -> Iterator[Row]:
    """All ranks 0-3; one departure; the same where capacities bind for part of the nodes."""
    candidates, tiles = _candidates(scale.nodes), _subjects(scale.tiles)
    layout = Layout(_seed(0), candidates)
    hashed = seconds(lambda: _hash_all(layout.seed, tiles))
    found: list[Assignment] = []
    free = seconds(lambda: found.append(Assignment(Layout(_seed(0), candidates), tiles, DEPTH)))
    yield at_most("elect_all", free, "s", 60, hashed)
    took, own, overflow = _depart(found.pop(), scale)
    yield at_most("elect_departure", 100 * took / free, "%", 1)
    yield at_most("elect_departure_overflow", overflow / own, "of own", 0)
    room = _capacities(candidates, scale.tiles)
    bound = seconds(lambda: found.append(Assignment(layout, tiles, DEPTH, room)))
    yield at_most("elect_bounded", bound, "s", 60, hashed)
    kept = found.pop()
    total = sum(c.weight for c in candidates)
    weights = dict(candidates)
    full = sum(weights[a] for a in kept.cutoffs) / total
    over = sum(load > most for load, most in zip(kept.loads(), room, strict=True))
    yield at_most("elect_bounded_over", over, "nodes", 0)
    yield at_most("elect_bounded_full", 100 * full, "% weight", None)
    took, own, overflow = _depart(kept, scale)
    yield at_most("elect_bounded_departure", 100 * took / bound, "%", 1)
    yield at_most("elect_bounded_overflow", overflow / own, "of own", 2, full / (1 - full))


def shares(scale: Scale) -> Iterator[Row]:
    """Rank 0 against stake: of groups of nodes with like stake averaged over seeds, and of each
    node in standard deviations of the fair draw, for one seed and for all. The floor of an average
    is one standard deviation. No capacity binds."""
    nodes = min(scale.nodes, 100)
    weights = [40 + i for i in range(nodes)]
    weights[-1] = sum(weights[:-1]) // 2  # one has a third of all
    candidates = [Candidate(_account(i), w) for i, w in enumerate(weights)]
    tiles, total = _subjects(scale.share_tiles), sum(weights)
    wins, worst = np.zeros(nodes, np.int64), 0.0
    for i in range(scale.share_seeds):
        leading, _ = Layout(_seed(i), candidates).leading(tiles, 1)
        once = np.bincount(leading[:, 0], minlength=nodes)
        if not i:
            worst = max(_deviations(once, weights, len(tiles)))
        wins += once
    draws = len(tiles) * scale.share_seeds
    groups = [range(nodes - 1)[i : i + nodes // 10] for i in range(0, nodes - 1, nodes // 10)]
    parts = [(int(wins[list(g)].sum()), sum(weights[i] for i in g)) for g in groups]
    parts.append((int(wins[-1]), weights[-1]))
    error = max(abs(won / draws * total / w - 1) for won, w in parts)
    noise = max(sqrt((1 - w / total) / (draws * w / total)) for _, w in parts)
    yield at_most("share_average_error", 100 * error, "%", 1, 100 * noise)
    yield at_most("share_one_seed", worst, "sigma", 4)
    average = max(_deviations(wins, weights, draws))
    yield at_most("share_all_seeds", average, "sigma", 4)


def beacon(scale: Scale) -> Iterator[Row]:
    """The VRF of every block, beside as many curve operations as it cannot do without."""
    seed, alpha = bytes(_seed(1)), bytes(_seed(2))
    scalar = bytes(_seed(3))[:31] + b"\x01"
    public = crypto_scalarmult_ed25519_base_noclamp(vrf_secret(seed))
    proof = vrf.prove(seed, alpha)

    def base() -> None:
        crypto_scalarmult_ed25519_base_noclamp(scalar)

    def multiply() -> None:
        crypto_scalarmult_ed25519_noclamp(scalar, public)

    def prove_floor() -> None:  # public key, Gamma, k·B, k·H
        base(), base(), multiply(), multiply()

    def verify_floor() -> None:  # s·B, c·Y, s·H, c·Gamma, and their two differences
        base(), multiply(), multiply(), multiply()
        crypto_core_ed25519_add(public, public), crypto_core_ed25519_add(public, public)

    taken = in_turns(
        scale.samples,
        lambda: vrf.prove(seed, alpha),
        prove_floor,
        lambda: vrf.verify(public, alpha, proof),
        verify_floor,
    )
    prove, prove_least, verify, verify_least = (1000 * quantile(t, 0.5) for t in taken)
    yield at_most("vrf_prove", prove, "ms", 0.5, prove_least)
    yield at_most("vrf_verify", verify, "ms", 0.7, verify_least)


GROUPS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "elect": elect,
    "share": shares,
    "vrf": beacon,
}


def measure(scale: Scale, only: Sequence[str], tell: Callable[[Row], None]) -> list[Row]:
    """The rows of the groups that `only` names, or of all."""
    rows = []
    for group, measured in GROUPS.items():
        if only and not any(name.startswith(group) for name in only):
            continue
        for row in measured(scale):
            if not only or group in only or row.name in only:
                rows.append(row)
                tell(row)
    return rows


def vrf_secret(seed: bytes) -> bytes:
    """The scalar of an RFC 8032 key, modulo the group order."""
    half = bytearray(hashlib.sha512(seed).digest()[:32])
    half[0] &= 248
    half[31] = half[31] & 127 | 64
    order = 2**252 + 27742317777372353535851937790883648493
    return (int.from_bytes(half, "little") % order).to_bytes(32, "little")


def _deviations(wins: np.ndarray, weights: Sequence[int], draws: int) -> list[float]:
    """How far each count is from its share, in standard deviations."""
    chances = [w / sum(weights) for w in weights]
    return [
        abs(count - draws * p) / sqrt(draws * p * (1 - p))
        for count, p in zip(wins.tolist(), chances, strict=True)
    ]


def _depart(kept: Assignment, scale: Scale) -> tuple[float, int, int]:
    """(median seconds, tiles that were their own, tiles of others) of departures in a row."""
    times, own, overflow = [], 0, 0
    accounts = kept.layout.accounts

    def one(account: PubKey) -> None:
        nonlocal own, overflow
        left, moved = kept.depart(account)
        own, overflow = own + left, overflow + moved

    for i in range(scale.departures):
        account = accounts[(i * 37 + 11) % len(accounts)]
        times.append(seconds(lambda account=account: one(account)))
    return quantile(times, 0.5), own, overflow


def _hash_all(seed: Hash32, tiles: Sequence[bytes]) -> None:
    fresh = PROBE.fresh().update(seed).copy
    for tile in tiles:
        fresh().update(tile).digest(length=LOT_BYTES + 4 * FIRST_LOOK)


def _capacities(candidates: Sequence[Candidate], tiles: int) -> list[int]:
    """Room for 1.25 times the fair load in half of the nodes, for 0.9 times in a fourth and for
    three times in the others."""
    total = sum(c.weight for c in candidates)
    tenths = (12, 9, 12, 30)
    return [
        max(1, tiles * DEPTH * c.weight * tenths[i % 4] // (10 * total))
        for i, c in enumerate(candidates)
    ]


def _candidates(count: int) -> list[Candidate]:
    """Stakes between 1 and 100, most of them small."""
    return [Candidate(_account(i), 10**8 * (1 + 9900 // (100 + i % 997))) for i in range(count)]


def _account(i: int) -> PubKey:
    return PubKey(hashlib.sha256(b"node %d" % i).digest())


def _seed(i: int) -> Hash32:
    return Hash32(hashlib.sha256(b"bench seed %d" % i).digest())


def _subjects(count: int) -> list[bytes]:
    return [tile_subject(ShardIndex(i // 256), TileIndex(i % 256)) for i in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one row")
    parser.add_argument("--small", action="store_true", help="do little: figures mean nothing")
    options = parser.parse_args()
    unknown = [n for n in options.only if not n.startswith(tuple(GROUPS))]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; groups: {', '.join(GROUPS)}")
    scale = SMALL if options.small else Scale()
    rows = measure(scale, options.only, lambda row: None if options.json else show(row))
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    return 0 if all(row.met for row in rows) else 1


def show(row: Row) -> None:
    print(row.as_text(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
