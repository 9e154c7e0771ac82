"""A validator's duty transactions: signed by its node key, one nonce after the other.

If one is refused, those behind it would wait for its nonce for ever, so they are signed anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field

from chain.codec import encode
from chain.errors import BlyanError, TxError
from chain.receipts import Receipt
from chain.transactions import Payload
from chain.types import Block, ChainId, PubKey, TxId
from node.mempool import Mempool
from node.services.chain import ChainService
from wallet.keys import KeyPair
from wallet.signing import sign_transaction

log = logging.getLogger("blyan.duties")
MAX_IN_FLIGHT = 32  # half of what the mempool holds of one sender
REANNOUNCE_S = 3.0  # gossip may lose a transaction; it is said again after this
_OUR_VIEW_IS_OLD = {"bad_nonce", "nonce_taken", "mempool_full", "underpriced", "replaced"}


@dataclass(slots=True)
class _Sent:
    payload: Payload
    done: asyncio.Future[Receipt]
    tx_id: TxId | None = None
    announced: float = field(default_factory=time.monotonic)


class DutySender:
    """`submit` resolves with the receipt of a final block, or raises what refused the duty."""

    def __init__(
        self, chain_id: ChainId, account: PubKey, key: KeyPair, chain: ChainService, pool: Mempool
    ) -> None:
        self._chain_id, self._account, self._key = chain_id, account, key
        self._chain, self._pool = chain, pool
        self._flying: deque[_Sent] = deque()
        chain.finalized(lambda block, done: self._committed(block, done.receipts))

    async def submit(self, payload: Payload) -> Receipt:
        if len(self._flying) >= MAX_IN_FLIGHT:
            raise TxError("mempool_full", f"{MAX_IN_FLIGHT} duties of this node wait already")
        sent = _Sent(payload, asyncio.get_running_loop().create_future())
        self._flying.append(sent)
        try:
            self._send(sent)
            return await sent.done
        finally:
            if sent in self._flying:
                self._flying.remove(sent)

    def _send(self, sent: _Sent) -> None:
        tx = sign_transaction(
            self._key,
            chain_id=self._chain_id,
            nonce=self._pool.next_nonce(self._account),
            payload=sent.payload,
            sender=self._account,
        )
        sent.tx_id = tx.id()
        sent.announced = time.monotonic()
        self._pool.submit(encode(tx))

    def _committed(self, block: Block, receipts: tuple[Receipt, ...]) -> None:
        outcome = {r.tx_id: r for r in receipts}
        again = False
        for sent in list(self._flying):
            receipt = outcome.get(sent.tx_id) if sent.tx_id else None
            if receipt is not None:
                self._flying.remove(sent)
                if not sent.done.done():
                    sent.done.set_result(receipt)
                continue
            if sent.tx_id:
                self._pool.recheck(sent.tx_id)
            if sent.tx_id and (self._pool.status(sent.tx_id) or "dropped:gone").startswith("d"):
                again |= self._refused(sent)
        now = time.monotonic()
        for sent in list(self._flying):
            if again:
                self._resend(sent)
            elif sent.tx_id and now - sent.announced > REANNOUNCE_S:
                sent.announced = now
                self._pool.reannounce(sent.tx_id)

    def _refused(self, sent: _Sent) -> bool:
        """A refused duty fails unless only its nonce was wrong; either way the rest moves up."""
        status = self._pool.status(sent.tx_id) if sent.tx_id else None
        code, _, reason = (status or "dropped:bad_nonce: gone").partition(":")[2].partition(": ")
        if code not in _OUR_VIEW_IS_OLD:
            self._flying.remove(sent)
            if not sent.done.done():
                sent.done.set_exception(TxError(code, reason))
        return True

    def _resend(self, sent: _Sent) -> None:
        if sent.tx_id is not None:
            self._pool.withdraw(sent.tx_id)
        try:
            self._send(sent)
        except BlyanError as error:
            if sent in self._flying:
                self._flying.remove(sent)
            if not sent.done.done():
                sent.done.set_exception(error)
