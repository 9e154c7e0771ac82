"""Votes on parameters and model versions (docs/spec/governance.md, ADR 22).

The validators of the epoch in which something is proposed decide on it, by the stake they had
then: more than two thirds of all of it puts it in force, at the first block of an epoch.
"""

from __future__ import annotations

from dataclasses import replace

from chain import governance_records as g
from chain import model_versions, parameters
from chain import records as r
from chain.certificates import is_quorum
from chain.codec import U64, decode, encode
from chain.errors import TxError, VerifyError
from chain.governance_records import ProposalRecord, ProposalStatus
from chain.jail import JailReason
from chain.limits import MAX_OTHER_PROPOSALS, MAX_PROPOSALS
from chain.model_versions import Documents
from chain.params import Genesis, Params
from chain.rules import Rules
from chain.state import PROPOSAL_DEPOSITS, REWARD_POOL, State
from chain.transactions import GovernanceVote, Propose, Verdict
from chain.types import Epoch, Grains, Height, PubKey, Stake, TimeMs, TxId

MODEL = "model"  # what a proposal names instead of a parameter
LEAD_EPOCHS = 2  # from the end of a vote to its effect: time for operators to see it coming
MOST_EPOCHS_AHEAD = 4096  # a slot is held until then


def propose(
    state: State, genesis: Genesis, rules: Rules, tx_id: TxId, sender: PubKey, tx: Propose
) -> None:
    params, head = state.params(genesis.params), state.head
    _check_height(params, head.height, tx.activate)
    known = proposals(state)
    if any(p.parameter == tx.parameter for p in known):
        raise TxError("known_proposal", f"another proposal about {tx.parameter} is not over yet")
    earlier = [p for p in known if p.status == ProposalStatus.PASSED and p.activate <= tx.activate]
    _check_value(state, genesis, rules, tx.parameter, tx.value, _expected(params, earlier))
    member, deposit = _take_slot(state, known, sender), params.proposal_deposit_grains
    state.move(sender, PROPOSAL_DEPOSITS, deposit)
    members = state.validators()
    record = ProposalRecord(
        id=tx_id,
        proposer=sender,
        parameter=tx.parameter,
        value=tx.value,
        activate=tx.activate,
        height=head.height,
        epoch=head.epoch,
        deadline_height=Height(head.height + params.vote.blocks),
        deadline_ms=TimeMs(head.time_ms + params.vote.ms),
        deposit=Grains(deposit),
        member=int(member),
        status=ProposalStatus.OPEN,
        total=Stake(sum(v.stake for v in members)),
        yes=Stake(0),
        no=Stake(0),
    )
    state.put(g.proposal_key(tx_id), record)
    key = g.electorate_key(head.epoch)
    if state.get(g.Electorate, key) is None:
        electors = tuple(g.Elector(v.account, v.stake) for v in members)
        state.put(key, g.Electorate(electors))
    state.emit("proposal", tx_id, status="open")


def vote(state: State, sender: PubKey, tx: GovernanceVote) -> None:
    record = state.get(ProposalRecord, g.proposal_key(tx.proposal))
    if record is None:
        raise TxError(
            "unknown_proposal", f"no proposal {tx.proposal.hex()} is voted on; perhaps it is over"
        )
    if record.status != ProposalStatus.OPEN or _is_over(state, record):
        raise TxError("vote_over", "the vote on this proposal is over")
    if tx.verdict not in (Verdict.NO, Verdict.YES):
        raise TxError("bad_verdict", "a vote says yes (1) or no (0)")
    if all(e.account != sender for e in electors(state, record)):
        raise TxError(
            "not_an_elector",
            f"the validators of epoch {record.epoch}, when it was proposed, vote on it",
        )
    key = g.ballot_key(tx.proposal, sender)
    held = state.get(g.Ballot, key)
    if held is not None and held.verdict == tx.verdict:
        raise TxError("duplicate", "this account has voted so already")
    state.put(key, g.Ballot(tx.verdict, state.head.height))
    state.emit("proposal_vote", tx.proposal, elector=sender.hex(), verdict=tx.verdict)


def advance(state: State, genesis: Genesis, rules: Rules) -> None:
    """At the end of a block: count the votes that are over. At an epoch's last block put in force
    what has passed and whose height comes next; this is the first that the next block sees."""
    params = state.params(genesis.params)
    known = proposals(state)
    for record in known:
        if record.status == ProposalStatus.OPEN and _is_over(state, record):
            _close(state, params, record)
    following = state.head.height + 1
    if (following - 1) % params.epoch_blocks == 0:
        for record in proposals(state):
            if record.status == ProposalStatus.PASSED and record.activate <= following:
                _activate(state, genesis, rules, record, following)


# --- reading -------------------------------------------------------------------------------


def proposals(state: State) -> list[ProposalRecord]:
    """Those that are voted on or wait, in the order in which they take effect."""
    found = [decode(ProposalRecord, raw) for _, raw in state.items(g.PROPOSALS)]
    return sorted(found, key=lambda p: (p.activate, p.height, p.id))


def electors(state: State, record: ProposalRecord) -> tuple[g.Elector, ...]:
    """Who votes on a proposal that is open."""
    return state.need(g.Electorate, g.electorate_key(record.epoch)).electors


def ballots(state: State, proposal: TxId) -> dict[PubKey, g.Ballot]:
    """What was voted so far on a proposal that is open."""
    prefix = g.ballots_of(proposal)
    return {PubKey(key[len(prefix) :]): decode(g.Ballot, raw) for key, raw in state.items(prefix)}


def count(state: State, record: ProposalRecord) -> tuple[Stake, Stake]:
    """Stake for and against an open proposal. Who is in jail for evidence has no say, though its
    stake stays in the total."""
    cast = ballots(state, record.id)
    weights = {Verdict.YES: 0, Verdict.NO: 0}
    for elector in electors(state, record):
        ballot = cast.get(elector.account)
        if ballot is not None and not _is_convict(state, elector.account):
            weights[Verdict(ballot.verdict)] += elector.stake
    return Stake(weights[Verdict.YES]), Stake(weights[Verdict.NO])


def soonest(params: Params, height: int) -> Height:
    """The first height that a proposal in the next block may name."""
    lead = LEAD_EPOCHS * params.epoch_blocks
    return first_of_epoch(params, height + 1 + params.vote.blocks + lead)


def first_of_epoch(params: Params, height: int) -> Height:
    """The first block of an epoch at this height or after."""
    return Height(-(-(height - 1) // params.epoch_blocks) * params.epoch_blocks + 1)


# --- proposing -----------------------------------------------------------------------------


def _check_height(params: Params, height: int, activate: int) -> None:
    if (activate - 1) % params.epoch_blocks:
        raise TxError(
            "bad_height",
            f"changes take effect with an epoch: at {first_of_epoch(params, activate)}, say, "
            f"not at {activate}",
        )
    least = soonest(params, height - 1)
    most = least + MOST_EPOCHS_AHEAD * params.epoch_blocks
    if not least <= activate <= most:
        raise TxError(
            "bad_height",
            f"expected a height from {least}, {LEAD_EPOCHS} epochs after the vote, to {most}",
        )


def _check_value(
    state: State, genesis: Genesis, rules: Rules, parameter: str, value: bytes, params: Params
) -> None:
    """TxError unless this may follow on `params` and on the model version in force."""
    if parameter != MODEL:
        parameters.check_setting(params, _setting(parameter, value))
        return
    version = model_versions.current(state)
    old = model_versions.documents(state, genesis, version)
    try:
        new = model_versions.parse_document(value)
        least, why = rules.model_change(Documents(old.model, old.training), new.documents)
    except VerifyError as error:
        raise TxError("bad_document", str(error)) from None
    model_versions.check_step(version, new, least, why)


def _setting(parameter: str, value: bytes) -> g.Setting:
    return g.Setting(parameter, decode(U64, value, most=9))


def _expected(params: Params, passed: list[ProposalRecord]) -> Params:
    """`params` with what has passed and takes effect before."""
    for record in passed:
        if record.parameter != MODEL:
            changed = (_setting(record.parameter, record.value),)
            params = parameters.with_settings(params, changed)
    return params


def _take_slot(state: State, known: list[ProposalRecord], sender: PubKey) -> bool:
    """Whether it is the one slot that a validator has; TxError if there is none of either kind."""
    own = any(p.proposer == sender and p.member for p in known)
    member = not own and state.validator(sender) is not None
    others = sum(not p.member for p in known)
    if len(known) >= MAX_PROPOSALS or (not member and others >= MAX_OTHER_PROPOSALS):
        raise TxError(
            "no_slot",
            f"{len(known)} proposals are not over, {others} of them in slots that are not a "
            f"validator's own; the limits are {MAX_PROPOSALS} and {MAX_OTHER_PROPOSALS}",
        )
    return member


# --- counting ------------------------------------------------------------------------------


def _is_over(state: State, record: ProposalRecord) -> bool:
    head = state.head
    return head.height >= record.deadline_height and head.time_ms >= record.deadline_ms


def _is_convict(state: State, account: PubKey) -> bool:
    held = state.get(r.JailRecord, r.jail_key(account))
    return held is not None and held.reason == JailReason.EVIDENCE


def _close(state: State, params: Params, record: ProposalRecord) -> None:
    """Count. The deposit comes back if more than a third of the stake found it worth a word."""
    yes, no = count(state, record)
    heard = 3 * (yes + no) > record.total
    state.move(PROPOSAL_DEPOSITS, record.proposer if heard else REWARD_POOL, record.deposit)
    for elector in ballots(state, record.id):
        state.delete(g.ballot_key(record.id, elector))
    record = replace(record, yes=yes, no=no)
    if is_quorum(yes, record.total):
        lead = LEAD_EPOCHS * params.epoch_blocks
        least = first_of_epoch(params, state.head.height + lead)
        record = replace(
            record,
            status=ProposalStatus.PASSED,
            activate=max(record.activate, least),  # blocks came faster than the clock
        )
        state.put(g.proposal_key(record.id), record)
        state.emit("proposal", record.id, status="passed", activate=record.activate)
    else:
        _end(state, record, ProposalStatus.REJECTED)
    _forget_electorate(state, record.epoch)


def _forget_electorate(state: State, epoch: Epoch) -> None:
    waiting = (p for p in proposals(state) if p.status == ProposalStatus.OPEN)
    if all(p.epoch != epoch for p in waiting):
        state.delete(g.electorate_key(epoch))


def _activate(
    state: State, genesis: Genesis, rules: Rules, record: ProposalRecord, height: int
) -> None:
    """Put it in force, unless what took effect meanwhile leaves no room for it."""
    params = state.params(genesis.params)
    try:
        _check_value(state, genesis, rules, record.parameter, record.value, params)
    except TxError as error:
        _end(state, record, ProposalStatus.DROPPED, code=error.code, reason=str(error))
        return
    if record.parameter == MODEL:
        model_versions.put(state, record.value, height)
    else:
        state.put_setting(_setting(record.parameter, record.value))
    _end(state, record, ProposalStatus.ACTIVE, activated=height)


def _end(state: State, record: ProposalRecord, status: ProposalStatus, **data: object) -> None:
    """It leaves the state; history keeps it."""
    record = replace(record, status=status)
    state.delete(g.proposal_key(record.id))
    state.emit("proposal", record.id, status=status.name.lower(), **data)
    state.emit("proposal_end", record.id, record=encode(record).hex(), **data)
