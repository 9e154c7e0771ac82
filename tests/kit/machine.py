"""A state machine without consensus: deterministic keys, a tiny genesis, blocks one after another.

The real `Execution` and the real rules; only the agreement on blocks is left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chain import records as r
from chain import stamps
from chain.codec import decode, encode
from chain.execute import Context, Executed, Execution, GenesisShard, genesis_tree
from chain.hashes import BLOCK, Hash32
from chain.params import parse_genesis
from chain.receipts import Receipt
from chain.state import State
from chain.transactions import Payload, Transaction
from chain.types import Epoch, Grains, Height, PubKey, TimeMs, View
from node.rules import ProtocolRules
from node.stamping import spend_of
from tiles import merkle
from wallet.keys import KeyPair, Keys
from wallet.signing import make_stamp, sign_transaction

TEMPLATE = Path(__file__).parents[2] / "genesis.json"
STAKE = 10**12


def key(name: str) -> KeyPair:
    """A key pair that every run derives alike from a name."""
    return KeyPair.from_seed(hashlib.sha256(name.encode()).digest())


def keys(name: str) -> Keys:
    return Keys(*(key(f"{name}/{role}") for role in ("account", "node", "consensus", "vrf")))


def leaving(account: PubKey, release: int, amount: int) -> r.Unbonding:
    """Stake on its way out of which nothing can be shown any more: only its height counts."""
    return r.Unbonding(account, Grains(amount), Height(release), TimeMs(0), Epoch(2**32))


class Machine:
    """`block(payloads)` executes one block and moves time on by `step_ms`."""

    def __init__(
        self,
        validators: int = 4,
        funded: tuple[str, ...] = (),
        step_ms: int = 1000,
        shards: tuple[bytes, ...] = (bytes(64 * 4), bytes(range(256)) * 4),
        **params: Any,
    ) -> None:
        """Custody events come only if `custody_interval_blocks` is given. Evidence expires and
        stake is paid out as soon as their heights allow, unless ages in ms are given."""
        document = json.loads(TEMPLATE.read_text())
        document["params"].update(
            {"stamp_bits": 4, "stamp_new_account_bits": 1, "custody_interval_blocks": 10**9}
            | {"seed_blocks": min(8, params.get("epoch_blocks", 8))}
            | {"evidence_blocks": params.get("epoch_blocks", 128), "evidence_ms": 1000}
            | {"unbonding_ms": 2000}
            | params
        )
        self.validators = [keys(f"validator-{i}") for i in range(validators)]
        document["validators"] = [
            {
                "account": k.account.public.hex(),
                "node_key": k.node.public.hex(),
                "consensus_key": k.consensus.public.hex(),
                "vrf_key": k.vrf.public.hex(),
                "node_id": f"peer-{i}",
                "stake": STAKE,
            }
            for i, k in enumerate(self.validators)
        ]
        document["accounts"] = [
            {"account": key(name).public.hex(), "grains": 10**10} for name in funded
        ]
        self.genesis = parse_genesis(json.dumps(document))
        self.rules = ProtocolRules()
        self.shards = list(shards)
        rooted = []
        for i, data in enumerate(self.shards):
            roots = merkle.tile_roots(data)
            rooted.append(
                GenesisShard(f"s{i}", len(data), merkle.shard_root(roots, len(data)), roots)
            )
        self.tree, self.genesis_header = genesis_tree(self.genesis, rooted, self.rules)
        self.height, self.time_ms, self.step_ms = 0, 1_000_000, step_ms
        self.parent: Hash32 = self.genesis_header.hash()
        self.done: Executed | None = None

    @property
    def state(self) -> State:
        return State(self.tree)

    def tx(
        self,
        sender: KeyPair,
        payload: Payload,
        *,
        nonce: int | None = None,
        fee: int | None = None,
        stamp: bool = False,
        account: PubKey | None = None,
    ) -> Transaction:
        """A signed transaction; `account` is the sender when `sender` is its node key."""
        owner = account or sender.public
        number = self.state.account(owner).nonce if nonce is None else nonce
        work = None
        least = self.genesis.params.min_fee_grains * spend_of(payload).units
        if stamp:
            asked = spend_of(payload)
            tries = stamps.needed(self.state, self.genesis.params, owner, asked, self.height)
            work = make_stamp(
                chain_id=self.genesis.chain_id,
                sender=owner,
                nonce=number,
                height=Height(self.height),
                block_hash=self.parent,
                payload=payload,
                difficulty=tries,
            )
        return sign_transaction(
            sender,
            chain_id=self.genesis.chain_id,
            nonce=number,
            payload=payload,
            fee=Grains(0 if stamp or account else least if fee is None else fee),
            stamp=work,
            sender=account,
        )

    def duty(self, validator: Keys, payload: Payload, ahead: int = 0) -> bytes:
        """A validator's duty, signed by its node key; `ahead` duties of it stand before."""
        account = validator.account.public
        nonce = self.state.account(account).nonce + ahead
        return encode(self.tx(validator.node, payload, nonce=nonce, account=account))

    def block(self, *raws: bytes) -> tuple[Receipt, ...]:
        """Execute one block of encoded transactions; their receipts."""
        self.height += 1
        self.time_ms += self.step_ms
        epoch = Epoch((self.height - 1) // self.genesis.params.epoch_blocks)
        vrf = hashlib.sha512(b"vrf" + self.height.to_bytes(8, "big")).digest()
        view, proposer = self.turn(epoch)
        ctx = Context(
            Height(self.height),
            TimeMs(self.time_ms),
            epoch,
            view,
            self.parent,
            proposer,
            vrf,
        )
        execution = Execution(self.tree, self.genesis, self.rules, ctx)
        for raw in raws:
            execution.apply(raw)
        self.done = execution.finish()
        self.tree = self.done.tree
        self.parent = BLOCK.hash(self.parent, self.height.to_bytes(8, "big"))
        return self.done.receipts

    def turn(self, epoch: Epoch) -> tuple[View, PubKey]:
        """View and proposer of the next block: every view has one, and they take turns."""
        view = View((self.height - 1) % self.genesis.params.epoch_blocks + 1)
        return view, self.validators[self.height % len(self.validators)].consensus.public

    def ok(self, *raws: bytes) -> None:
        """Execute a block all of whose transactions must succeed."""
        for receipt in self.block(*raws):
            if not receipt.ok:
                raise AssertionError(f"{receipt.code}: {receipt.reason}")

    def grains(self) -> int:
        """Everything there is: balances, bonds, and what is being unbonded."""
        accounts = [decode(r.Account, raw) for _, raw in self.tree.items(b"acct/")]
        waiting = [decode(r.Unbonding, raw) for _, raw in self.tree.items(b"unbd/")]
        return sum(a.balance + a.bonded for a in accounts) + sum(w.amount for w in waiting)


class ElectedMachine(Machine):
    """Blocks come from the leaders that the epoch's seed draws; `asleep` accounts miss theirs."""

    def __init__(self, *args: Any, **params: Any) -> None:
        super().__init__(*args, **params)
        self.asleep: set[PubKey] = set()
        self.skip = 0  # views that nobody uses before the next block: the network's fault

    def turn(self, epoch: Epoch) -> tuple[View, PubKey]:
        head, record = self.state.head, self.state.epoch(epoch)
        view = (head.view if head.epoch == epoch else 0) + 1 + self.skip
        self.skip = 0
        while True:
            leader = record.validators.members[
                self.rules.leader(record.seed, View(view), record.validators)
            ]
            if leader.account not in self.asleep:
                return View(view), leader.consensus_key
            view += 1
