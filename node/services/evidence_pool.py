"""Proofs against validators that wait for a block of this node."""

from __future__ import annotations

import logging

from chain import limits
from chain import records as r
from chain.codec import encode
from chain.errors import BlockError
from chain.execute import Execution
from chain.hashes import EVIDENCE
from chain.ledger import convictable
from chain.params import Params
from chain.state import State
from chain.types import ChainId, ConflictingCertificates, EvidenceItem, accused
from consensus.evidence import check_evidence

log = logging.getLogger("blyan.consensus")
MAX_HELD = 64


class EvidencePool:
    """One proof a key and epoch, since more would change nothing (a key is slashed once an epoch),
    and proofs against many at once."""

    def __init__(self, chain_id: ChainId, params: Params) -> None:
        self._chain_id, self._params = chain_id, params
        self._items: dict[bytes, EvidenceItem] = {}

    def __len__(self) -> int:
        return len(self._items)

    def keep(self, item: EvidenceItem) -> bool:
        """Keep what was verified; whether it is new."""
        if not self._has_room(item):
            return False
        self._items[_key(item)] = item
        if isinstance(item, ConflictingCertificates):
            log.critical("evidence of a light-client attack in epoch %d", item.first.epoch)
        else:
            log.warning("evidence against validator %s", item.first.signer.hex())
        return True

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

    def committed(self, state: State) -> None:
        """Forget what the final `state` has punished, or cannot any more."""
        useful = {k: item for k, item in self._items.items() if self._useful(state, item)}
        self._items = useful


def _key(item: EvidenceItem) -> bytes:
    """Of a pair the state's own key: it stands there once it has been used."""
    if isinstance(item, ConflictingCertificates):
        return EVIDENCE.hash(encode(item))
    return r.evidence_key(item.first.signer, item.first.epoch)
