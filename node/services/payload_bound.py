"""How many bytes a sealed payload of a round can have: more is not fetched, whatever a commit says
(docs/spec/tile-transfer.md, "What a payload may have")."""

from __future__ import annotations

from chain import limits, model_versions
from chain.params import Genesis
from chain.state import State
from node import round_specs
from tiles.codings import SPARSE
from tiles.delta import largest_payload


class PayloadBound:
    """Computed once for each version of the model; for any thread."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._of: dict[str, int] = {}  # version: bytes

    def of_round(self, state: State, number: int) -> int:
        version = model_versions.of_round(state, number)
        found = self._of.get(version)
        if found is None:
            specs = round_specs.of_round(state, self._genesis, number)
            training = specs.training
            # A delta that proves nothing may keep more than the rule's density.
            coding = limits.MAX_DENSITY if training.codec == SPARSE else training.density(number)
            most = min(largest_payload(specs.model.shards(), coding), limits.MAX_PAYLOAD_BYTES)
            found = self._of[version] = most + limits.MAX_BLOB_BYTES - limits.MAX_PAYLOAD_BYTES
        return found
