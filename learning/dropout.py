"""Dropout by an integer generator of our own (docs/spec/training.md, "Dropout").

A mask is a function of the learner's key of the round and of a place: step, layer, branch, window
of the batch, position, channel. Nothing is drawn in an order, so pieces of a batch, layers computed
again, parts of a model, threads, profiles and a replay that begins anywhere have the same masks.

Words are SplitMix64's (Steele, Lea and Flood, OOPSLA 2014, doi 10.1145/2660193.2660195; shifts and
constants as in Vigna's splitmix64.c), of which any can be had without those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from chain.hashes import Hash32
from chain.prf import Prf
from learning.spec import PPM

ATTENTION, MIXTURE = 0, 1  # the branches of a layer
BRANCHES: Final = 2
_ONE = 1 << 16  # a threshold has 16 bits
_LANES = 4  # thresholds in a word
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Masks:
    """Those of one step. `seeds`: of layer i's branch b number 2i + b. `cut`: what is below it of
    65536 is dropped. `before`: windows of the batch that precede those at hand."""

    seeds: tuple[int, ...]
    cut: int
    before: int = 0

    def factors(self, layer: int, branch: int, shape: tuple[int, int, int]) -> Floats:
        """What a branch's output of this shape [windows, positions, channels] is multiplied with,
        fp32: 0, or one over the share that is kept."""
        windows, positions, channels = shape
        first, count = self.before * positions * channels, windows * positions * channels
        seed = self.seeds[BRANCHES * layer + branch]
        drawn = words(seed, first // _LANES, -(-(first + count) // _LANES))
        lanes = drawn.astype("<u8", copy=False).view("<u2")[first % _LANES :][:count]
        kept = np.float32(_ONE / (_ONE - self.cut))
        return np.where(lanes < self.cut, np.float32(0), kept).reshape(shape)


def masks_of(key: Hash32, dropout_ppm: int, layers: int, step: int) -> Masks:
    """The masks of a step. `key`: `corpus.batches.Assignment.mask_key`."""
    seeds = Prf(key, "mask", step).words(BRANCHES * layers)
    return Masks(seeds, (dropout_ppm * _ONE + PPM // 2) // PPM)


def words(seed: int, first: int, last: int) -> npt.NDArray[np.uint64]:
    """Outputs [first, last) of SplitMix64 with this seed, counted from 0."""
    x = np.arange(first + 1, last + 1, dtype=np.uint64)
    x *= _GAMMA  # modulo 2**64, as all that follows
    x += np.uint64(seed)
    x ^= x >> np.uint64(30)
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x
