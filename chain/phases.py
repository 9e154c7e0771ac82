"""How a learning round moves on, once a block (docs/spec/rounds.md).

Each phase ends as soon as everything it waits for is on the chain, or at its deadline. A deadline
passes at the first block whose height and time have both passed it. At most one transition a
block, so that every phase is seen in some block's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chain import (
    datasets,
    guard,
    model_versions,
    momentum,
    quotas,
    rewards,
    rounds,
    trigger_slots,
)
from chain import records as r
from chain import round_records as rr
from chain.guard_records import GuardVerdict
from chain.hashes import ZERO_HASH, Hash32
from chain.limits import MAX_DELTAS, WATCHERS
from chain.params import Params, Window
from chain.records import DeltaStatus, RoundPhase
from chain.rules import Rules
from chain.shards import write_model, write_shard
from chain.state import State
from chain.transactions import Verdict
from chain.types import Height, PubKey, TimeMs, TxId, u64_be

LOSS_PATIENCE = 10  # settle windows for which a round waits for its holdout loss
NEWCOMER_PATIENCE = 4  # times what the trusted took, and a part of the window, others have
UNPROVEN_SHARE = 4  # an unproven delta gains at least 1/4 of what the round's proven ones do


def first_round(base_root: Hash32) -> r.RoundRecord:
    return _opened(0, base_root, 0, Height(0))


def _opened(number: int, base_root: Hash32, version: int, height: Height) -> r.RoundRecord:
    return r.RoundRecord(
        number=number,
        phase=RoundPhase.OPEN,
        opened=height,
        phase_height=height,
        deadline_height=Height(0),
        deadline_ms=TimeMs(0),
        base_root=base_root,
        base_version=version,
        seed=ZERO_HASH,
        jury_seed=ZERO_HASH,
        datasets=(),
        holdout=ZERO_HASH,
        joined=(),
        deltas=(),
        jurors=(),
        audited=None,
        audit_segment=0,
        auditors=(),
        audit_votes=(),
        accepted=(),
        rank=0,
        tiles_open=0,
        watchers=(),
        result_root=ZERO_HASH,
        loss_before=0,
        loss_after=0,
    )


def advance(state: State, params: Params, rules: Rules) -> None:
    """At the end of a block: draw what is due and move the round by at most one phase."""
    datasets.draw_splits(state, params)
    current = state.round()
    match RoundPhase(current.phase):
        case RoundPhase.OPEN:
            _open(state, params, current)
        case RoundPhase.SEED:
            _seed(state, params, current)
        case RoundPhase.TRAIN:
            _train(state, params, current)
        case RoundPhase.REVEAL:
            _reveal(state, current)
        case RoundPhase.JURY:
            _jury(state, params, rules, current)
        case RoundPhase.SCREEN_COMMIT:
            _screen_commit(state, params, current)
        case RoundPhase.SCREEN_REVEAL:
            _screen_reveal(state, params, current)
        case RoundPhase.AGGREGATE:
            _aggregate(state, params, rules, current)
        case _:
            _settle(state, params, current)


def waits_for_blocks(state: State) -> bool:
    """Whether a seed is pending, so that leaders propose without delay."""
    current = state.round()
    if current.phase in (RoundPhase.SEED, RoundPhase.JURY) or datasets.is_waiting(state):
        return True
    return current.phase == RoundPhase.AGGREGATE and rounds.lacks_watchers(state, current)


def ends_at(state: State) -> TimeMs | None:
    """From when on the next block ends the phase by its deadline, so that it is proposed then; None
    if it cannot: blocks are not hurried for the heights that a deadline has, too, since those are
    the time that a round is given after the chain stood still."""
    current = state.round()
    if not current.deadline_height or state.head.height + 1 < current.deadline_height:
        return None
    if current.phase == RoundPhase.SETTLE and _lacks_loss(state, current):
        return None
    return current.deadline_ms


# --- helpers of the transitions ---------------------------------------------------------


def _passed(state: State, current: r.RoundRecord) -> bool:
    head = state.head
    return head.height >= current.deadline_height and head.time_ms >= current.deadline_ms


def _enter(
    state: State, current: r.RoundRecord, phase: RoundPhase, window: Window | None
) -> r.RoundRecord:
    head = state.head
    blocks, ms = (window.blocks, window.ms) if window else (0, 0)
    current = replace(
        current,
        phase=phase,
        phase_height=head.height,
        deadline_height=Height(head.height + blocks),
        deadline_ms=TimeMs(head.time_ms + ms),
    )
    rounds.put_round(state, current)
    key = u64_be(current.number)
    state.emit("phase", key, round=current.number, phase=phase.name.lower())
    return current


def _with_status(state: State, current: r.RoundRecord, *statuses: DeltaStatus) -> list[TxId]:
    return [d for d in current.deltas if state.delta(d).status in statuses]


def _mark(state: State, delta: TxId, status: DeltaStatus) -> None:
    state.put(r.delta_key(delta), replace(state.delta(delta), status=status))
    state.emit("delta", delta, status=status.name.lower())


# --- transitions ---------------------------------------------------------------------------


def _open(state: State, params: Params, current: r.RoundRecord) -> None:
    """The first declaration starts the join window; when it closes the round is anchored."""
    if not current.joined:
        return
    if current.deadline_height == 0:
        _enter(state, current, RoundPhase.OPEN, params.join)
    elif _passed(state, current):
        used = datasets.active(state)
        holdout = datasets.holdout_id(state, used)
        base = state.model
        current = replace(
            current,
            base_root=base.root,
            base_version=base.version,
            datasets=used,
            holdout=holdout,
        )
        known = state.get(r.EvalRecord, r.eval_key(base.root, holdout))
        if known is not None:
            current = replace(current, loss_before=known.loss)
        model_versions.anchor(state, current.number)
        _enter(state, current, RoundPhase.SEED, None)


def _seed(state: State, params: Params, current: r.RoundRecord) -> None:
    if state.head.height < current.phase_height + params.seed_blocks:
        return
    event = b"round" + u64_be(current.number)
    seed = datasets.event_seed(state, params, event, current.phase_height)
    drawn = trigger_slots.draw(state, params, seed, current.joined)
    current = replace(current, seed=seed, joined=drawn)
    _enter(state, current, RoundPhase.TRAIN, params.train)


def _train(state: State, params: Params, current: r.RoundRecord) -> None:
    committed = {state.delta(d).sender for d in current.deltas}
    absent = [j for j in current.joined if j not in committed]
    full = len(current.deltas) >= MAX_DELTAS or not absent
    if not (full or _passed(state, current) or _waited_enough(state, params, current, absent)):
        return
    for account in absent:
        rewards.lose_merit(state, account)
    _enter(state, current, RoundPhase.REVEAL, params.reveal)


def _waited_enough(
    state: State, params: Params, current: r.RoundRecord, absent: Sequence[PubKey]
) -> bool:
    """Whether only newcomers are missing, and had a quarter of the window and several times as long
    as the slowest that is trusted took: declaring costs little, so else one account could hold
    every round to its deadline."""
    known = [a for a in current.joined if quotas.is_trusted(state, params, a)]
    if not known or any(a in absent for a in known):
        return False
    begun, made = current.phase_height, [state.delta(d) for d in current.deltas]
    took = max(d.height for d in made if d.sender in known) - begun
    least = max(NEWCOMER_PATIENCE * took, params.train.blocks // NEWCOMER_PATIENCE)
    begun_ms = current.deadline_ms - params.train.ms
    since = state.head.height - begun, state.head.time_ms - begun_ms
    return since[0] >= least and since[1] >= params.train.ms // NEWCOMER_PATIENCE


def _reveal(state: State, current: r.RoundRecord) -> None:
    hidden = _with_status(state, current, DeltaStatus.COMMITTED)
    if hidden and not _passed(state, current):
        return
    for delta in hidden:
        _mark(state, delta, DeltaStatus.UNAVAILABLE)
        rewards.lose_merit(state, state.delta(delta).sender)
    _enter(state, current, RoundPhase.JURY, None)


def _jury(state: State, params: Params, rules: Rules, current: r.RoundRecord) -> None:
    """Jurors, auditors and the audited segment are drawn after everything they judge is closed."""
    if state.head.height < current.phase_height + params.seed_blocks:
        return
    event = b"jury" + u64_be(current.number)
    seed = datasets.event_seed(state, params, event, current.phase_height)
    current = replace(current, jury_seed=seed)
    revealed = _with_status(state, current, DeltaStatus.REVEALED)
    if not revealed:
        _finish(state, params, replace(current, result_root=state.model.root))
        return
    jurors = rules.draw(seed, state.validators(), params.jury_size)
    current = replace(current, jurors=jurors)
    manifests = {d: state.delta(d).manifest for d in revealed}
    proven = [d for d, m in manifests.items() if m is not None and m.proven]
    if proven:
        lot = int.from_bytes(seed[:8], "big")
        audited = proven[lot % len(proven)]
        chosen = manifests[audited]
        segments = chosen.steps // chosen.segment_steps if chosen else 1
        judged = state.delta(audited).sender
        candidates = [v for v in state.validators() if v.account != judged]
        current = replace(
            current,
            audited=audited,
            audit_segment=int.from_bytes(seed[8:16], "big") % segments,
            auditors=rules.draw(Hash32(seed[16:] + seed[:16]), candidates, params.auditors),
        )
    _enter(state, current, RoundPhase.SCREEN_COMMIT, params.screen)


def _screen_commit(state: State, params: Params, current: r.RoundRecord) -> None:
    """All jurors must commit before any reveals, or one could copy another."""
    done = True
    for delta in _with_status(state, current, DeltaStatus.REVEALED):
        record = state.delta(delta)
        voted = {v.juror for v in record.votes}
        done &= all(j in voted or j == record.sender for j in current.jurors)
    if done or _passed(state, current):
        _enter(state, current, RoundPhase.SCREEN_REVEAL, params.screen)


def _screen_reveal(state: State, params: Params, current: r.RoundRecord) -> None:
    revealed = _with_status(state, current, DeltaStatus.REVEALED)
    opened = all(v.revealed for d in revealed for v in state.delta(d).votes)
    audited = len(current.audit_votes) == len(current.auditors)
    if not (opened and audited) and not _passed(state, current):
        return
    verdicts = {d: _judge(state, current, d) for d in revealed}
    for delta in _unhelpful(state, current, verdicts):
        verdicts[delta] = DeltaStatus.UNHELPFUL
    for delta, status in verdicts.items():
        _mark(state, delta, status)
        if status == DeltaStatus.MISMATCH:
            rewards.disprove(state, state.delta(delta).sender)
    accepted = tuple(_with_status(state, current, DeltaStatus.ACCEPTED))
    if not accepted:
        _finish(state, params, replace(current, result_root=state.model.root))
        return
    count = sum(
        len(state.need(r.TileRoots, r.tiles_key(s)).roots) for s in range(state.model.shards)
    )
    current = replace(current, accepted=accepted, tiles_open=count)
    _enter(state, current, RoundPhase.AGGREGATE, params.aggregate)


def _judge(state: State, current: r.RoundRecord, delta: TxId) -> DeltaStatus:
    """More than half of the delta's jurors must have found it useful; a failed replay outweighs."""
    record = state.delta(delta)
    if delta == current.audited:
        no = sum(v.verdict == Verdict.NO for v in current.audit_votes)
        if 2 * no > len(current.auditors):
            return DeltaStatus.MISMATCH
    jurors = [j for j in current.jurors if j != record.sender]
    said = [v.verdict for v in record.votes if v.revealed]
    if 2 * sum(v == Verdict.YES for v in said) > len(jurors):
        proven = record.manifest is not None and record.manifest.proven
        if proven and not _stands(current, delta) and not rewards.helps(record, len(jurors)):
            return DeltaStatus.UNHELPFUL  # its jurors asked what a proven one is asked
        return DeltaStatus.ACCEPTED
    if 2 * sum(v == Verdict.NO for v in said) > len(jurors):
        return DeltaStatus.HARMFUL if rewards.gain(record) < 0 else DeltaStatus.UNHELPFUL
    if 2 * sum(v == Verdict.COPY for v in said) > len(jurors):
        return DeltaStatus.COPY
    return DeltaStatus.UNAVAILABLE


def _unhelpful(
    state: State, current: r.RoundRecord, verdicts: dict[TxId, DeltaStatus]
) -> list[TxId]:
    """Accepted deltas without proof that reach less than a quarter of what proven ones gain: half
    of all small random directions lower the loss a little, and significantly so (ADR 5)."""
    accepted = [state.delta(d) for d, v in verdicts.items() if v == DeltaStatus.ACCEPTED]
    proven = [d for d in accepted if d.manifest and d.manifest.proven and _stands(current, d.id)]
    if not proven:
        return []
    gains = sorted(map(rewards.gain, proven))
    usual = gains[len(gains) // 2]
    return [d.id for d in accepted if d not in proven and UNPROVEN_SHARE * rewards.gain(d) < usual]


def _stands(current: r.RoundRecord, delta: TxId) -> bool:
    """Whether a manifest's claim holds up: the audited one's only if more than half of its auditors
    have replayed it. Whoever serves them nothing has proven nothing."""
    if delta != current.audited or not current.auditors:
        return True
    return 2 * sum(v.verdict == Verdict.YES for v in current.audit_votes) > len(current.auditors)


def _aggregate(state: State, params: Params, rules: Rules, current: r.RoundRecord) -> None:
    due = current.phase_height + params.seed_blocks  # later the head may not know the outputs
    if state.head.height == due and rounds.lacks_watchers(state, current):
        event = b"watch" + u64_be(current.number)
        seed = datasets.event_seed(state, params, event, current.phase_height)
        drawn = rules.watchers(seed, state.validators(), WATCHERS + 1)
        current = replace(current, watchers=drawn)
        rounds.put_round(state, current)
    if current.tiles_open and not _passed(state, current):
        return
    if current.tiles_open and current.rank + 1 < params.ranks:
        _enter(
            state, replace(current, rank=current.rank + 1), RoundPhase.AGGREGATE, params.aggregate
        )
        return
    root = _apply_slots(state, params, rules, current.number)
    if any(slot.provisional for _, _, slot in rounds.slots(state, current.number)):
        for delta in current.accepted:
            _mark(state, delta, DeltaStatus.MERGED)
    known = state.get(r.EvalRecord, r.eval_key(root, current.holdout))  # if nothing has changed
    loss = known.loss if known is not None else 0
    current = replace(current, result_root=root, loss_after=loss)
    _enter(state, current, RoundPhase.SETTLE, params.settle)


def _apply_slots(state: State, params: Params, rules: Rules, number: int) -> Hash32:
    """Provisional tiles take effect together, and the model root is computed once a round."""
    changed: dict[int, list[Hash32]] = {}
    for shard, tile, slot in rounds.slots(state, number):
        if slot.provisional:
            if shard not in changed:
                changed[shard] = list(state.need(r.TileRoots, r.tiles_key(shard)).roots)
            changed[shard][tile] = slot.new_root
    for shard, tile_roots in changed.items():
        if params.guard_ppm:
            guard.remember(state, shard)
        if params.momentum_ppm:
            momentum.remember(state, number, shard)
        size = state.need(r.ShardRecord, r.shard_key(shard)).data_bytes
        write_shard(state, number, shard, rules.shard_root(tile_roots, size), tile_roots)
    if changed:
        shards = range(state.model.shards)
        roots = [state.need(r.ShardRecord, r.shard_key(s)).root for s in shards]
        write_model(state, number, rules.model_root(roots))
        if params.guard_ppm:
            guard.begin(state, params, number)
    return state.model.root


def _settle(state: State, params: Params, current: r.RoundRecord) -> None:
    """Wait for the window and, a few times as long at most, for the loss of the new model and what
    the guard makes of it."""
    if not _passed(state, current):
        return
    head, window = state.head, params.settle
    patient = (
        head.height < current.deadline_height + LOSS_PATIENCE * window.blocks
        or head.time_ms < current.deadline_ms + LOSS_PATIENCE * window.ms
    )
    if patient and _lacks_loss(state, current):
        return
    if guard.close(state, current) == GuardVerdict.ROLLED_BACK:
        for delta in _with_status(state, current, DeltaStatus.MERGED):
            _mark(state, delta, DeltaStatus.ROLLED_BACK)
    _finish(state, params, current)


def _lacks_loss(state: State, current: r.RoundRecord) -> bool:
    return not current.loss_after or guard.is_open(state, current)


def _finish(state: State, params: Params, current: r.RoundRecord) -> None:
    current = _enter(state, current, RoundPhase.DONE, None)
    rewards.pay_learners(state, params, current.accepted)
    rewards.credit_primaries(state, current.number)
    for shard, tile, _ in rounds.slots(state, current.number):
        state.delete(r.slot_key(current.number, shard, tile))
    for prefix in (rr.places_of(current.number), rr.declarations_of(current.number)):
        for key in [key for key, _ in state.items(prefix)]:
            state.delete(key)
    model = state.model
    opened = _opened(current.number + 1, model.root, model.version, state.head.height)
    rounds.put_round(state, opened)
    state.put(r.HEAD, replace(state.head, round=current.number + 1))
