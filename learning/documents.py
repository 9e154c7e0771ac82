"""The documents `model` and `training` of a network, together: what neither can say alone.

Whoever trains must be able to send what it has made, and a worker process to take up the training.
Both are looked at where a genesis is read and where a vote changes it, not after a round's work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from chain.errors import GenesisError
from chain.limits import MAX_PAYLOAD_BYTES
from learning.spec import MAX_JOB_BYTES, ModelSpec, TrainingSpec
from tiles.codings import INT8, SPARSE
from tiles.delta import largest_payload

# A training is given a part of the base, its residual, and a state with two moments.
JOB_BYTES_A_PARAMETER = 4 + 4 + 12


def read_documents(model: Any, training: Any) -> tuple[ModelSpec, TrainingSpec]:
    """Read both. Raises GenesisError, also if they do not go together."""
    found = ModelSpec.from_json(model), TrainingSpec.from_json(training)
    check_together(*found)
    return found


def check_together(model: ModelSpec, training: TrainingSpec) -> None:
    """GenesisError if a payload of the whole model need not fit a blob, or the least training job
    does not fit a worker's."""
    most = _largest_payload(model, _largest_number(training))
    if most > MAX_PAYLOAD_BYTES:
        raise GenesisError(
            f"{_field(training)}: a payload of the model's {model.parameters} parameters may have "
            f"{most} bytes, and a blob holds {MAX_PAYLOAD_BYTES}; {_advice(training)}, or take a "
            "smaller model"
        )
    batches = training.steps * training.batch * (model.context + 1)
    least = least_part(model)
    job = batches + JOB_BYTES_A_PARAMETER * least
    if job > MAX_JOB_BYTES:
        name, advice = (
            ("training.steps", "lower steps, batch or model.context")
            if batches > MAX_JOB_BYTES // 2
            else ("model", "lower layers, width, shared_experts or expert_width")
        )
        raise GenesisError(
            f"{name}: to train the least part of the model (all but its experts, and one of these "
            f"in each layer: {least} parameters) a worker is given {job} bytes, {batches} of them "
            f"text, and takes {MAX_JOB_BYTES}; {advice}"
        )


def least_part(model: ModelSpec) -> int:
    """Parameters of a learner who holds as little as can be: one routed expert of each layer."""
    expert = 3 * model.width * model.expert_width
    return model.parameters - model.layers * (model.experts - 1) * expert


def _largest_number(training: TrainingSpec) -> int:
    """Of all rounds' densities the one of the largest payload; the number of another coding."""
    return max(training.densities) if training.codec == SPARSE else training.density(0)


@lru_cache(maxsize=16)
def _largest_payload(model: ModelSpec, number: int) -> int:
    return largest_payload(model.shards(), number)


def _field(training: TrainingSpec) -> str:
    if training.codec == SPARSE:
        return f"training.densities: {max(training.densities)}"
    return "training.codec: int8" if training.codec == INT8 else f"training.rank: {training.rank}"


def _advice(training: TrainingSpec) -> str:
    if training.codec == SPARSE:
        return "lower the densities"
    return "take another codec" if training.codec == INT8 else "lower the rank"
