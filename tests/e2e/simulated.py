"""The rounds of a network without the network: honest learners alone, in this process."""

from __future__ import annotations

import hashlib

from chain import limits
from chain.hashes import ZERO_HASH, Hash32
from chain.types import PubKey
from corpus.batches import Assignment
from learning.compress import compress
from learning.evaluate import NANO_PER_NAT, holdout_loss
from learning.init import initial_shards
from learning.spec import ModelSpec, TrainingSpec
from learning.state import Sections, TrainState
from learning.train import train_segment
from node.data import RoundData
from node.round_specs import RoundSpecs
from tiles.aggregate import aggregate_tile
from tiles.delta import PayloadTile


def losses(specs: RoundSpecs, data: RoundData, learners: int, rounds: int) -> list[float]:
    """Holdout loss in nats per byte before the first round from genesis and after each. Learners
    have other seeds than a network's, so the curve is like theirs and not the same."""
    model, rule = specs.model, specs.training
    base: Sections = tuple(initial_shards(model))
    states = [TrainState.fresh(base)] * learners
    residuals: list[Sections | None] = [None] * learners
    found = [holdout_loss(model, base, data.holdout)]
    for number in range(rounds):
        payloads = []
        for i in range(learners):
            state = states[i].next_round(base)
            batch = _assignment(model, rule, data, number, i).batch
            states[i] = train_segment(model, rule, state, batch, rule.steps)
            made = compress(model, rule, number, ZERO_HASH, base, states[i].weights, residuals[i])
            residuals[i] = made.residual
            payloads.append(made.payload)
        base = _merged(model, base, payloads)
        found.append(holdout_loss(model, base, data.holdout))
    return [loss / NANO_PER_NAT for loss in found]


def _assignment(
    model: ModelSpec, rule: TrainingSpec, data: RoundData, number: int, learner: int
) -> Assignment:
    seed = Hash32(hashlib.sha256(b"round %d" % number).digest())
    key = PubKey(hashlib.sha256(b"learner %d" % learner).digest())
    shape = {"steps": rule.steps, "batch": rule.batch, "context": model.context}
    return Assignment(data.train, seed, key, number, **shape)


def _merged(model: ModelSpec, base: Sections, payloads: list[bytes]) -> Sections:
    layout, shards = model.shards(), []
    for index, data in enumerate(base):
        tiles = []
        for tile in range(-(-len(data) // limits.TILE_BYTES)):
            old = data[tile * limits.TILE_BYTES : (tile + 1) * limits.TILE_BYTES]
            deltas = [PayloadTile(payload, layout, index, tile) for payload in payloads]
            tiles.append(aggregate_tile(old, deltas).new_tile)
        shards.append(b"".join(tiles))
    return tuple(shards)
