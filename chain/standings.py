"""What an epoch's custodians count for beside their stake (docs/spec/election.md).

It freezes with the set, two epochs ahead and before the seed is known, so nobody can fit it to what
will be drawn. Who is full follows from all of it and stands in the record before its epoch begins.
"""

from __future__ import annotations

from dataclasses import replace

from chain import records as r
from chain.hashes import Hash32
from chain.limits import DEFAULT_CAPACITY_TILES
from chain.params import Params
from chain.rules import Rules
from chain.state import State
from chain.types import Epoch, TimeMs, Validator, ValidatorSet


def put_frozen(
    state: State, params: Params, epoch: Epoch, validators: ValidatorSet, seed: Hash32
) -> None:
    """The record of an epoch to come, with its members' standings as they are now."""
    found = tuple(_standing(state, params, member) for member in validators.members)
    record = r.EpochRecord(epoch, validators, found, seed, (), TimeMs(0))
    state.put(r.epoch_key(epoch), record)


def put_cutoffs(state: State, params: Params, rules: Rules, epoch: Epoch) -> None:
    """Elect the custodians of the whole model for an epoch whose seed is known, and keep the little
    that anyone needs to know a tile's: what each that is full refused first."""
    record = state.epoch(epoch)
    shards = (state.need(r.ShardRecord, r.shard_key(i)) for i in range(state.model.shards))
    tiles = [shard.tiles for shard in shards]
    cutoffs = rules.cutoffs(record, tiles, params.custody_replicas)
    if cutoffs:
        state.put(r.epoch_key(epoch), replace(record, cutoffs=cutoffs))


def _standing(state: State, params: Params, member: Validator) -> r.Standing:
    return r.Standing(_capacity(state, params, member))


def _capacity(state: State, params: Params, member: Validator) -> int:
    """What it has announced, as far as its stake backs it; one tile at the least."""
    node = state.need(r.NodeRecord, r.node_key(member.account))
    announced = node.capacity_tiles or DEFAULT_CAPACITY_TILES
    return max(1, min(announced, member.stake // params.custody_tile_bond_grains))
