"""A simulated network whose validator sets come from the chain's own state machine.

Blocks are executed by `chain/execute.py` with the real rules, so who missed a turn, who is jailed
for it and which set freezes is decided by the code that a node runs (chain/attendance.py,
chain/jail.py, chain/validator_sets.py). Only the VRF is a hash.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chain.codec import encode
from chain.execute import Context, Execution, GenesisShard, genesis_tree, seal_header
from chain.hashes import BLOCK, Hash32
from chain.records import EpochRecord
from chain.state import State
from chain.transactions import Unjail
from chain.types import (
    Block,
    Epoch,
    Header,
    Height,
    PubKey,
    Stake,
    TimeMs,
    View,
    u64_be,
)
from consensus.simplex.messages import EpochContext
from tests.kit.machine import Machine
from tests.sim.ledger import CHAIN_ID, KeySigner, Law, name
from tiles import merkle

_ROOTS = tuple(merkle.tile_roots(bytes(64)))  # of a model that nobody trains


class ChainLaw(Law):
    """What every node of one network computes, computed once: the states after all blocks that
    anyone has executed, and what the final ones say of sets and seeds."""

    def __init__(self, seed: int, stakes: Sequence[int], epoch_blocks: int, **params: Any):
        super().__init__(seed, len(stakes), epoch_blocks)
        names = tuple(f"validator-{i}/account" for i in range(len(stakes)))
        self._machine = Machine(len(stakes), names, epoch_blocks=epoch_blocks, **params)
        self.validators = sorted(self._machine.validators, key=lambda k: k.consensus.public)
        self.signers = [KeySigner(k.consensus.seed) for k in self.validators]
        self._seats = {k.account.public: seat for seat, k in enumerate(self.validators)}
        found = {v.account: v for v in self._machine.genesis.validators}
        self._genesis = replace(
            self._machine.genesis,
            chain_id=CHAIN_ID,
            validators=tuple(
                replace(found[k.account.public], node_id=name(seat), stake=Stake(stake))
                for seat, (k, stake) in enumerate(zip(self.validators, stakes, strict=True))
            ),
        )
        self._machine.genesis = self._genesis
        self._rules = self._machine.rules
        shard = GenesisShard("s0", 64, merkle.shard_root(_ROOTS, 64), _ROOTS)
        tree, self.final = genesis_tree(self._genesis, (shard,), self._rules)
        self._genesis_block = Block(self.final, (), ())
        self._trees = {tree.root: tree}
        self._roots: dict[Hash32, Hash32] = {}  # after each block, by its hash
        self._records: dict[Epoch, EpochRecord] = {}
        self.returning: set[int] = set()  # seats that send `unjail`
        self.watches: list[Callable[[Header], None]] = []  # told of each final block
        self._note_epoch(Epoch(0))

    def genesis(self) -> Block:
        return self._genesis_block

    def _context(self, epoch: Epoch) -> EpochContext:
        record = self._records[epoch]  # known once an honest node has the block before it

        @functools.cache
        def leader_of(view: View) -> int:
            return self._rules.leader(record.seed, view, record.validators)

        return EpochContext(epoch, record.validators, leader_of)

    def block(
        self, parent: Header, parent_hash: Hash32, view: View, proposer: PubKey,
        txs: tuple[bytes, ...], time_ms: int,
    ) -> Block:  # fmt: skip
        height = Height(parent.height + 1)
        output = 2 * BLOCK.hash(u64_be(self.seed), parent.vrf_output, u64_be(view))
        ctx = Context(
            height, TimeMs(max(parent.time_ms + 1, time_ms)), self.epoch_of(height), view,
            parent_hash, proposer, output,
        )  # fmt: skip
        done = self._executed(parent.state_root, ctx, txs).finish()
        return Block(seal_header(ctx, self._genesis, txs, (), done, b""), txs, ())

    def root_after(self, state_root: Hash32, block: Block) -> Hash32:
        block_hash = block.hash()
        if block_hash not in self._roots:
            done = self._executed(state_root, Context.of(block.header), block.txs).finish()
            self._trees[done.tree.root] = done.tree
            self._roots[block_hash] = done.tree.root
        return self._roots[block_hash]

    def _executed(self, state_root: Hash32, ctx: Context, txs: Sequence[bytes]) -> Execution:
        execution = Execution(self._trees[state_root], self._genesis, self._rules, ctx)
        for raw in txs:
            execution.apply(raw)
        return execution

    def transactions(self, dice: random.Random) -> tuple[bytes, ...]:
        """What anyone says, and `unjail` of those who want to come back."""
        self._machine.tree = self._trees[self.final.state_root]
        jailed = self.jailed()
        wanted = [self.validators[seat].account for seat in sorted(self.returning & jailed)]
        back = (encode(self._machine.tx(account, Unjail())) for account in wanted)
        return (*super().transactions(dice), *back)

    # --- what is final -------------------------------------------------------------

    def committed(self, block: Block) -> None:
        self.final = block.header
        if self.is_last(block.header.height):
            self._note_epoch(Epoch(block.header.epoch + 1))
        for watch in self.watches:
            watch(block.header)

    def _note_epoch(self, epoch: Epoch) -> None:
        """An epoch's set and seed do not change any more once it begins."""
        self._records[epoch] = self.state().epoch(epoch)

    def state(self) -> State:
        return State(self._trees[self.final.state_root])

    def members(self, ahead: int = 0) -> frozenset[int]:
        """Seats in the set of the epoch of the last final block, or of one that is frozen."""
        record = self.state().epoch(self.final.epoch + ahead)
        return frozenset(self._seats[v.account] for v in record.validators.members)

    def jailed(self) -> frozenset[int]:
        """Seats that are in jail, whatever sets still count them."""
        state = self.state()
        found = (a for a in self._seats if state.account(a).jailed)
        return frozenset(self._seats[account] for account in found)

    def leading(self, epoch: Epoch, view: View) -> int:
        """The seat of a view's leader."""
        context = self.context(epoch)
        return self._seats[context.validators.members[context.leader_of(view)].account]
