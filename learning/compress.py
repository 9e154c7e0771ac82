"""From two sets of weights to a payload, with error feedback (docs/spec/training.md, "Payload").

    target   = after - before + beta * residual      fp32, each operation rounded once
    payload  = encode(target)
    residual = target - decode(payload)

beta < 1 lets what was never sent fade (SparseLoCo, arXiv 2508.15706). An auditor who has before,
after and residual recomputes payload and new residual to the bit; numpy alone is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chain.errors import InputError
from chain.hashes import Hash32
from learning.held import Held, layout_of
from learning.spec import PPM, ModelSpec, TrainingSpec
from learning.state import Sections, residual_root
from tiles.delta import decode_delta, encode_delta, payload_root

LARGEST = np.float32(1 - 2**-12)  # the codec holds |x| < 1; what is cut off stays in the residual

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compressed:
    """A payload and the residual it leaves, with the roots a manifest names."""

    payload: bytes
    residual: Sections
    payload_root: Hash32
    residual_before: Hash32
    residual_after: Hash32


def compress(
    spec: ModelSpec,
    training: TrainingSpec,
    round_: int,
    base_root: Hash32,
    before: Sequence[bytes],
    after: Sequence[bytes],
    residual: Sequence[bytes] | None,
    held: Held | None = None,
) -> Compressed:
    """Payload of `after - before` at the round's density. `residual`: of this learner's last round.

    All are data sections in shard order, of the part that is `held`; the payload has no section of
    another shard. Raises InputError if training has diverged.
    """
    layout = layout_of(spec, held)
    beta = np.float32(training.error_feedback_ppm / PPM)
    targets: dict[int, Floats] = {}
    for i, shard in enumerate(layout):
        target = _floats(after[i]) - _floats(before[i])
        if residual is not None:
            target = target + beta * _floats(residual[i])
        if not bool(np.isfinite(target).all()):
            raise InputError(f"shard {shard.name}: training has diverged (a value is not finite)")
        targets[shard.index] = target
    cut = {i: np.clip(target, -LARGEST, LARGEST) for i, target in targets.items()}
    payload, decoded = encode_delta(base_root, cut, layout, training.density(round_))
    left = tuple(
        (target - decoded[i].floats()).astype("<f4").tobytes() for i, target in targets.items()
    )
    return Compressed(
        payload, left, payload_root(payload), residual_root(residual), residual_root(left)
    )


def add_delta(
    spec: ModelSpec, base: Sequence[bytes], payload: bytes, numerator: int, denominator: int
) -> list[bytes]:
    """base + delta * numerator / denominator, in fp32: what a screen evaluates.

    Raises DecodeError for a payload that is not a delta of this model.
    """
    delta = decode_delta(payload, spec.shards())
    scale = np.float32(numerator / denominator)
    return [
        (_floats(section) + scale * delta.shard_float(i)).astype("<f4").tobytes()
        if i in delta.shards
        else bytes(section)
        for i, section in enumerate(base)
    ]


def _floats(section: bytes) -> Floats:
    return np.frombuffer(section, "<f4").astype(np.float32, copy=False)
