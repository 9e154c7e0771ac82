"""A model and a training rule small enough for tests, and text to learn from."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corpus.ingest import ingest
from learning.spec import NANO_MODEL, NANO_TRAINING

TINY = replace(
    NANO_MODEL, layers=2, width=16, heads=2, expert_width=16, context=16, init_seed="tiny"
)
TINY_TRAINING = replace(NANO_TRAINING, steps=8, segment_steps=2, batch=4, warmup_steps=4)


@cache
def library(size_bytes: int) -> bytes:
    """The beginning of Python's own library."""
    found = ingest(Path(sysconfig.get_paths()["stdlib"]), size_bytes)
    return b"".join(document.text for document in found.documents)


def tiny_batches(seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [steps, batch, context + 1] from the library."""
    text = np.frombuffer(library(100_000), np.uint8)
    rule, window = TINY_TRAINING, TINY.context + 1
    shape = (rule.steps, rule.batch)
    starts = np.random.default_rng(seed).integers(0, len(text) - window, shape)
    taken: npt.NDArray[np.uint8] = text[starts[..., None] + np.arange(window)]
    return taken
