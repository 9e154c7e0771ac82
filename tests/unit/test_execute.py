"""The state machine's entry: who may do what, at what price, and that a refusal leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.admission import check_transaction
from chain.codec import encode
from chain.errors import DecodeError
from chain.hashes import ZERO_HASH
from chain.records import account_key
from chain.signed import MAX_TX_BYTES, SignedTransactions, signed
from chain.transactions import Bond, DatasetVote, Transfer, Unbond
from chain.types import ChainId, Grains, Height, PubKey, Signature
from tests.kit.machine import Machine, key

ALICE, BOB = key("alice"), key("bob")


@pytest.fixture
def machine() -> Machine:
    return Machine(funded=("alice",))


def refused(machine: Machine, raw: bytes) -> str:
    """The code with which one transaction is refused; the state but for the head must not move."""
    before = {k: v for k, v in machine.tree.items() if k != b"head"}
    (receipt,) = machine.block(raw)
    after = {k: v for k, v in machine.tree.items() if k != b"head"}
    before.update((k, v) for k, v in after.items() if k.startswith(b"epch/"))
    assert after == before
    return receipt.code


def test_a_transfer_moves_grains_and_pays_the_proposer(machine: Machine) -> None:
    total = machine.grains()
    machine.ok(encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5)), fee=1000)))
    assert machine.state.account(BOB.public).balance == 5
    assert machine.state.account(ALICE.public).balance == 10**10 - 5 - 1000
    assert machine.state.account(ALICE.public).nonce == 1
    assert machine.grains() == total


def test_a_wrong_signature_is_refused(machine: Machine) -> None:
    tx = machine.tx(ALICE, Transfer(BOB.public, Grains(5)))
    assert refused(machine, encode(replace(tx, signature=Signature(bytes(64))))) == "bad_signature"
    other = machine.tx(BOB, Transfer(BOB.public, Grains(5)))
    stolen = replace(other, sender=ALICE.public)
    assert refused(machine, encode(stolen)) == "bad_signer"


def test_a_wrong_nonce_is_refused_in_both_directions(machine: Machine) -> None:
    ahead = machine.tx(ALICE, Transfer(BOB.public, Grains(5)), nonce=1)
    assert refused(machine, encode(ahead)) == "bad_nonce"
    first = encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5))))
    machine.ok(first)
    assert refused(machine, first) == "bad_nonce"


def test_another_chain_is_refused(machine: Machine) -> None:
    tx = machine.tx(ALICE, Transfer(BOB.public, Grains(5)))
    assert refused(machine, encode(replace(tx, chain_id=ChainId(bytes(32))))) == "wrong_chain"


def test_bytes_that_are_no_transaction_are_refused(machine: Machine) -> None:
    raw = encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5))))
    assert refused(machine, b"\xff" * 40) == "bad_encoding"
    assert refused(machine, raw + b"\x00") == "bad_encoding"
    assert refused(machine, raw[:-1]) == "bad_encoding"


def test_a_fee_that_is_too_low_or_not_there_is_refused(machine: Machine) -> None:
    assert refused(machine, encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5)), fee=1))) == (
        "fee_too_low"
    )
    broke = machine.tx(BOB, Transfer(ALICE.public, Grains(5)))
    assert refused(machine, encode(broke)) == "insufficient_funds"


def test_more_than_there_is_cannot_be_sent(machine: Machine) -> None:
    tx = machine.tx(ALICE, Transfer(BOB.public, Grains(10**10)))
    assert refused(machine, encode(tx)) == "insufficient_funds"


def test_a_stamp_stands_for_a_fee(machine: Machine) -> None:
    machine.ok(encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5)))))
    machine.ok(encode(machine.tx(BOB, Transfer(ALICE.public, Grains(5)), stamp=True)))
    assert machine.state.account(BOB.public).balance == 0


def test_a_stamp_is_bound_to_block_and_payload(machine: Machine) -> None:
    machine.ok(encode(machine.tx(ALICE, Transfer(BOB.public, Grains(9)))))
    tx = machine.tx(BOB, Transfer(ALICE.public, Grains(5)), stamp=True)
    assert tx.stamp is not None
    future = replace(tx, stamp=replace(tx.stamp, height=Height(99)))
    assert refused(machine, encode(resigned(future))) == "stale_stamp"
    tx = machine.tx(BOB, Transfer(ALICE.public, Grains(5)), stamp=True)
    for amount in range(1, 40):
        moved = replace(tx, payload=Transfer(ALICE.public, Grains(amount)))
        code = machine.block(encode(resigned(moved)))[0].code
        if code != "ok":
            break
        # 1 in 32 of other payloads fits by chance
        tx = machine.tx(BOB, Transfer(ALICE.public, Grains(5)), stamp=True)
    assert code == "weak_stamp"


def resigned(tx):  # type: ignore[no-untyped-def]
    return replace(tx, signature=BOB.sign(tx.digest()))


def test_what_is_not_in_force_says_so(machine: Machine) -> None:
    tx = machine.tx(ALICE, DatasetVote(ZERO_HASH, 1))
    assert refused(machine, encode(tx)) == "not_active"


def test_bonding_counts_two_epochs_later_and_unbonding_is_paid_out() -> None:
    machine = Machine(funded=("alice",), epoch_blocks=4, unbonding_blocks=17, min_bond_grains=1000)
    machine.ok(encode(machine.tx(ALICE, Bond(Grains(5000)))))
    assert machine.state.account(ALICE.public).bonded == 5000
    machine.ok(encode(machine.tx(ALICE, Unbond(Grains(2000)))))
    assert machine.state.account(ALICE.public).bonded == 3000
    total, balance = machine.grains(), machine.state.account(ALICE.public).balance
    for _ in range(18):
        machine.block()
    assert machine.state.account(ALICE.public).balance == balance + 2000
    assert machine.grains() == total


def test_epochs_turn_and_their_sets_are_known_ahead() -> None:
    machine = Machine(epoch_blocks=4, unbonding_blocks=17)
    seeds = set()
    for _ in range(40):
        machine.block()
        epoch = machine.state.head.epoch
        assert machine.state.epoch(epoch).validators.members
        assert machine.state.epoch(epoch + 1).validators.members
        seeds.add(machine.state.epoch(epoch).seed)
        assert machine.done is not None
        assert machine.done.next_validators_hash == machine.state.epoch(epoch + 1).validators.hash()
    assert len(seeds) == 10
    assert PubKey(bytes(32)) not in seeds


def test_the_root_does_not_depend_on_how_it_was_reached() -> None:
    one, two = Machine(funded=("alice",)), Machine(funded=("alice",))
    raw = encode(one.tx(ALICE, Transfer(BOB.public, Grains(5))))
    one.block(raw, b"\x01garbage")
    two.block(raw)
    assert one.tree.root == two.tree.root


def test_what_was_checked_once_is_checked_again_where_a_byte_differs(machine: Machine) -> None:
    """Signatures that held are remembered by the hash of all bytes: no other transaction, and no
    other state, may profit from it."""
    tx = machine.tx(ALICE, Transfer(BOB.public, Grains(5)))
    check_transaction(machine.state, machine.genesis, tx)
    signed.add(tx.id(), tx, 200)
    for forged in (
        replace(tx, payload=Transfer(BOB.public, Grains(6))),
        replace(tx, fee=Grains(tx.fee + 1)),
        replace(tx, signature=Signature(tx.signature[:-1] + b"\x01")),
    ):
        assert refused(machine, encode(forged)) == "bad_signature"
    machine.ok(encode(tx))
    assert refused(machine, encode(tx)) == "bad_nonce"


def test_the_memory_of_signatures_is_bounded_and_changes_no_verdict() -> None:
    few = SignedTransactions(most=2)
    machine = Machine(funded=("alice",))
    txs = [machine.tx(ALICE, Transfer(BOB.public, Grains(5)), nonce=i) for i in range(3)]
    for tx in txs:
        few.add(tx.id(), tx, 200)
    assert [few.get(tx.id()) for tx in txs] == [None, *txs[1:]]
    few.add(txs[0].id(), txs[0], MAX_TX_BYTES + 1)
    assert few.get(txs[0].id()) is None
    roots = []
    for forget in (True, False):
        machine = Machine(funded=("alice",))
        for i in range(3):
            raw = encode(machine.tx(ALICE, Transfer(BOB.public, Grains(5 + i))))
            if forget:
                signed.clear()
            machine.ok(raw)
        roots.append(machine.tree.root)
    assert roots[0] == roots[1]


def test_an_account_that_cannot_be_written_is_refused_where_it_is_changed(machine: Machine) -> None:
    """Accounts are encoded when a block is closed; what cannot be must not wait until then."""
    state = machine.state
    mark = state.mark()
    for wrong in ({"balance": 1 << 64}, {"nonce": -1}, {"merit": -1}):
        with pytest.raises(DecodeError):
            state.put_account(BOB.public, **wrong)
    assert state.account(BOB.public).balance == 0
    state.put_account(BOB.public, balance=7)
    state.put_account(BOB.public, balance=8)
    assert state.raw(account_key(BOB.public)) == state.changes[account_key(BOB.public)]
    state.undo(mark)
    assert state.account(BOB.public).balance == 0
    assert not state.changes
