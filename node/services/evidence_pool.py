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
from chain.types import ConflictingCertificates, EvidenceItem
from consensus.evidence import accused

log = logging.getLogger("blyan.consensus")
MAX_HELD = 64


class EvidencePool:
    """One proof a key and epoch, since more would change nothing (a key is slashed once an epoch),
    and proofs against many at once."""

    def __init__(self) -> None:
        self._items: dict[bytes, EvidenceItem] = {}

    def __len__(self) -> int:
        return len(self._items)

    def knows(self, item: EvidenceItem) -> bool:
        """Whether keeping it would change nothing."""
        return _key(item) in self._items or len(self._items) >= MAX_HELD

    def keep(self, item: EvidenceItem) -> bool:
        """Whether it is new; the caller has verified it."""
        if self.knows(item):
            return False
        self._items[_key(item)] = item
        if isinstance(item, ConflictingCertificates):
            log.critical("evidence of a light-client attack in epoch %d", item.first.epoch)
        else:
            log.warning("evidence against validator %s", item.first.signer.hex())
        return True

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

    def committed(self, state: State, params: Params) -> None:
        """Forget what the final `state` has punished, or cannot any more."""
        self._items = {
            key: item
            for key, item in self._items.items()
            if (epoch := convictable(state, params, item.first.epoch)) is not None
            and any(
                state.raw(r.evidence_key(guilty, epoch.epoch)) is None
                for guilty in accused(epoch.validators, item)
            )
        }


def _key(item: EvidenceItem) -> bytes:
    """Of a pair the state's own key: it stands there once it has been used."""
    if isinstance(item, ConflictingCertificates):
        return EVIDENCE.hash(encode(item))
    return r.evidence_key(item.first.signer, item.first.epoch)
