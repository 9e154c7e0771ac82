"""Transfers of several senders, handed in once a node has them: whoever acknowledged one has to see
to it from then on, whatever happens to that node (docs/spec/mempool.md, "Acknowledged").

A transfer that no node has acknowledged is handed in again elsewhere; one that is acknowledged
never is. Now and then a sender replaces one that waits by one with a higher fee.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from chain.codec import encode
from chain.errors import BlyanError, TxError
from chain.hashes import TX
from chain.transactions import Transfer
from chain.types import Grains, TxId
from tests.e2e.fleet import Failure, Fleet, Machine
from tests.e2e.load import payer
from tests.kit.waiting import paused
from wallet.signing import sign_transaction

PAYERS = 6
MOST_AHEAD = 20  # nonces of one payer that are not final: nodes take 32
MOST_AT_ONCE = 8  # new transfers in one call
AGAIN_S = 1.5  # what nobody has acknowledged is handed in again after this
POST_S = 8.0  # an answer that has not come by then is none
TICK_S = 0.1
REPLACED = 0.05  # of the ticks: something that waits gets a competitor
# Other times, or another transfer with this nonce: no promise was made.
LATER = {"bad_nonce", "mempool_full"}
BEATEN = {"underpriced", "nonce_taken"}


@dataclass(eq=False, slots=True)
class Sent:
    """One signed transfer, and what became of handing it in."""

    raw: bytes
    tx_id: TxId
    payer: int
    nonce: int
    fee: int
    posted: float = -1e9
    acknowledged: list[int] = field(default_factory=list)  # by which nodes
    is_given_up: bool = False  # another with its nonce was there, and bids enough


class KillLoad:
    """`all` by id; `finals`: each payer's next nonce as of a final block."""

    def __init__(self, fleet: Fleet, rate: float, chance: random.Random) -> None:
        self._fleet, self._rate, self._chance = fleet, rate, chance
        self.all: dict[TxId, Sent] = {}
        self._open: dict[TxId, Sent] = {}  # not acknowledged, not given up
        self.nonces = [0] * PAYERS
        self.finals = [0] * PAYERS
        self.waits_s: list[float] = []  # for an acknowledgement
        self.refused_again = 0  # acknowledged, dropped with a reason, and handed in anew
        self.is_ending = False
        self._posts: set[asyncio.Task[None]] = set()
        self._clock = asyncio.get_running_loop().time

    @property
    def acknowledged(self) -> list[Sent]:
        return [s for s in self.all.values() if s.acknowledged]

    @property
    def is_done(self) -> bool:
        return self.finals == self.nonces

    async def run(self) -> None:
        """Until cancelled. After `is_ending` only what is there is handed in."""
        due = self._clock()
        while True:
            while not self.is_ending and due <= self._clock():
                due += 1 / self._rate
                self._new()
            self._hand_in_again()
            await paused(TICK_S)
            for task in [t for t in self._posts if t.done()]:
                self._posts.remove(task)
                task.result()

    async def follow(self) -> None:
        """Keep `finals`, until cancelled."""
        while True:
            for number in range(PAYERS):
                machine = self._chance.choice(self._fleet.machines)
                found = await machine.ask(machine.client.account(payer(number).public))
                if found is not None:
                    self.finals[number] = max(self.finals[number], int(found["nonce"]))
            await paused(TICK_S)

    def _new(self) -> None:
        """Some more transfers of one payer, to one node, in one call."""
        number = self._chance.randrange(PAYERS)
        room = MOST_AHEAD - (self.nonces[number] - self.finals[number])
        count = min(room, self._chance.randint(1, MOST_AT_ONCE))
        if count <= 0:
            return
        batch = [self._sign(number, self.nonces[number] + i) for i in range(count)]
        self.nonces[number] += count
        if self._chance.random() < REPLACED:
            first = self.finals[number]
            nonce = self._chance.randrange(first, self.nonces[number])
            dearest = max(s.fee for s in self.all.values() if (s.payer, s.nonce) == (number, nonce))
            batch.append(self._sign(number, nonce, fee=dearest * 5 // 4))
        self._post(self._chance.choice(self._fleet.machines), batch)

    def _sign(self, number: int, nonce: int, fee: int = 0) -> Sent:
        fee = fee or self._fleet.genesis.params.min_fee_grains * self._chance.randint(1, 4)
        tx = sign_transaction(
            payer(number),
            chain_id=self._fleet.genesis.chain_id,
            nonce=nonce,
            payload=Transfer(payer(number + 1).public, Grains(1 + nonce % 7)),
            fee=Grains(fee),
        )
        raw = encode(tx)
        sent = Sent(raw, TxId(TX.hash(raw)), number, nonce, fee)
        self.all[sent.tx_id] = self._open[sent.tx_id] = sent
        return sent

    def _hand_in_again(self) -> None:
        now = self._clock()
        for sent in list(self._open.values()):
            if sent.nonce < self.finals[sent.payer]:
                del self._open[sent.tx_id]  # one with its nonce is final; perhaps this one
            elif now - sent.posted > AGAIN_S:
                self._post(self._chance.choice(self._fleet.machines), [sent])

    def _post(self, machine: Machine, batch: Sequence[Sent]) -> None:
        for sent in batch:
            sent.posted = self._clock()
        self._posts.add(asyncio.ensure_future(self._hand_in(machine, batch)))

    async def _hand_in(self, machine: Machine, batch: Sequence[Sent]) -> None:
        began = self._clock()
        if len(batch) == 1:
            try:
                taken = await machine.ask(machine.client.post_tx(batch[0].raw), POST_S)
                codes = None if taken is None else ["ok"]
            except TxError as error:
                codes = [error.code]
        else:
            answers = await machine.ask(machine.client.post_txs([s.raw for s in batch]), POST_S)
            codes = None if answers is None else [str(a["code"]) for a in answers]
        if codes is None:
            return  # it is gone, or was when it should have answered: nothing was promised
        self.waits_s.append(self._clock() - began)
        for sent, code in zip(batch, codes, strict=True):
            self._told(machine, sent, code)

    def _told(self, machine: Machine, sent: Sent, code: str) -> None:
        if code == "ok":
            sent.acknowledged.append(machine.index)
        elif code in BEATEN:
            sent.is_given_up = True
        elif code not in LATER:
            raise Failure(f"{machine.name} refused a transfer: {code}")
        if code == "ok" or code in BEATEN:
            self._open.pop(sent.tx_id, None)

    async def look_after_dropped(self) -> None:
        """What was acknowledged and then dropped, as its node tells, is handed in anew if nothing
        else with its nonce is there to be final: a wallet would."""
        for number in range(PAYERS):
            nonce = self.finals[number]
            mine = [s for s in self.acknowledged if (s.payer, s.nonce) == (number, nonce)]
            for sent in mine:
                machine = self._fleet.machines[sent.acknowledged[0]]
                with suppress(BlyanError):
                    found = await machine.ask(machine.client.tx(sent.tx_id))
                    if found is not None and found["status"] == "dropped":
                        if found["code"] not in ("replaced", "bad_nonce"):
                            self.refused_again += 1
                        self._open[sent.tx_id] = sent
