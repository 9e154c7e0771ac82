"""What several systems are asked to learn in `bench.learning_peers`, and how each fared."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corpus.ingest import Document, ingest
from learning.spec import NANO_TRAINING, ModelSpec, TrainingSpec

# Rounds as long as a network is for: what `momentum` of bench.learning_curves trains in one process
# and bench.learning_peers on real nodes
LONG = replace(NANO_TRAINING, steps=30, batch=32, learning_rate_nano=2_000_000)
LONG_DENSITY, LONG_MOMENTUM_PPM = 600, 300_000
LONG_WARM, LONG_TEXT_BYTES = 4, 2_000_000


@dataclass(frozen=True, slots=True)
class Task:
    """So many learners train so many rounds of a model, after `warm` ones that are not counted: in
    them everybody loads what it needs, and leaves the steep beginning behind. `asks`: which target
    this task is for, `wall` time to a given loss or `bytes` of all copies to the others' last one;
    the other is shown without one. Ours may take `more` rounds to get there, and goes on a part of
    its last round's way: `momentum_ppm`, as in a genesis."""

    name: str
    model: ModelSpec
    training: TrainingSpec
    warm: int
    rounds: int
    text_bytes: int
    asks: str
    more: int = 0
    learners: int = 4
    momentum_ppm: int = 0

    @property
    def our_rounds(self) -> int:
        return self.rounds + self.more


@dataclass(frozen=True, slots=True)
class Side:
    """How one system fared: by round the holdout loss in nats a byte and the seconds from the
    start of the first. `bytes_sent`: by a peer in a round, all that left its processes. `spread`:
    the largest distance of a peer's last model from the first's, in parts of its length."""

    name: str
    losses: tuple[float, ...]
    at_s: tuple[float, ...]
    train_s: float  # a round's steps, median
    bytes_sent: float
    spread: float

    @property
    def round_s(self) -> float:
        """A round in the mean."""
        return self.at_s[-1] / len(self.at_s)

    def rounds_to(self, loss: float) -> int | None:
        """Rounds until one ends at this loss or below; None if none does."""
        return next((n + 1 for n, found in enumerate(self.losses) if found <= loss), None)

    def reaches(self, loss: float) -> float | None:
        """Seconds until then."""
        rounds = self.rounds_to(loss)
        return None if rounds is None else self.at_s[rounds - 1]


def sources(most: int) -> Sequence[Document]:
    """The beginning of Python's own library and its tests, of at most so many bytes."""
    return ingest(Path(sysconfig.get_paths()["stdlib"]), most).documents


def library(most: int) -> bytes:
    """The beginning of Python's own library, at most so many bytes (of about 5 million)."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    return b"".join(path.read_bytes() for path in paths)[:most].rpartition(b"\n")[0]
