"""What a worker finds for others: losses of a model, and state hashes of a training replayed."""

from __future__ import annotations

from dataclasses import dataclass

from chain.hashes import Hash32


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss of each window in nano-nats per byte; `delta` is empty if there was no payload."""

    base: tuple[int, ...]
    delta: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """Losses of a text's windows in nano-nats per byte; of each layer the busiest expert's bytes
    over the mean one's."""

    losses: tuple[int, ...]
    imbalance: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """State hashes before and after a replayed segment, and under which profile.

    All zero: this machine has another profile than the one asked for. `after` alone: no training
    leads on from that state, since values in it overflow.
    """

    before: Hash32
    after: Hash32
    profile: str
