"""Transactions that wait for a block: checked on entry, in nonce order for each sender, bounded.

Which stay when there are too many, and in which order a leader takes them, follows from what they
are worth (`node.pool_value`, docs/spec/mempool.md). Duties of validators come first, have room of
their own and are never pushed out: rounds and audits go on however many strangers wait. What a
block took or a rule refused leaves; why something was refused stays known for a while, so that
whoever asks for it gets an answer. What this node's own API has acknowledged is in its journal.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import takewhile
from typing import Protocol

from chain import custody
from chain import records as r
from chain.admission import check_transaction, is_free_duty
from chain.costs import spend
from chain.errors import BlyanError, TxError
from chain.execute import Execution
from chain.hashes import TX
from chain.params import Genesis
from chain.receipts import Receipt
from chain.rules import Rules
from chain.signed import signed
from chain.state import State
from chain.transactions import CustodyOpening, Transaction, decode_transaction
from chain.types import PubKey, TxId
from node.pool_fill import Filling
from node.pool_index import Index, Sender, Waiting, displaces
from node.pool_trial import Trial
from node.pool_value import (
    Kind,
    bid_of,
    cannot_pay,
    kind_of,
    least_to_displace,
    least_to_replace,
    no_room,
    spends,
    underpriced,
)

MAX_TXS = 10_000  # transactions held; as many again if they are duties
MAX_BYTES = 64 * 1024 * 1024  # bytes held; as many again of duties
STAMPED_PART = 4  # of that, one part in four is for stamps, as in a block
MAX_PER_SENDER = 64  # transactions of one sender
MAX_GAP = 32  # nonces a sender may be ahead
MAX_REPLACED = 16  # transactions of one sender and nonce, one after the other
MAX_DISPLACED = 512  # pushed out by one that comes: a large one needs the room of many small ones
MAX_AGE_BLOCKS = 200  # what no block took by then leaves
MAX_REMEMBERED = 4096  # refused transactions whose reason is kept
MAX_OPENINGS = 4  # of one sender about one thing, from peers: it signs anew what others displaced
BUILD_BUDGET_S = 0.25  # a leader's time for filling a block
REANNOUNCE_BLOCKS = 10  # what we have acknowledged is said again when it has waited for so many
MAX_REANNOUNCED = 64  # after one block: a quarter of what peers hear twice without complaint
_ACCOUNTS = r.account_key(PubKey(b""))  # what their keys in the state begin with
_Bytes = bytes  # the pool has a property of that name


class Journal(Protocol):
    """Where what was acknowledged outlives the process (`node.pool_journal`)."""

    def add(self, tx_id: TxId, height: int, raw: bytes) -> None: ...

    def refuse(self, tx_id: TxId, reason: str) -> None: ...

    def forget(self, tx_id: TxId) -> None: ...

    async def flush(self) -> None:
        """Return when all that was said before is on disk; StorageError if it cannot be."""


class Mempool:
    """`state` gives the latest final state; `announce` hands a new transaction to gossip."""

    def __init__(
        self,
        genesis: Genesis,
        rules: Rules,
        state: Callable[[], State],
        announce: Callable[[bytes], None],
        journal: Journal | None = None,
    ) -> None:
        self._genesis, self._rules = genesis, rules
        self._newest, self._announce, self._journal = state, announce, journal
        self._read = state()  # what was read of the newest state is read once for all that comes
        self._trial = Trial(genesis, rules)
        self._index = Index()
        self._refused: OrderedDict[TxId, str] = OrderedDict()
        self._openings: Counter[tuple[PubKey, custody.Subject]] = Counter()
        self._said: OrderedDict[TxId, int] = OrderedDict()  # acknowledged: height when last said
        self._height = self._read.head.height  # of the last final block that we were told of
        self.build_budget_s = BUILD_BUDGET_S
        self.refused_total = self.displaced_total = 0

    def _state(self) -> State:
        """The latest final state, to be read only."""
        newest = self._newest()
        if newest.tree is not self._read.tree:
            self._read = newest
        return self._read

    @property
    def size(self) -> int:
        return len(self._index.ids)

    @property
    def bytes(self) -> int:
        return sum(self._index.bytes)

    # --- coming in ------------------------------------------------------------------------

    def submit(self, raw: _Bytes, *, local: bool = True) -> TxId:
        """Take a transaction or raise DecodeError or TxError. Known ones are taken silently.

        A local one is tried against the latest state, so that its sender hears at once what is
        wrong; a peer's is only checked for form, signature, nonce and price, since our state may
        be older than the peer's.
        """
        tx_id = TxId(TX.hash(raw))
        if tx_id in self._index.ids:
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
        account = state.account(tx.sender)
        if local and tx.nonce == account.nonce:
            self._trial.judge(state, raw)
        kind = kind_of(tx, duty)
        new = Waiting(
            tx_id,
            tx.sender,
            tx.nonce,
            raw,
            kind,
            bid_of(state, self._genesis, tx, kind),
            spend(tx.payload, len(raw)).units,
            spends(tx),
            state.head.height,
            subject=subject,
        )
        self._admit(new, account, local)
        return tx_id

    def _admit(self, new: Waiting, account: r.Account, local: bool) -> None:
        """Check a transaction against what waits, make room for it, and put it in."""
        index = self._index
        sender = index.senders.get(new.sender)
        replaced = None
        if sender is not None:
            replaced = sender.txs.get(new.nonce)
            self._check_sender(new, sender, replaced, account, local)
        elif new.spends > account.balance:
            raise cannot_pay(0, new.spends, account.balance)
        victims = self._room_for(new, replaced, account.nonce)
        if victims:
            self.displaced_total += len(victims)
            self._drop(victims, "outbid", "the mempool is full, and others bid more")
        if replaced is not None:
            new.replaces = replaced.replaces + 1
            self._drop([replaced], "replaced", f"by {new.tx_id.hex()}")
        if new.subject is not None:
            self._displace(new.sender, new.subject)
        index.add(new, account.nonce)
        self._refused.pop(new.tx_id, None)
        self._announce(new.raw)

    def _check_sender(
        self,
        new: Waiting,
        sender: Sender,
        replaced: Waiting | None,
        account: r.Account,
        local: bool,
    ) -> None:
        """What a sender's own transactions ask of another one of it."""
        waits = sender.spends
        if replaced is not None:
            waits -= replaced.spends
            self._check_replacement(new, replaced, local)
        elif len(sender.txs) >= MAX_PER_SENDER:
            raise TxError("mempool_full", f"{MAX_PER_SENDER} transactions of this sender wait")
        if new.spends and waits + new.spends > account.balance:
            raise cannot_pay(waits, new.spends, account.balance)

    def _check_replacement(self, new: Waiting, old: Waiting, local: bool) -> None:
        """Only its own signer can replace it; by a higher bid, a duty by any other."""
        if old.replaces >= MAX_REPLACED and not (local and new.kind is Kind.DUTY):
            raise TxError("nonce_taken", f"nonce {new.nonce} was replaced {MAX_REPLACED} times")
        if old.kind is Kind.DUTY:
            return
        least = least_to_replace(old.bid)
        if new.bid < least:
            raise underpriced(new.nonce, least)

    def _room_for(
        self, new: Waiting, replaced: Waiting | None, account_nonce: int
    ) -> Sequence[Waiting]:
        """What has to leave so that `new` finds room; TxError if it is not worth that."""
        index, kind = self._index, new.kind
        part = 1 if kind is Kind.STAMPED else STAMPED_PART - 1
        most, most_bytes = MAX_TXS, MAX_BYTES
        if kind is not Kind.DUTY:
            most, most_bytes = most * part // STAMPED_PART, most_bytes * part // STAMPED_PART
        over, over_bytes = index.count[kind] + 1, index.bytes[kind] + len(new.raw)
        if replaced is not None and replaced.kind is kind:
            over, over_bytes = over - 1, over_bytes - len(replaced.raw)
        if 2 * over <= most and 2 * over_bytes <= most_bytes:
            return ()
        ready = new.nonce <= index.next_nonce(new.sender, account_nonce)
        if not ready and kind is not Kind.DUTY and replaced is None:
            # It may never pay: it has half of the room, and pushes nobody out.
            raise TxError("mempool_full", f"the mempool is full; nonce {new.nonce} is early")
        over, over_bytes = over - most, over_bytes - most_bytes
        if over <= 0 and over_bytes <= 0:
            return ()
        if kind is Kind.DUTY:
            raise TxError("mempool_full", "the mempool is full of duties; try again later")
        return self._victims(new, replaced, over, over_bytes, ready)

    def _victims(
        self, new: Waiting, replaced: Waiting | None, over: int, over_bytes: int, ready: bool
    ) -> list[Waiting]:
        sender = self._index.senders.get(new.sender)
        worth = new.own_worth
        if sender is not None:
            worth = sender.worth_at(new.nonce, new.kind, worth)
        found: list[Waiting] = []
        with closing(self._index.cheapest(new.kind)) as cheapest:
            for victim in cheapest:
                if victim is replaced:
                    continue  # it leaves in any case
                fits = ready and displaces(worth, victim) and len(found) < MAX_DISPLACED
                own = victim.sender == new.sender and victim.nonce < new.nonce
                if not fits or own:
                    least = least_to_displace(victim.worth, new.cost)
                    raise no_room(new.kind, new.bid, least, own=own)
                found.append(victim)
                over, over_bytes = over - 1, over_bytes - len(victim.raw)
                if over <= 0 and over_bytes <= 0:
                    return found
        raise TxError("mempool_full", "the mempool is full; try again later")

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
        older = [w for w in self._index.subjects.values() if w.sender == sender]
        older = [w for w in older if w.subject == subject]
        self._drop(older, "replaced", "by a newer opening of the same")

    # --- what was acknowledged ------------------------------------------------------------

    async def durable(self, tx_ids: Iterable[TxId]) -> None:
        """Return when these, or why they were dropped meanwhile, are on disk: only then may their
        senders be told that they wait. StorageError if the disk takes nothing."""
        if self._journal is None:
            return
        for tx_id in tx_ids:
            waiting = self._index.ids.get(tx_id)
            if waiting is not None:
                self._keep(waiting)
            elif (reason := self._refused.get(tx_id)) is not None:
                self._journal.refuse(tx_id, reason)
        await self._journal.flush()

    def _keep(self, waiting: Waiting) -> None:
        if not waiting.is_journaled and self._journal is not None:
            waiting.is_journaled = True
            self._journal.add(waiting.tx_id, waiting.height, waiting.raw)
            self._said[waiting.tx_id] = waiting.height

    def restore(
        self,
        txs: Iterable[tuple[int, _Bytes]],
        refused: Iterable[tuple[TxId, str]],
        is_final: Callable[[TxId], bool],
    ) -> tuple[int, int]:
        """Take what a journal holds, checked against the state as it is now: (how many wait again,
        how many are refused by now). Called once, before anything else comes."""
        self._refused.update(refused)
        again = 0
        for height, raw in txs:
            tx_id = TxId(TX.hash(raw))
            try:
                self.submit(raw)
            except BlyanError as error:
                self._not_again(tx_id, error, is_final(tx_id))
                continue
            waiting = self._index.ids.get(tx_id)
            if waiting is not None:
                again += 1
                waiting.height, waiting.is_journaled = min(height, waiting.height), True
                self._said[tx_id] = 0  # nobody may have it but us
        return again, len(self._refused)

    def _not_again(self, tx_id: TxId, error: BlyanError, is_final: bool) -> None:
        """A journaled transaction is taken no more: because it is final, or for this reason."""
        if not is_final:
            self._remember(tx_id, error.code, str(error))
        if self._journal is None:
            return
        if is_final:
            self._journal.forget(tx_id)
        else:
            self._journal.refuse(tx_id, self._refused[tx_id])

    # --- being asked ----------------------------------------------------------------------

    def next_nonce(self, account: PubKey) -> int:
        """The nonce that follows the account's last one, waiting transactions included."""
        return self._index.next_nonce(account, self._state().account(account).nonce)

    def pending(self) -> Iterator[tuple[TxId, _Bytes]]:
        """What waits, oldest senders first, in nonce order."""
        for sender in self._index.senders.values():
            for nonce in sorted(sender.txs):
                yield sender.txs[nonce].tx_id, sender.txs[nonce].raw

    def get(self, tx_id: TxId) -> _Bytes | None:
        waiting = self._index.ids.get(tx_id)
        return None if waiting is None else waiting.raw

    def status(self, tx_id: TxId) -> str | None:
        """'pending', 'dropped:<code>: <reason>', or None if nothing is known."""
        if tx_id in self._index.ids:
            return "pending"
        reason = self._refused.get(tx_id)
        return None if reason is None else f"dropped:{reason}"

    # --- into a block ---------------------------------------------------------------------

    def fill(self, execution: Execution, most_bytes: int) -> tuple[_Bytes, ...]:
        """Execute waiting transactions into a leader's block: duties first, then what is worth
        most. Refused ones leave the pool."""
        until = time.monotonic() + self.build_budget_s
        return Filling(self._index, execution, most_bytes, until, self.refuse).run()

    # --- leaving --------------------------------------------------------------------------

    def recheck(self, tx_id: TxId) -> None:
        """Refuse a waiting transaction whose turn it is if the newest state does. Only the leader
        that tries it would know else, and those behind it would wait for ever."""
        waiting, state = self._index.ids.get(tx_id), self._state()
        if waiting is None or waiting.nonce != state.account(waiting.sender).nonce:
            return
        try:
            self._trial.judge(state, waiting.raw)
        except TxError as error:
            self._drop([waiting], error.code, str(error))

    def reannounce(self, tx_id: TxId) -> None:
        """Hand a waiting transaction to gossip again: it may have been lost."""
        raw = self.get(tx_id)
        if raw is not None:
            self._announce(raw)

    def withdraw(self, tx_id: TxId) -> None:
        """Forget a transaction that its sender replaces."""
        waiting = self._index.ids.get(tx_id)
        if waiting is not None:
            self._remove([waiting])

    def refuse(self, tx_id: TxId, receipt: Receipt) -> None:
        """Drop a transaction that a rule refused and remember why."""
        waiting = self._index.ids.get(tx_id)
        if waiting is not None:
            self._drop([waiting], receipt.code, receipt.reason)
        else:
            self._remember(tx_id, receipt.code, receipt.reason)

    def committed(self, receipts: Sequence[Receipt], changes: Iterable[_Bytes]) -> None:
        """Forget what a final block took and what can no longer be next. `changes`: the keys of
        the state that it wrote; only what they concern is looked at again."""
        index, state = self._index, self._state()
        done = {receipt.tx_id for receipt in receipts if receipt.ok}
        if state.head.height != self._height + 1:  # blocks came without us, in a snapshot
            changes = [r.account_key(account) for account in index.senders]
        self._height = state.head.height
        for key in changes:
            if key.startswith(_ACCOUNTS):
                sender = index.senders.get(PubKey(key[len(_ACCOUNTS) :]))
                if sender is not None:
                    self._look_again(sender, state.account(sender.account), done)
        for receipt in receipts:
            if not receipt.ok:  # a leader may have put it in too early; that is no verdict on it
                self.recheck(receipt.tx_id)
        late = takewhile(lambda w: self._height - w.height > MAX_AGE_BLOCKS, index.ids.values())
        self._drop(list(late), "expired", "no block took it in time; sign anew")
        for counted in [k for k in self._openings if not custody.is_undecided(state, k[1])]:
            del self._openings[counted]
        decided = [w for w in index.subjects.values() if not _is_undecided(state, w)]
        self._drop(decided, "decided", "others have shown it already")
        self._say_again(self._height)

    def _look_again(self, sender: Sender, account: r.Account, done: Collection[TxId]) -> None:
        """A sender's nonce or balance has changed: what is done, what cannot be next any more, and
        what it can no longer pay, leave."""
        past = [w for w in sender.txs.values() if w.nonce < account.nonce]
        self._forget([w for w in past if w.tx_id in done])
        stale = [w for w in past if w.tx_id not in done]
        self._drop(stale, "bad_nonce", f"nonce {account.nonce} is next")
        if sender.spends > account.balance:
            self._drop_tail(sender, account.balance)
        elif sender.txs:
            self._index.look_again(sender, account.nonce)

    def _drop_tail(self, sender: Sender, balance: int) -> None:
        """From the first on that its sender cannot pay for with what stands before it."""
        left, tail = balance, list[Waiting]()
        for nonce in sorted(sender.txs):
            waiting = sender.txs[nonce]
            left -= waiting.spends
            if tail or left < 0:
                tail.append(waiting)
        reason = f"with those before it, it spends more than the {balance} grains there are"
        self._drop([w for w in tail if w.kind is not Kind.DUTY], "insufficient_funds", reason)
        duties = [w for w in tail if w.kind is Kind.DUTY]
        self._drop(duties, "bad_nonce", "what stood before it was dropped; sign anew")

    def _say_again(self, height: int) -> None:
        for _ in range(MAX_REANNOUNCED):
            tx_id, said = next(iter(self._said.items()), (None, height))
            if tx_id is None or height - said < REANNOUNCE_BLOCKS:
                return
            self._said[tx_id] = height
            self._said.move_to_end(tx_id)
            self.reannounce(tx_id)

    def _drop(self, gone: Sequence[Waiting], code: str, reason: str) -> None:
        """Take out, and remember why."""
        self._remove(gone)
        for waiting in gone:
            self._remember(waiting.tx_id, code, reason)
            if waiting.is_journaled and self._journal is not None:
                self._journal.refuse(waiting.tx_id, self._refused[waiting.tx_id])

    def _forget(self, gone: Sequence[Waiting]) -> None:
        """Take out what is final: the chain knows it now."""
        self._remove(gone)
        for waiting in gone:
            if waiting.is_journaled and self._journal is not None:
                self._journal.forget(waiting.tx_id)

    def _remove(self, gone: Sequence[Waiting]) -> None:
        by_sender: dict[PubKey, list[Waiting]] = {}
        for waiting in gone:
            by_sender.setdefault(waiting.sender, []).append(waiting)
            self._said.pop(waiting.tx_id, None)
        state = self._state()
        for account, some in by_sender.items():
            self._index.remove(some, state.account(account).nonce)

    def _remember(self, tx_id: TxId, code: str, reason: str) -> None:
        self.refused_total += 1
        self._refused[tx_id] = f"{code}: {reason}"
        while len(self._refused) > MAX_REMEMBERED:
            self._refused.popitem(last=False)


def _is_undecided(state: State, waiting: Waiting) -> bool:
    return waiting.subject is not None and custody.is_undecided(state, waiting.subject)
