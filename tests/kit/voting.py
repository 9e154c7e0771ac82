"""A small chain on which validators vote: short epochs and votes, and accounts that can pay."""

from __future__ import annotations

from typing import Any

from chain import governance as rules
from chain.codec import encode
from chain.governance_records import ProposalRecord
from chain.model_versions import canonical
from chain.params import Params
from chain.plain import pack
from chain.transactions import GovernanceVote, Payload, Propose, Verdict
from chain.types import Height, TxId
from tests.kit.machine import ElectedMachine, key

EPOCH = 4
VOTE_BLOCKS = 5
VALIDATORS = tuple(f"validator-{i}/account" for i in range(4))
FUNDED = ("ann", "ben", *VALIDATORS)


class Assembly:
    """Everyone speaks by name: `ann` has money only, `validator-0/account` also stake."""

    def __init__(self, **params: Any) -> None:
        chosen: dict[str, Any] = {
            "epoch_blocks": EPOCH,
            "vote": {"blocks": VOTE_BLOCKS, "ms": 1000},
            "proposal_deposit_grains": 10**6,
            "unbonding_blocks": 10**4,
            "downtime_jail": {"blocks": EPOCH, "ms": 1},
            "evidence_jail": {"blocks": 100, "ms": 1000},
        }
        self.m = ElectedMachine(funded=FUNDED, **(chosen | params))

    @property
    def params(self) -> Params:
        return self.m.state.params(self.m.genesis.params)

    @property
    def records(self) -> list[ProposalRecord]:
        return rules.proposals(self.m.state)

    def soonest(self) -> int:
        """The first height that the next block may propose."""
        return rules.soonest(self.params, self.m.height)

    def send(self, name: str, payload: Payload) -> str:
        """The code of its receipt."""
        (receipt,) = self.m.block(encode(self.m.tx(key(name), payload)))
        return receipt.code

    def propose(
        self,
        parameter: str,
        value: int | bytes,
        activate: int | None = None,
        who: str = VALIDATORS[0],
    ) -> str:
        raw = pack(value) if isinstance(value, int) else value
        height = Height(self.soonest() if activate is None else activate)
        return self.send(who, Propose(parameter, raw, height))

    def proposed(self, parameter: str, value: int | bytes, activate: int | None = None) -> TxId:
        """The id of a proposal that is taken."""
        known = {p.id for p in self.records}
        assert self.propose(parameter, value, activate, "ben") == "ok"
        (found,) = (p.id for p in self.records if p.id not in known)
        return found

    def vote(self, who: str, proposal: TxId, verdict: int = Verdict.YES) -> str:
        return self.send(who, GovernanceVote(proposal, verdict))

    def agree(self, *proposals: TxId, voters: tuple[str, ...] = VALIDATORS) -> None:
        """Voters say yes to all, in one block."""
        raws = []
        for who in voters:
            nonce = self.m.state.account(key(who).public).nonce
            for ahead, proposal in enumerate(proposals):
                ballot = GovernanceVote(proposal, Verdict.YES)
                raws.append(encode(self.m.tx(key(who), ballot, nonce=nonce + ahead)))
        self.m.ok(*raws)

    def to(self, height: int) -> None:
        """Blocks up to this one."""
        while self.m.height < height:
            self.m.block()

    def said(self, kind: str = "proposal") -> list[str]:
        """What the last block's events say of proposals."""
        assert self.m.done is not None
        return [e.data.get("status", "") for e in self.m.done.events if e.kind == kind]

    def document(self, version: str, **changes: Any) -> bytes:
        """A version of genesis' documents with some fields of either changed."""
        model, training = dict(self.m.genesis.model), dict(self.m.genesis.training)
        for name, value in changes.items():
            (model if name in model else training)[name] = value
        return canonical({"version": version, "model": model, "training": training})
