"""Proofs against validators that wait for a block of this node."""

from __future__ import annotations

import logging

from chain import limits
from chain import records as r
from chain.errors import BlockError
from chain.execute import Execution
from chain.ledger import convictable
from chain.params import Params
from chain.state import State
from chain.types import EvidenceItem

log = logging.getLogger("blyan.consensus")
MAX_HELD = 64


class EvidencePool:
    """One proof a key and epoch: more would change nothing (a key is slashed once an epoch)."""

    def __init__(self) -> None:
        self._items: dict[bytes, EvidenceItem] = {}

    def __len__(self) -> int:
        return len(self._items)

    def keep(self, item: EvidenceItem) -> None:
        key = r.evidence_key(item.first.signer, item.first.epoch)
        if key not in self._items and len(self._items) < MAX_HELD:
            self._items[key] = item
            log.warning("evidence against validator %s", item.first.signer.hex())

    def fill(self, execution: Execution, state: State) -> tuple[EvidenceItem, ...]:
        """Execute what one block may carry, on `state` before it; what was taken. What does not
        hold there (it may have expired in an unfinalized block) is left out: a leader must not
        lose its turn over it."""
        taken: list[EvidenceItem] = []
        for key, item in self._items.items():
            if len(taken) == limits.MAX_EVIDENCE:
                break
            if state.raw(key) is not None:
                continue
            try:
                execution.evidence((item,))
            except BlockError as error:
                log.info("evidence left out of a block: %s", error)
                continue
            taken.append(item)
        return tuple(taken)

    def committed(self, state: State, params: Params) -> None:
        """Forget what the final `state` has punished, or cannot any more."""
        self._items = {
            key: item
            for key, item in self._items.items()
            if state.raw(key) is None and convictable(state, params, item.first.epoch) is not None
        }
