"""What a node owes the chain, as a function of the state alone (docs/spec/rounds.md, "Duties").

Duties are values: a duty that is on the list again is the same duty, and one that has left it is
done or too late. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chain import datasets, latency, limits, rounds
from chain import records as r
from chain.hashes import ZERO_HASH, Hash32
from chain.params import Params
from chain.records import DatasetStatus, DeltaStatus, RoundPhase
from chain.rules import Rules
from chain.state import State
from chain.types import PubKey, TxId
from node.services import custody_plan
from node.services.custody_plan import CheckCustody, Checked, CommitCustody, OpenCustody, unchecked

# Whether all that this node keeps of a shard's version (index, root) is here.
Holds = Callable[[int, Hash32], bool]
# Whether what a round's screen needs is here.
IsPrepared = Callable[[r.RoundRecord], bool]
BEFORE_SCREEN = (RoundPhase.TRAIN, RoundPhase.REVEAL, RoundPhase.JURY)


@dataclass(frozen=True, slots=True)
class AuditDataset:
    """Audit a pending dataset and report."""

    dataset: Hash32


@dataclass(frozen=True, slots=True)
class HoldModel:
    """Have one's share of the newest model, from one's own aggregation or from peers."""

    root: Hash32


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure a model on a round's holdout."""

    round: int
    root: Hash32
    holdout: Hash32


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have what the screen of a round will need: its text, what its deltas are in, a worker."""

    round: int


@dataclass(frozen=True, slots=True)
class Screen:
    """As a juror: evaluate a revealed delta and commit to the verdict."""

    round: int
    delta: TxId


@dataclass(frozen=True, slots=True)
class OpenVote:
    """As a juror: reveal what was committed to."""

    round: int
    delta: TxId


@dataclass(frozen=True, slots=True)
class Replay:
    """As an auditor: train the drawn segment again and compare."""

    round: int
    delta: TxId
    segment: int


@dataclass(frozen=True, slots=True)
class Aggregate:
    """As the custodian whose turn it is: update the tiles of this rank."""

    round: int
    rank: int


@dataclass(frozen=True, slots=True)
class CheckUpdate:
    """Recompute another's update and attest."""

    round: int
    update: TxId


@dataclass(frozen=True, slots=True)
class ReportLatency:
    """Say how far the members of this epoch's set are."""

    epoch: int


Duty = (
    AuditDataset
    | HoldModel
    | Evaluate
    | Prepare
    | Screen
    | OpenVote
    | Replay
    | Aggregate
    | CheckUpdate
    | CommitCustody
    | CheckCustody
    | OpenCustody
    | ReportLatency
)


def plan(
    state: State,
    params: Params,
    rules: Rules,
    account: PubKey,
    holds: Holds,
    checked: Checked = unchecked,
    is_prepared: IsPrepared = lambda _: True,
) -> list[Duty]:
    """Everything `account` owes in this state, what is quick and urgent first."""
    duties: list[Duty] = []
    missing = missing_shards(state, holds)
    if missing:
        duties.append(HoldModel(state.model.root))
    duties += custody_plan.owed(state, account, checked)  # also after a custodian's epoch
    if state.validator(account) is None:
        return duties
    over = (state.head.height - 1) % params.epoch_blocks + 1  # blocks of the epoch
    late = 2 * over >= params.epoch_blocks > over  # much is measured, and another block can take it
    if late and not latency.has_reported(state, account):
        duties.append(ReportLatency(state.head.epoch))
    current = state.round()
    duties += _jury(state, current, account)
    everyone = len(state.validators()) <= limits.WATCHERS + 1  # all will check what is merged
    if everyone and current.phase in BEFORE_SCREEN and not is_prepared(current):
        duties.append(Prepare(current.number))
    if current.phase == RoundPhase.AGGREGATE:
        duties += _aggregation(state, params, rules, current, account)
    duties += _audits(state, account)
    if not missing:
        duties += _evaluations(state, current, account)
    return duties


def missing_shards(state: State, holds: Holds) -> list[tuple[int, Hash32]]:
    """(index, root) of the newest versions of which something that belongs here is missing."""
    records = (state.need(r.ShardRecord, r.shard_key(i)) for i in range(state.model.shards))
    return [(s.index, s.root) for s in records if not holds(s.index, s.root)]


def tiles_to_update(
    state: State, rules: Rules, current: r.RoundRecord, account: PubKey
) -> list[tuple[int, int]]:
    """(shard, tile) that this account has to update now: its rank is the round's, and the tile
    has no update, or only one of an earlier rank that found no approval."""
    taken: dict[tuple[int, int], r.TileSlot] = {
        (shard, tile): slot for shard, tile, slot in rounds.slots(state, current.number)
    }
    found = []
    for shard in range(state.model.shards):
        for tile in range(len(state.need(r.TileRoots, r.tiles_key(shard)).roots)):
            slot = taken.get((shard, tile))
            if slot is not None:
                update = state.need(r.UpdateRecord, r.update_key(slot.update))
                if slot.provisional or update.rank >= current.rank:
                    continue
            ranks = rounds.tile_ranks(state, rules, shard, tile, current.rank + 1)
            if current.rank < len(ranks) and ranks[current.rank] == account:
                found.append((shard, tile))
    return found


def _jury(state: State, current: r.RoundRecord, account: PubKey) -> Iterator[Duty]:
    screening = current.phase == RoundPhase.SCREEN_COMMIT
    opening = current.phase == RoundPhase.SCREEN_REVEAL
    if not screening and not opening:
        return
    if account in current.jurors:
        for delta in current.deltas:
            record = state.delta(delta)
            if record.status != DeltaStatus.REVEALED or record.sender == account:
                continue
            mine = next((v for v in record.votes if v.juror == account), None)
            if screening and mine is None:
                yield Screen(current.number, delta)
            elif opening and mine is not None and not mine.revealed:
                yield OpenVote(current.number, delta)
    reported = any(v.auditor == account for v in current.audit_votes)
    if current.audited is not None and account in current.auditors and not reported:
        yield Replay(current.number, current.audited, current.audit_segment)


def _aggregation(
    state: State, params: Params, rules: Rules, current: r.RoundRecord, account: PubKey
) -> Iterator[Duty]:
    if tiles_to_update(state, rules, current, account):
        yield Aggregate(current.number, current.rank)
    updates = {slot.update: None for _, _, slot in rounds.slots(state, current.number)}
    for update in updates:
        record = state.need(r.UpdateRecord, r.update_key(update))
        if rounds.is_asked(state, params, current, record, account):
            yield CheckUpdate(current.number, update)


def _audits(state: State, account: PubKey) -> Iterator[Duty]:
    for record in datasets.all_datasets(state):
        reported = any(v.auditor == account for v in record.reports)
        if record.status == DatasetStatus.PENDING and not reported:
            yield AuditDataset(record.id)


def _evaluations(state: State, current: r.RoundRecord, account: PubKey) -> Iterator[Duty]:
    """Base and result of this round, and of the last if its result came late."""
    last = state.round(current.number - 1) if current.number else None
    wanted: dict[tuple[Hash32, Hash32], Duty] = {}
    for record in (current, last):
        if record is None or record.holdout == ZERO_HASH:
            continue  # nothing is frozen yet
        for root in (record.base_root, record.result_root):
            if root != state.model.root:
                continue  # only the newest model is surely held whole
            known = state.get(r.EvalRecord, r.eval_key(root, record.holdout))
            if known is None or all(v.validator != account for v in known.votes):
                wanted.setdefault(
                    (root, record.holdout), Evaluate(record.number, root, record.holdout)
                )
    yield from wanted.values()
