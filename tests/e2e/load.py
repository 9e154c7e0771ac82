"""A steady load of transfers, as wallets put it in: signed, posted to some node, sent again to
another until it is final; and everything that any node tells meanwhile.

What a node has once told to be final is the promise that `tests.e2e.verdict` holds it to.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from chain.codec import encode
from chain.errors import InputError, TxError, UnreachableError
from chain.hashes import TX
from chain.params import Genesis
from chain.transactions import Transfer
from chain.types import Grains, TxId
from node.client import Json
from tests.e2e.fleet import Failure, Fleet, Machine
from tests.kit.waiting import paused
from wallet.keys import KeyPair
from wallet.signing import sign_transaction

PAYERS = 4
MOST_WAITING = 16  # of one payer, not final: nodes take nonces up to 32 ahead
POST_S = 1.0  # a node that has not taken a transfer by then is given up
AGAIN_S = 2.0  # what is not final after that is sent to another node
TICK_S = 0.1
# Right another time, or already there: sending again or waiting mends it.
PASSING = {"bad_nonce", "nonce_taken", "duplicate", "mempool_full"}


def payer(number: int) -> KeyPair:
    """An account that nobody else uses: validators' own send duties in between."""
    return KeyPair.from_seed(hashlib.sha256(b"end-to-end payer %d" % number).digest())


@dataclass(slots=True)
class Told:
    """What nodes have said to be final. Nothing of it may ever turn out wrong."""

    # transaction -> who said at which height, by event or by answer
    txs: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    # (height, hash) -> who said so
    blocks: dict[tuple[int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    failed: dict[str, str] = field(default_factory=dict)  # transfers that are final without effect
    height: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)  # replaced at each block

    @property
    def highest(self) -> int:
        """Of anything that was told."""
        return max([self.height, *(h for by in self.txs.values() for _, h in by)])

    def block(self, node: str, height: int, block_hash: str) -> None:
        self.blocks[height, block_hash].add(node)
        self.height = max(self.height, height)
        self.news.set()
        self.news = asyncio.Event()


@dataclass(slots=True)
class _Sent:
    raw: bytes
    payer: int
    node: int  # to which it was sent last
    at: float
    times: int = 1


class Load:
    def __init__(self, fleet: Fleet, rate: float, seed: str) -> None:
        self._fleet, self._rate = fleet, rate
        self._chance = random.Random(seed)
        self._nonces = [0] * PAYERS
        self._waiting: dict[TxId, _Sent] = {}
        self._posts: set[asyncio.Task[None]] = set()
        self._clock = asyncio.get_running_loop().time
        self.told = Told()
        self.sent: dict[str, tuple[int, int]] = {}  # transaction -> payer, nonce
        self.is_ending = False

    @property
    def waiting(self) -> int:
        """Transfers that nobody has told to be final yet."""
        return len(self._waiting)

    # --- putting in ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `is_ending`, and all that was put in is final."""
        due = self._clock()
        while not self.is_ending or self._waiting:
            while not self.is_ending and due <= self._clock():
                due += 1 / self._rate
                self._put_in()
            self._send_again()
            await paused(TICK_S)
            for task in [t for t in self._posts if t.done()]:
                self._posts.remove(task)
                task.result()  # a refusal that must not be ends the run

    def _put_in(self) -> None:
        """One more transfer, of a payer that does not wait for too many."""
        behind = [0] * PAYERS
        for sent in self._waiting.values():
            behind[sent.payer] += 1
        free = [p for p in range(PAYERS) if behind[p] < MOST_WAITING]
        if not free:
            return
        number = self._chance.choice(free)
        nonce = self._nonces[number]
        self._nonces[number] += 1
        genesis: Genesis = self._fleet.genesis
        tx = sign_transaction(
            payer(number),
            chain_id=genesis.chain_id,
            nonce=nonce,
            payload=Transfer(payer(number + 1).public, Grains(1 + nonce % 7)),
            fee=Grains(genesis.params.min_fee_grains),
        )
        raw = encode(tx)
        tx_id = TxId(TX.hash(raw))
        self.sent[tx_id.hex()] = (number, nonce)
        node = self._chance.randrange(len(self._fleet.machines))
        self._waiting[tx_id] = _Sent(raw, number, node, self._clock())
        self._post(tx_id)

    def _send_again(self) -> None:
        """What was not final in time, to the next node, in the order of its nonces."""
        now, count = self._clock(), len(self._fleet.machines)
        for tx_id, sent in self._waiting.items():
            if now - sent.at > AGAIN_S:
                sent.node, sent.at, sent.times = (sent.node + 1) % count, now, sent.times + 1
                self._post(tx_id)

    def _post(self, tx_id: TxId) -> None:
        self._posts.add(asyncio.ensure_future(self._hand_in(tx_id, self._waiting[tx_id])))

    async def _hand_in(self, tx_id: TxId, sent: _Sent) -> None:
        """To one node; if that knows it already, what becomes of it."""
        machine = self._fleet.machines[sent.node]
        try:
            taken = await machine.ask(machine.client.post_tx(sent.raw), POST_S)
        except TxError as error:
            if error.code not in PASSING:
                raise Failure(f"{machine.name} refused a transfer: {error.code}: {error}") from None
            taken = tx_id
        if taken is None:  # it is not there, or stopped: to the next one at once
            sent.at = -AGAIN_S
        elif sent.times > 1:
            await self._look(machine, tx_id)

    async def _look(self, machine: Machine, tx_id: TxId) -> None:
        """Ask a node what has become of a transfer: nobody may have listened when it told."""
        with suppress(InputError):  # unknown there: it will be sent again
            found = await machine.ask(machine.client.tx(tx_id))
            if found is not None and found["status"] == "final":
                self._final(machine.name, tx_id.hex(), int(found["height"]), str(found["code"]))

    # --- listening ----------------------------------------------------------------------------

    async def listen(self, machine: Machine) -> None:
        """To the event stream of one node, again and again, until cancelled."""
        while True:
            with suppress(UnreachableError):
                async for event in machine.client.events():
                    self._hear(machine.name, event.name, event.data)
            await paused(TICK_S)

    def _hear(self, node: str, kind: str, data: Json) -> None:
        if kind == "block":
            self.told.block(node, int(data["height"]), str(data["hash"]))
        elif kind == "tx":
            self._final(node, str(data["id"]), int(data["height"]), str(data["code"]))

    def _final(self, node: str, tx_id: str, height: int, code: str) -> None:
        self.told.txs[tx_id].add((node, height))
        if tx_id in self.sent:
            self._waiting.pop(TxId(bytes.fromhex(tx_id)), None)
            if code != "ok":
                self.told.failed[tx_id] = code


async def all_of(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel, and tell what any of them died of before."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
