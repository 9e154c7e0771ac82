"""What each kind of transaction costs to check, beside what the chain counts for it.

    python -m bench.costs [--json] [--repeats 200] [--accounts 100000] [--validators 100]

A row is the processor time, in the quietest tenth of the tries (others may share the core),
from a transaction's bytes to its receipt, nothing remembered of its signature, with 100
validators, 256 learners, 64 deltas and 256 datasets in the state, plus its keys' part of a new root
among 10^5. `hostile_block` rows fill a block with what costs most and pays least. Exit code 1 if
anything costs more than is declared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from bench.cost_cases import VALIDATORS, Case, all_cases
from bench.measure import Row, at_most, quantile
from chain import records as r
from chain.codec import encode
from chain.costs import spend, unreadable
from chain.errors import BlockError
from chain.execute import Context, Execution
from chain.limits import MAX_BLOCK_BYTES, MAX_BLOCK_TXS
from chain.model_versions import parse_document
from chain.signed import signed
from chain.transactions import Transfer
from chain.tree import StateTree
from chain.types import Epoch, Grains, Height, PubKey, ShardIndex, TimeMs, View
from tests.kit.machine import Machine, key
from tests.kit.round_run import RoundRun

EXECUTED_MOST_S = 1.0  # a block that uses up the default budget


def next_block(machine: Machine) -> Execution:
    head = machine.state.head
    epoch = Epoch(head.height // machine.genesis.params.epoch_blocks)
    ctx = Context(
        Height(head.height + 1),
        TimeMs(head.time_ms + 1000),
        epoch,
        View(head.view + 1),
        machine.parent,
        machine.validators[0].consensus.public,
        b"",
    )
    return Execution(machine.tree, machine.genesis, machine.rules, ctx)


def cost_us(case: Case, repeats: int, key_us: float) -> float:
    """Of one transaction, its signature unknown: to its receipt, and its keys' part of the root."""
    execution = next_block(case.machine)
    first = execution.judge(case.raw)
    if first.code != case.code:
        raise SystemExit(f"{case.name}: {first.code} {first.reason}")
    times = []
    for _ in range(repeats):
        signed.clear()
        parse_document.cache_clear()
        began = time.process_time()
        execution.judge(case.raw)
        times.append(time.process_time() - began)
    empty = next_block(case.machine).finish().changes
    execution.apply(case.raw)
    keys = len(execution.finish().changes.keys() - empty.keys())
    return quantile(times, 0.1) * 1e6 + keys * key_us


def root_key_us(accounts: int) -> float:
    """Of one of a thousand changed keys among many, to the new root."""
    dice = random.Random(5)
    names = [r.account_key(PubKey(dice.randbytes(32))) for _ in range(accounts)]
    value = encode(r.Account(Grains(1), Grains(0), 1, 0, 0))
    tree = StateTree.empty().set_many(dict.fromkeys(names, value))
    times = []
    for turn in range(5):
        value = encode(r.Account(Grains(2 + turn), Grains(0), 1, 0, 0))
        changes: dict[bytes, bytes | None] = dict.fromkeys(dice.sample(names, 1000), value)
        began = time.process_time()
        tree.set_many(changes)
        times.append(time.process_time() - began)
    return statistics.median(times) * 1e3


def kinds(repeats: int, accounts: int, validators: int) -> Iterator[Row]:
    """Every kind beside what the chain counts for it."""
    key_us = root_key_us(accounts)
    yield at_most("root_key", key_us, "us", None)
    for case in all_cases(validators):
        declared = spend(case.payload, len(case.raw)).us
        yield at_most(case.name, cost_us(case, repeats, key_us), "us", declared)
    for raw in garbage():
        execution = next_block(Machine(4))
        times = []
        for _ in range(repeats):
            began = time.process_time()
            execution.judge(raw)
            times.append(time.process_time() - began)
        name = f"garbage of {len(raw)} bytes"
        yield at_most(name, quantile(times, 0.1) * 1e6, "us", unreadable(len(raw)).us)


def garbage() -> Iterator[bytes]:
    """Bytes that are no transaction, wrong only at their end or for their length."""
    machine = Machine(1)
    good = encode(machine.tx(key("eve"), Transfer(key("bob").public, Grains(1))))
    yield good[:40]
    yield good[:-1]
    for count in (40_000, 55_000):
        shards = tuple(ShardIndex(10_000 + i) for i in range(count))
        yield encode(machine.tx(key("eve"), replace(RoundRun().manifest("eve"), shards=shards)))


def full_block(machine: Machine, raw: bytes) -> tuple[float, int]:
    """Seconds that a block filled with one transaction costs whoever is sent it, and how many fit.
    They are refused, one and all, after all that is looked at: that is the dearest for nothing."""
    execution, count = next_block(machine), 0
    signed.clear()
    began = time.process_time()
    size = 0
    while count < MAX_BLOCK_TXS and size + len(raw) <= MAX_BLOCK_BYTES:
        try:
            execution.apply(raw)
        except BlockError:
            break
        signed.clear()
        parse_document.cache_clear()
        count, size = count + 1, size + len(raw)
    execution.finish()
    return time.process_time() - began, count


def hostile_blocks(validators: int) -> Iterator[Row]:
    """Blocks of nothing but what is refused, as many as the budget lets in."""
    for case in all_cases(validators):
        spoilt = case.raw[:-1] + bytes([case.raw[-1] ^ 1])  # a signature that does not hold
        for what, raw in (("ok_then_refused", case.raw), ("bad_signature", spoilt)):
            seconds, count = full_block(case.machine, raw)
            name = f"block of {count} {case.name} {what}"
            yield at_most(name, seconds, "s", EXECUTED_MOST_S)
    machine = Machine(4)
    for raw in garbage():
        seconds, count = full_block(machine, raw)
        name = f"block of {count} garbage of {len(raw)} bytes"
        yield at_most(name, seconds, "s", EXECUTED_MOST_S)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--validators", type=int, default=VALIDATORS)
    asked = parser.parse_args(arguments)
    rows = [*kinds(asked.repeats, asked.accounts, asked.validators)]
    rows += hostile_blocks(asked.validators)
    for row in rows:
        print(json.dumps(row.as_json()) if asked.json else row.as_text())
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
