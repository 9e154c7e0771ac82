"""One transaction of each kind that is in force, ready to be executed on a state that is as full as
the limits allow: 100 validators, 256 learners, 64 deltas, 256 datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from chain import governance_records as g
from chain import price_records as p
from chain import records as r
from chain.address import peer_id_of
from chain.certificates import assemble
from chain.codec import encode
from chain.custody_records import CustodyPhase
from chain.governance import soonest
from chain.governance_records import ProposalRecord, ProposalStatus
from chain.hashes import DATASET, ZERO_HASH, Hash32
from chain.jail import JailReason, jail
from chain.limits import MAX_DATASETS, MAX_DELTAS, MAX_LEARNERS, MAX_PROPOSALS
from chain.model_versions import canonical
from chain.parameters import CHANGEABLE, value_of
from chain.params import Window
from chain.plain import pack
from chain.records import DeltaStatus, RoundPhase
from chain.rounds import manifest_root, put_round
from chain.transactions import (
    Attest,
    AttestKind,
    AuditReport,
    Bond,
    Custody,
    CustodyDispute,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    GovernanceVote,
    JoinRound,
    LatencyReport,
    LossSlice,
    Payload,
    Phase,
    PodlManifest,
    PolVote,
    Propose,
    SubmitEvidence,
    Transfer,
    Unbond,
    Unjail,
    Verdict,
    delta_commitment,
    pol_commitment,
)
from chain.types import BlobId, Grains, Height, PubKey, Stake, TimeMs, TxId, View, Vote, VoteKind
from consensus.evidence import conflicting_certificates, double_vote
from tests.kit.custody_run import CustodyRun
from tests.kit.machine import Machine, key
from tests.kit.round_run import DATASET_ID, SALT, RoundRun
from wallet.keys import Keys
from wallet.signing import sign_announce, sign_vote

VALIDATORS = 100
REPORTS = 67  # of an approved dataset: more than two thirds of them


@dataclass(frozen=True, slots=True)
class Case:
    """A transaction that the next block of a machine takes."""

    machine: Machine
    payload: Payload
    raw: bytes
    name: str
    code: str = "ok"  # of its receipt: what is refused late costs as much


def all_cases(validators: int = VALIDATORS) -> Iterator[Case]:
    yield from _money(validators)
    yield from _governance(validators)
    yield from _learning(validators)
    yield from _custody(validators)


def _case(machine: Machine, payload: Payload, name: str = "", by: Keys | None = None) -> Case:
    """Signed by ann, or as a duty."""
    raw = machine.duty(by, payload) if by else encode(machine.tx(key("ann"), payload))
    return Case(machine, payload, raw, name or type(payload).__name__)


def _money(count: int) -> Iterator[Case]:
    machine = Machine(count, funded=("ann",), min_bond_grains=1000)
    ann, state = key("ann").public, machine.state
    state.put_account(ann, bonded=10**9)
    jailed = machine.state
    jail(jailed, ann, JailReason.DOWNTIME, Window(0, 0))
    machine.tree = state.commit()
    yield _case(machine, Transfer(key("bob").public, Grains(5)))
    yield _case(machine, Bond(Grains(5000)))
    yield _case(machine, Unbond(Grains(5000)))
    own = Keys(*(key("ann"),) * 4)
    node_id, addresses = peer_id_of(ann), tuple("/ip4/1.2.3.4/tcp/" + "1" * 200 for _ in range(8))
    yield _case(
        machine,
        sign_announce(
            own,
            chain_id=machine.genesis.chain_id,
            roles=3,
            capacity_tiles=8,
            node_id=node_id,
            addresses=addresses,
        ),
    )
    yield _case(machine, LatencyReport(machine.state.head.epoch, bytes(count)), "", _first(machine))
    yield from _evidence(machine)
    machine.tree = jailed.commit()
    yield _case(machine, Unjail())


def _governance(count: int) -> Iterator[Case]:
    """With as many proposals as there may be but one, all passed and to be in force before."""
    machine = Machine(count, funded=("ann",), proposal_deposit_grains=1)
    state, epoch = machine.state, machine.genesis.params.epoch_blocks
    at = soonest(machine.genesis.params, machine.height)
    names = [name for name in CHANGEABLE if name.endswith(".blocks")][: MAX_PROPOSALS - 1]
    names += [n for n in CHANGEABLE if n not in names][: MAX_PROPOSALS - 1 - len(names)]
    held = ProposalRecord(
        id=TxId(ZERO_HASH), proposer=key("ben").public, parameter="", value=b"", activate=at,
        height=state.head.height, epoch=state.head.epoch, deadline_height=Height(10**6),
        deadline_ms=TimeMs(10**15), deposit=Grains(1), member=1, status=ProposalStatus.PASSED,
        total=Stake(1), yes=Stake(1), no=Stake(0),
    )  # fmt: skip
    for name in names:
        made = TxId(DATASET.hash(name.encode()))
        value = pack(value_of(machine.genesis.params, name))
        state.put(g.proposal_key(made), replace(held, id=made, parameter=name, value=value))
    machine.tree = state.commit()
    ahead = Height(at + 100 * epoch)
    yield _case(machine, Propose("jury_size", pack(5), ahead))
    deep: list[object] = []
    for _ in range(80):
        deep = [deep]
    document = canonical({"model": {"": [deep] * 95}, "training": {}, "version": "1.0.0"})
    refused = _case(machine, Propose("model", document, ahead), "Propose (a document)")
    yield replace(refused, code="bad_document")
    open_one = TxId(DATASET.hash(names[0].encode()))
    members = machine.state.validators()[1:]
    electors = tuple(g.Elector(v.account, v.stake) for v in members)
    electors += (g.Elector(key("ann").public, Stake(1)),)
    state = machine.state
    state.put(g.proposal_key(open_one), replace(held, id=open_one, parameter=names[0], status=0))
    state.put(g.electorate_key(held.epoch), g.Electorate(electors))
    machine.tree = state.commit()
    yield _case(machine, GovernanceVote(open_one, Verdict.YES))


def _first(machine: Machine) -> Keys:
    """The first member of the set."""
    account = machine.state.validators()[0].account
    return next(v for v in machine.validators if v.account.public == account)


def _evidence(machine: Machine) -> Iterator[Case]:
    chain_id, members = machine.genesis.chain_id, machine.genesis.validator_set

    def vote(who: Keys, block: bytes) -> Vote:
        return sign_vote(
            who.consensus,
            chain_id=chain_id,
            kind=VoteKind.NOTARIZE,
            epoch=machine.state.head.epoch,
            view=View(7),
            block_hash=Hash32(block.ljust(32, b".")),
        )

    pair = double_vote(*(vote(machine.validators[0], b) for b in (b"a", b"b")))
    yield _case(machine, SubmitEvidence(pair), "SubmitEvidence")
    both = [assemble(members, [vote(v, b) for v in machine.validators]) for b in (b"a", b"b")]
    item = conflicting_certificates(*both)
    yield _case(machine, SubmitEvidence(item), "SubmitEvidence (certificates)")


# --- a round ----------------------------------------------------------------------------


def _fill_datasets(run: RoundRun) -> None:
    """As many as there may be, all in use, each with its reports."""
    state = run.m.state
    held = state.dataset(DATASET_ID)
    reports = tuple(
        r.AuditorReport(PubKey(bytes([i]) * 32), 1, 90, Hash32(b"r" * 32)) for i in range(REPORTS)
    )
    names = [DATASET.hash(bytes([i])) for i in range(MAX_DATASETS - 2)]
    for name in names:
        state.put(r.dataset_key(name), replace(held, id=name, reports=reports))
    index = state.need(p.DatasetIndex, p.DATASETS)
    active = tuple(sorted((*index.active, *names)))
    state.put(p.DATASETS, replace(index, held=len(active), active=active))
    run.m.tree = state.commit()


def _manifest(run: RoundRun, hashes: int) -> PodlManifest:
    made = run.manifest("ann")
    segments = tuple(Hash32(i.to_bytes(4, "big") * 8) for i in range(1, hashes + 1))
    return replace(made, steps=10 * (hashes - 1), state_hashes=segments)


def _learning(count: int) -> Iterator[Case]:
    run = RoundRun(validators=count, jury_size=64, trusted_merit=0)
    run.dataset()
    _fill_datasets(run)
    new = DATASET.hash(b"one more")
    blob = BlobId(DATASET.hash(b"blob"))
    submit = DatasetSubmit(new, blob, 10, 1000, 3, "CC0-1.0", "one more")
    yield _case(run.m, submit)
    assert run.send("ann", submit) == "ok"
    record, state = run.m.state.dataset(new), run.m.state
    reports = tuple(
        r.AuditorReport(PubKey(bytes([i]) * 32), 1, 90, Hash32(b"r" * 32)) for i in range(REPORTS)
    )
    state.put(r.dataset_key(new), replace(record, reports=reports))
    run.m.tree = state.commit()
    report = AuditReport(new, Verdict.YES, 90, tuple(range(64)), Hash32(b"r" * 32))
    yield _case(run.m, report, "", _first(run.m))
    joined = tuple(PubKey(DATASET.hash(bytes([i]))) for i in range(MAX_LEARNERS - 1))
    state = run.m.state
    put_round(state, replace(run.round, joined=joined))
    run.m.tree = state.commit()
    yield _case(run.m, JoinRound(run.round.number, ()))
    state = run.m.state
    put_round(state, replace(run.round, joined=()))
    run.m.tree = state.commit()
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    yield from _deltas(run, joined)


def _deltas(run: RoundRun, others: tuple[PubKey, ...]) -> Iterator[Case]:
    manifest = _manifest(run, 500)
    fillers, state = [], run.m.state
    for i in range(MAX_DELTAS - 1):
        delta = TxId(DATASET.hash(b"delta", bytes([i])))
        record = r.DeltaRecord(
            delta, run.round.number, others[i], state.head.height, manifest.base_root, ZERO_HASH,
            manifest_root(manifest), BlobId(ZERO_HASH), 1, manifest, SALT, DeltaStatus.REVEALED, (),
            Grains(0),
        )  # fmt: skip
        state.put(r.delta_key(delta), record)
        fillers.append(delta)
    put_round(state, replace(run.round, joined=(key("ann").public,), deltas=tuple(fillers)))
    run.m.tree = state.commit()
    opened = delta_commitment(
        run.m.genesis.chain_id, run.round.number, key("ann").public, manifest.base_root,
        manifest.payload_root, SALT,
    )  # fmt: skip
    commit = DeltaCommit(
        run.round.number, manifest.base_root, opened, manifest_root(manifest), BlobId(ZERO_HASH), 9
    )
    yield _case(run.m, commit)
    delta = run.m.tx(key("ann"), commit).id()
    assert run.send("ann", commit) == "ok"
    yield _case(run.m, manifest)
    assert run.send("ann", manifest) == "ok"
    run.until(RoundPhase.REVEAL)
    yield _case(run.m, DeltaReveal(delta, SALT))
    assert run.send("ann", DeltaReveal(delta, SALT)) == "ok"
    run.deltas["ann"] = delta
    run.until(RoundPhase.SCREEN_COMMIT)
    yield from _judging(run, delta)


def _judging(run: RoundRun, delta: TxId) -> Iterator[Case]:
    drawn = run.round.jurors
    juror = next(v for v in run.m.validators if v.account.public == drawn[0])
    slices = tuple(LossSlice(i, 10**9, 10**9 - 10**7 + i * 1000) for i in range(128))
    shown = PolVote(run.round.number, delta, Phase.REVEAL, ZERO_HASH, SALT, Verdict.YES, slices)
    committed = pol_commitment(run.m.genesis.chain_id, juror.account.public, shown)
    state, record = run.m.state, run.m.state.delta(delta)
    votes = tuple(
        r.JurorVote(a, committed if a == juror.account.public else ZERO_HASH, 0, 0, 0, 0)
        for a in drawn
    )
    state.put(r.delta_key(delta), replace(record, votes=votes))
    put_round(state, replace(run.round, phase=RoundPhase.SCREEN_REVEAL, audited=None))
    run.m.tree = state.commit()
    yield _case(run.m, shown, "", juror)
    state = run.m.state
    accepted = run.round.deltas[:MAX_DELTAS]
    tiles = sum(
        len(state.need(r.TileRoots, r.tiles_key(s)).roots) for s in range(state.model.shards)
    )
    put_round(
        state,
        replace(run.round, phase=RoundPhase.AGGREGATE, accepted=accepted, tiles_open=tiles),
    )
    run.m.tree = state.commit()
    for primary in run.m.validators:
        made = run.update(primary)
        if made is None:
            continue
        update = replace(made[0], changes=made[0].changes[:1])  # two are too long for one
        yield _case(run.m, update, "", primary)
        assert run.send_duty(primary, update) == "ok"
        tx = TxId(next(iter(run.m.done.receipts)).tx_id) if run.m.done else TxId(ZERO_HASH)
        state = run.m.state
        held = state.need(r.UpdateRecord, r.update_key(tx))
        said = tuple(v.account for v in state.validators()[: len(state.validators()) // 2 - 1])
        other = next(
            v for v in run.m.validators if v.account.public not in said and v is not primary
        )
        yes = tuple(a for a in said if a != primary.account.public)
        state.put(r.update_key(tx), replace(held, yes=yes))
        run.m.tree = state.commit()
        attest = Attest(AttestKind.UPDATE, update.round, Hash32(tx), Verdict.YES, 0, ZERO_HASH)
        yield _case(run.m, attest, "", other)
        return


# --- custody ------------------------------------------------------------------------------


def _custody(count: int) -> Iterator[Case]:
    run = CustodyRun(validators=count, custody_replicas=16)
    run.until(CustodyPhase.COMMIT)
    member = max(range(len(run.event.members)), key=lambda i: len(run.commitments(i)))
    payload = Custody(run.event.seed, run.commitments(member))
    yield _case(run.m, payload, "", run.keys_of(member))
    run.to_disputes(lies={run.custodian(0): (0,)})
    liar = run.account(run.custodian(0))
    dispute = CustodyDispute(run.event.seed, liar, 0, Grains(10**6))
    yield _case(run.m, dispute)
    opener = run.keys_of(run.custodian(0, 1))
    yield _case(run.m, run.opening(0, liar), "", opener)
