"""Which numeric profile this process computes in, found out by computing
(docs/spec/numeric-profiles.md, "Conformance").

Import it only where `learning.profile.configure` has been called: it loads torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from chain.errors import ConfigError
from chain.hashes import PRF, Hash32
from chain.prf import Prf
from learning.bf16 import Bf16Ops
from learning.exact import ExactOps
from learning.init import initial_shards
from learning.ops import NATIVE, Ops
from learning.profile import EXACT, Kind, bf16_class, kind_of, native_class
from learning.spec import NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec
from learning.state import TrainState
from learning.train import train_segment

MODEL = replace(
    NANO_MODEL,
    layers=2,
    width=96,
    heads=4,
    experts=4,
    top_k=2,
    expert_width=128,
    context=64,
    init_seed="conformance",
)
TRAINING = replace(
    NANO_TRAINING,
    steps=2,
    segment_steps=1,
    batch=8,
    learning_rate_nano=10_000_000,
    warmup_steps=2,
    beta1_ppm=900_000,
    beta2_ppm=950_000,
    epsilon_nano=10,
    weight_decay_ppm=100_000,
    clip_ppm=1_000_000,
    bias_rate_ppm=1000,
)
# after both steps in the exact profile: tests/vectors/learning/exact.json
EXACT_STATE = bytes.fromhex("54e50fb622b9f8cb4f41314ec9eb79278bfb9ea4da9664f19766392fd00eab16")
_DIGEST_BYTES = 8  # of a native or bf16 class's state hash


def ops_of(kind: Kind) -> Ops:
    """The arithmetic of a profile."""
    if kind == "bf16":
        return Bf16Ops()
    return ExactOps() if kind == "exact" else NATIVE


def profile_of(kind: Kind) -> str:
    """This process's profile of that kind, as a manifest names it.

    Raises ConfigError if `exact` does not come out as it must.
    """
    return _profile(kind)


@cache
def _profile(kind: Kind) -> str:
    ops = ops_of(kind)
    state = conformance_state(ops)
    if kind != "exact":
        name = native_class() if kind == "native" else bf16_class(ops.device)
        return f"{name}/{state[:_DIGEST_BYTES].hex()}"
    if state != EXACT_STATE:
        raise ConfigError(
            f"this machine computes {state.hex()} where the profile {EXACT} has "
            f"{EXACT_STATE.hex()}: its torch or numpy does not round as IEEE 754 says. Train with "
            "--profile native, and please report processor and versions"
        )
    return EXACT


def matches(profile: str) -> bool:
    """Whether this process computes the same bits as one of that profile. Raises InputError for a
    profile that this version does not know."""
    return profile_of(kind_of(profile)) == profile


def conformance_state(ops: Ops) -> Hash32:
    """Hash of the state after two steps of a small model, which all of the arithmetic enters."""
    start = TrainState.fresh(initial_shards(MODEL))
    batches = conformance_batches(MODEL, TRAINING)
    end = train_segment(MODEL, TRAINING, start, batches.__getitem__, TRAINING.steps, ops=ops)
    return end.hash()


def conformance_batches(model: ModelSpec, training: TrainingSpec) -> npt.NDArray[np.uint8]:
    """Small letters: uint8 [steps, batch, context + 1]."""
    shape = (training.steps, training.batch, model.context + 1)
    drawn = Prf(PRF.hash(b"conformance"), "text").read(math.prod(shape))
    letters = np.frombuffer(drawn, np.uint8) % 26 + ord("a")
    return letters.astype(np.uint8).reshape(shape)
