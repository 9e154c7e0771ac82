"""Proofs against validators that wait for a block, and what of them the others must be told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from chain import limits
from chain import records as r
from chain.codec import encode
from chain.errors import BlockError, VerifyError
from chain.execute import Execution
from chain.hashes import EVIDENCE
from chain.ledger import convictable
from chain.params import Params
from chain.state import State
from chain.types import ChainId, ConflictingCertificates, EvidenceItem, accused
from consensus.evidence import check_evidence
from node.net.kademlia import Rate

log = logging.getLogger("blyan.consensus")
MAX_HELD = 64
AGAIN_S = 10.0  # what is not in a final block by then is said again: somebody may not have heard it
# What one peer may say that is of no use here. An honest one says an item when it is new there,
# at most one a key and epoch, and again what a block has room for, every AGAIN_S.
STALE_PER_S, STALE_BURST = 8.0, float(limits.MAX_VALIDATORS)


class EvidencePool:
    """One proof a key and epoch, since more would change nothing (a key is slashed once an epoch),
    and proofs against many at once."""

    def __init__(
        self, chain_id: ChainId, params: Params, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._chain_id, self._params, self._clock = chain_id, params, clock
        self._items: dict[bytes, EvidenceItem] = {}
        self._said: dict[bytes, float] = {}  # when each of them was
        self._stale = Rate(STALE_PER_S, STALE_BURST)

    def __len__(self) -> int:
        return len(self._items)

    def keep(self, item: EvidenceItem) -> bool:
        """Keep what was verified; whether it is new."""
        if not self._has_room(item):
            return False
        self._items[_key(item)] = item
        self._said[_key(item)] = self._clock()  # whoever keeps it says it
        if isinstance(item, ConflictingCertificates):
            log.critical("evidence of a light-client attack in epoch %d", item.first.epoch)
        else:
            log.warning("evidence against validator %s", item.first.signer.hex())
        return True

    def hear(self, peer: str, state: State, item: EvidenceItem) -> bool:
        """`judge` what a peer says. VerifyError also if it says more that is not new than an
        honest one has reason to."""
        if self.judge(state, item):
            return True
        if not self._stale.take(peer, self._clock()):
            raise VerifyError("evidence that is known, used or expired, again and again")
        return False

    def judge(self, state: State, item: EvidenceItem) -> bool:
        """Verify and keep what someone shows; whether it is new. VerifyError if it does not hold.
        What is known, used or expired by the final `state` costs no signature to look at, and its
        sender nothing: it may be a block ahead or behind."""
        epoch = self._useful(state, item)
        if epoch is None or not self._has_room(item):
            return False
        check_evidence(self._chain_id, epoch.validators, item)
        return self.keep(item)

    def _has_room(self, item: EvidenceItem) -> bool:
        return _key(item) not in self._items and len(self._items) < MAX_HELD

    def _useful(self, state: State, item: EvidenceItem) -> r.EpochRecord | None:
        """The record of its epoch, if it accuses anyone who can still be slashed for it."""
        epoch = convictable(state, self._params, item.first.epoch)
        if epoch is None:
            return None
        named = [r.evidence_key(key, epoch.epoch) for key in accused(epoch.validators, item)]
        return epoch if any(state.raw(key) is None for key in named) else None

    def fill(self, execution: Execution, state: State) -> tuple[EvidenceItem, ...]:
        """Execute what one block may carry, on `state` before it; what was taken. What does not
        hold there (it may have expired in an unfinalized block) is left out: a leader must not
        lose its turn over it."""
        taken: list[EvidenceItem] = []
        room = limits.MAX_EVIDENCE_BYTES
        for key, item in self._items.items():
            if len(taken) == limits.MAX_EVIDENCE:
                break
            size = len(encode(item))
            if state.raw(key) is not None or size > room:
                continue
            try:
                execution.evidence((item,))
            except BlockError as error:
                log.info("evidence left out of a block: %s", error)
                continue
            taken.append(item)
            room -= size
        return tuple(taken)

    def committed(self, state: State) -> tuple[EvidenceItem, ...]:
        """Forget what the final `state` has punished, or cannot any more; what is still held and
        should be said again, at most as much as one block takes."""
        now = self._clock()
        self._items = {k: item for k, item in self._items.items() if self._useful(state, item)}
        self._said = {k: at for k, at in self._said.items() if k in self._items}
        due = [k for k, at in self._said.items() if now - at >= AGAIN_S][: limits.MAX_EVIDENCE]
        self._said |= dict.fromkeys(due, now)
        return tuple(self._items[key] for key in due)


def _key(item: EvidenceItem) -> bytes:
    """Of a pair the state's own key: it stands there once it has been used."""
    if isinstance(item, ConflictingCertificates):
        return EVIDENCE.hash(encode(item))
    return r.evidence_key(item.first.signer, item.first.epoch)
