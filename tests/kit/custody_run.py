"""Plays custody events in the state machine, step by step, each of which a test may spoil."""

from __future__ import annotations

import copy
from typing import Any

from chain import custody
from chain import custody_records as c
from chain.codec import encode
from chain.custody_records import CustodyPhase
from chain.hashes import Hash32
from chain.limits import SUBTILE_BYTES, TILE_BYTES
from chain.transactions import Custody, CustodyDispute, CustodyOpening, Payload
from chain.types import Grains, PubKey
from tests.kit.machine import Machine, key
from tiles import merkle
from wallet.keys import Keys

# Seven subtiles in two shards: a whole one, a whole and a short one, four and a short one.
SHARDS = (
    bytes(SUBTILE_BYTES) + b"x" * 1000,
    b"".join(bytes([i]) * SUBTILE_BYTES for i in range(4)) + b"y" * 40,
)
BOND = 10**6
OPEN = 6  # blocks for disputes, and for an answer to each
STRANGERS = ("ann", "ben", "eve")


class CustodyRun:
    """A machine with an event every eight blocks; its strangers have money, ann a bond as well."""

    def __init__(self, *, shards: tuple[bytes, ...] = SHARDS, **params: Any) -> None:
        self.shards = shards
        chosen: dict[str, Any] = {
            "custody_interval_blocks": 8,
            "custody_bond_grains": BOND,
            "min_bond_grains": 10**6,
            "seed_blocks": 2,
            "custody_commit": {"blocks": 2, "ms": 0},
            "custody_open": {"blocks": OPEN, "ms": 0},
        }
        self.m = Machine(funded=STRANGERS, shards=shards, **(chosen | params))
        state = self.m.state
        account = key("ann").public
        state.put_account(account, bonded=10**6, balance=state.account(account).balance - 10**6)
        self.m.tree = state.commit()

    def copy(self) -> CustodyRun:
        """The same moment once more: what is done to it leaves this one as it is."""
        fresh = copy.copy(self)
        fresh.m = copy.copy(self.m)
        return fresh

    @classmethod
    def with_a_lie(cls, **options: Any) -> CustodyRun:
        """Disputes may begin; the member of rank 0 at place 0 lied there."""
        run = cls(**options)
        run.until(CustodyPhase.COMMIT)
        run.to_disputes(lies={run.custodian(0): (0,)})
        return run

    @property
    def event(self) -> c.CustodyEvent:
        found = custody.current(self.m.state)
        if found is None:
            raise LookupError("no event is in progress")
        return found

    def phase(self) -> CustodyPhase | None:
        found = custody.current(self.m.state)
        return None if found is None else CustodyPhase(found.phase)

    def until(self, phase: CustodyPhase | None, most: int = 60) -> None:
        for _ in range(most):
            if self.phase() == phase:
                return
            self.m.block()
        raise LookupError(f"still {self.phase()} after {most} blocks")

    # --- who and what ---------------------------------------------------------------------

    def keys_of(self, member: int) -> Keys:
        account = self.event.members[member].account
        return next(v for v in self.m.validators if v.account.public == account)

    def data(self, position: int) -> bytes:
        """The bytes of a named place."""
        place = self.event.places[position]
        start = place.tile * TILE_BYTES + place.subtile * SUBTILE_BYTES
        return self.shards[place.shard][start : start + SUBTILE_BYTES]

    def commitments(self, member: int, lies: tuple[int, ...] = ()) -> tuple[Hash32, ...]:
        """Of a member to all its places, wrong at those in `lies`."""
        account, seed = self.event.members[member].account, self.event.seed
        return tuple(
            custody.commitment(account, seed, at, b"?" if at in lies else self.data(at))
            for at in custody.positions(self.event, member)
        )

    def opening(self, position: int, custodian: PubKey) -> CustodyOpening:
        place = self.event.places[position]
        start = place.tile * TILE_BYTES
        tile = self.shards[place.shard][start : start + TILE_BYTES]
        proof = merkle.prove_subtile(tile, place.subtile)
        return CustodyOpening(
            self.event.seed, custodian, position, proof.siblings, self.data(position)
        )

    def account(self, member: int) -> PubKey:
        return self.event.members[member].account

    def status(self, member: int) -> int:
        return self.event.members[member].status

    def custodian(self, position: int, rank: int = 0) -> int:
        return self.event.places[position].custodians[rank]

    # --- what they do -----------------------------------------------------------------------

    def send(self, name: str, payload: Payload, fee: int | None = None) -> str:
        (receipt,) = self.m.block(encode(self.m.tx(key(name), payload, fee=fee)))
        return receipt.code

    def send_duty(self, validator: Keys, payload: Payload) -> str:
        (receipt,) = self.m.block(self.m.duty(validator, payload))
        return receipt.code

    def commit(self, *members: int, lies: dict[int, tuple[int, ...]] | None = None) -> list[str]:
        """One block with these members' commitments; their codes."""
        wrong = lies or {}
        raws = [
            self.m.duty(
                self.keys_of(i), Custody(self.event.seed, self.commitments(i, wrong.get(i, ())))
            )
            for i in members
        ]
        return [receipt.code for receipt in self.m.block(*raws)]

    def to_disputes(self, lies: dict[int, tuple[int, ...]] | None = None) -> None:
        """Everybody commits, with some lies; then disputes may begin."""
        self.until(CustodyPhase.COMMIT)
        codes = self.commit(*range(len(self.event.members)), lies=lies)
        if set(codes) != {"ok"} or self.phase() != CustodyPhase.DISPUTE:
            raise AssertionError(f"{codes}, {self.phase()}")

    def dispute(self, name: str, position: int, member: int, bond: int = BOND) -> str:
        account = self.event.members[member].account
        return self.send(name, CustodyDispute(self.event.seed, account, position, Grains(bond)))
