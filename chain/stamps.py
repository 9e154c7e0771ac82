"""Proof of work in place of a fee: what it takes, and how that follows the load.

Each class has a difficulty, the expected number of tries for one unit of cost. Every
`stamp_retarget_blocks` it moves towards what lets `stamp_target_units` of the class into each
block, by at most a factor of two, never below the genesis floor of 2**stamp_bits.
"""

from __future__ import annotations

from collections.abc import Mapping

from chain import price_records as p
from chain.costs import Spend, StampClass
from chain.errors import TxError
from chain.params import Params
from chain.state import State
from chain.transactions import Transaction, stamp_digest
from chain.types import Height, PubKey

MAX_STEP = 2  # a difficulty changes at most by this factor at a time
MAX_DIFFICULTY = 1 << 48  # more than all computers do between two blocks; products stay in 64 bits
_SPACE = 1 << 256  # of a stamp's digest


def floor(params: Params) -> int:
    """The difficulty of a class that nobody crowds."""
    return 1 << params.stamp_bits


def difficulty(state: State, params: Params, kind: StampClass, height: int) -> int:
    """Of one unit, for a stamp that names the block at `height`. Who began before the last retarget
    need not begin again because it rose."""
    held = state.get(p.StampLoad, p.stamp_class_key(kind))
    if held is None:
        return floor(params)
    now = held.difficulty if height >= held.since else min(held.difficulty, held.before)
    return max(now, floor(params))


def newcomer_factor(state: State, params: Params, sender: PubKey) -> int:
    """An account's first costs more: a name is not to be had for nothing."""
    return 1 if state.account(sender).nonce else 1 << params.stamp_new_account_bits


def needed(state: State, params: Params, sender: PubKey, asked: Spend, height: int) -> int:
    """Expected tries of a stamp of this sender that names the block at `height`."""
    one = difficulty(state, params, asked.kind, height)
    return one * asked.units * newcomer_factor(state, params, sender)


def check(state: State, params: Params, tx: Transaction, asked: Spend) -> None:
    """TxError unless the stamp names a recent block and is work enough."""
    stamp, head = tx.stamp, state.head
    if stamp is None:
        raise TxError("weak_stamp", "there is no stamp")
    age = head.height - stamp.height
    if not 0 < age <= min(params.stamp_window_blocks, len(head.recent_parents)):
        raise TxError("stale_stamp", "the stamp's block is not among the recent ones; stamp anew")
    parent = head.recent_parents[-age]
    digest = stamp_digest(tx.chain_id, tx.sender, tx.nonce, parent, tx.payload, stamp.work)
    tries = needed(state, params, tx.sender, asked, stamp.height)
    if int.from_bytes(digest, "big") * tries >= _SPACE:
        raise TxError(
            "weak_stamp", f"the stamp needs the work of {tries} tries on average; stamp anew"
        )


def advance(state: State, params: Params, stamped: Mapping[StampClass, int]) -> None:
    """At the end of a block: count its stamped units, and retarget when it is time."""
    due = state.head.height % params.stamp_retarget_blocks == 0
    least = floor(params)
    for kind in StampClass if due else sorted(stamped):
        key, units = p.stamp_class_key(kind), stamped.get(kind, 0)
        held = state.get(p.StampLoad, key)
        if held is None and not units:
            continue
        old = max(held.difficulty, least) if held is not None else least
        before, since = (held.before, held.since) if held is not None else (least, Height(0))
        load = units + (held.units if held is not None else 0)
        if not due:
            if units:
                state.put(key, p.StampLoad(old, before, since, load))
            continue
        new = _retargeted(params, old, load)
        if new == old == least and not load:
            state.delete(key)
        else:
            state.put(key, p.StampLoad(new, old, state.head.height, 0))


def _retargeted(params: Params, old: int, load: int) -> int:
    wanted = old * load // (params.stamp_target_units * params.stamp_retarget_blocks)
    near = min(max(wanted, old // MAX_STEP), old * MAX_STEP)
    return max(min(near, MAX_DIFFICULTY), floor(params))
