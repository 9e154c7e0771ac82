"""What lies between two versions of a model's documents (docs/spec/governance.md).

Everything the training rule says may change from one round to the next: a round is trained, judged
and replayed by the documents that it names. Of the model, `context` and `top_k` shape no tensor.
All else does, or names the start: its tiles would be those of another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chain.errors import GenesisError, VerifyError
from chain.model_versions import Documents, ModelChange
from learning.spec import ModelSpec, TrainingSpec

SHAPELESS = ("context", "top_k")


def change_between(old: Documents, new: Documents) -> tuple[ModelChange, str]:
    """The least step of SemVer that says what has changed, and in words. VerifyError if the new
    documents are not those of a model that can be."""
    try:
        models = [ModelSpec.from_json(dict(d.model)).to_json() for d in (old, new)]
        trainings = [TrainingSpec.from_json(dict(d.training)).to_json() for d in (old, new)]
    except GenesisError as error:
        raise VerifyError(str(error)) from None
    model_fields = _changed(*models)
    training_fields = _changed(*trainings)
    fixed = [name for name in model_fields if name not in SHAPELESS]
    if fixed:
        return ModelChange.MAJOR, f"model.{fixed[0]} changes"
    if model_fields:
        return ModelChange.MINOR, f"model.{model_fields[0]} changes"
    if training_fields:
        return ModelChange.PATCH, f"training.{training_fields[0]} changes"
    return ModelChange.NONE, "nothing changes"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
