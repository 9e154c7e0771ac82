"""Jobs of training as a worker is given them, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chain.hashes import Hash32
from learning.profile import Kind
from learning.spec import ModelSpec, TrainingSpec
from node.worker.protocol import Message

Windows = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a round's training has come: hashes of its checkpoints from the first on, the last of
    these, and the optimizer root of the first."""

    state_hashes: tuple[Hash32, ...]
    state: bytes
    optimizer_before: Hash32


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One round of local training. `base`, `residual`: data sections in shard order.

    `previous`: the last checkpoint of this learner's last round, for its optimizer, or None.
    `batches`: uint8 [steps, batch, context + 1]. `done`: of this very round, if its training was
    interrupted: it goes on from there. `shards`: of the part of the model that all of it is of, as
    a manifest lists them; none stands for all. `mask_key`: of the assignment that the batches are
    of, for a rule with dropout.
    """

    model: ModelSpec
    training: TrainingSpec
    round: int
    base_root: Hash32
    base: Sequence[bytes]
    batches: Windows
    previous: bytes | None = None
    residual: Sequence[bytes] | None = None
    profile: Kind = "native"
    done: Reached | None = None
    shards: Sequence[int] = ()
    mask_key: Hash32 | None = None

    def request(self) -> Message:
        """With one state at most: all checkpoints of a round would not fit into a frame."""
        done = self.done
        return {
            "job": "train",
            "model": self.model.to_json(),
            "training": self.training.to_json(),
            "round": self.round,
            "base_root": self.base_root,
            "shards": list(self.base),
            "batches": self.batches.tobytes(),
            "previous": self.previous if done is None else None,
            "residual": None if self.residual is None else list(self.residual),
            "profile": self.profile,
            "done": None if done is None else done.state,
            "state_hashes": [] if done is None else list(done.state_hashes),
            "optimizer_before": None if done is None else done.optimizer_before,
            "held": list(self.shards),
            "mask_key": self.mask_key,
        }


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a manifest names, and what the learner keeps: `state` is the last checkpoint, that with
    hash `state_hashes[-1]`."""

    payload: bytes
    payload_root: Hash32
    residual: tuple[bytes, ...]
    residual_before: Hash32
    residual_after: Hash32
    optimizer_before: Hash32
    optimizer_after: Hash32
    state_hashes: tuple[Hash32, ...]
    state: bytes
    profile: str
    first_loss: float  # training loss in nats per byte, for progress only; 0 without a step
    last_loss: float
    imbalance: tuple[float, ...]  # of each layer: the busiest expert's bytes over the mean one's
    seconds: float  # that it ran; pauses are left out


@dataclass(frozen=True, slots=True)
class Closing:
    """What the replay of a round's last segment compresses its result with: the round, its base and
    the residual before it, data sections in shard order of the part that is held."""

    round: int
    base_root: Hash32
    base: Sequence[bytes]
    residual: Sequence[bytes] | None

    def request(self) -> Message:
        return {
            "round": self.round,
            "base_root": self.base_root,
            "shards": list(self.base),
            "residual": None if self.residual is None else list(self.residual),
        }


@dataclass(frozen=True, slots=True)
class Closed:
    """What a manifest must name if its last segment is as it was replayed; all zero if the result
    cannot be compressed."""

    payload_root: Hash32
    residual_before: Hash32
    residual_after: Hash32
    optimizer_after: Hash32


@dataclass(frozen=True, slots=True)
class Replay:
    """State hashes before and after a replayed segment, and under which profile; of the last
    segment, what its compression gives.

    All zero: this machine has another profile than the one asked for. `after` alone: no training
    leads on from that state, since values in it overflow.
    """

    before: Hash32
    after: Hash32
    profile: str
    closed: Closed | None = None
