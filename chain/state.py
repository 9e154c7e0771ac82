"""The state as a transaction sees it: typed reads and writes over an immutable tree.

Writes collect in `changes`; `undo` takes back everything since `mark`, so that a refused
transaction leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from chain import governance_records as g
from chain import parameters
from chain import records as r
from chain.codec import decode, encode
from chain.errors import TxError, invariant
from chain.hashes import Hash32
from chain.params import Params
from chain.tree import StateTree
from chain.types import Grains, PubKey, TxId, Validator

T = TypeVar("T")
_HOT = {"balance", "nonce"}  # of an account: what nearly every transaction changes
_HOT_BOUND = 1 << 64  # below it they can be encoded

EMPTY_ACCOUNT = r.Account(Grains(0), Grains(0), 0, 0, 0)
# Nobody holds a key whose encoding is this text, so nobody can sign for the pool.
REWARD_POOL = PubKey(b"blyan reward pool".ljust(32, b"\xff"))
# Bonds of custody disputes that are open; nobody has this key either.
CUSTODY_BONDS = PubKey(b"blyan custody bonds".ljust(32, b"\xff"))
# Deposits of proposals that are voted on.
PROPOSAL_DEPOSITS = PubKey(b"blyan proposal deposits".ljust(32, b"\xff"))
CHAIN_ACCOUNTS = (REWARD_POOL, CUSTODY_BONDS, PROPOSAL_DEPOSITS)


@dataclass(frozen=True, slots=True)
class Event:
    """One row of history for the explorer: what happened to `key`. Not part of consensus."""

    kind: str
    key: bytes
    data: dict[str, Any] = field(default_factory=dict)


class State:
    """A mutable overlay of one block on an immutable tree."""

    def __init__(self, tree: StateTree) -> None:
        self.tree = tree
        self._writes: dict[bytes, bytes | r.Account | None] = {}
        self.events: list[Event] = []
        self._undo: list[tuple[bytes, bool, bytes | r.Account | None]] = []
        self._decoded: dict[bytes, Any] = {}
        self._params: Params | None = None  # in force; they change at the end of blocks only

    # --- raw access ---------------------------------------------------------------

    def raw(self, key: bytes) -> bytes | None:
        if key in self._writes:
            return _encoded(self._writes[key])
        return self.tree.get(key)

    @property
    def changes(self) -> dict[bytes, bytes | None]:
        """What was written, by key; None for what was deleted."""
        return {key: _encoded(value) for key, value in self._writes.items()}

    def get(self, cls: type[T], key: bytes) -> T | None:
        cached = self._decoded.get(key)
        if cached is not None:
            return cached  # type: ignore[no-any-return]
        if key in self._writes:
            raw = _encoded(self._writes[key])
            value: T | None = None if raw is None else decode(cls, raw)
        else:
            value = self.tree.read(key, cls)
        if value is not None:
            self._decoded[key] = value
        return value

    def need(self, cls: type[T], key: bytes) -> T:
        """A record that the protocol guarantees to exist."""
        value = self.get(cls, key)
        invariant(value is not None, f"state lacks {key!r}")
        return value  # type: ignore[return-value]

    def put(self, key: bytes, value: Any) -> None:
        self._write(key, encode(value))
        self._decoded[key] = value

    def delete(self, key: bytes) -> None:
        self._write(key, None)

    def _write(self, key: bytes, value: bytes | r.Account | None) -> None:
        writes = self._writes
        self._undo.append((key, key in writes, writes.get(key)))
        writes[key] = value
        self._decoded.pop(key, None)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys with this prefix in order, this block's writes included."""
        merged = dict(self.tree.items(prefix))
        for key, value in self._writes.items():
            if key.startswith(prefix):
                raw = _encoded(value)
                if raw is None:
                    merged.pop(key, None)
                else:
                    merged[key] = raw
        yield from sorted(merged.items())

    def emit(self, kind: str, key: bytes, **data: Any) -> None:
        self.events.append(Event(kind, key, data))

    # --- undo ------------------------------------------------------------------------

    def mark(self) -> tuple[int, int]:
        return len(self._undo), len(self.events)

    def undo(self, mark: tuple[int, int]) -> None:
        writes, events = mark
        while len(self._undo) > writes:
            key, had, value = self._undo.pop()
            if had:
                self._writes[key] = value
            else:
                del self._writes[key]
            self._decoded.pop(key, None)
        del self.events[events:]

    def keep(self) -> None:
        """What was written so far stays: nothing goes back to an earlier mark."""
        self._undo.clear()

    def commit(self, changes: Mapping[bytes, bytes | None] | None = None) -> StateTree:
        """The tree after what was written; `changes`, where the caller has them already."""
        hot = {key: value for key, value in self._writes.items() if isinstance(value, r.Account)}
        return self.tree.set_many(self.changes if changes is None else changes, hot)

    # --- the records everyone needs ------------------------------------------------------

    @property
    def head(self) -> r.Head:
        return self.need(r.Head, r.HEAD)

    @property
    def model(self) -> r.ModelRecord:
        return self.need(r.ModelRecord, r.MODEL)

    def account(self, account: PubKey) -> r.Account:
        return self._account(r.account_key(account))

    def epoch(self, number: int) -> r.EpochRecord:
        return self.need(r.EpochRecord, r.epoch_key(number))

    def validators(self) -> tuple[Validator, ...]:
        """The set of the epoch in progress."""
        return self.epoch(self.head.epoch).validators.members

    def validator(self, account: PubKey) -> Validator | None:
        return next((v for v in self.validators() if v.account == account), None)

    def round(self, number: int | None = None) -> r.RoundRecord:
        return self.need(r.RoundRecord, r.round_key(self.head.round if number is None else number))

    def delta(self, delta: TxId) -> r.DeltaRecord:
        found = self.get(r.DeltaRecord, r.delta_key(delta))
        if found is None:
            raise TxError("unknown_delta", f"there is no delta {delta.hex()}")
        return found

    def dataset(self, dataset: Hash32) -> r.DatasetRecord:
        found = self.get(r.DatasetRecord, r.dataset_key(dataset))
        if found is None:
            raise TxError("unknown_dataset", f"there is no dataset {dataset.hex()}")
        return found

    # --- parameters ------------------------------------------------------------------------

    def params(self, genesis: Params) -> Params:
        """Those in force: `genesis`, of this chain, with what was voted on."""
        if self._params is None:
            held = self.get(g.Settings, g.SETTINGS)
            self._params = parameters.with_settings(genesis, held.settings) if held else genesis
        return self._params

    def put_setting(self, setting: g.Setting) -> None:
        """Put a value in force. Never within a transaction: nothing takes it back."""
        held = self.get(g.Settings, g.SETTINGS)
        settings = parameters.merged(held.settings if held else (), setting)
        self.put(g.SETTINGS, g.Settings(settings))
        self._params = None

    # --- money: the sum of all grains never changes -----------------------------------------

    def move(self, source: PubKey, target: PubKey, amount: int) -> None:
        """Move grains between balances; TxError `insufficient_funds` changes nothing."""
        if amount == 0 or source == target:
            return
        key = r.account_key(source)
        payer = self._account(key)
        self._put_hot(key, payer.with_balance(_less(payer, amount)))
        self._add(target, amount)

    def count(self, sender: PubKey, fee: int, fees_to: PubKey) -> None:
        """Count a transaction of this sender, who pays its fee: as `move`, in one with the nonce.
        TxError `insufficient_funds` changes nothing."""
        key = r.account_key(sender)
        old = self._account(key)
        is_paid = fee and sender != fees_to
        balance = _less(old, fee) if is_paid else old.balance
        new = r.new_account(balance, old.bonded, old.nonce + 1, old.merit, old.jailed)
        self._put_hot(key, new)
        if is_paid:
            self._add(fees_to, fee)

    def _add(self, target: PubKey, amount: int) -> None:
        key = r.account_key(target)
        payee = self._account(key)
        self._put_hot(key, payee.with_balance(payee.balance + amount))

    def _account(self, key: bytes) -> r.Account:
        return self._decoded.get(key) or self.get(r.Account, key) or EMPTY_ACCOUNT

    def put_account(self, account: PubKey, **changes: int) -> None:
        values: dict[str, Any] = dict(changes)
        new = replace(self.account(account), **values)
        key = r.account_key(account)
        if changes.keys() <= _HOT:
            self._put_hot(key, new)
        else:  # what cannot be encoded is refused here, while that undoes the rest
            self.put(key, new)

    def _put_hot(self, key: bytes, new: r.Account) -> None:
        """Changed several times in most transactions: encoded once, when the block is closed."""
        if 0 <= new.balance < _HOT_BOUND and 0 <= new.nonce < _HOT_BOUND:
            self._write(key, new)
            self._decoded[key] = new
        else:
            self.put(key, new)


def _less(account: r.Account, amount: int) -> int:
    if account.balance < amount:
        raise TxError(
            "insufficient_funds",
            f"the account holds {account.balance} grains and {amount} are needed",
        )
    return account.balance - amount


def _encoded(value: bytes | r.Account | None) -> bytes | None:
    return encode(value) if isinstance(value, r.Account) else value
