"""What several systems are asked to learn in `bench.learning_peers`, and how each fared."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus.ingest import Document, ingest
from learning.spec import ModelSpec, TrainingSpec


@dataclass(frozen=True, slots=True)
class Task:
    """So many learners train so many rounds of a model, after `warm` ones that are not counted: in
    them everybody loads what it needs, and leaves the steep beginning behind. `asks`: which target
    this task is for, `wall` time or `bytes` of all copies; the other is shown without one."""

    name: str
    model: ModelSpec
    training: TrainingSpec
    warm: int
    rounds: int
    text_bytes: int
    asks: str
    learners: int = 4


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

    def reaches(self, loss: float) -> float | None:
        """Seconds to the first round that ends at this loss or below; None if none does."""
        pairs = zip(self.at_s, self.losses, strict=True)
        return next((at for at, found in pairs if found <= loss), None)


def sources(most: int) -> Sequence[Document]:
    """The beginning of Python's own library and its tests, of at most so many bytes."""
    return ingest(Path(sysconfig.get_paths()["stdlib"]), most).documents


def library(most: int) -> bytes:
    """The beginning of Python's own library, at most so many bytes (of about 5 million)."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    return b"".join(path.read_bytes() for path in paths)[:most].rpartition(b"\n")[0]
