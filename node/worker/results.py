"""What a worker finds of a model's losses."""

from __future__ import annotations

from dataclasses import dataclass


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
