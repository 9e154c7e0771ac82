"""The whole-round guard: a round that makes the model significantly worse is rolled back
(docs/spec/rounds.md, "The guard"; ADR 26).

A validator finds a result worse by its own two losses, before and after on the same holdout, so
what another machine measures never mixes in; and more than half of all stake must find it so, so
no minority can roll a round back, whoever speaks first. What is rolled back is not undone: each
shard gets a new version equal to the one before the round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from chain import guard_records as g
from chain import momentum
from chain import records as r
from chain.codec import decode
from chain.guard_records import GuardVerdict
from chain.hashes import Hash32
from chain.params import Params
from chain.shards import write_model, write_shard
from chain.state import State
from chain.types import PubKey

PPM = 1_000_000


class Found(NamedTuple):
    """Stake of the validators that found a result significantly worse, of those that did not, of
    those that have measured the base alone, and of all, who have measured neither included."""

    worse: int
    fine: int
    waiting: int
    stake: int


def remember(state: State, shard: int) -> None:
    """Keep what a shard is, before a round changes it."""
    record = state.need(r.ShardRecord, r.shard_key(shard))
    roots = state.need(r.TileRoots, r.tiles_key(shard)).roots
    kept = g.ReplacedShard(record.index, record.version, record.root, roots)
    state.put(g.replaced_key(shard), kept)


def begin(state: State, params: Params, number: int) -> None:
    """A round has changed the model: from now on validators measure by this limit."""
    record = g.GuardRecord(number, GuardVerdict.OPEN, params.guard_ppm, 0, 0, 0)
    state.put(g.guard_key(number), record)


def of_round(state: State, number: int) -> g.GuardRecord | None:
    """What the guard says of a round; None without a guard, and before or without a change."""
    return state.get(g.GuardRecord, g.guard_key(number))


def found(state: State, current: r.RoundRecord, limit_ppm: int) -> Found:
    """What the validators of now have measured of a round's base and its result."""
    before = _measured(state, current, current.base_root)
    after = _measured(state, current, current.result_root)
    worse = fine = waiting = stake = 0
    for validator in state.validators():
        stake += validator.stake
        was, now = before.get(validator.account), after.get(validator.account)
        if was is None:
            continue
        if now is None:
            waiting += validator.stake
        elif (now - was) * PPM > limit_ppm * was:
            worse += validator.stake
        else:
            fine += validator.stake
    return Found(worse, fine, waiting, stake)


def verdict(said: Found) -> GuardVerdict:
    """OPEN if neither side has what it needs."""
    if 2 * said.worse > said.stake:
        return GuardVerdict.ROLLED_BACK
    return GuardVerdict.KEPT if 2 * said.fine >= said.stake else GuardVerdict.OPEN


def is_open(state: State, current: r.RoundRecord) -> bool:
    """Whether a round in SETTLE still waits for what its validators find. Of who has not measured
    the base nothing is to come: only the newest model is surely held whole."""
    record = of_round(state, current.number)
    if record is None:
        return False
    said = found(state, current, record.limit_ppm)
    may = 2 * (said.worse + said.waiting) > said.stake
    return may and verdict(said) == GuardVerdict.OPEN


def close(state: State, current: r.RoundRecord) -> GuardVerdict | None:
    """The guard's last word, carried out; None if it had nothing to look at. What is unsaid by now
    stays unknown."""
    record = of_round(state, current.number)
    if record is None:
        return None
    said = found(state, current, record.limit_ppm)
    final = verdict(said)
    if final == GuardVerdict.OPEN:
        final = GuardVerdict.UNKNOWN
    record = replace(record, verdict=final, worse=said.worse, fine=said.fine, stake=said.stake)
    state.put(g.guard_key(current.number), record)
    changed = list(state.items(g.REPLACED))
    if final == GuardVerdict.ROLLED_BACK:
        for _, raw in changed:
            old = decode(g.ReplacedShard, raw)
            write_shard(
                state, current.number, old.index, old.root, old.roots, returns_to=old.version
            )
            momentum.forget(state, old.index)
        write_model(state, current.number, current.base_root)
    for key, _ in changed:
        state.delete(key)
    state.emit(
        "guard",
        g.guard_key(current.number),
        round=current.number,
        verdict=final.name.lower(),
        worse=said.worse,
        fine=said.fine,
        stake=said.stake,
    )
    return final


def _measured(state: State, current: r.RoundRecord, root: Hash32) -> dict[PubKey, int]:
    record = state.get(r.EvalRecord, r.eval_key(root, current.holdout))
    return {v.validator: v.value for v in record.votes} if record is not None else {}
