"""The forms of the API's answers, for OpenAPI and for the tests that hold `Query` to them.

Answers are sent as `Query` makes them; these classes describe them and refuse unknown fields, so
a field that is added on one side only fails a test. Bytes are lower-case hex, accounts addresses,
amounts grains, losses nano-nats per byte with a `…_nats` float beside them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Resource(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorBody(Resource):
    code: str
    message: str


class Error(Resource):
    error: ErrorBody


class Id(Resource):
    id: str


# --- the node ----------------------------------------------------------------------------


class Loss(Resource):
    round: int
    nano_nats: int
    nats: float


class Status(Resource):
    network: str
    chain_id: str
    version: str
    node_id: str
    account: str
    validator: bool
    height: int
    block_hash: str
    state_root: str
    time_ms: int
    model_root: str
    model_version: int
    epoch: int
    view: int
    halted: str | None
    round: int
    phase: str
    loss: Loss | None
    peers: int
    synced: bool
    target_height: int | None
    uptime_s: int
    memory_mb: int
    mempool: int
    addresses: list[str]
    api: str


class Peer(Resource):
    peer_id: str
    addresses: list[str]
    connected: bool
    rtt_ms: float | None
    direction: str | None
    violations: float
    account: str | None


class Peers(Resource):
    node_id: str
    addresses: list[str]
    peers: list[Peer]


class WaitingTx(Resource):
    id: str
    kind: str
    sender: str | None
    nonce: int | None
    fee: int | None
    bytes: int


class Mempool(Resource):
    size: int
    bytes: int
    txs: list[WaitingTx]


class Hit(Resource):
    kind: str
    id: str
    title: str
    url: str


# --- blocks and transactions -------------------------------------------------------------


class BlockRow(Resource):
    height: int
    hash: str
    time_ms: int
    proposer: str
    proposer_account: str | None
    view: int
    epoch: int
    tx_count: int
    size_bytes: int


class Blocks(Resource):
    blocks: list[BlockRow]
    next: int | None


class TxRow(Resource):
    number: int
    id: str
    height: int
    position: int
    time_ms: int
    sender: str | None
    kind: str
    nonce: int | None
    code: str


class Txs(Resource):
    txs: list[TxRow]
    next: int | None


class BlockTx(TxRow):
    reason: str
    bytes: int


class Certificate(Resource):
    kind: str
    epoch: int
    view: int
    block_hash: str
    indices: list[int]
    signers: list[str]
    weight: int
    total: int


class Block(Resource):
    height: int
    hash: str
    version: int
    chain_id: str
    epoch: int
    view: int
    parent: str
    time_ms: int
    proposer: str
    proposer_account: str | None
    tx_root: str
    state_root: str
    validators_hash: str
    next_validators_hash: str
    vrf_output: str
    vrf_proof: str
    evidence_root: str
    size_bytes: int
    tx_count: int
    txs: list[BlockTx]
    evidence: list[dict[str, Any]]
    certificate: Certificate | None
    final_by: int | None


class Stamp(Resource):
    height: int
    work: int


class Tx(Resource):
    id: str
    status: str
    height: int | None
    position: int | None
    block_hash: str | None
    time_ms: int | None
    code: str | None
    reason: str | None
    kind: str | None
    sender: str | None
    signer: str | None
    nonce: int | None
    fee: int | None
    stamp: Stamp | None
    payload: dict[str, Any] | None
    bytes: int | None


class RecentBlock(Resource):
    height: int
    hash: str


class Unbonding(Resource):
    amount: int
    release: int


class NodeKeys(Resource):
    roles: list[str]
    capacity_tiles: int
    node_key: str
    consensus_key: str
    vrf_key: str
    node_id: str
    addresses: list[str]


class Account(Resource):
    address: str
    key: str
    known: bool
    is_pool: bool
    balance: int
    bonded: int
    nonce: int
    next_nonce: int
    merit: int
    jailed: bool
    unbonding: list[Unbonding]
    stamp_bits: int
    stamp: RecentBlock | None
    validator: bool
    node: NodeKeys | None
    txs: list[TxRow]
    next: int | None


class Validator(Resource):
    index: int
    account: str
    consensus_key: str
    vrf_key: str
    node_id: str
    stake: int
    share_permille: int
    signed: int
    proposed: int
    jailed: bool
    own: bool


class Validators(Resource):
    epoch: int
    seed: str
    total_stake: int
    window: int
    validators: list[Validator]


class StateLeaf(Resource):
    path: str
    value_hash: str


class StateProof(Resource):
    key: str
    value: str | None
    proof: str
    siblings: list[str]
    other: StateLeaf | None
    height: int
    block_hash: str
    state_root: str
    header: str
    certificate: str | None


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
    spec: dict[str, Any]
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


class Shards(Resource):
    model: ModelHead
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
    epoch: int
    primary: str
    ranks: list[Custodian]
    path: TilePath
    state: StateProof
    versions: list[TileVersion]


class Election(Resource):
    shard: int
    name: str
    tile: int
    epoch: int
    seed: str
    ranks: list[Custodian]


# --- learning ----------------------------------------------------------------------------


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
    changes: list[TileChange]


class RoundLoss(Resource):
    round: int
    holdout: str
    result_root: str
    loss_before: int
    loss_after: int
    loss_before_nats: float | None
    loss_after_nats: float | None


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
