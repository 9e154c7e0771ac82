"""The forms of answers about the model and its learning; see `node.api.resources`."""

from __future__ import annotations

from typing import Any

from node.api.resources import Resource, StateProof

# --- the model ---------------------------------------------------------------------------


class ModelShard(Resource):
    index: int
    name: str
    root: str
    version: int
    data_bytes: int
    tile_roots: list[str]


class Model(Resource):
    root: str
    version: int
    height: int
    changed: int
    retained_from: int | None  # the lowest height from which on this node has every model
    model_version: str  # of the documents in force at that height
    spec: dict[str, Any]  # the model's of these documents
    data_bytes: int
    shards: list[ModelShard]


class ModelHead(Resource):
    root: str
    version: int
    height: int
    shards: int


class ShardRow(Resource):
    index: int
    name: str
    coding: str
    data_bytes: int
    tiles: int
    root: str
    version: int
    height: int
    held: bool


class Holdings(Resource):
    """Of this node. Tiles but for `_bytes`; the account names of `gone_custodians`."""

    model_tiles: int
    capacity_tiles: int
    replication_target: int
    kept_tiles: int
    missing_tiles: int
    beyond_capacity_tiles: int
    under_replicated_tiles: int
    gone_custodians: list[str]
    provided_keys: int
    store_bytes: int
    store_quota_bytes: int
    evicted_tiles: int
    no_room: str | None


class Shards(Resource):
    model: ModelHead
    holdings: Holdings
    shards: list[ShardRow]


class Level(Resource):
    level: int
    position: int
    slot: int
    children: list[str]
    node: str


class Path(Resource):
    index: int
    count: int
    siblings: list[str]
    levels: list[Level]


class Tensor(Resource):
    name: str
    dtype: str
    shape: list[int]
    start: int
    end: int


class TileRow(Resource):
    tile: int
    root: str
    bytes: int
    primary: str
    held: bool
    holders: int


class ShardVersion(Resource):
    version: int
    height: int
    round: int | None
    root: str


class Shard(ShardRow):
    model_root: str
    path: Path
    tensors: list[Tensor]
    tile_list: list[TileRow]
    versions: list[ShardVersion]


class Custodian(Resource):
    rank: int
    account: str
    node_id: str
    stake: int


class TilePath(Resource):
    tile: Path
    shard: Path


class TileVersion(Resource):
    version: int
    height: int
    round: int | None
    shard_root: str
    root: str
    deltas: list[str]


class TileCustody(Resource):
    replicas: int
    event: str | None
    subtiles: list[int]


class Holder(Resource):
    peer_id: str
    account: str | None


class TileHolders(Resource):
    replication_target: int
    kept_here: bool
    held_here: bool
    holders: int
    peers: list[Holder]


class Tile(Resource):
    shard: int
    name: str
    tile: int
    root: str
    bytes: int
    subtiles: int
    shard_root: str
    shard_bytes: int
    shard_tiles: int
    version: int
    model_root: str
    model_version: int
    shard_count: int
    held: bool
    holders: TileHolders
    epoch: int
    primary: str
    ranks: list[Custodian]
    custody: TileCustody
    path: TilePath
    state: StateProof
    versions: list[TileVersion]


class CustodianWeight(Resource):
    account: str
    weight: str  # an integer, in decimal digits
    capacity_tiles: int
    reputation: int  # in units of 2**-16
    latency_class: int


class FullCustodian(Resource):
    """A custodian without room for all that would fall to it, and the first tile that it refused:
    it refuses those from there on in the order of lots."""

    account: str
    shard: int
    tile: int
    lot: str
    refuses: bool  # this tile, too


class Meeting(Resource):
    """A probe of the tile that meets claims, and whose they are."""

    probe: int
    accounts: list[str]


class Election(Resource):
    shard: int
    name: str
    tile: int
    epoch: int
    seed: str
    ranks: list[Custodian]
    scale: int
    lot: str
    weights: list[CustodianWeight]
    full: list[FullCustodian]
    meetings: list[Meeting]
    state: StateProof


# --- learning ----------------------------------------------------------------------------


class Guard(Resource):
    verdict: str  # open, kept, rolled_back or unknown
    limit_ppm: int
    worse: int  # grains of stake, 0 while it is open
    fine: int
    stake: int


class RoundRow(Resource):
    number: int
    phase: str
    opened: int
    phase_height: int
    joined_count: int
    delta_count: int
    accepted_count: int
    base_root: str
    result_root: str
    loss_before: int
    loss_after: int
    loss_before_nats: float | None
    loss_after_nats: float | None
    guard: Guard | None


class Rounds(Resource):
    rounds: list[RoundRow]
    next: int | None


class DeltaRow(Resource):
    id: str
    round: int
    sender: str
    height: int
    status: str
    blob_bytes: int
    proven: bool | None
    steps: int | None
    density: int | None
    votes_yes: int
    votes_no: int
    votes_unavailable: int
    votes_cast: int
    gain: int | None
    gain_nats: float | None


class Deltas(Resource):
    deltas: list[DeltaRow]
    next: int | None


class AuditVote(Resource):
    auditor: str
    verdict: str
    state_hash: str


class UpdateRow(Resource):
    id: str
    round: int
    rank: int
    primary: str
    height: int
    tiles: int
    yes: list[str]
    no: list[str]
    provisional: bool


class Learner(Resource):
    account: str
    delta: str | None


class PhaseMark(Resource):
    phase: str
    height: int | None
    time_ms: int | None
    state: str


class Round(RoundRow):
    model_version: str
    phase_index: int
    deadline_height: int
    deadline_ms: int
    base_version: int
    seed: str
    jury_seed: str
    datasets: list[str]
    holdout: str
    joined: list[str]
    deltas: list[str]
    jurors: list[str]
    audited: str | None
    audit_segment: int
    auditors: list[str]
    audit_votes: list[AuditVote]
    accepted: list[str]
    rank: int
    tiles_open: int
    watchers: list[str]
    finished: bool
    current: bool
    phases: list[PhaseMark]
    learners: list[Learner]
    delta_list: list[DeltaRow]
    update_list: list[UpdateRow]


class JurorVote(Resource):
    juror: str
    commitment: str
    revealed: bool
    verdict: str | None
    gain: int | None
    gain_nats: float | None
    lower: int | None


class Audit(Resource):
    segment: int
    auditors: list[str]
    votes: list[AuditVote]


class Delta(DeltaRow):
    base_root: str
    commitment: str
    manifest_root: str
    blob: str
    salt: str
    manifest: dict[str, Any] | None
    votes: list[JurorVote]
    reward: int
    jurors: list[str]
    audit: Audit | None
    updates: list[UpdateRow]


class TileChange(Resource):
    shard: int
    name: str
    tile: int
    base_root: str
    new_root: str
    gram_root: str
    weights: list[int]
    weight_one: int


class Update(UpdateRow):
    deltas: list[str]
    watchers: list[str]  # none: everyone checks, or they are not drawn yet
    changes: list[TileChange]


class RoundLoss(Resource):
    round: int
    holdout: str
    result_root: str
    loss_before: int
    loss_after: int
    loss_before_nats: float | None
    loss_after_nats: float | None
    rolled_back: bool


class Losses(Resource):
    losses: list[RoundLoss]


class EvalVote(Resource):
    validator: str
    value: int
    value_nats: float | None


class Eval(Resource):
    model_root: str
    holdout: str
    loss: int
    loss_nats: float | None
    votes: list[EvalVote]


class Evals(Resource):
    evals: list[Eval]


class DatasetRow(Resource):
    id: str
    title: str
    license: str
    submitter: str
    height: int
    size_bytes: int
    documents: int
    status: str
    decided: int
    reports_count: int


class Datasets(Resource):
    datasets: list[DatasetRow]


class Report(Resource):
    auditor: str
    verdict: str
    score: int
    report_root: str


class Dataset(DatasetRow):
    manifest: str
    manifest_bytes: int
    split_seed: str
    reports: list[Report]
    rounds: list[RoundRow]
    deltas: list[DeltaRow]
