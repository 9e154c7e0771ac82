"""Sets of 1, 4, 7, 31 and 100 change at epoch boundaries; grains are conserved whatever they do.

Each run replays from its seed: stakes come, go, are slashed and jailed by the dice, and an oracle
that keeps its own book of who announced, bonded and sits in jail says what each set has to be.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from chain import records as r
from chain.address import peer_id_of
from chain.codec import encode
from chain.hashes import Hash32
from chain.transactions import Announce, Bond, Payload, SubmitEvidence, Unbond, Unjail
from chain.types import Grains, PubKey, View, VoteKind
from consensus.evidence import double_vote
from tests.kit.machine import STAKE, ElectedMachine, keys
from wallet.keys import Keys
from wallet.signing import sign_announce, sign_vote

EPOCH, LEAST = 5, 10**9
EPOCHS = {1: 14, 4: 12, 7: 12, 31: 8, 100: 5}


@dataclass
class Town:
    """A machine, its people, and the oracle's book of them."""

    size: int
    seed: int
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.m = ElectedMachine(
            self.size,
            ("ann",),
            epoch_blocks=EPOCH,
            unbonding_blocks=25,
            min_bond_grains=LEAST,
            downtime_views=4,
            downtime_jail={"blocks": EPOCH, "ms": 0},
            evidence_jail={"blocks": 8 * EPOCH, "ms": 0},
        )
        guests = [keys(f"guest-{i}") for i in range(3)]
        self.people: dict[PubKey, Keys] = {
            k.account.public: k for k in (*self.m.validators, *guests)
        }
        state = self.m.state
        for account in self.people:
            state.put_account(account, balance=2 * 10**10)
        self.m.tree = state.commit()
        self.total = self.m.grains()
        self.roles = dict.fromkeys((k.account.public for k in self.m.validators), 2)

    # --- what people do ------------------------------------------------------------------

    def act(self) -> None:
        """One block with what somebody has in mind."""
        who = self.dice.choice(list(self.people.values()))
        account = self.m.state.account(who.account.public)
        choice = self.dice.randrange(6)
        payload: Payload
        if choice == 0:
            payload = Bond(Grains(self.dice.choice((LEAST, 3 * LEAST))))
        elif choice == 1:
            payload = Unbond(Grains(max(1, account.bonded // self.dice.choice((1, 2, 5)))))
        elif choice == 2:
            payload = Unjail()
        elif choice == 3:
            payload = self.announce(who)
        elif choice == 4:
            payload = self.evidence()
        else:
            self.sleep()
            self.block()
            return
        self.block(encode(self.m.tx(who.account, payload)), payload=payload)

    def announce(self, who: Keys) -> Payload:
        roles = self.dice.choice((2, 2, 2, 1 | 4))
        return sign_announce(
            who,
            chain_id=self.m.genesis.chain_id,
            roles=roles,
            capacity_tiles=1,
            node_id=peer_id_of(who.node.public),
            addresses=(),
        )

    def evidence(self) -> Payload:
        guilty = self.dice.choice(self.m.state.validators())
        signer = self.people[guilty.account].consensus
        pair = (
            sign_vote(
                signer,
                chain_id=self.m.genesis.chain_id,
                kind=VoteKind.FINALIZE,
                epoch=self.m.state.head.epoch,
                view=View(2),
                block_hash=Hash32(letter * 32),
            )
            for letter in (b"a", b"b")
        )
        return SubmitEvidence(double_vote(*pair))

    def sleep(self) -> None:
        members = [v.account for v in self.m.state.validators()]
        self.m.asleep = set(self.dice.sample(members, (len(members) - 1) // 3))

    # --- what must hold ------------------------------------------------------------------

    def block(self, *raws: bytes, payload: Payload | None = None) -> None:
        now = self.m.state.head.epoch
        coming = {v.account for v in self.m.state.epoch(now + 1).validators.members}
        if self.m.asleep and not coming - self.m.asleep:
            self.m.asleep = set()
        before = {e: self.m.state.get(r.EpochRecord, r.epoch_key(e)) for e in range(now, now + 3)}
        receipts = self.m.block(*raws)
        if isinstance(payload, Announce) and receipts[0].ok:
            who = next(a for a, k in self.people.items() if k.node.public == payload.node_key)
            self.roles[who] = payload.roles
        state = self.m.state
        assert self.m.grains() == self.total, f"seed {self.seed}: grains changed"
        for number, record in before.items():  # what is frozen stays
            after = state.get(r.EpochRecord, r.epoch_key(number))
            assert record is None or after is None or after.validators == record.validators
        if (self.m.height - 1) % EPOCH == 0:
            self.check_frozen()

    def check_frozen(self) -> None:
        state = self.m.state
        frozen = state.epoch(state.head.epoch + 2).validators.members
        stakes = {v.account: v.stake for v in frozen}
        standing, jailed = {}, {}
        for account, roles in self.roles.items():
            held = state.account(account)
            if roles & 2:
                (jailed if held.jailed else standing)[account] = held.bonded
        standing = {a: s for a, s in standing.items() if s >= LEAST}
        jailed = {a: s for a, s in jailed.items() if s > 0}
        if not standing and not jailed:
            assert frozen == state.epoch(state.head.epoch + 1).validators.members
            return
        extra = stakes.keys() - standing.keys()
        assert stakes.keys() >= standing.keys(), f"seed {self.seed}: somebody is left out"
        assert extra <= jailed.keys()
        assert len(extra) == min(len(jailed), max(0, 4 - len(standing)))
        assert all(s == state.account(a).bonded for a, s in stakes.items())
        assert [v.consensus_key for v in frozen] == sorted(v.consensus_key for v in frozen)


@pytest.mark.parametrize("size", list(EPOCHS))
@pytest.mark.parametrize("seed", [1, 2])
def test_sets_change_at_boundaries_and_no_grain_is_lost(size: int, seed: int) -> None:
    town = Town(size, 1000 * size + seed)
    for _ in range(EPOCHS[size] * EPOCH):
        town.act()
    state = town.m.state
    changed = {v.account for v in state.validators()} != {
        k.account.public for k in town.m.validators
    }
    moved = {v.stake for v in state.validators()} != {STAKE}
    assert changed or moved, f"seed {town.seed}: nothing ever happened"
    town.m.asleep = set()
    for _ in range(40):  # whatever is on its way out gets there
        town.block()
    assert not list(town.m.tree.items(r.UNBONDING))
