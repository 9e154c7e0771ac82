"""Model and training rule of a round: those of its version (docs/spec/governance.md)."""

from __future__ import annotations

from dataclasses import dataclass

from chain import model_versions
from chain.model_versions import Documents
from chain.params import Genesis
from chain.state import State
from learning.spec import ModelSpec, TrainingSpec


@dataclass(frozen=True, slots=True)
class RoundSpecs:
    model: ModelSpec
    training: TrainingSpec

    @classmethod
    def of(cls, documents: Documents) -> RoundSpecs:
        return cls(
            ModelSpec.from_json(dict(documents.model)),
            TrainingSpec.from_json(dict(documents.training)),
        )


def of_round(state: State, genesis: Genesis, number: int) -> RoundSpecs:
    version = model_versions.of_round(state, number)
    return RoundSpecs.of(model_versions.documents(state, genesis, version))
