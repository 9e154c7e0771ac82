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
from learning.documents import check_together
from learning.spec import ModelSpec, TrainingSpec

SHAPELESS = ("context", "top_k")


def change_between(old: Documents, new: Documents) -> tuple[ModelChange, str]:
    """The least step of SemVer that says what has changed, and in words. VerifyError if the new
    documents are not those of a model that can be, or do not go together."""
    try:
        models = [ModelSpec.from_json(dict(d.model)) for d in (old, new)]
        trainings = [TrainingSpec.from_json(dict(d.training)) for d in (old, new)]
        model_fields = _changed(*(model.to_json() for model in models))
        training_fields = _changed(*(training.to_json() for training in trainings))
        fixed = [name for name in model_fields if name not in SHAPELESS]
        if fixed:  # refused anyway; looking at any layout would cost more than the proposal pays
            return ModelChange.MAJOR, f"model.{fixed[0]} changes"
        check_together(models[1], trainings[1])
    except GenesisError as error:
        raise VerifyError(str(error)) from None
    if model_fields:
        return ModelChange.MINOR, f"model.{model_fields[0]} changes"
    if training_fields:
        return ModelChange.PATCH, f"training.{training_fields[0]} changes"
    return ModelChange.NONE, "nothing changes"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
