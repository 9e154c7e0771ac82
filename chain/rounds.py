"""A learning round's transactions (docs/spec/rounds.md). Transitions: chain/phases.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from chain import datasets, trigger_slots
from chain import records as r
from chain import round_records as rr
from chain.codec import decode, encode
from chain.errors import TxError
from chain.hashes import MANIFEST, ZERO_HASH, Hash32
from chain.limits import MAX_BLOB_BYTES, MAX_DELTAS, WATCHERS
from chain.params import Params
from chain.records import DeltaStatus, RoundPhase
from chain.rules import Rules
from chain.state import State
from chain.transactions import (
    Attest,
    AttestKind,
    DeltaCommit,
    DeltaReveal,
    JoinRound,
    Phase,
    PodlManifest,
    PolVote,
    TileChange,
    TileUpdate,
    Verdict,
    delta_commitment,
    pol_commitment,
)
from chain.types import ChainId, Grains, PubKey, TxId, Validator

UNDECLARED_DELTAS = MAX_DELTAS // 4  # slots of a round for those who have not joined it


def manifest_root(manifest: PodlManifest) -> Hash32:
    return MANIFEST.hash(encode(manifest))


def in_phase(state: State, number: int, *phases: RoundPhase) -> r.RoundRecord:
    """The round in progress if it has this number and is in one of the phases."""
    current = state.round()
    if number != current.number:
        raise TxError(
            "wrong_round", f"round {number} is not in progress; round {current.number} is"
        )
    if current.phase not in phases:
        names = " or ".join(p.name.lower() for p in phases)
        now = RoundPhase(current.phase).name.lower()
        raise TxError("wrong_phase", f"round {number} is in phase {now}; this belongs to {names}")
    return current


def put_round(state: State, record: r.RoundRecord) -> None:
    state.put(r.round_key(record.number), record)


# --- learners -------------------------------------------------------------------------


def join(state: State, params: Params, sender: PubKey, tx: JoinRound) -> None:
    current = in_phase(state, tx.round, RoundPhase.OPEN)
    if sender in current.joined:
        raise TxError("duplicate", f"this account has joined round {tx.round} already")
    trigger_slots.check_join(state, params, current, sender)
    if not datasets.active(state):
        raise TxError("no_dataset", "no dataset is approved yet; submit one first")
    if not _are_shards(state, tx.held):
        raise TxError("bad_declaration", "shards of the model in ascending order, each once")
    if tx.held:
        state.put(rr.declaration_key(tx.round, sender), rr.Declaration(tx.held))
    put_round(state, replace(current, joined=(*current.joined, sender)))


def commit(state: State, tx_id: TxId, sender: PubKey, tx: DeltaCommit) -> None:
    current = in_phase(state, tx.round, RoundPhase.TRAIN)
    if tx.base_root != current.base_root:
        raise TxError(
            "stale_base",
            f"the delta's base is {tx.base_root.hex()}; round {tx.round} trains on "
            f"{current.base_root.hex()}: train again or rebase",
        )
    if any(state.delta(d).sender == sender for d in current.deltas):
        raise TxError("duplicate", f"this account has a delta in round {tx.round} already")
    if len(current.deltas) >= MAX_DELTAS:
        raise TxError("no_slot", f"round {tx.round} has {MAX_DELTAS} deltas, its limit")
    if sender not in current.joined:
        others = [d for d in current.deltas if state.delta(d).sender not in current.joined]
        most = min(UNDECLARED_DELTAS, MAX_DELTAS - len(current.joined))  # theirs are kept for them
        if len(others) >= most:
            raise TxError(
                "no_slot",
                f"round {tx.round} has {len(others)} deltas of accounts that did not join or were "
                "not drawn, their limit: join the next round while it is open",
            )
    if tx.blob_bytes > MAX_BLOB_BYTES:
        raise TxError("blob_too_large", f"a payload is at most {MAX_BLOB_BYTES} bytes")
    record = r.DeltaRecord(
        tx_id,
        tx.round,
        sender,
        state.head.height,
        tx.base_root,
        tx.commitment,
        tx.manifest_root,
        tx.blob,
        tx.blob_bytes,
        None,
        ZERO_HASH,
        DeltaStatus.COMMITTED,
        (),
        Grains(0),
    )
    state.put(r.delta_key(tx_id), record)
    put_round(state, replace(current, deltas=(*current.deltas, tx_id)))


def manifest(state: State, sender: PubKey, tx: PodlManifest) -> None:
    """The manifest follows its commit and must be what the commit named."""
    current = in_phase(state, tx.round, RoundPhase.TRAIN, RoundPhase.REVEAL)
    own = [d for d in map(state.delta, current.deltas) if d.sender == sender]
    if not own:
        raise TxError("no_commit", "commit the delta before its manifest")
    record = own[0]
    if record.manifest is not None:
        raise TxError("duplicate", "this delta has its manifest already")
    if tx.learner != sender or manifest_root(tx) != record.manifest_root:
        raise TxError("wrong_manifest", "the manifest is not the one that the commit named")
    if tx.base_root != record.base_root:
        raise TxError("stale_base", "the manifest names another base than its commit")
    if not _are_shards(state, tx.shards):
        raise TxError("bad_manifest", "shards of the model in ascending order, each once")
    if tx.proven:
        _check_proven(state, current, sender, tx)
    state.put(r.delta_key(record.id), replace(record, manifest=tx))


def _are_shards(state: State, shards: Sequence[int]) -> bool:
    """Whether they are the model's, ascending, each once."""
    return all(a < b for a, b in pairwise((*shards, state.model.shards)))


def _check_proven(state: State, current: r.RoundRecord, sender: PubKey, tx: PodlManifest) -> None:
    if sender not in current.joined:
        raise TxError("not_joined", "a proven delta needs a declaration before the seed was known")
    declared = state.get(rr.Declaration, rr.declaration_key(tx.round, sender))
    if tx.shards != (declared.held if declared is not None else ()):
        raise TxError(
            "wrong_part",
            "the manifest's shards are not those declared with join_round; train what was declared",
        )
    if tx.seed != current.seed:
        raise TxError("wrong_seed", "the manifest's seed is not the round's")
    if tx.datasets != current.datasets:
        raise TxError("wrong_datasets", "the manifest's datasets are not the round's")
    if tx.segment_steps == 0 or tx.steps == 0 or tx.steps % tx.segment_steps:
        raise TxError("bad_manifest", "steps must be a positive multiple of segment_steps")
    if len(tx.state_hashes) != tx.steps // tx.segment_steps + 1:
        raise TxError("bad_manifest", "one state hash a segment and one for the start")
    if ZERO_HASH in tx.state_hashes:  # an auditor's word for 'none': nobody could contradict it
        raise TxError("bad_manifest", "a state hash is not zero")
    before = state.get(r.LearnerRecord, r.learner_key(sender))
    if tx.residual_before not in (ZERO_HASH, before.residual if before else ZERO_HASH):
        raise TxError("broken_chain", "residual_before is neither zero nor the last one's after")
    if tx.optimizer_before not in (ZERO_HASH, before.optimizer if before else ZERO_HASH):
        raise TxError("broken_chain", "optimizer_before is neither zero nor the last one's after")


def reveal(state: State, chain_id: ChainId, sender: PubKey, tx: DeltaReveal) -> None:
    record = state.delta(tx.commit)
    in_phase(state, record.round, RoundPhase.REVEAL)
    if record.sender != sender:
        raise TxError("not_yours", "only the committer reveals")
    if record.status != DeltaStatus.COMMITTED:
        raise TxError("duplicate", "this delta is revealed already")
    if record.manifest is None:
        raise TxError("no_manifest", "send the manifest before the reveal")
    opened = delta_commitment(
        chain_id, record.round, sender, record.base_root, record.manifest.payload_root, tx.salt
    )
    if opened != record.commitment:
        raise TxError("bad_opening", "the salt and payload root do not open the commitment")
    state.put(r.delta_key(record.id), replace(record, salt=tx.salt, status=DeltaStatus.REVEALED))
    if record.manifest.proven:
        state.put(
            r.learner_key(sender),
            r.LearnerRecord(record.manifest.residual_after, record.manifest.optimizer_after),
        )


# --- the screen ---------------------------------------------------------------------------


def pol_vote(state: State, chain_id: ChainId, rules: Rules, sender: PubKey, tx: PolVote) -> None:
    commits = tx.phase == Phase.COMMIT
    wanted = RoundPhase.SCREEN_COMMIT if commits else RoundPhase.SCREEN_REVEAL
    current = in_phase(state, tx.round, wanted)
    record = state.delta(tx.delta)
    if tx.delta not in current.deltas or record.status != DeltaStatus.REVEALED:
        raise TxError("unknown_delta", "this delta is not before the jury")
    if sender not in current.jurors or sender == record.sender:
        raise TxError("not_drawn", "this account is not a juror of this delta")
    mine = next((v for v in record.votes if v.juror == sender), None)
    if commits:
        if mine is not None:
            raise TxError("duplicate", "this juror has committed already")
        votes = (*record.votes, r.JurorVote(sender, tx.commitment, 0, 0, 0, 0))
    else:
        if mine is None or mine.revealed:
            raise TxError("no_commit", "there is no commitment left to open")
        if pol_commitment(chain_id, sender, tx) != mine.commitment:
            raise TxError("bad_opening", "the vote does not open the juror's commitment")
        gain, lower = _check_vote(rules, record, tx)
        opened = replace(mine, verdict=tx.verdict, revealed=1, gain=gain, lower=lower)
        votes = tuple(opened if v.juror == sender else v for v in record.votes)
    state.put(r.delta_key(record.id), replace(record, votes=votes))


def _check_vote(rules: Rules, record: r.DeltaRecord, tx: PolVote) -> tuple[int, int]:
    """The mean gain and its lower bound. A verdict must follow from the losses shown with it;
    without losses it is 'unavailable' or a copy."""
    if tx.verdict in (Verdict.UNAVAILABLE, Verdict.COPY):
        if tx.slices:
            raise TxError("bad_verdict", "an unavailable delta and a copy have no losses")
        return 0, 0
    if len({s.slice for s in tx.slices}) != len(tx.slices) or len(tx.slices) < 2:
        raise TxError("bad_slices", "a verdict needs at least two different slices")
    proven = bool(record.manifest and record.manifest.proven)
    verdict, gain, lower = rules.pol_verdict(tx.slices, proven)
    if verdict != tx.verdict:
        raise TxError("bad_verdict", "the verdict does not follow from the losses")
    return gain, lower


# --- aggregation --------------------------------------------------------------------------


def tile_update(state: State, rules: Rules, tx_id: TxId, sender: PubKey, tx: TileUpdate) -> None:
    current = in_phase(state, tx.round, RoundPhase.AGGREGATE)
    if tx.base_root != current.base_root:
        raise TxError("stale_base", "the update's base is not the round's")
    if tx.rank > current.rank:
        raise TxError("not_your_turn", f"rank {current.rank} is the last that may aggregate now")
    if not tx.changes:
        raise TxError("empty_update", "an update changes at least one tile")
    if len({(c.shard, c.tile) for c in tx.changes}) != len(tx.changes):
        raise TxError("duplicate", "an update changes each of its tiles once")
    for change in tx.changes:
        _check_change(state, rules, current, sender, tx.rank, change)
    for change in tx.changes:
        key = r.slot_key(tx.round, change.shard, change.tile)
        state.put(key, r.TileSlot(tx_id, change.new_root, 0))
    record = r.UpdateRecord(
        tx_id, tx.round, tx.rank, sender, state.head.height, len(tx.changes), (), (), 0
    )
    state.put(r.update_key(tx_id), record)
    places = tuple(c.shard << 32 | c.tile for c in tx.changes)
    state.put(rr.places_key(tx.round, tx_id), rr.UpdatePlaces(places))
    state.emit("update", tx_id, round=tx.round, rank=tx.rank, primary=sender.hex())
    if not _committee(state, sender):  # a network of one: nobody else can attest
        _make_provisional(state, record)


def _check_change(
    state: State,
    rules: Rules,
    current: r.RoundRecord,
    sender: PubKey,
    rank: int,
    change: TileChange,
) -> None:
    where = f"shard {change.shard} tile {change.tile}"
    roots = state.get(r.TileRoots, r.tiles_key(change.shard))
    if roots is None or change.tile >= len(roots.roots):
        raise TxError("unknown_tile", f"there is no {where}")
    if roots.roots[change.tile] != change.base_root:
        raise TxError("stale_base", f"{where}: the base is not the tile's root")
    ranks = tile_ranks(state, rules, change.shard, change.tile, rank + 1)
    if rank >= len(ranks) or ranks[rank] != sender:
        raise TxError("not_primary", f"{where}: this account is not custodian of rank {rank}")
    slot = state.get(r.TileSlot, r.slot_key(current.number, change.shard, change.tile))
    if slot is not None:
        held = state.need(r.UpdateRecord, r.update_key(slot.update))
        if slot.provisional or held.rank >= rank:
            raise TxError("duplicate", f"{where} has its update of this round")
    if problem := rules.check_change(change, len(current.accepted)):
        raise TxError("bad_witness", f"{where}: {problem}")


def tile_ranks(
    state: State, rules: Rules, shard: int, tile: int, most: int | None = None
) -> tuple[PubKey, ...]:
    """The first `most` (by default all) of a tile's custody order in the epoch in progress."""
    return rules.ranks(state.epoch(state.head.epoch), shard, tile, most)


def _committee(state: State, primary: PubKey) -> tuple[Validator, ...]:
    """Nobody judges its own work: the primary's weight leaves numerator and denominator."""
    return tuple(v for v in state.validators() if v.account != primary)


def lacks_watchers(state: State, current: r.RoundRecord) -> bool:
    """Whether watchers are still to be drawn: where there are no more than they are, all check."""
    return not current.watchers and len(state.validators()) > WATCHERS + 1


def watchers(current: r.RoundRecord, primary: PubKey) -> tuple[PubKey, ...]:
    """Who is asked first whether an update is right; none if everyone is, or nobody yet."""
    return tuple(a for a in current.watchers if a != primary)[:WATCHERS]


def is_asked(
    state: State, params: Params, current: r.RoundRecord, record: r.UpdateRecord, account: PubKey
) -> bool:
    """Whether a validator should check an update. In a large set a watcher should; everyone as soon
    as anyone has not found it right, or half of the window has passed and it is still open."""
    if account in (record.primary, *record.yes, *record.no):
        return False
    if len(state.validators()) <= WATCHERS + 1:
        return True
    if record.provisional or record.no:
        return not record.provisional
    head = state.head
    half = params.aggregate.blocks // 2, params.aggregate.ms // 2
    late = (
        head.height >= current.deadline_height - half[0]
        and head.time_ms >= current.deadline_ms - half[1]
    )
    return late or account in watchers(current, record.primary)


def slots(state: State, number: int) -> list[tuple[int, int, r.TileSlot]]:
    """(shard, tile, slot) of every tile that has an update in this round, in order."""
    prefix = b"slot/" + number.to_bytes(8, "big")
    found = []
    for key, raw in state.items(prefix):
        shard, tile = key[len(prefix) : -4], key[-4:]
        slot = decode(r.TileSlot, raw)
        found.append((int.from_bytes(shard, "big"), int.from_bytes(tile, "big"), slot))
    return found


def _make_provisional(state: State, record: r.UpdateRecord) -> None:
    """The tiles of an update stand, but for those that a later rank has replaced meanwhile."""
    count, listed = 0, rr.places_key(record.round, record.id)
    for place in state.need(rr.UpdatePlaces, listed).places:
        key = r.slot_key(record.round, place >> 32, place & 0xFFFFFFFF)
        slot = state.need(r.TileSlot, key)
        if slot.update == record.id:
            state.put(key, replace(slot, provisional=1))
            count += 1
    state.delete(listed)
    state.put(r.update_key(record.id), replace(record, provisional=1))
    current = state.round()
    put_round(state, replace(current, tiles_open=current.tiles_open - count))


# --- attestations -----------------------------------------------------------------------------


def attest(state: State, sender: PubKey, tx: Attest) -> None:
    if tx.verdict not in (Verdict.NO, Verdict.YES, Verdict.UNAVAILABLE):
        raise TxError("bad_verdict", "a verdict is 0 (no), 1 (yes) or 2 (unavailable)")
    if tx.kind == AttestKind.UPDATE:
        _attest_update(state, sender, tx)
    elif tx.kind == AttestKind.REPLAY:
        _attest_replay(state, sender, tx)
    elif tx.kind == AttestKind.EVAL:
        _attest_eval(state, sender, tx)
    else:
        raise TxError("not_active", f"attestations of kind {tx.kind} are not in force yet")


def _attest_update(state: State, sender: PubKey, tx: Attest) -> None:
    in_phase(state, tx.round, RoundPhase.AGGREGATE)
    record = state.get(r.UpdateRecord, r.update_key(TxId(tx.subject)))
    if record is None or record.round != tx.round:
        raise TxError("unknown_update", "there is no such update in this round")
    if sender == record.primary:
        raise TxError("own_work", "nobody judges its own work")
    if sender in record.yes or sender in record.no:
        raise TxError("duplicate", "this validator has attested already")
    if tx.verdict == Verdict.YES:
        record = replace(record, yes=(*record.yes, sender))
    else:
        record = replace(record, no=(*record.no, sender))
    state.put(r.update_key(record.id), record)
    if not record.provisional and _is_attested(state, record):
        _make_provisional(state, record)


def _is_attested(state: State, record: r.UpdateRecord) -> bool:
    """By all of its watchers, of whom one who is honest and looks suffices; or by more than half of
    all others' stake."""
    drawn = watchers(state.round(), record.primary)
    if drawn and all(account in record.yes for account in drawn):
        return True
    committee = _committee(state, record.primary)
    agreed = sum(v.stake for v in committee if v.account in record.yes)
    return 2 * agreed > sum(v.stake for v in committee)


def _attest_replay(state: State, sender: PubKey, tx: Attest) -> None:
    current = in_phase(state, tx.round, RoundPhase.SCREEN_COMMIT, RoundPhase.SCREEN_REVEAL)
    if current.audited != TxId(tx.subject) or sender not in current.auditors:
        raise TxError("not_drawn", "this account does not audit this delta")
    if any(v.auditor == sender for v in current.audit_votes):
        raise TxError("duplicate", "this auditor has reported already")
    record = state.delta(TxId(tx.subject))
    claimed = (
        record.manifest.state_hashes[current.audit_segment + 1] if record.manifest else ZERO_HASH
    )
    if (tx.verdict == Verdict.YES) != (tx.evidence == claimed):
        raise TxError("bad_verdict", "yes means the manifest's state hash, anything else another")
    vote = r.AuditVote(sender, tx.verdict, tx.evidence)
    put_round(state, replace(current, audit_votes=(*current.audit_votes, vote)))


def _attest_eval(state: State, sender: PubKey, tx: Attest) -> None:
    key = r.eval_key(tx.subject, tx.evidence)
    current = state.round(tx.round) if tx.round <= state.head.round else None
    if current is None or tx.evidence != current.holdout or tx.evidence == ZERO_HASH:
        raise TxError("unknown_holdout", "the holdout is not this round's")
    if tx.subject not in (current.base_root, current.result_root) or tx.subject == ZERO_HASH:
        raise TxError("unknown_model", "the model root is neither the round's base nor its result")
    record = state.get(r.EvalRecord, key) or r.EvalRecord(tx.subject, tx.evidence, (), 0)
    if any(v.validator == sender for v in record.votes):
        raise TxError("duplicate", "this validator has measured this model already")
    if tx.value <= 0:
        raise TxError("bad_loss", "a loss is a positive number of nano-nats per byte")
    record = replace(record, votes=(*record.votes, r.EvalVote(sender, tx.value)))
    stake_of = {v.account: v.stake for v in state.validators()}
    spoken = sum(stake_of.get(v.validator, 0) for v in record.votes)
    if 2 * spoken > sum(stake_of.values()):
        values = sorted(v.value for v in record.votes)
        record = replace(record, loss=values[len(values) // 2])
    state.put(key, record)
    if record.loss:
        last = state.head.round
        for number in sorted({tx.round, last, max(0, last - 1)}):
            note_loss(state, state.round(number), record)


def note_loss(state: State, current: r.RoundRecord, record: r.EvalRecord) -> None:
    """Write a measured loss into a round that it belongs to: the result of one round is the base
    of the next."""
    if record.holdout != current.holdout:
        return
    if record.model_root == current.base_root and record.loss != current.loss_before:
        current = replace(current, loss_before=record.loss)
        put_round(state, current)
    if record.model_root == current.result_root and record.loss != current.loss_after:
        put_round(state, replace(current, loss_after=record.loss))
        state.emit("loss", current.result_root, round=current.number, loss=record.loss)
