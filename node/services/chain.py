"""The chain at a node: the final state, the overlays of what is not final yet, and commits."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

from chain import limits
from chain import records as r
from chain.errors import BlockError, OrphanError, StorageError, invariant
from chain.execute import Executed, check_and_execute, check_header, evidence_root
from chain.hashes import VRF_INPUT, Hash32
from chain.params import Genesis
from chain.rules import Rules
from chain.state import State
from chain.store import ChainStore, FinalBlock
from chain.tree import StateTree
from chain.types import Block, Certificate, Header, Height, ValidatorSet, tx_root, u64_be
from consensus import vrf
from node.genesis import GenesisChain

log = logging.getLogger("blyan.chain")
MAX_OVERLAYS = 256  # executed blocks that are not final
_ANOTHER_GENESIS = (
    "the chain on disk starts from another genesis; use another --home, or the genesis file that "
    "this home was made with"
)

Finalized = Callable[[Block, Executed], None]


def vrf_input(parent: Header, epoch: int, view: int) -> bytes:
    """What a leader's VRF is evaluated on: the output before, and the block's own epoch and view,
    in which it was first proposed (docs/spec/vrf.md)."""
    return VRF_INPUT.hash(parent.vrf_output, u64_be(epoch), u64_be(view))


def body_matches(block: Block) -> bool:
    """Whether transactions and evidence are those that the header, and so the hash, commits to."""
    header = block.header
    return (
        tx_root(block.txs) == header.tx_root
        and evidence_root(block.evidence) == header.evidence_root
    )


class ChainService:
    """Owns the store's write side. Everything runs on the main loop."""

    def __init__(self, start: GenesisChain, store: ChainStore, rules: Rules) -> None:
        self.genesis: Genesis = start.genesis
        self.genesis_tree = start.tree
        self.store, self.rules = store, rules
        self._listeners: list[Finalized] = []
        self._overlays: OrderedDict[Hash32, Executed] = OrderedDict()
        self._blocks: dict[Hash32, Block] = {}  # executed above the tip, also without overlay
        if store.tip() is None:
            block = start.block
            changes = dict(start.tree.items())
            store.commit(block, block.hash(), None, (), changes)
        if store.height_of(start.block.hash()) is None and store.first_height() == 0:
            raise StorageError(_ANOTHER_GENESIS)
        tip = store.tip()
        header = store.header(tip.height) if tip else None
        if tip is None or header is None:
            raise StorageError("the chain store has no tip after it was opened")
        if header.chain_id != start.genesis.chain_id:  # it began with a snapshot
            raise StorageError(_ANOTHER_GENESIS)
        self.tip, self.tip_hash = header, tip.hash
        self._tree = store.load_state()
        self.executed_total = 0

    # --- reading --------------------------------------------------------------------------

    def state(self) -> State:
        """The latest final state; writes to it go nowhere."""
        return State(self._tree)

    def tree_at(self, height: int) -> StateTree | None:
        """The state after a final height; None if it is not kept any more."""
        return self._tree if height == self.tip.height else self.store.tree_at(height)

    def tree_after(self, block_hash: Hash32) -> StateTree | None:
        """The state after the final tip or after a block that was executed on top of it. What was
        pushed out meanwhile is executed again: which blocks those are differs between nodes, and
        no verdict on a block may depend on it."""
        lost: list[Block] = []
        while (tree := self._held_after(block_hash)) is None:
            block = self._blocks.get(block_hash)
            if block is None:
                return None
            lost.append(block)
            block_hash = block.header.parent
        for block in reversed(lost):
            parent_hash = block.header.parent
            parent = self.tip if parent_hash == self.tip_hash else self._blocks[parent_hash].header
            done = check_and_execute(tree, self.genesis, self.rules, parent, block)
            self.keep(block, done)
            tree = done.tree
        return tree

    def _held_after(self, block_hash: Hash32) -> StateTree | None:
        if block_hash == self.tip_hash:
            return self._tree
        done = self._overlays.get(block_hash)
        if done is None:
            return None
        self._overlays.move_to_end(block_hash)  # what others build on is not pushed out by them
        return done.tree

    def executed(self, block_hash: Hash32) -> Executed | None:
        return self._overlays.get(block_hash)

    def validators(self, epoch: int) -> ValidatorSet:
        return self.state().epoch(epoch).validators

    def validators_at(self, epoch: int) -> ValidatorSet | None:
        """The set of an epoch, None if the state has forgotten it or does not know it yet."""
        record = self.state().get(r.EpochRecord, r.epoch_key(epoch))
        return record.validators if record is not None else None

    def certified(self, height: int) -> tuple[tuple[Header, ...], Certificate] | None:
        """What shows that the block of a height is final: the headers from it to the first that has
        a finalization of its own, and that. None if not all of it is here."""
        headers = []
        for at in range(height, min(height + limits.MAX_LIGHT_HEADERS, self.tip.height + 1)):
            header = self.store.header(Height(at))
            if header is None:
                return None
            headers.append(header)
            certificate = self.store.certificate(Height(at))
            if certificate is not None:
                return tuple(headers), certificate
        return None

    def finalized(self, callback: Finalized) -> None:
        """Call back after each commit, in height order."""
        self._listeners.append(callback)

    # --- executing ------------------------------------------------------------------------

    def execute(self, parent: Header, block: Block) -> Executed:
        """Check and execute a block on its parent's state. BlockError says why not; OrphanError
        that the parent is unknown here, which says nothing about the block."""
        known = self._overlays.get(block.hash())
        if known is not None:
            check_header(self.genesis, parent, block)  # this body may be another than that one's
            return known
        tree = self.tree_after(block.header.parent)
        if tree is None:
            raise OrphanError(f"the state before block {block.header.height} is not here")
        self._check_vrf(tree, parent, block.header)
        done = check_and_execute(tree, self.genesis, self.rules, parent, block)
        self.keep(block, done)
        return done

    def keep(self, block: Block, done: Executed) -> None:
        """Remember an executed block until it is final or its rival is."""
        block_hash = block.hash()
        self.executed_total += 1
        self._blocks[block_hash] = block
        self._overlays[block_hash] = done
        while len(self._overlays) > MAX_OVERLAYS:
            self._overlays.popitem(last=False)

    def _check_vrf(self, tree: StateTree, parent: Header, header: Header) -> None:
        members = State(tree).epoch(header.epoch).validators.members
        proposer = next((v for v in members if v.consensus_key == header.proposer), None)
        if proposer is None:
            raise BlockError("the proposer is not a validator of the epoch")
        alpha = vrf_input(parent, header.epoch, header.view)
        output = vrf.verify(proposer.vrf_key, alpha, header.vrf_proof)
        if output is None or output != header.vrf_output:
            raise BlockError("the VRF proof does not hold")

    # --- committing -----------------------------------------------------------------------

    def commit(self, blocks: Sequence[Block], certificate: Certificate | None) -> None:
        """Make final blocks, the last of which `certificate` finalizes, the chain's end: durably,
        all or none, then tell everyone of each. They have been executed, and are once more if too
        many others were since. Raises BlockError for a body of another block."""
        items: list[tuple[FinalBlock, Executed]] = []
        parent, parent_hash = self.tip, self.tip_hash
        for block in blocks:
            invariant(block.header.parent == parent_hash, "a final block extends the one before")
            done = self.execute(parent, block)
            parent, parent_hash = block.header, block.hash()
            proof = certificate if block is blocks[-1] else None
            item = FinalBlock(
                *(block, parent_hash, proof, done.receipts, done.changes, done.events), done.tree
            )
            items.append((item, done))
        self.store.commit_all([item for item, _ in items])
        for item, done in items:
            self.tip, self.tip_hash, self._tree = item.block.header, item.block_hash, done.tree
            self._drop_rivals()
            self._tell(item.block, done)

    def _tell(self, block: Block, done: Executed) -> None:
        for listener in self._listeners:
            try:
                listener(block, done)
            except Exception:  # the block is final whatever a listener makes of it
                log.exception("a listener of final blocks failed at height %d", self.tip.height)

    def _drop_rivals(self) -> None:
        """What is at or below the tip cannot become final any more."""
        stale = [h for h, b in self._blocks.items() if b.header.height <= self.tip.height]
        for block_hash in stale:
            del self._blocks[block_hash]
            self._overlays.pop(block_hash, None)
