"""The chain at a node: the final state, the overlays of what is not final yet, and commits."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from chain.errors import BlockError, StorageError, invariant
from chain.execute import Executed, check_and_execute, check_header
from chain.hashes import VRF_INPUT, Hash32
from chain.params import Genesis
from chain.rules import Rules
from chain.state import State
from chain.store import ChainStore
from chain.tree import StateTree
from chain.types import Block, Certificate, Header, ValidatorSet, u64_be
from consensus import vrf
from node.genesis import GenesisChain

log = logging.getLogger("blyan.chain")
RECENT_TREES = 64  # heights whose state is kept in memory, for proofs
MAX_OVERLAYS = 256  # executed blocks that are not final

Finalized = Callable[[Block, Executed], None]


def vrf_input(parent: Header, view: int) -> bytes:
    """What a leader's VRF is evaluated on: the output before and the view (DESIGN 6)."""
    return VRF_INPUT.hash(parent.vrf_output, u64_be(parent.epoch), u64_be(view))


class ChainService:
    """Owns the store's write side. Everything runs on the main loop."""

    def __init__(self, start: GenesisChain, store: ChainStore, rules: Rules) -> None:
        self.genesis: Genesis = start.genesis
        self.genesis_tree = start.tree
        self.store, self.rules = store, rules
        self._listeners: list[Finalized] = []
        self._overlays: OrderedDict[Hash32, Executed] = OrderedDict()
        self._trees: OrderedDict[int, StateTree] = OrderedDict()
        if store.tip() is None:
            block = start.block
            changes = dict(start.tree.items())
            store.commit(block, block.hash(), None, (), changes)
        first = store.block_by_hash(start.block.hash())
        if first is None and store.first_height() == 0:
            raise StorageError(
                "the chain on disk starts from another genesis; use another --home, or the "
                "genesis file that this home was made with"
            )
        tip = store.tip()
        header = store.header(tip.height) if tip else None
        if tip is None or header is None:
            raise StorageError("the chain store has no tip after it was opened")
        self.tip, self.tip_hash = header, tip.hash
        self._tree = store.load_state()
        self._remember()
        self.executed_total = 0

    # --- reading --------------------------------------------------------------------------

    def state(self) -> State:
        """The latest final state; writes to it go nowhere."""
        return State(self._tree)

    def tree_at(self, height: int) -> StateTree | None:
        """The state after a recent final height."""
        return self._trees.get(height)

    def tree_after(self, block_hash: Hash32) -> StateTree | None:
        """The state after the final tip or after a block that was executed on top of it."""
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

    def finalized(self, callback: Finalized) -> None:
        """Call back after each commit, in height order."""
        self._listeners.append(callback)

    # --- executing ------------------------------------------------------------------------

    def execute(self, parent: Header, block: Block) -> Executed:
        """Check and execute a block on its parent's state. BlockError says why not."""
        block_hash = block.hash()
        known = self._overlays.get(block_hash)
        if known is not None:
            check_header(self.genesis, parent, block)  # this body may be another than that one's
            return known
        tree = self.tree_after(block.header.parent)
        if tree is None:
            raise BlockError("the parent's state is not here")
        self._check_vrf(tree, parent, block.header)
        done = check_and_execute(tree, self.genesis, self.rules, parent, block)
        self.keep(block_hash, done)
        return done

    def keep(self, block_hash: Hash32, done: Executed) -> None:
        """Remember an executed block until it is final or its rival is."""
        self.executed_total += 1
        self._overlays[block_hash] = done
        while len(self._overlays) > MAX_OVERLAYS:
            self._overlays.popitem(last=False)

    def _check_vrf(self, tree: StateTree, parent: Header, header: Header) -> None:
        members = State(tree).epoch(header.epoch).validators.members
        proposer = next((v for v in members if v.consensus_key == header.proposer), None)
        if proposer is None:
            raise BlockError("the proposer is not a validator of the epoch")
        output = vrf.verify(proposer.vrf_key, vrf_input(parent, header.view), header.vrf_proof)
        if output is None or output != header.vrf_output:
            raise BlockError("the VRF proof does not hold")

    # --- committing -----------------------------------------------------------------------

    def commit(self, block: Block, certificate: Certificate | None) -> None:
        """Make a final block the tip, durably, and tell everyone. It has been executed, and is
        once more if too many others were since. Raises BlockError for a body of another block."""
        block_hash = block.hash()
        invariant(block.header.parent == self.tip_hash, "a final block extends the tip")
        done = self.execute(self.tip, block)
        self.store.commit(block, block_hash, certificate, done.receipts, done.changes, done.events)
        self.tip, self.tip_hash, self._tree = block.header, block_hash, done.tree
        self._remember()
        self._drop_rivals()
        for listener in self._listeners:
            try:
                listener(block, done)
            except Exception:  # the block is final whatever a listener makes of it
                log.exception("a listener of final blocks failed at height %d", self.tip.height)

    def _remember(self) -> None:
        self._trees[self.tip.height] = self._tree
        while len(self._trees) > RECENT_TREES:
            self._trees.popitem(last=False)

    def _drop_rivals(self) -> None:
        """Overlays at or below the tip cannot become final any more."""
        stale = [h for h, done in self._overlays.items() if _height(done) <= self.tip.height]
        for block_hash in stale:
            del self._overlays[block_hash]


def _height(done: Executed) -> int:
    return State(done.tree).head.height
