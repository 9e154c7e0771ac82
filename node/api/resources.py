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


class TakenTx(Resource):
    id: str
    code: str
    reason: str


class Taken(Resource):
    """Of each transaction of a batch, in its order: taken (`ok`), or why it is refused."""

    txs: list[TakenTx]


# --- the node ----------------------------------------------------------------------------


class Loss(Resource):
    round: int
    nano_nats: int
    nats: float


class TilesHere(Resource):
    kept: int
    missing: int
    under_replicated: int
    bytes: int
    no_room: str | None


class Abstains(Resource):
    reason: str
    epoch: int
    until_height: int


class SnapshotSync(Resource):
    """The last snapshot that was tried. `trusted_from`: genesis, own chain or --trust."""

    height: int | None
    chunks_done: int
    chunks_total: int | None
    trusted_height: int | None
    trusted_hash: str | None
    trusted_from: str | None
    problem: str | None


class Sync(Resource):
    """`first_height`: the lowest block held; above 0 it is a snapshot's."""

    phase: str | None
    first_height: int | None
    snapshot: SnapshotSync | None


class Status(Resource):
    network: str
    chain_id: str
    version: str
    node_id: str
    account: str
    validator: bool
    height: int
    pruned_below: int
    block_hash: str
    state_root: str
    time_ms: int
    model_root: str
    model_version: int
    epoch: int
    view: int
    halted: str | None
    abstains: Abstains | None
    round: int
    phase: str
    loss: Loss | None
    peers: int
    synced: bool
    target_height: int | None
    sync: Sync
    uptime_s: int
    memory_mb: int
    mempool: int
    tiles: TilesHere
    addresses: list[str]
    api: str


class PeerLink(Resource):
    dialled_by: str | None
    rtt_ms: float | None
    bytes_in: int
    bytes_out: int


class Peer(Resource):
    peer_id: str
    addresses: list[str]
    connected: bool
    rtt_ms: float | None
    direction: str | None
    violations: float
    account: str | None
    link: PeerLink | None


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
    release_ms: int


class Jail(Resource):
    reason: str
    until: int
    until_ms: int
    over: bool


class SetMember(Resource):
    epoch: int
    stake: int


class NodeKeys(Resource):
    roles: list[str]
    capacity_tiles: int
    node_key: str
    consensus_key: str
    vrf_key: str
    node_id: str
    addresses: list[str]


class CustodianHistory(Resource):
    asked: int
    missed: int
    convicted: int
    last_missed: int | None


class Price(Resource):
    unit_us: int
    unit_bytes: int
    fee: int
    newcomer_factor: int
    tries: dict[str, int]


class Quota(Resource):
    trusted: bool
    limit: int
    used: int
    left: int
    resets: int | None
    resets_ms: int | None


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
    jail: Jail | None
    missed_turns: int
    sets: list[SetMember]
    unbonding: list[Unbonding]
    price: Price
    quota: Quota
    stamp: RecentBlock | None
    validator: bool
    node: NodeKeys | None
    custody: CustodianHistory | None
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
    missed_turns: int
    jailed: bool
    jail: Jail | None
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
