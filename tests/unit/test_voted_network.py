"""Votes in a network: four cores and states agree on what is in force, and learn by it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from chain import governance
from chain.codec import encode
from chain.execute import check_and_execute
from chain.model_versions import of_round
from chain.plain import pack
from chain.records import DeltaStatus, RoundPhase
from chain.state import State
from chain.transactions import GovernanceVote, Payload, Propose, Transfer, Verdict
from chain.types import Block, Epoch, Grains, TxId
from consensus.simplex.messages import EpochContext, Timing
from corpus.dataset import build
from corpus.ingest import Document
from node import submission as module
from node.api.app import create_app
from node.cli.governance import document_of
from node.client import Client
from node.dataset_submission import submit_dataset
from node.home import Home
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.verified import VerifiedReader
from tests.kit.duty_net import DutyNet
from tests.kit.machine import key
from tests.sim.chain_law import ChainLaw
from tests.sim.node import Habits
from tests.sim.scenario import Plan, Scenario
from wallet.keys import Keys

EPOCH = 8
TEXT = b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[2].glob("chain/*.py")))
CHANGES = {"min_fee_grains": 2000, "delta_cap_ms": 300, "empty_interval_ms": 35}


class VotingLaw(ChainLaw):
    """Blocks carry proposals for all of `CHANGES`, then everyone's votes, then transfers."""

    def __init__(self, seed: int) -> None:
        names = [f"validator-{i}/account" for i in range(4)]
        self.accounts = [key(name) for name in names]
        params = {"vote": {"blocks": 6, "ms": 100}, "proposal_deposit_grains": 1000}
        super().__init__(seed, (10**12,) * 4, EPOCH, delta_floor_ms=50, **params)
        self.start = self._trees[self.final.state_root]
        self.blocks: list[Block] = []

    def _context(self, epoch: Epoch) -> EpochContext:
        p = self.state().params(self._genesis.params)
        timing = Timing(p.delta_floor_ms, p.delta_cap_ms, p.empty_interval_ms)
        return replace(super()._context(epoch), timing=timing)

    def committed(self, block: Block) -> None:
        self.blocks.append(block)
        super().committed(block)

    def transactions(self, dice: random.Random) -> tuple[bytes, ...]:
        self._machine.tree = self._trees[self.final.state_root]
        state = self.state()
        known = governance.proposals(state)
        if not known and not self.is_changed(state):
            at = governance.soonest(state.params(self._genesis.params), self.final.height)
            payloads: list[tuple[int, Payload]] = [
                (i, Propose(name, pack(value), at))
                for i, (name, value) in enumerate(CHANGES.items())
            ]
        else:
            payloads = [(i, Transfer(self.accounts[0].public, Grains(1))) for i in range(4)]
            for proposal in known:
                ballot = GovernanceVote(proposal.id, Verdict.YES)
                payloads += [(i, ballot) for i in range(4)]
        ahead = dict.fromkeys(range(4), 0)
        made = []
        for i, payload in payloads:
            nonce = state.account(self.accounts[i].public).nonce + ahead[i]
            ahead[i] += 1
            made.append(encode(self._machine.tx(self.accounts[i], payload, nonce=nonce, fee=2000)))
        return tuple(made)

    def is_changed(self, state: State) -> bool:
        params = state.params(self._genesis.params)
        return all(getattr(params, name) == value for name, value in CHANGES.items())


def test_four_nodes_put_a_change_in_force_at_the_same_block() -> None:
    law = VotingLaw(7)
    habits = Habits(empty_interval_ms=20, rotate=0.0, transactions=1.0)
    plan = Plan(
        7, 4, (), EPOCH, 0, followers=0, frail=0, down=0,
        thirds=False, exile=False, habits=habits, law=law,
    )  # fmt: skip
    scenario = Scenario(plan)
    scenario.start()
    done = scenario.world.run(lambda: law.is_changed(law.state()), scenario.world.now + 60_000)
    assert done, law.final.height
    at = law.final.height + 1
    assert (at - 1) % EPOCH == 0
    beyond = at + 2 * EPOCH
    assert scenario.world.run(lambda: law.final.height >= beyond, scenario.world.now + 60_000)
    scenario.live()
    # The cores have taken the timing of the epoch in which it changed.
    for node in scenario.world.nodes:
        assert node.core is not None
        assert node.core._config.delta_cap_ms == CHANGES["delta_cap_ms"]
        assert node.core.delta_ms <= CHANGES["delta_cap_ms"]
    # And whoever executes all of it again, alone, gets the same roots and the same parameters.
    tree, parent, genesis = law.start, law.genesis().header, law._genesis
    for block in law.blocks:
        tree = check_and_execute(tree, genesis, law._rules, parent, block).tree
        parent = block.header
        fee = State(tree).params(genesis.params).min_fee_grains
        assert fee == (2000 if parent.height >= at - 1 else 1000)


# --- a round that is trained by a later version -------------------------------------------


# Its masks are the same for whoever trains and whoever replays.
CHANGED = {"steps": 20, "segment_steps": 5, "batch": 4, "dropout_ppm": 100_000}


class Quiet:
    def say(self, text: str) -> None: ...

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None: ...


def test_the_next_round_is_trained_and_judged_by_the_version_voted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.05)  # an in-process transport streams no events
    asyncio.run(_rounds(tmp_path))


async def _rounds(directory: Path) -> None:
    # Epochs as long as usual: whose turn it is to aggregate changes with each.
    async with DutyNet(directory, learners=1, vote={"blocks": 30, "ms": 0}) as net:
        transport = httpx.ASGITransport(create_app(net.local))
        async with Client("http://127.0.0.1:8645", "kit-token", transport) as client:
            reader = await VerifiedReader.connect(client)
            me = net.local.learners[0]
            keys = Keys(me, me, me, me)
            dataset = build([Document("chain.py", TEXT)], "MIT", "sources")
            await submit_dataset(reader, keys, dataset, Quiet(), wait=True)
            files = LearnerFiles(Home(directory / "home"), reader.genesis.chain_id, me.public)
            with files.lock():
                first = await Learner(reader, keys, files, net.worker, Quiet()).train_round()
                await _vote(net, client, CHANGED)
                # The same learner: it was told of nothing.
                second = await Learner(reader, keys, files, net.worker, Quiet()).train_round()
            assert (first.status, second.status) == ("merged", "merged")
            _check(net, TxId(bytes.fromhex(first.delta)), "1.0.0", steps=50, segment_steps=10)
            _check(net, TxId(bytes.fromhex(second.delta)), "1.0.1", steps=20, segment_steps=5)
            assert (await reader.round_specs(0)).training.steps == 50
            assert (await reader.round_specs(1)).training.steps == 20
            rule = (await reader.specs_now()).training
            assert (rule.batch, rule.dropout_ppm) == (4, 100_000)


async def _vote(net: DutyNet, client: Client, changes: dict[str, int]) -> None:
    found = await client.model_documents()
    document = await document_of(client, {"training": changes}, "1.0.1")
    assert found["version"] == "1.0.0"
    at = governance.soonest(net.state.params(net.local.genesis.params), net.state.head.height + 20)
    accounts = [keys.account for keys in net.local.validators]
    proposal, _ = await client.submit(Propose("model", document, at), accounts[0])
    for account in accounts:
        await client.submit(GovernanceVote(proposal, Verdict.YES), account)
    while net.state.head.height < at:
        net.local.block()


def _check(net: DutyNet, delta: TxId, version: str, *, steps: int, segment_steps: int) -> None:
    """Its manifest is of the version, and auditors have replayed it with success."""
    state = net.state
    record = state.delta(delta)
    current = state.round(record.round)
    assert record.manifest is not None
    assert (record.manifest.steps, record.manifest.segment_steps) == (steps, segment_steps)
    assert record.status == DeltaStatus.MERGED
    assert current.phase == RoundPhase.DONE
    assert current.audited == delta
    assert current.audit_votes
    assert {v.verdict for v in current.audit_votes} == {Verdict.YES}
    assert of_round(state, record.round) == version
