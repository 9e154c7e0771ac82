"""What waits, in the orders that the mempool needs: by id, by sender and nonce, by worth.

A transaction can be executed only after those before it, so it is worth no more than any of its
kind before it, and what waits for an earlier nonce is worth nothing yet. By that measure nothing of
a sender is worth less than its last, and taking lasts away, the cheapest first, leaves no hole.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field

from chain.custody import Subject
from chain.errors import invariant
from chain.types import PubKey, TxId
from node.pool_value import RAISE_DEN, RAISE_NUM, Kind

_HEAP_SLACK = 256  # stale entries of a heap that are not worth making it anew
_NO_WORTH = float("inf")  # of no transaction at all: nothing bounds what follows


@dataclass(slots=True, eq=False)
class Waiting:
    """One transaction. `own_worth`: its bid by its cost; `worth`: no more than those before it."""

    tx_id: TxId
    sender: PubKey
    nonce: int
    raw: bytes
    kind: Kind
    bid: int
    cost: int  # in ordinary transactions (chain/costs.py)
    spends: int
    height: int  # of the chain when it came
    replaces: int = 0  # how many of this sender and nonce came before it
    subject: Subject | None = None  # what it decides, if it is an opening of custody
    is_journaled: bool = False
    own_worth: float = field(init=False)
    worth: float = 0.0
    is_ready: bool = False  # nothing before it is missing

    def __post_init__(self) -> None:
        self.own_worth = self.bid / self.cost


@dataclass(slots=True, eq=False)
class Sender:
    """What one account has waiting."""

    account: PubKey
    turn: int  # whoever was served longest ago comes first among equals
    txs: dict[int, Waiting] = field(default_factory=dict)
    spends: int = 0
    duties: int = 0
    base: int = 0  # the account's nonce as of the last look
    end: int = 0  # the first nonce from `base` on that is missing
    last: int = -1  # the highest nonce
    version: int = 0  # of its entry in a heap; others of it are stale
    worths: list[float] = field(default_factory=lambda: [_NO_WORTH] * len(Kind))  # at the last

    def append(self, waiting: Waiting) -> None:
        """Put in what has the highest nonce, and extends what is ready or waits itself."""
        self.last = waiting.nonce
        waiting.is_ready = waiting.nonce <= self.end
        if waiting.is_ready:
            self.end = waiting.nonce + 1
        self._bound(waiting)

    def look_again(self, nonce: int) -> None:
        """Work out anew what is ready, from the account's next nonce on, and what it is worth."""
        self.base = self.end = nonce
        self.worths = [_NO_WORTH] * len(Kind)
        self.last = -1
        for at in sorted(self.txs):
            if at == self.end:
                self.end = at + 1
            waiting = self.txs[at]
            waiting.is_ready = at < self.end
            self._bound(waiting)
            self.last = at

    def _bound(self, waiting: Waiting) -> None:
        worth = min(self.worths[waiting.kind], waiting.own_worth)
        self.worths[waiting.kind] = waiting.worth = worth

    def worth_at(self, nonce: int, kind: Kind, own_worth: float) -> float:
        """What a transaction would be worth at a nonce."""
        if nonce > self.last:
            return min(self.worths[kind], own_worth)
        before = [w.own_worth for n, w in self.txs.items() if n < nonce and w.kind is kind]
        return min([own_worth, *before])


_Entry = tuple[bool, float, int, Sender]  # ready, worth, minus the version, whose last it is


class Index:
    """All that waits. Every change costs O(log n) of all, and O(k) of the k of its sender."""

    def __init__(self) -> None:
        self.senders: dict[PubKey, Sender] = {}
        self.ids: OrderedDict[TxId, Waiting] = OrderedDict()  # the oldest first
        self.count = [0] * len(Kind)
        self.bytes = [0] * len(Kind)
        self.subjects: dict[TxId, Waiting] = {}  # those that decide something
        self._with_duties: dict[PubKey, Sender] = {}
        self._heaps: list[list[_Entry]] = [[] for _ in Kind]
        self._versions = self._turns = 0

    def get(self, sender: PubKey, nonce: int) -> Waiting | None:
        found = self.senders.get(sender)
        return None if found is None else found.txs.get(nonce)

    def next_nonce(self, account: PubKey, nonce: int) -> int:
        """The first nonce from the account's own on that nothing waits with."""
        found = self.senders.get(account)
        if found is None:
            return nonce
        at = max(nonce, found.end) if nonce >= found.base else nonce
        while at in found.txs:
            at += 1
        return at

    def add(self, waiting: Waiting, account_nonce: int) -> None:
        """Take in what has neither the id nor the sender and nonce of another."""
        sender = self.senders.get(waiting.sender)
        if sender is None:
            self._turns += 1
            sender = self.senders[waiting.sender] = Sender(waiting.sender, self._turns)
            sender.base = sender.end = account_nonce
        invariant(waiting.nonce not in sender.txs, "a nonce waits once")
        sender.txs[waiting.nonce] = waiting
        sender.spends += waiting.spends
        if waiting.kind is Kind.DUTY:
            sender.duties += 1
            self._with_duties[sender.account] = sender
        self.ids[waiting.tx_id] = waiting
        self.count[waiting.kind] += 1
        self.bytes[waiting.kind] += len(waiting.raw)
        if waiting.subject is not None:
            self.subjects[waiting.tx_id] = waiting
        if waiting.nonce > sender.last and account_nonce == sender.base:
            sender.append(waiting)
        else:
            sender.look_again(account_nonce)
        self._touch(sender)

    def remove(self, gone: list[Waiting], account_nonce: int) -> None:
        """Take out some of one sender, whose account has this nonce now."""
        sender = self.senders[gone[0].sender]
        for waiting in gone:
            del sender.txs[waiting.nonce]
            del self.ids[waiting.tx_id]
            self.subjects.pop(waiting.tx_id, None)
            sender.spends -= waiting.spends
            self.count[waiting.kind] -= 1
            self.bytes[waiting.kind] -= len(waiting.raw)
            sender.duties -= waiting.kind is Kind.DUTY
        if not sender.duties:
            self._with_duties.pop(sender.account, None)
        if not sender.txs:
            del self.senders[sender.account]
            sender.version = 0
            return
        sender.look_again(account_nonce)
        self._touch(sender)

    def look_again(self, sender: Sender, account_nonce: int) -> None:
        """The account's nonce may be another than before."""
        if sender.base != account_nonce:
            sender.look_again(account_nonce)
            self._touch(sender)

    def served(self, sender: Sender) -> None:
        """The turn is others' now."""
        self._turns += 1
        sender.turn = self._turns

    def with_duties(self) -> list[Sender]:
        return list(self._with_duties.values())

    # --- the least worth --------------------------------------------------------------------

    def _touch(self, sender: Sender) -> None:
        """A sender's last may be another, or worth something else."""
        self._versions += 1
        sender.version = self._versions
        last = sender.txs[sender.last]
        heap = self._heaps[last.kind]
        if len(heap) > 2 * len(self.senders) + _HEAP_SLACK:
            heap[:] = [entry for entry in heap if entry[3].version == -entry[2]]
            heapq.heapify(heap)
        heapq.heappush(heap, (last.is_ready, last.worth, -sender.version, sender))

    def cheapest(self, kind: Kind) -> Generator[Waiting]:
        """What is worth least of a kind, beginning with the least: senders' lasts, and what is
        their last once that is gone. Nothing may be changed before the iteration has ended."""
        heap, taken = self._heaps[kind], list[_Entry]()
        later: list[tuple[bool, float, int, Sender, list[int]]] = []
        try:
            while True:
                while heap and heap[0][3].version != -heap[0][2]:
                    heapq.heappop(heap)
                if later and (not heap or later[0][:3] <= heap[0][:3]):
                    _, _, _, sender, nonces = heapq.heappop(later)
                elif heap:
                    entry = heapq.heappop(heap)
                    taken.append(entry)
                    sender, nonces = entry[3], sorted(entry[3].txs)
                else:
                    return
                yield sender.txs[nonces.pop()]
                if nonces and (last := sender.txs[nonces[-1]]).kind is kind:
                    entry_of = (last.is_ready, last.worth, -sender.version, sender, nonces)
                    heapq.heappush(later, entry_of)
        finally:
            for entry in taken:
                heapq.heappush(heap, entry)


def displaces(worth: float, victim: Waiting) -> bool:
    """Whether something ready of this worth may take the place of another."""
    return not victim.is_ready or worth * RAISE_DEN >= victim.worth * RAISE_NUM
