"""Transactions that wait for a block: checked on entry, in nonce order for each sender, bounded.

Duties of validators come first and have room of their own: rounds and audits go on however many
strangers wait. What waits for an earlier nonce may never pay, so it has the first half of the room.
What a block took or a rule refused leaves; why something was refused stays known for a while,
so that whoever asks for it gets an answer.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chain import custody, limits
from chain.admission import check_transaction, is_free_duty
from chain.costs import NO_ROOM
from chain.errors import TxError
from chain.execute import Context, Execution
from chain.hashes import TX, ZERO_HASH, Hash32
from chain.params import Genesis
from chain.receipts import Receipt
from chain.rules import Rules
from chain.signed import signed
from chain.state import State
from chain.transactions import CustodyOpening, Transaction, decode_transaction
from chain.tree import StateTree
from chain.types import Height, PubKey, TimeMs, TxId

MAX_TXS = 10_000  # transactions held; as many again if they are duties
MAX_BYTES = 64 * 1024 * 1024  # bytes held; as many again of duties
MAX_PER_SENDER = 64  # transactions of one sender
MAX_GAP = 32  # nonces a sender may be ahead
MAX_REPLACED = 16  # transactions of one sender and nonce, one after the other
MAX_AGE_BLOCKS = 200  # what no block took by then leaves
MAX_REMEMBERED = 4096  # refused transactions whose reason is kept
MAX_OPENINGS = 4  # of one sender about one thing, from peers: it signs anew what others displaced
LARGE_BYTES = 800 * 1024  # of a block for openings of custody: three, so that gossip bears it
BUILD_BUDGET_S = 0.25  # a leader's time for filling a block
# Refused now, but right in a block to come: the sender's view may be ahead of ours.
_EARLY = {"bad_nonce", *NO_ROOM}


@dataclass(slots=True)
class _Waiting:
    tx_id: TxId
    raw: bytes
    nonce: int
    height: int  # of the chain when it came
    replaces: int  # how many of this sender and nonce came before it
    duty: bool
    subject: custody.Subject | None = None  # what it decides, if it is an opening of custody


class Mempool:
    """`state` gives the latest final state; `announce` hands a new transaction to gossip."""

    def __init__(
        self,
        genesis: Genesis,
        rules: Rules,
        state: Callable[[], State],
        announce: Callable[[bytes], None],
    ) -> None:
        self._genesis, self._rules = genesis, rules
        self._newest, self._announce = state, announce
        self._read = state()  # what was read of the newest state is read once for all that comes
        self._trial: tuple[StateTree, Execution] | None = None  # a block on it, to try local ones
        self._senders: OrderedDict[PubKey, dict[int, _Waiting]] = OrderedDict()
        self._ids: dict[TxId, PubKey] = {}
        self._refused: OrderedDict[TxId, str] = OrderedDict()
        self._openings: Counter[tuple[PubKey, custody.Subject]] = Counter()
        self.bytes = 0
        self.refused_total = 0

    def _state(self) -> State:
        """The latest final state, to be read only."""
        newest = self._newest()
        if newest.tree is not self._read.tree:
            self._read = newest
        return self._read

    @property
    def size(self) -> int:
        return len(self._ids)

    def submit(self, raw: bytes, *, local: bool = True) -> TxId:
        """Take a transaction or raise DecodeError or TxError. Known ones are taken silently.

        A local one is tried against the latest state, so that its sender hears at once what is
        wrong; a peer's is only checked for form, signature, nonce and price, since our state may
        be older than the peer's.
        """
        tx_id = TxId(TX.hash(raw))
        if tx_id in self._ids:
            return tx_id
        known = signed.get(tx_id)
        tx = known or decode_transaction(raw)
        state = self._state()
        check_transaction(
            state, self._genesis, tx, gap=MAX_GAP, is_signed=known is not None, size=len(raw)
        )
        signed.add(tx_id, tx, len(raw))
        duty = is_free_duty(state, tx)
        subject = self._check_opening(state, tx, duty, local)
        waiting = self._senders.get(tx.sender, {})
        if local and tx.nonce == state.account(tx.sender).nonce:
            self._try(state, raw)
        replaced = waiting.get(tx.nonce)
        if replaced is not None and not local and replaced.replaces >= MAX_REPLACED:
            raise TxError("nonce_taken", f"nonce {tx.nonce} was replaced {MAX_REPLACED} times")
        if replaced is None and len(waiting) >= MAX_PER_SENDER:
            raise TxError("mempool_full", f"{MAX_PER_SENDER} transactions of this sender wait")
        self._check_room(tx, len(raw), duty)
        count = 0
        if replaced is not None:  # only its own signer can replace it; bounded against chatter
            count = replaced.replaces + 1
            self._forget(tx.sender, replaced)
        if subject is not None:
            self._displace(tx.sender, subject)
        self._senders.setdefault(tx.sender, {})[tx.nonce] = _Waiting(
            tx_id, raw, tx.nonce, state.head.height, count, duty, subject
        )
        self._ids[tx_id] = tx.sender
        self._refused.pop(tx_id, None)
        self.bytes += len(raw)
        self._announce(raw)
        return tx_id

    def _check_opening(
        self, state: State, tx: Transaction, duty: bool, local: bool
    ) -> custody.Subject | None:
        """It is large, so it is taken, and passed on, only while it decides something, a few times
        for each sender, and from whoever owes none only if nothing stands before it."""
        if not isinstance(tx.payload, CustodyOpening):
            return None
        if not duty and tx.nonce != state.account(tx.sender).nonce:
            raise TxError("bad_nonce", "an opening that pays is taken with the next nonce only")
        subject = custody.judge(state, self._rules, tx.payload).subject
        if not local and self._openings[tx.sender, subject] >= MAX_OPENINGS:
            raise TxError("nonce_taken", f"{MAX_OPENINGS} openings of this sender show the same")
        return subject

    def _displace(self, sender: PubKey, subject: custody.Subject) -> None:
        """One opening of a sender about one thing waits, the newest."""
        self._openings[sender, subject] += 1
        for waiting in list(self._senders.get(sender, {}).values()):
            if waiting.subject == subject:
                self._forget(sender, waiting)

    def _check_room(self, tx: Transaction, size: int, duty: bool) -> None:
        room = 4 if duty else 2 if tx.nonce <= self.next_nonce(tx.sender) else 1  # halves
        if 2 * self.size >= room * MAX_TXS or 2 * (self.bytes + size) > room * MAX_BYTES:
            raise TxError("mempool_full", "the mempool is full; try again later")

    def _try(self, state: State, raw: bytes) -> None:
        if self._trial is None or self._trial[0] is not state.tree:
            self._trial = state.tree, self._next_block(state)
        receipt = self._trial[1].judge(raw)
        if not receipt.ok:
            raise TxError(receipt.code, receipt.reason)

    def _next_block(self, state: State) -> Execution:
        head = state.head
        ctx = Context(
            Height(head.height + 1),
            TimeMs(head.time_ms + 1),
            head.epoch,
            head.view,
            head.recent_parents[-1] if head.recent_parents else self._genesis_parent(),
            PubKey(bytes(32)),
            b"",
        )
        return Execution(state.tree, self._genesis, self._rules, ctx)

    @staticmethod
    def _genesis_parent() -> Hash32:
        return ZERO_HASH

    def next_nonce(self, account: PubKey) -> int:
        """The nonce that follows the account's last one, waiting transactions included."""
        nonce: int = self._state().account(account).nonce
        waiting = self._senders.get(account, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def pending(self) -> Iterator[tuple[TxId, bytes]]:
        """What waits, oldest senders first, in nonce order."""
        for waiting in self._senders.values():
            for nonce in sorted(waiting):
                yield waiting[nonce].tx_id, waiting[nonce].raw

    def get(self, tx_id: TxId) -> bytes | None:
        sender = self._ids.get(tx_id)
        if sender is None:
            return None
        return next(w.raw for w in self._senders[sender].values() if w.tx_id == tx_id)

    def status(self, tx_id: TxId) -> str | None:
        """'pending', 'dropped:<code>: <reason>', or None if nothing is known."""
        if tx_id in self._ids:
            return "pending"
        reason = self._refused.get(tx_id)
        return None if reason is None else f"dropped:{reason}"

    def fill(self, execution: Execution, most_bytes: int) -> tuple[bytes, ...]:
        """Execute waiting transactions into a leader's block, duties first; refused ones leave the
        pool. Senders take turns, and what waits for an earlier nonce costs no time."""
        txs: list[bytes] = []
        room, until = most_bytes, time.monotonic() + BUILD_BUDGET_S
        large = LARGE_BYTES
        for duties in (True, False):
            for sender, waiting in list(self._senders.items()):
                if duties and not any(w.duty for w in waiting.values()):
                    continue
                nonce = first = execution.next_nonce(sender)
                while (found := waiting.get(nonce)) is not None and (found.duty or not duties):
                    if len(txs) >= limits.MAX_BLOCK_TXS or time.monotonic() > until:
                        return tuple(txs)
                    is_large = len(found.raw) > limits.MAX_TX_BYTES
                    if len(found.raw) > (min(room, large) if is_large else room):
                        break
                    receipt = execution.try_apply(found.raw)
                    if not receipt.ok:
                        if receipt.code not in _EARLY:
                            self.refuse(found.tx_id, receipt)
                        break
                    execution.keep(receipt)
                    txs.append(found.raw)
                    room -= len(found.raw)
                    large -= len(found.raw) if is_large else 0
                    nonce += 1
                if nonce > first:
                    self._senders.move_to_end(sender)
        return tuple(txs)

    def recheck(self, tx_id: TxId) -> None:
        """Refuse a waiting transaction whose turn it is if the newest state does. Only the leader
        that tries it would know else, and those behind it would wait for ever."""
        raw, state = self.get(tx_id), self._state()
        if raw is None or decode_transaction(raw).nonce != state.account(self._ids[tx_id]).nonce:
            return
        try:
            self._try(state, raw)
        except TxError as error:
            self.refuse(tx_id, Receipt(tx_id, error.code, str(error)))

    def reannounce(self, tx_id: TxId) -> None:
        """Hand a waiting transaction to gossip again: it may have been lost."""
        raw = self.get(tx_id)
        if raw is not None:
            self._announce(raw)

    def withdraw(self, tx_id: TxId) -> None:
        """Forget a transaction that its sender replaces."""
        self._drop(tx_id)

    def refuse(self, tx_id: TxId, receipt: Receipt) -> None:
        """Drop a transaction that a rule refused and remember why."""
        self._drop(tx_id)
        self.refused_total += 1
        self._refused[tx_id] = f"{receipt.code}: {receipt.reason}"
        while len(self._refused) > MAX_REMEMBERED:
            self._refused.popitem(last=False)

    def committed(self, receipts: tuple[Receipt, ...]) -> None:
        """Forget what a final block took and what can no longer be next."""
        for receipt in receipts:
            self._drop(receipt.tx_id)
        state = self._state()
        for counted in [k for k in self._openings if not custody.is_undecided(state, k[1])]:
            del self._openings[counted]
        for sender in list(self._senders):
            nonce = state.account(sender).nonce
            for waiting in list(self._senders.get(sender, {}).values()):
                if state.head.height - waiting.height > MAX_AGE_BLOCKS:
                    late = Receipt(waiting.tx_id, "expired", "no block took it in time; sign anew")
                    self.refuse(waiting.tx_id, late)
                elif waiting.nonce < nonce:
                    done = Receipt(waiting.tx_id, "bad_nonce", f"nonce {nonce} is next")
                    self.refuse(waiting.tx_id, done)
                elif waiting.subject and not custody.is_undecided(state, waiting.subject):
                    done = Receipt(waiting.tx_id, "decided", "others have shown it already")
                    self.refuse(waiting.tx_id, done)

    def _drop(self, tx_id: TxId) -> None:
        sender = self._ids.get(tx_id)
        if sender is not None:
            found = next(w for w in self._senders[sender].values() if w.tx_id == tx_id)
            self._forget(sender, found)

    def _forget(self, sender: PubKey, waiting: _Waiting) -> None:
        del self._senders[sender][waiting.nonce]
        if not self._senders[sender]:
            del self._senders[sender]
        del self._ids[waiting.tx_id]
        self.bytes -= len(waiting.raw)
