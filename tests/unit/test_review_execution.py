"""What a hostile proposer or a rich stranger could put into a block: execution stays total."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chain import limits
from chain import records as r
from chain.address import peer_id_of
from chain.codec import encode
from chain.errors import BlockError, GenesisError
from chain.execute import check_header, evidence_root
from chain.hashes import TX, ZERO_HASH, Hash32
from chain.params import parse_genesis
from chain.records import Account
from chain.state import REWARD_POOL
from chain.store_rows import tx_columns
from chain.transactions import Attest, AttestKind, SubmitEvidence, Unbond
from chain.types import (
    Block,
    Certificate,
    ConflictingCertificates,
    Epoch,
    Grains,
    Height,
    PubKey,
    Signature,
    TimeMs,
    TxId,
    View,
    Vote,
    VoteKind,
    tx_root,
)
from chain.validator_sets import freeze_set
from consensus.evidence import double_vote
from tests.kit.machine import STAKE, TEMPLATE, Machine, key, keys
from wallet.keys import Keys
from wallet.signing import sign_announce, sign_transaction, sign_vote

ANN = key("ann")


def test_bytes_that_are_no_transaction_can_be_stored_with_their_receipt() -> None:
    """A block with garbage in it is valid and becomes final: storing it must not stop a node."""
    machine = Machine()
    for raw in (b"", b"\xff" * 40, encode(machine.tx(ANN, Unbond(Grains(1))))[:-1]):
        (receipt,) = machine.block(raw)
        assert (receipt.tx_id, receipt.code) == (TxId(TX.hash(raw)), "bad_encoding")
        assert tx_columns(raw, receipt)[0] == TX.hash(raw)


def test_a_set_takes_the_largest_stakes_when_more_stand_than_it_holds() -> None:
    machine = Machine(epoch_blocks=4, unbonding_blocks=17, min_bond_grains=10)
    state = machine.state
    poor = []
    for i in range(limits.MAX_VALIDATORS):
        account = PubKey(i.to_bytes(32, "big"))
        poor.append(account)
        state.put(r.account_key(account), Account(Grains(0), Grains(10 + i), 0, 0, 0))
        node = r.NodeRecord(account, 2, 1, account, account, account, f"peer-{i}", ())
        state.put(r.node_key(account), node)
    machine.tree = state.commit()
    for _ in range(5):
        machine.block()
    members = machine.state.epoch(3).validators.members
    assert len(members) == limits.MAX_VALIDATORS
    chosen = {v.account for v in members}
    assert {v.account.public for v in machine.validators} <= chosen
    assert chosen.isdisjoint(poor[:4])
    assert set(poor[4:]) <= chosen
    assert list(members) == sorted(members, key=lambda v: v.consensus_key)
    assert freeze_set(machine.state, machine.genesis.params, 4) == machine.state.epoch(3).validators


def test_a_time_beyond_all_clocks_is_refused_before_execution() -> None:
    machine = Machine()
    parent = machine.genesis_header
    header = replace(
        parent,
        height=Height(1),
        view=View(1),
        parent=parent.hash(),
        time_ms=TimeMs(limits.MAX_TIME_MS + 1),
        tx_root=tx_root(()),
    )
    with pytest.raises(BlockError, match="time"):
        check_header(machine.genesis, parent, Block(header, (), ()))
    latest = replace(header, time_ms=TimeMs(limits.MAX_TIME_MS))
    check_header(machine.genesis, parent, Block(latest, (), ()))


def test_more_evidence_than_a_leader_has_room_for_is_refused_before_execution() -> None:
    """Each of its signatures is looked at: by its bytes alone it is known to be too much."""
    machine = Machine()
    parent = machine.genesis_header
    certificate = Certificate(
        VoteKind.NOTARIZE, Epoch(0), View(3), ZERO_HASH, b"\xff" * 64, (Signature(bytes(64)),) * 512
    )
    item = ConflictingCertificates(certificate, certificate)
    for count, fits in ((1, True), (2, False)):
        header = replace(
            parent,
            height=Height(1),
            view=View(1),
            parent=parent.hash(),
            time_ms=TimeMs(parent.time_ms + 1),
            tx_root=tx_root(()),
            evidence_root=evidence_root((item,) * count),
        )
        block = Block(header, (), (item,) * count)
        if fits:
            check_header(machine.genesis, parent, block)
        else:
            with pytest.raises(BlockError, match="evidence"):
                check_header(machine.genesis, parent, block)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slash_permille", 1001),
        ("ranks", 65),
        ("stamp_bits", 65),
        ("stamp_new_account_bits", 65),
        ("min_bond_grains", 0),
        ("unbonding_blocks", 3 * 128),
    ],
)
def test_a_genesis_that_execution_could_not_bear_is_refused(field: str, value: int) -> None:
    document = json.loads(TEMPLATE.read_text())
    parse_genesis(json.dumps(document))
    document["params"][field] = value
    with pytest.raises(GenesisError, match=field):
        parse_genesis(json.dumps(document))


def test_a_genesis_with_more_grains_than_an_amount_holds_is_refused() -> None:
    document = json.loads(TEMPLATE.read_text())
    document["accounts"] = [{"account": bytes([i] * 32).hex(), "grains": 2**60} for i in range(8)]
    with pytest.raises(GenesisError, match="grains"):
        parse_genesis(json.dumps(document))


def test_the_node_key_moves_no_money() -> None:
    """Duties are signed by a hot key; as a fee it could give all of the account's grains away."""
    machine = Machine()
    validator = machine.validators[0]
    state = machine.state
    state.put_account(validator.account.public, balance=10**9)
    machine.tree = state.commit()
    said = Attest(AttestKind.EVAL, 0, Hash32(ZERO_HASH), 1, 5, Hash32(ZERO_HASH))
    for signer, code in ((validator.node, "bad_fee"), (validator.account, "unknown_holdout")):
        tx = sign_transaction(
            signer,
            chain_id=machine.genesis.chain_id,
            nonce=0,
            payload=said,
            fee=Grains(10**9),
            sender=validator.account.public,
        )
        (receipt,) = machine.block(encode(tx))
        assert receipt.code == code
    assert machine.state.account(validator.account.public).balance == 10**9


def vote(machine: Machine, block: bytes) -> Vote:
    return sign_vote(
        machine.validators[1].consensus,
        chain_id=machine.genesis.chain_id,
        kind=VoteKind.NOTARIZE,
        epoch=Epoch(0),
        view=View(7),
        block_hash=Hash32(block * 32),
    )


def test_stake_on_its_way_out_is_slashed_as_well() -> None:
    """Whoever unbonds and then votes twice, still in the set, has everything at stake."""
    machine = Machine(funded=("ann",))
    guilty, total = machine.validators[1].account, machine.grains()
    pool = machine.state.account(REWARD_POOL).balance
    state = machine.state
    state.put_account(guilty.public, balance=5000)
    machine.tree = state.commit()
    for part in (STAKE // 4, 3 * STAKE // 4):
        machine.ok(encode(machine.tx(guilty, Unbond(Grains(part)))))
    assert machine.state.account(guilty.public).bonded == 0
    pair = SubmitEvidence(double_vote(vote(machine, b"a"), vote(machine, b"b")))
    machine.ok(encode(machine.tx(ANN, pair)))
    lost = STAKE * machine.genesis.params.slash_permille // 1000
    assert machine.state.account(REWARD_POOL).balance == pool + lost
    assert machine.grains() == total + 5000
    assert len(list(machine.tree.items(b"unbd/"))) == 2


def test_payouts_are_looked_for_at_their_height_alone() -> None:
    """Each Unbond is an entry that waits for a long time; a block must not read all of them."""
    machine = Machine(epoch_blocks=4, unbonding_blocks=17)
    guilty = machine.validators[1].account
    state = machine.state
    state.put_account(guilty.public, balance=10**6)
    machine.tree = state.commit()
    total = machine.grains()
    for _ in range(3):
        machine.ok(encode(machine.tx(guilty, Unbond(Grains(100)))))
    spent = machine.state.account(guilty.public).balance
    while machine.height < 20:
        machine.block()
    assert not list(machine.tree.items(b"unbd/"))
    assert machine.state.account(guilty.public).balance == spent + 300
    assert machine.grains() == total


def test_a_consensus_key_belongs_to_one_account_until_it_is_given_up() -> None:
    machine = Machine(funded=("ann", "ben"))
    first, second = keys("first"), keys("second")

    def announce(name: str, node: Keys) -> str:
        held = Keys(key(name), node.node, node.consensus, node.vrf)
        payload = sign_announce(
            held,
            chain_id=machine.genesis.chain_id,
            roles=2,
            capacity_tiles=1,
            node_id=peer_id_of(node.node.public),
            addresses=(),
        )
        (receipt,) = machine.block(encode(machine.tx(key(name), payload)))
        return receipt.code

    assert announce("ann", machine.validators[0]) == "key_taken"
    assert announce("ann", first) == "ok"
    assert announce("ann", first) == "ok"
    assert announce("ben", first) == "key_taken"
    assert announce("ann", second) == "ok"
    assert announce("ben", first) == "ok"
    assert announce("ann", first) == "key_taken"
