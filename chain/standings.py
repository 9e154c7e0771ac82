"""What an epoch's custodians count for beside their stake (docs/spec/election.md).

It freezes with the set, two epochs ahead and before the seed is known, so nobody can fit it to what
will be drawn. Who is full follows from all of it and stands in the record before its epoch begins.
"""

from __future__ import annotations

from dataclasses import replace

from chain import records as r
from chain.custody_records import CustodianRecord, custodian_key
from chain.hashes import Hash32
from chain.latency import FARTHEST, take_classes
from chain.limits import DEFAULT_CAPACITY_TILES
from chain.params import Params
from chain.rules import Rules
from chain.state import State
from chain.types import Epoch, PubKey, TimeMs, Validator, ValidatorSet

REPUTATION_ONE = 1 << 16  # fixed-point 1
NEWCOMER = 64  # works done with which half of what can be earned is earned
MISS_FAULTS = 8  # what silence in a custody event outweighs, in works done
LIE_FAULTS = 64  # the same of a false commitment


def put_frozen(
    state: State, params: Params, epoch: Epoch, validators: ValidatorSet, seed: Hash32
) -> None:
    """The record of an epoch to come, with its members' standings as they are now."""
    classes = take_classes(state)
    found = tuple(
        r.Standing(
            _capacity(state, params, member),
            reputation(state, member.account),
            classes.get(member.account, FARTHEST),
        )
        for member in validators.members
    )
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


def reputation(state: State, account: PubKey) -> int:
    """From 1/2, what anyone begins with, towards 1, by work that was done against what was not.

    Nobody stands below a newcomer, so a new name is no way out of a bad one; and it grows with work
    alone, so several names that share stake and work weigh no more together than one.
    """
    custody = state.get(CustodianRecord, custodian_key(account))
    asked, missed, convicted = (
        (custody.asked, custody.missed, custody.convicted) if custody is not None else (0, 0, 0)
    )
    turns = state.get(r.Attendance, r.attendance_key(account))
    faults = MISS_FAULTS * missed + LIE_FAULTS * convicted + (turns.missed if turns else 0)
    done = state.account(account).merit + asked - missed - convicted
    earned = REPUTATION_ONE // 2 * done // (done + faults + NEWCOMER)
    return REPUTATION_ONE // 2 + earned


def _capacity(state: State, params: Params, member: Validator) -> int:
    """What it has announced, as far as its stake backs it; one tile at the least."""
    node = state.need(r.NodeRecord, r.node_key(member.account))
    announced = node.capacity_tiles or DEFAULT_CAPACITY_TILES
    return max(1, min(announced, member.stake // params.custody_tile_bond_grains))
