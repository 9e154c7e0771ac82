"""Who may validate, and the set that freezes two epochs ahead (docs/spec/staking.md)."""

from __future__ import annotations

from chain import records as r
from chain.codec import decode
from chain.limits import MAX_VALIDATORS
from chain.params import Params
from chain.state import State
from chain.transactions import Roles
from chain.types import Stake, Validator, ValidatorSet

MIN_SET = 4  # members; fewer bear no fault at all (n = 3f + 1), so nobody is jailed below it


def candidates(state: State, params: Params) -> list[Validator]:
    """Accounts that may validate as things stand, in no particular order: announced as validators,
    enough at stake, not jailed. Their keys were found usable when they were announced."""
    return [v for v in _announced(state, params.min_bond_grains) if not _jailed(state, v)]


def freeze_set(state: State, params: Params, epoch: int) -> ValidatorSet:
    """The set of `epoch`, two epochs ahead, from stakes and keys as they are now: the largest
    stakes if more stand than a set holds.

    If fewer than four stand, the jailed fill the set up to four with whatever they have at stake,
    sleepers before equivocators: a slashed member that is counted as a possible liar leaves the
    others their f = 1, and three without it would have none. Without anyone the last set goes on:
    an empty set could never finalize again.
    """
    members = candidates(state, params)
    if len(members) < MIN_SET:
        jailed = [v for v in _announced(state, 1) if _jailed(state, v)]
        jailed.sort(key=lambda v: (_reason(state, v), -v.stake, v.consensus_key))
        members += jailed[: MIN_SET - len(members)]
    if not members:
        return state.epoch(epoch - 1).validators
    members.sort(key=lambda v: (-v.stake, v.consensus_key))
    chosen = members[:MAX_VALIDATORS]
    return ValidatorSet(tuple(sorted(chosen, key=lambda v: v.consensus_key)))


def _announced(state: State, least: int) -> list[Validator]:
    found = []
    for _, raw in state.items(b"node/"):
        node = decode(r.NodeRecord, raw)
        bonded = state.account(node.account).bonded
        if bonded >= least and node.roles & Roles.VALIDATOR:
            found.append(
                Validator(
                    node.account, node.consensus_key, node.vrf_key, node.node_id, Stake(bonded)
                )
            )
    return found


def _jailed(state: State, candidate: Validator) -> bool:
    return bool(state.account(candidate.account).jailed)


def _reason(state: State, candidate: Validator) -> int:
    return state.need(r.JailRecord, r.jail_key(candidate.account)).reason
