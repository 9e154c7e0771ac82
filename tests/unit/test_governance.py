"""Proposals and votes: who may, what is refused, and when it takes effect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain import governance_records as g
from chain import parameters
from chain import records as r
from chain.codec import encode
from chain.jail import JailReason, jail
from chain.limits import MAX_OTHER_PROPOSALS, MAX_PROPOSALS
from chain.params import Window
from chain.state import PROPOSAL_DEPOSITS, REWARD_POOL
from chain.transactions import GovernanceVote, Propose, Transfer, Unbond, Verdict
from chain.types import Grains, Height, TxId
from tests.kit.machine import STAKE, key
from tests.kit.voting import EPOCH, VALIDATORS, VOTE_BLOCKS, Assembly

FEE = "min_fee_grains"


@pytest.fixture
def chain() -> Assembly:
    return Assembly()


def test_a_fee_that_is_voted_on_holds_exactly_from_its_height(chain: Assembly) -> None:
    at = chain.soonest() + EPOCH
    proposal = chain.proposed(FEE, 2000, at)
    chain.agree(proposal)
    chain.to(at - 2)
    assert chain.params.min_fee_grains == 1000
    assert chain.send("ann", Transfer(key("ben").public, Grains(1))) == "ok"  # at - 1, for 1000
    assert chain.m.height == at - 1
    assert chain.params.min_fee_grains == 2000  # what the next block is executed under
    assert chain.said() == ["active"]
    assert chain.send("ann", Transfer(key("ben").public, Grains(1))) == "fee_too_low"
    paid = chain.m.tx(key("ann"), Transfer(key("ben").public, Grains(1)), fee=2000)
    chain.m.ok(encode(paid))
    assert not chain.records


@pytest.mark.parametrize(
    ("parameter", "value", "code"),
    [
        ("no_such", 1, "unknown_parameter"),
        ("vote", 1, "unknown_parameter"),
        ("epoch_blocks", 8, "frozen_parameter"),
        ("evidence_blocks", 10**6, "frozen_parameter"),
        ("unbonding_ms", 1, "frozen_parameter"),
        ("seed_blocks", 2, "frozen_parameter"),
        (FEE, 1000, "no_change"),
        (FEE, 10**9, "bad_value"),
        ("join.ms", 10**12, "bad_value"),
        (FEE, b"", "bad_encoding"),
        (FEE, b"\x01\x01", "bad_encoding"),
        (FEE, b"\xcd\x00\x05", "bad_encoding"),  # 5, but not in its shortest form
        (FEE, b"\xff", "bad_encoding"),  # -1
        (FEE, b"\xa15", "bad_encoding"),
        ("downtime_jail.blocks", 99, "invalid_params"),  # evidence's is to be 8 times as long
        ("downtime_jail.blocks", 1, "invalid_params"),  # less than an epoch
        ("custody_open.blocks", 1, "invalid_params"),
        ("delta_floor_ms", 5000, "invalid_params"),  # above the cap
    ],
)
def test_what_cannot_be_voted_on_is_refused(
    chain: Assembly, parameter: str, value: int | bytes, code: str
) -> None:
    assert chain.propose(parameter, value) == code
    assert not chain.records


def test_a_height_is_the_first_of_an_epoch_and_far_enough_ahead(chain: Assembly) -> None:
    soonest = chain.soonest()
    assert chain.propose(FEE, 1, soonest + 1) == "bad_height"
    assert chain.propose(FEE, 1, 0) == "bad_height"
    assert chain.propose(FEE, 1, 1) == "bad_height"
    assert chain.propose(FEE, 1, chain.soonest() - EPOCH) == "bad_height"
    assert chain.propose(FEE, 1, chain.soonest() + 5000 * EPOCH) == "bad_height"
    assert chain.propose(FEE, 1, 2**64 - 1) == "bad_height"
    assert chain.propose(FEE, 1, chain.soonest()) == "ok"


def test_every_parameter_is_changeable_or_not_by_name() -> None:
    params = Assembly().m.genesis.params
    known = parameters.names(params)
    assert set(parameters.CHANGEABLE) <= set(known)
    assert not {n.partition(".")[0] for n in parameters.CHANGEABLE} & set(parameters.FROZEN)
    assert parameters.value_of(params, "vote.blocks") == params.vote.blocks


def test_a_deposit_is_locked_whoever_proposes(chain: Assembly) -> None:
    before = chain.m.state.account(key("ann").public).balance
    assert chain.propose(FEE, 1, who="ann") == "ok"
    assert chain.m.state.account(key("ann").public).balance == before - 2 * 1000 - 10**6
    assert chain.m.state.account(PROPOSAL_DEPOSITS).balance == 10**6
    assert chain.propose("ranks", 1, who=VALIDATORS[0]) == "ok"
    assert chain.m.state.account(PROPOSAL_DEPOSITS).balance == 2 * 10**6


def test_who_cannot_pay_the_deposit_proposes_nothing() -> None:
    chain = Assembly(proposal_deposit_grains=10**11)
    assert chain.propose(FEE, 1, who="ann") == "insufficient_funds"
    assert chain.m.state.account(PROPOSAL_DEPOSITS).balance == 0


def test_nobody_pays_into_the_account_of_deposits(chain: Assembly) -> None:
    assert chain.send("ann", Transfer(PROPOSAL_DEPOSITS, Grains(1))) == "bad_recipient"


@pytest.mark.parametrize(
    ("verdicts", "back"),
    [((), False), ((0,), False), ((0, 0), True), ((1, 0), True), ((1, 1, 1), True)],
)
def test_a_deposit_comes_back_if_a_third_has_an_opinion(
    chain: Assembly, verdicts: tuple[int, ...], back: bool
) -> None:
    total, pool = chain.m.grains(), chain.m.state.account(REWARD_POOL).balance
    proposal = chain.proposed(FEE, 1)
    before = chain.m.state.account(key("ben").public).balance
    for who, verdict in zip(VALIDATORS, verdicts, strict=False):
        assert chain.vote(who, proposal, verdict) == "ok"
    chain.to(chain.m.height + VOTE_BLOCKS)
    gained = chain.m.state.account(key("ben").public).balance - before
    assert gained == (10**6 if back else 0)
    assert chain.m.state.account(REWARD_POOL).balance == pool + (0 if back else 10**6)
    assert chain.m.state.account(PROPOSAL_DEPOSITS).balance == 0
    assert chain.m.grains() == total


def test_two_thirds_are_not_enough_and_nothing_stays_behind(chain: Assembly) -> None:
    before = {key for key, _ in chain.m.tree.items()}
    proposal = chain.proposed(FEE, 1)
    chain.agree(proposal, voters=VALIDATORS[:2])
    assert chain.vote(VALIDATORS[2], proposal, Verdict.NO) == "ok"
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert not chain.records
    after = {key for key, _ in chain.m.tree.items()}
    assert not {k for k in after - before if k[:5] in (b"prop/", b"ball/", b"elct/")}


def test_the_vote_ends_at_the_first_block_after_both_height_and_time() -> None:
    chain = Assembly(vote={"blocks": 3, "ms": 7000})  # blocks come every second
    proposal = chain.proposed(FEE, 1)
    begun = chain.m.height
    chain.to(begun + 5)
    assert chain.vote(VALIDATORS[0], proposal) == "ok"
    (held,) = chain.records
    assert held.status == g.ProposalStatus.OPEN
    assert chain.vote(VALIDATORS[1], proposal) == "vote_over"  # in the block that counts
    assert not chain.records


def test_a_vote_is_refused_by_its_reason(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    assert chain.vote("ann", proposal) == "not_an_elector"
    assert chain.vote(VALIDATORS[0], proposal, Verdict.UNAVAILABLE) == "bad_verdict"
    assert chain.vote(VALIDATORS[0], proposal) == "ok"
    assert chain.vote(VALIDATORS[0], proposal) == "duplicate"
    assert chain.vote(VALIDATORS[0], TxId(bytes(32))) == "unknown_proposal"


def test_a_node_key_does_not_vote(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    (receipt,) = chain.m.block(chain.m.duty(chain.m.validators[0], GovernanceVote(proposal, 1)))
    assert receipt.code == "bad_signer"


def test_who_passed_is_not_voted_on_any_more(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1, chain.soonest() + 10 * EPOCH)
    chain.agree(proposal)
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert [p.status for p in chain.records] == [g.ProposalStatus.PASSED]
    assert (chain.records[0].yes, chain.records[0].no) == (4 * STAKE, 0)
    assert chain.vote(VALIDATORS[0], proposal, Verdict.NO) == "vote_over"
    assert chain.propose(FEE, 5) == "known_proposal"  # until it has taken effect


def test_a_vote_may_be_changed_until_the_end(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    chain.agree(proposal)
    assert chain.vote(VALIDATORS[3], proposal, Verdict.NO) == "ok"
    assert chain.vote(VALIDATORS[2], proposal, Verdict.NO) == "ok"
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert not chain.records  # half
    again = chain.proposed(FEE, 1)
    for who in VALIDATORS[:3]:
        assert chain.vote(who, again, Verdict.NO) == "ok"
    chain.agree(again, voters=VALIDATORS[:3])
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert [p.status for p in chain.records] == [g.ProposalStatus.PASSED]


def test_two_that_do_not_go_together_are_not_both_put_in_force(chain: Assembly) -> None:
    # Each holds with genesis' 4 and 100 blocks, but a jail of 12 needs one of 96.
    at = chain.soonest() + 2 * EPOCH
    shorter = chain.proposed("evidence_jail.blocks", 64, at)
    longer = chain.proposed("downtime_jail.blocks", 12, at)
    chain.agree(shorter, longer)
    chain.to(at - 1)
    assert sorted(chain.said()) == ["active", "dropped"]
    assert chain.params.evidence_jail.blocks == 64
    assert chain.params.downtime_jail.blocks == EPOCH
    assert not chain.records


def test_one_may_rest_on_another_that_has_passed(chain: Assembly) -> None:
    at = chain.soonest() + 4 * EPOCH
    first = chain.proposed("evidence_jail.blocks", 1000, at)
    assert chain.propose("downtime_jail.blocks", 100, at) == "invalid_params"  # not decided yet
    chain.agree(first)
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert chain.propose("downtime_jail.blocks", 100, at - EPOCH) == "invalid_params"
    chain.agree(chain.proposed("downtime_jail.blocks", 100, at))
    chain.to(at)
    assert chain.params.evidence_jail.blocks == 1000
    assert chain.params.downtime_jail == Window(100, 1)


def test_what_passed_before_may_go_out_of_date_and_is_dropped(chain: Assembly) -> None:
    later = chain.proposed("downtime_jail.blocks", 12, chain.soonest() + 10 * EPOCH)
    chain.agree(later)
    sooner = chain.proposed("evidence_jail.blocks", 64)
    chain.agree(sooner)
    chain.to(chain.m.height + 20 * EPOCH)
    assert chain.params.downtime_jail.blocks == EPOCH
    assert chain.params.evidence_jail.blocks == 64


def test_too_late_a_decision_takes_effect_two_epochs_later() -> None:
    chain = Assembly(vote={"blocks": 2, "ms": 30_000})  # 30 blocks: later than the height asked
    asked = chain.soonest()
    proposal = chain.proposed(FEE, 1, asked)
    chain.agree(proposal)
    while chain.records[0].status == g.ProposalStatus.OPEN:
        chain.m.block()
    (held,) = chain.records
    assert held.activate > asked
    assert held.activate - chain.m.height >= 2 * EPOCH
    assert (held.activate - 1) % EPOCH == 0
    chain.to(held.activate - 1)
    assert chain.params.min_fee_grains == 1


def test_those_of_the_epoch_decide_also_when_they_have_left(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    chain.agree(proposal, voters=VALIDATORS[:2])
    assert chain.send(VALIDATORS[2], Unbond(Grains(STAKE))) == "ok"
    assert chain.vote(VALIDATORS[2], proposal) == "ok"
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert [p.yes for p in chain.records] == [3 * STAKE]


def test_a_vote_that_outlasts_its_epochs_record_is_counted() -> None:
    """Evidence of its epoch has expired by then, and the validator set left the state with it."""
    chain = Assembly(vote={"blocks": 15 * EPOCH, "ms": 1000})
    proposal = chain.proposed(FEE, 1)
    epoch = chain.records[0].epoch
    chain.agree(proposal)
    chain.to(chain.m.height + 14 * EPOCH)
    assert chain.m.state.get(r.EpochRecord, r.epoch_key(epoch)) is None
    chain.to(chain.m.height + EPOCH)
    assert [p.yes for p in chain.records] == [4 * STAKE]


def test_a_convict_has_no_say_but_counts_in_the_total(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    chain.agree(proposal)
    for name in VALIDATORS[2:]:
        state = chain.m.state
        jail(state, key(name).public, JailReason.EVIDENCE, Window(1000, 1000))
        chain.m.tree = state.commit()
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert not chain.records  # two of four


def test_who_slept_has_a_say(chain: Assembly) -> None:
    proposal = chain.proposed(FEE, 1)
    chain.agree(proposal, voters=VALIDATORS[:3])
    state = chain.m.state
    jail(state, key(VALIDATORS[0]).public, JailReason.DOWNTIME, Window(1000, 1000))
    chain.m.tree = state.commit()
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert [p.yes for p in chain.records] == [3 * STAKE]


def test_slots_are_few_and_each_validator_has_one_of_its_own() -> None:
    chain = Assembly(vote={"blocks": 100, "ms": 1000})
    names = [n for n in parameters.CHANGEABLE if n.endswith((".ms", ".blocks")) and "jail" not in n]
    asked = iter([(n, parameters.value_of(chain.params, n) + 1) for n in names])
    for _ in range(MAX_OTHER_PROPOSALS):
        assert chain.propose(*next(asked), who="ann") == "ok"
    assert chain.propose(*next(asked), who="ben") == "no_slot"
    for who in VALIDATORS:
        assert chain.propose(*next(asked), who=who) == "ok"
    assert chain.propose(*next(asked), who=VALIDATORS[0]) == "no_slot"  # it has one already
    assert len(chain.records) == MAX_OTHER_PROPOSALS + len(VALIDATORS) < MAX_PROPOSALS


def test_parameters_in_force_are_read_from_any_state(chain: Assembly) -> None:
    proposal = chain.proposed("jury_size", 3)
    chain.agree(proposal)
    chain.to(chain.records[0].activate)
    genesis = chain.m.genesis.params
    assert chain.m.state.params(genesis) == replace(genesis, jury_size=3)
    assert chain.m.state.params(genesis) is chain.m.state.params(genesis)
    assert genesis.jury_size == 7


def test_a_bond_that_is_raised_counts_with_the_next_set_that_freezes(chain: Assembly) -> None:
    proposal = chain.proposed("min_bond_grains", STAKE + 1)
    chain.agree(proposal)
    at = chain.records[0].activate
    chain.to(at + 8 * EPOCH)
    assert len(chain.m.state.validators()) == 4  # nobody is left: the last set goes on
    chain.agree(chain.proposed("min_bond_grains", STAKE))  # and can undo it
    chain.to(chain.records[0].activate)
    assert chain.params.min_bond_grains == STAKE


def test_a_large_proposal_fits_its_transaction(chain: Assembly) -> None:
    tx = Propose("model", bytes(16 * 1024), Height(chain.soonest()))
    (receipt,) = chain.m.block(encode(chain.m.tx(key("ann"), tx)))
    assert receipt.code == "bad_document"
