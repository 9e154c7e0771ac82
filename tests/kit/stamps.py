"""Stamped transactions that a test may spoil, and the block in which they would stand."""

from __future__ import annotations

from chain.execute import Context, Execution
from chain.transactions import Payload, Stamp, Transaction
from chain.types import Height, TimeMs
from tests.kit.machine import Machine
from wallet.keys import KeyPair
from wallet.signing import sign_transaction


def stamped(
    machine: Machine,
    signer: KeyPair,
    payload: Payload,
    *,
    work: int,
    age: int = 1,
    nonce: int | None = None,
) -> Transaction:
    number = machine.state.account(signer.public).nonce if nonce is None else nonce
    return sign_transaction(
        signer,
        chain_id=machine.genesis.chain_id,
        nonce=number,
        payload=payload,
        stamp=Stamp(Height(machine.height + 1 - age), work),
    )


def context(machine: Machine) -> Context:
    head = machine.state.head
    view, proposer = machine.turn(head.epoch)
    return Context(
        Height(head.height + 1),
        TimeMs(head.time_ms + 1000),
        head.epoch,
        view,
        machine.parent,
        proposer,
        b"vrf",
    )


def next_block(machine: Machine) -> Execution:
    return Execution(machine.tree, machine.genesis, machine.rules, context(machine))
