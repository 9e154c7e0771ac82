"""Sequences of blocks with whatever anyone may sign, and what must hold after every one of them.

    python -m tests.property.campaign [--sequences N] [--seed S] [--first F] [--hash-seeds H]

A family of 100 sequences has a chain of its own, and each sequence goes on from a moment that one
before it has reached, across epochs, rounds, custody events and punishments. Checked: grains are
neither made nor lost; nothing raises but `BlockError`, for evidence that does not hold; a refused
transaction, and one that is only judged, changes nothing; what was done is undone without a trace;
the root follows from the content alone, and from it only: not from the order of changes, nor, with
`--hash-seeds`, from Python's hash seed. What fails prints one line that replays it.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chain.codec import decode
from chain.costs import NO_ROOM
from chain.errors import BlockError
from chain.execute import Context, Execution
from chain.hashes import BLOCK
from chain.state import State
from chain.store_rows import tx_columns
from chain.transactions import Transaction
from chain.types import Epoch, Height, PubKey, TimeMs, View
from tests.kit.machine import key
from tests.kit.wild import Wild
from tests.property.test_hostile_blocks import NAMES, Chaos
from tests.reference import tree as tree_ref

ROOT = Path(__file__).parents[2]
FAMILY = 100  # sequences that have a chain in common
MOMENTS = 6  # of a family's chain, to go on from
BLOCKS, TXS = 4, 6  # of a sequence, and of a block, at most
LARGE_EVERY = 25  # of so many blocks one is checked in the ways that are slow


class Broken(AssertionError):
    """What must hold does not."""


@dataclass(slots=True)
class Tally:
    """What was played."""

    sequences: int = 0
    blocks: int = 0
    refused_blocks: int = 0
    wall_s: float = 0.0
    receipts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, code)
    roots: Any = field(default_factory=hashlib.sha256)  # over all state roots, in order
    failure: str | None = None


class Family(Chaos):
    """One chain, with Chaos's right moves and Wild's absurd ones."""

    def __init__(self, seed: int, number: int, tally: Tally) -> None:
        super().__init__(number)
        self.asleep: frozenset[bytes] = frozenset()  # accounts that miss their turns
        self.tally = tally
        self.wild = Wild(self.m, self.dice)
        self.total = self.m.grains()
        self.said: list[bytes] = []  # earlier transactions, to be said again
        if number % 4:
            self.dataset()  # else rounds stay open
        self.moments = [self.moment()]

    # --- moments -----------------------------------------------------------------------------

    def moment(self) -> dict[str, Any]:
        kept = {name: copy.copy(value) for name, value in vars(self).items()}
        return {k: v for k, v in kept.items() if k not in ("dice", "moments", "tally", "wild")}

    def go_to(self, moment: dict[str, Any], dice: Random) -> None:
        vars(self).update({name: copy.copy(value) for name, value in moment.items()})
        self.dice = dice
        self.wild = Wild(self.m, dice)

    def sequence(self, dice: Random) -> None:
        newest = dice.random() < 0.7
        self.go_to(self.moments[-1] if newest else dice.choice(self.moments), dice)
        for _ in range(dice.randint(1, BLOCKS)):
            self.one_block()
        self.moments.append(self.moment())
        if len(self.moments) > MOMENTS:
            del self.moments[dice.randrange(MOMENTS - 1)]

    # --- one block ---------------------------------------------------------------------------

    def one_block(self) -> None:
        dice = self.dice
        self.wild.look()
        raws = [self.any_transaction() for _ in range(dice.randrange(TXS + 1))]
        if dice.random() < 0.1:
            self.m.time_ms += dice.choice((1000, 5000, 60_000))  # idle for a while
        execution = self.begin()
        if dice.random() < 0.1:
            self.with_evidence(execution)
        for raw in raws:
            self.apply(execution, raw)
        thorough = dice.randrange(LARGE_EVERY) == 0
        if thorough:
            self.check_undo(execution, raws)
        before = self.m.tree
        self.m.done = execution.finish()
        self.m.tree = self.m.done.tree
        self.m.parent = BLOCK.hash(self.m.parent, self.m.height.to_bytes(8, "big"))
        self.tally.blocks += 1
        self.tally.roots.update(self.m.tree.root)
        must(self.m.grains() == self.total, "grains were made or lost")
        if thorough:
            self.check_tree(before)

    def any_transaction(self) -> bytes:
        dice = self.dice
        if self.said and dice.random() < 0.1:
            return dice.choice(self.said[-20:])
        if dice.random() < 0.6:
            raw = self.someones()
        else:
            owner = dice.choice((*map(key, (*NAMES, "poor")), *self.m.validators))
            payload = self.wild.payload() if dice.random() < 0.9 else self.evidence()
            raw = self.wild.transaction(payload, owner)
        self.said.append(raw)
        del self.said[:-40]
        return raw

    def begin(self) -> Execution:
        """As Machine.block does, one step at a time."""
        m = self.m
        m.height += 1
        m.time_ms += m.step_ms
        epoch = Epoch((m.height - 1) // m.genesis.params.epoch_blocks)
        vrf = hashlib.sha512(b"vrf" + m.height.to_bytes(8, "big")).digest()
        view, proposer = self.turn(epoch)
        ctx = Context(Height(m.height), TimeMs(m.time_ms), epoch, view, m.parent, proposer, vrf)
        return Execution(m.tree, m.genesis, m.rules, ctx)

    def turn(self, epoch: Epoch) -> tuple[View, PubKey]:
        """The next view whose leader is awake; now and then views pass that nobody uses."""
        m, head = self.m, self.m.state.head
        record = m.state.epoch(epoch)
        members = record.validators.members
        if self.dice.random() < 0.05:
            self.asleep = frozenset(v.account for v in members if self.dice.random() < 0.3)
        awake = {v.account for v in members} - self.asleep or {v.account for v in members}
        view = (head.view if head.epoch == epoch else 0) + 1 + self.dice.choice((0,) * 9 + (3,))
        while True:
            leader = members[m.rules.leader(record.seed, View(view), record.validators)]
            if leader.account in awake:
                return View(view), leader.consensus_key
            view += 1

    def with_evidence(self, execution: Execution) -> None:
        before = snapshot(execution)
        try:
            execution.evidence([self.wild.evidence()])
        except BlockError:
            self.tally.refused_blocks += 1
            must(snapshot(execution) == before, "evidence that does not hold changed something")

    def apply(self, execution: Execution, raw: bytes) -> None:
        before = snapshot(execution)
        judged = execution.judge(raw)
        must(snapshot(execution) == before, "judging a transaction changed something")
        if judged.code in NO_ROOM:  # the block is refused whole: its proposer had to count
            try:
                execution.apply(raw)
            except BlockError:
                must(snapshot(execution) == before, "a transaction without room changed something")
                self.tally.receipts["any", judged.code] += 1
                return
        receipt = execution.apply(raw)
        must(receipt == judged, f"judged {judged.code}, executed {receipt.code}")
        if receipt.code != "ok":
            must(snapshot(execution) == before, f"refused with {receipt.code}, yet it changed")
        tx_columns(raw, receipt)  # what the store makes of it
        kind = "bytes"
        if receipt.code != "bad_encoding":
            kind = type(decode(Transaction, raw).payload).__name__
        self.tally.receipts[kind, receipt.code] += 1

    # --- what is slow to check ---------------------------------------------------------------

    def check_undo(self, execution: Execution, raws: Sequence[bytes]) -> None:
        """Everything once more, and all of it back."""
        state = execution._state
        mark, before = state.mark(), snapshot(execution)
        for raw in raws:
            execution.try_apply(raw)
        state.undo(mark)
        must(snapshot(execution) == before, "undo leaves something")
        written = {k: v for k, v in state.changes.items() if v is not None}
        merged = {k: v for k, v in self.m.tree.items(b"") if k not in state.changes} | written
        must(list(state.items(b"")) == sorted(merged.items()), "the state's items are not in order")

    def check_tree(self, before: Any) -> None:
        """The root follows from the content, and the changes may come in any order."""
        done = self.m.done
        must(done is not None, "a block was executed")
        content = dict(self.m.tree.items(b""))
        must(tree_ref.root(content) == self.m.tree.root, "the root is not the content's")
        changes = list(done.changes.items())  # type: ignore[union-attr]
        self.dice.shuffle(changes)
        half = len(changes) // 2
        again = before.set_many(dict(changes[:half])).set_many(dict(changes[half:]))
        must(again.root == self.m.tree.root, "the root depends on the order of changes")


def snapshot(execution: Execution) -> tuple[dict[bytes, bytes | None], int]:
    state: State = execution._state
    return state.changes, len(state.events)


def must(holds: bool, says: str) -> None:
    if not holds:
        raise Broken(says)


def play(seed: int, first: int, sequences: int) -> Tally:
    """Sequences [first, first + sequences), up to the first failure; `first` begins a family."""
    tally, began = Tally(), time.perf_counter()
    family: Family | None = None
    for number in range(first, first + sequences):
        dice = Random(f"campaign {seed} {number}")
        start = number - number % FAMILY
        try:
            if family is None or number == start:
                family = Family(seed, int.from_bytes(dice.randbytes(4), "big"), tally)
            family.sequence(dice)
        except Exception as error:
            replay = f"python -m tests.property.campaign --seed {seed} --first {start}"
            tally.failure = (
                f"{type(error).__name__}: {error}\n  {replay} --sequences {number - start + 1}"
            )
            break
        tally.sequences += 1
    tally.wall_s = time.perf_counter() - began
    return tally


def roots_with(hash_seed: int, seed: int, first: int, sequences: int) -> str:
    """The digest over all roots, in a process of another hash seed."""
    command = [sys.executable, "-m", "tests.property.campaign", "--roots"]
    command += ["--seed", str(seed), "--first", str(first), "--sequences", str(sequences)]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first, of a family [0]")
    parser.add_argument("--hash-seeds", type=int, default=0, help="compare so many others [0]")
    parser.add_argument("--roots", action="store_true", help="print the digest of all roots only")
    options = parser.parse_args()
    tally = play(options.seed, options.first, options.sequences)
    if tally.failure is not None:
        print(f"FAILED {tally.failure}", flush=True)
        return 1
    if options.roots:
        print(tally.roots.hexdigest())
        return 0
    txs = sum(tally.receipts.values())
    print(
        f"{tally.sequences} sequences, {tally.blocks} blocks, {txs} transactions, "
        f"{tally.refused_blocks} refused for their evidence, {tally.wall_s:.0f} s"
    )
    for kind in sorted({kind for kind, _ in tally.receipts}):
        codes = {code: n for (k, code), n in tally.receipts.most_common() if k == kind}
        print(f"  {kind}: {', '.join(f'{code} {n}' for code, n in codes.items())}")
    for hash_seed in range(1, options.hash_seeds + 1):
        part = min(options.sequences, FAMILY)
        same = roots_with(hash_seed, options.seed, options.first, part) == roots_with(
            0, options.seed, options.first, part
        )
        print(f"hash seed {hash_seed}: {'the same roots' if same else 'OTHER ROOTS'}")
        if not same:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
