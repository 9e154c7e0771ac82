"""The state machine: one block on one state (docs/spec/state.md).

`execute` is pure and total: a refused transaction changes nothing but its own receipt, and only
a block that breaks the header's rules raises (BlockError), before anything is executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chain import (
    attendance,
    custody,
    datasets,
    governance,
    hosting,
    jail,
    latency,
    ledger,
    limits,
    phases,
    quotas,
    rounds,
    stamps,
    standings,
)
from chain import records as r
from chain.admission import check_transaction
from chain.codec import encode
from chain.compiled import maker
from chain.costs import NO_ROOM, Room, Spend, StampClass, spend, unreadable
from chain.errors import BlockError, DecodeError, TxError, VerifyError, invariant
from chain.hashes import EVENT_SEED, EVIDENCE, TX, ZERO_HASH, Hash32
from chain.params import Genesis
from chain.receipts import OK, Receipt
from chain.rules import Rules
from chain.signed import signed
from chain.state import REWARD_POOL, Event, State
from chain.transactions import (
    Announce,
    Attest,
    AuditReport,
    Bond,
    Custody,
    CustodyDispute,
    CustodyOpening,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    GovernanceVote,
    JoinRound,
    LatencyReport,
    PodlManifest,
    PolVote,
    Propose,
    SubmitEvidence,
    TileUpdate,
    Transaction,
    Transfer,
    Unbond,
    Unjail,
    decode_transaction,
)
from chain.tree import StateTree
from chain.types import (
    HEADER_VERSION,
    Block,
    Epoch,
    EvidenceItem,
    Header,
    Height,
    PubKey,
    ShardIndex,
    TimeMs,
    TxId,
    View,
    tx_root,
)

_receipt = maker(Receipt)


@dataclass(frozen=True, slots=True)
class Context:
    """What execution may know of the block: its header less what execution gives."""

    height: Height
    time_ms: TimeMs
    epoch: Epoch
    view: View
    parent: Hash32
    proposer: PubKey
    vrf_output: bytes

    @classmethod
    def of(cls, header: Header) -> Context:
        return cls(
            header.height,
            header.time_ms,
            header.epoch,
            header.view,
            header.parent,
            header.proposer,
            header.vrf_output,
        )


@dataclass(frozen=True, slots=True)
class GenesisShard:
    """A shard of the genesis model: everything the state keeps of it."""

    name: str
    data_bytes: int
    root: Hash32
    tile_roots: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class Executed:
    """A block's effect. `changes` are the state's new key values, None for a deleted key."""

    tree: StateTree
    changes: Mapping[bytes, bytes | None]
    receipts: tuple[Receipt, ...]
    events: tuple[Event, ...]
    validators_hash: Hash32
    next_validators_hash: Hash32
    waits: bool  # leaders should propose at once (a seed is pending)


def genesis_tree(
    genesis: Genesis, shards: Sequence[GenesisShard], rules: Rules
) -> tuple[StateTree, Header]:
    """The state and header at height 0. Every node computes the same from the file alone."""
    state = State(StateTree.empty())
    root = rules.model_root([s.root for s in shards])
    state.put(
        r.HEAD,
        r.Head(Height(0), genesis.time_ms, Epoch(0), View(0), 0, (), ()),
    )
    state.put(r.MODEL, r.ModelRecord(root, 0, Height(0), len(shards)))
    subtiles = 0
    for index, shard in enumerate(shards):
        record = r.ShardRecord(
            ShardIndex(index), shard.name, shard.data_bytes, shard.root, 0, Height(0), subtiles
        )
        subtiles += custody.subtile_count(shard.data_bytes)
        state.put(r.shard_key(index), record)
        state.put(r.tiles_key(index), r.TileRoots(shard.tile_roots))
    rounds.put_round(state, phases.first_round(root))
    state.put_account(REWARD_POOL, balance=genesis.reward_pool_grains)
    for allocation in genesis.accounts:
        held = state.account(allocation.account).balance
        state.put_account(allocation.account, balance=held + allocation.grains)
    for v in genesis.validators:
        state.put_account(v.account, bonded=v.stake)
        state.put(
            r.node_key(v.account),
            r.NodeRecord(v.account, 2, 0, v.node_key, v.consensus_key, v.vrf_key, v.node_id, ()),
        )
        state.put(r.consensus_key(v.consensus_key), r.KeyOwner(v.account))
    validators = genesis.validator_set
    for number in (0, 1):
        seed = EVENT_SEED.hash(genesis.chain_id, bytes([number]))
        standings.put_frozen(state, genesis.params, Epoch(number), validators, seed)
    standings.put_cutoffs(state, genesis.params, rules, Epoch(0))
    tree = state.commit()
    header = Header(
        1,
        genesis.chain_id,
        Epoch(0),
        View(0),
        Height(0),
        ZERO_HASH,
        genesis.time_ms,
        PubKey(bytes(32)),
        tx_root(()),
        tree.root,
        validators.hash(),
        validators.hash(),
        b"",
        b"",
        EVIDENCE.hash(),
    )
    return tree, header


def evidence_root(items: Sequence[EvidenceItem]) -> Hash32:
    return EVIDENCE.hash(*(encode(item) for item in items))


def check_header(genesis: Genesis, parent: Header, block: Block) -> None:
    """What can be said of a block without executing it. BlockError names the rule."""
    header, chain_id = block.header, genesis.chain_id
    if header.version != HEADER_VERSION or header.chain_id != chain_id:
        raise BlockError("the block is of another chain or version")
    if header.height != parent.height + 1 or header.parent != parent.hash():
        raise BlockError("the block does not follow its parent")
    if header.epoch != epoch_of(genesis, header.height):
        raise BlockError("the epoch does not belong to the height")
    if header.time_ms <= parent.time_ms:
        raise BlockError("the time is not after the parent's")
    if header.time_ms > limits.MAX_TIME_MS:
        raise BlockError("the time is beyond the protocol's range")
    if header.tx_root != tx_root(block.txs):
        raise BlockError("the transactions are not those of the header")
    if header.evidence_root != evidence_root(block.evidence):
        raise BlockError("the evidence is not that of the header")
    if sum(len(encode(item)) for item in block.evidence) > limits.MAX_EVIDENCE_BYTES:
        raise BlockError(f"more than {limits.MAX_EVIDENCE_BYTES} bytes of evidence")


def epoch_of(genesis: Genesis, height: int) -> Epoch:
    """Epoch e holds the heights e*n+1 … (e+1)*n; genesis belongs to epoch 0."""
    return Epoch(max(height - 1, 0) // genesis.params.epoch_blocks)


class Execution:
    """One block being executed, transaction by transaction: the proposer tries what fits,
    a validator replays what it was sent. Both end with `finish`."""

    def __init__(self, tree: StateTree, genesis: Genesis, rules: Rules, ctx: Context) -> None:
        self._genesis, self._rules, self._ctx = genesis, rules, ctx
        self._state = State(tree)
        self._params = self._state.params(genesis.params)
        self._receipts: list[Receipt] = []
        self._room = Room(self._params.block_cost_us)
        self._tried: tuple[TxId, Spend] | None = None  # what the last one tried would take
        self._stamped: Counter[StampClass] = Counter()  # units that stamps have paid for
        head = self._state.head
        vrf = EVENT_SEED.hash(ctx.vrf_output)
        self._vrf = vrf
        self._state.put(
            r.HEAD,
            r.Head(
                ctx.height,
                ctx.time_ms,
                ctx.epoch,
                ctx.view,
                head.round,
                (*head.recent_vrf, vrf)[-64:],
                (*head.recent_parents, ctx.parent)[-256:],
            ),
        )
        attendance.count(self._state, rules, head, ctx.proposer)
        validators = self._state.validators()
        self._fees_to = next(
            (v.account for v in validators if v.consensus_key == ctx.proposer), REWARD_POOL
        )

    def evidence(self, items: Sequence[EvidenceItem]) -> None:
        """Evidence in a block must hold, or the block is refused: its proposer had to check. What
        does not changes nothing."""
        for item in items:
            mark = self._state.mark()
            try:
                ledger.slash(self._state, self._params, self._genesis.chain_id, self._rules, item)
            except (TxError, VerifyError) as error:
                self._state.undo(mark)
                raise BlockError(f"evidence in the block does not hold: {error}") from None

    def apply(self, raw: bytes) -> Receipt:
        """Execute one transaction of a block and keep its receipt. BlockError, before more than its
        form is looked at, if the block has no room for it."""
        receipt = self.try_apply(raw)
        if receipt.code in NO_ROOM:
            raise BlockError(f"the block is over its budget: {receipt.reason}")
        self.keep(receipt)
        return receipt

    def try_apply(self, raw: bytes) -> Receipt:
        """Execute one transaction; if it is refused nothing changes."""
        mark = self._state.mark()
        tx_id = TxId(TX.hash(raw))  # also of bytes that are no transaction: they are stored by it
        known = signed.get(tx_id)
        try:
            tx = known or decode_transaction(raw)
            asked = spend(tx.payload, len(raw), stamped=tx.stamp is not None)
        except DecodeError as error:
            return self._unreadable(tx_id, len(raw), error)
        self._tried = tx_id, asked
        try:
            self._room.check(asked)
            self._transaction(tx, tx_id, len(raw), is_signed=known is not None)
        except (TxError, DecodeError, VerifyError) as error:
            self._state.undo(mark)
            return Receipt(tx_id, error.code, str(error))
        return _receipt(tx_id, OK, "")

    def _unreadable(self, tx_id: TxId, size: int, error: DecodeError) -> Receipt:
        """Bytes that are no transaction take their room of a block as well."""
        asked = unreadable(size)
        self._tried = tx_id, asked
        try:
            self._room.check(asked)
        except TxError as full:
            return Receipt(tx_id, full.code, str(full))
        return Receipt(tx_id, error.code, str(error))

    def judge(self, raw: bytes) -> Receipt:
        """What `try_apply` would say; nothing changes."""
        mark = self._state.mark()
        try:
            return self.try_apply(raw)
        finally:
            self._state.undo(mark)

    def next_nonce(self, account: PubKey) -> int:
        """The nonce that an account's next transaction in this block has."""
        return self._state.account(account).nonce

    def keep(self, receipt: Receipt) -> None:
        """Count the last of `try_apply` into the block (the proposer's choice)."""
        invariant(
            self._tried is not None and self._tried[0] == receipt.tx_id,
            "what is kept was tried last",
        )
        if self._tried is not None:
            asked = self._tried[1]
            self._room.take(asked)
            if receipt.ok and asked.stamped:
                self._stamped[asked.kind] += asked.units
        self._tried = None
        self._state.keep()
        self._receipts.append(receipt)

    def finish(self) -> Executed:
        """Close the block: votes, epochs, unbonding, the round; then the root."""
        state, params = self._state, self._params
        ledger.release_unbonded(state, params, custody.at_stake(state))
        governance.advance(state, self._genesis, self._rules)
        # What an epoch's last block prepares is for the next, and by the next one's parameters.
        ledger.turn_epoch(state, state.params(self._genesis.params), self._rules, self._vrf)
        custody.advance(state, params, self._rules)
        phases.advance(state, params, self._rules)
        stamps.advance(state, params, self._stamped)
        quotas.sweep(state, params)
        hosting.sweep(state, params)
        epoch = self._ctx.epoch
        changes = state.changes
        tree = state.commit(changes)
        return Executed(
            tree,
            changes,
            tuple(self._receipts),
            tuple(state.events),
            state.epoch(epoch).validators.hash(),
            state.epoch(epoch + 1).validators.hash(),
            phases.waits_for_blocks(state),
        )

    # --- one transaction ---------------------------------------------------------------

    def _transaction(self, tx: Transaction, tx_id: TxId, size: int, *, is_signed: bool) -> None:
        state = self._state
        check_transaction(state, self._genesis, tx, is_signed=is_signed, size=size)
        signed.add(tx_id, tx, size)
        sender = tx.sender
        self._dispatch(tx, tx_id, sender)
        if tx.stamp is not None:
            quotas.count(state, self._params, sender)
        state.count(sender, tx.fee, self._fees_to)

    def _dispatch(self, tx: Transaction, tx_id: TxId, sender: PubKey) -> None:
        state, params, rules = self._state, self._params, self._rules
        chain_id = self._genesis.chain_id
        match tx.payload:
            case Transfer() as p:
                ledger.transfer(state, sender, p)
            case Bond() as p:
                ledger.bond(state, params, sender, p)
            case Unbond() as p:
                ledger.unbond(state, params, sender, p)
            case Unjail():
                jail.unjail(state, sender)
            case Announce() as p:
                ledger.announce(state, chain_id, sender, p)
            case JoinRound() as p:
                rounds.join(state, params, sender, p)
            case DeltaCommit() as p:
                rounds.commit(state, tx_id, sender, p)
            case PodlManifest() as p:
                rounds.manifest(state, sender, p)
            case DeltaReveal() as p:
                rounds.reveal(state, chain_id, sender, p)
            case PolVote() as p:
                rounds.pol_vote(state, chain_id, rules, sender, p)
            case TileUpdate() as p:
                rounds.tile_update(state, rules, tx_id, sender, p)
            case Attest() as p:
                rounds.attest(state, sender, p)
            case DatasetSubmit() as p:
                datasets.submit(state, params, sender, p)
            case AuditReport() as p:
                datasets.audit(state, sender, p)
            case Custody() as p:
                custody.commit(state, sender, p)
            case CustodyDispute() as p:
                custody.dispute(state, params, sender, p)
            case CustodyOpening() as p:
                custody.opening(state, params, rules, sender, p)
            case LatencyReport() as p:
                latency.report(state, sender, p)
            case Propose() as p:
                governance.propose(state, self._genesis, rules, tx_id, sender, p)
            case GovernanceVote() as p:
                governance.vote(state, sender, p)
            case SubmitEvidence() as p:
                ledger.slash(state, params, chain_id, rules, p.evidence)
            case other:
                raise TxError(
                    "not_active", f"{type(other).__name__} is not in force in this version"
                )


def check_and_execute(
    tree: StateTree, genesis: Genesis, rules: Rules, parent: Header, block: Block
) -> Executed:
    """A validator's view of a proposal: header rules, execution, and the roots compared."""
    check_header(genesis, parent, block)
    execution = Execution(tree, genesis, rules, Context.of(block.header))
    execution.evidence(block.evidence)
    for raw in block.txs:
        execution.apply(raw)
    done = execution.finish()
    header = block.header
    if done.tree.root != header.state_root:
        raise BlockError("execution gives another state root")
    if done.validators_hash != header.validators_hash:
        raise BlockError("the validator set is not the epoch's")
    if done.next_validators_hash != header.next_validators_hash:
        raise BlockError("the next validator set is not the state's")
    return done


def seal_header(
    ctx: Context,
    genesis: Genesis,
    block_txs: tuple[bytes, ...],
    evidence: tuple[EvidenceItem, ...],
    done: Executed,
    vrf_proof: bytes,
) -> Header:
    """The header of a block that a leader has just executed."""
    return Header(
        HEADER_VERSION,
        genesis.chain_id,
        ctx.epoch,
        ctx.view,
        ctx.height,
        ctx.parent,
        ctx.time_ms,
        ctx.proposer,
        tx_root(block_txs),
        done.tree.root,
        done.validators_hash,
        done.next_validators_hash,
        ctx.vrf_output,
        vrf_proof,
        evidence_root(evidence),
    )
