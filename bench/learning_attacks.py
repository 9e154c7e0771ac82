"""What hostile learners send, knowing all that honest ones have sent: payloads of one round.

Sources: inner-product manipulation, arXiv 1903.03936; a little is enough, arXiv 1902.06156; mimic,
arXiv 2006.09365.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from chain.hashes import ZERO_HASH
from learning.compress import LARGEST
from learning.spec import ModelSpec, TrainingSpec
from tiles.delta import decode_delta, encode_delta

FLIPPED_TIMES = 10
NOISE_TIMES = 10  # as long as an honest delta
DEVIATIONS = 1.5  # of a little is enough

Floats = npt.NDArray[np.float32]
# One shard of the honest deltas, (deltas, elements), to that of one bad one
Forge = Callable[[Floats, np.random.Generator], Floats]


def payloads(
    attack: str,
    count: int,
    honest: Sequence[bytes],
    spec: ModelSpec,
    training: TrainingSpec,
    round_: int,
) -> list[bytes]:
    """`count` payloads against a round's honest ones."""
    if attack == "mimic":
        return [honest[0]] * count  # the same one always, so that its data count for more
    layout = spec.shards()
    deltas = [decode_delta(payload, layout) for payload in honest]
    shards = [np.stack([d.shard_float(s.index) for d in deltas]) for s in layout]
    made = []
    for i in range(count):
        turned = [np.roll(shard, -i, axis=0) for shard in shards]  # each has one of its own
        rng = np.random.default_rng([round_, i])
        forged = {s: _sane(FORGES[attack](shard, rng)) for s, shard in enumerate(turned)}
        made.append(encode_delta(ZERO_HASH, forged, layout, training.density(round_))[0])
    return made


def _flip(honest: Floats, _: np.random.Generator) -> Floats:
    """What the attacker would have sent, the other way and ten times as long."""
    return -FLIPPED_TIMES * honest[0]


def _noise(honest: Floats, rng: np.random.Generator) -> Floats:
    size = NOISE_TIMES * _length(honest) / np.sqrt(honest.shape[1])
    return size * rng.standard_normal(honest.shape[1], np.float32)


def _against(honest: Floats, _: np.random.Generator) -> Floats:
    """Straight against the honest mean, as long as an honest delta, so that no norm shows it."""
    mean = honest.mean(axis=0)
    length = np.linalg.norm(mean)
    return -mean * (_length(honest) / length) if length > 0 else mean


def _little(honest: Floats, _: np.random.Generator) -> Floats:
    """Off the honest mean by so little in each element that it looks like one of them."""
    return honest.mean(axis=0) - np.float32(DEVIATIONS) * honest.std(axis=0)


def _length(honest: Floats) -> np.float32:
    return np.float32(np.median(np.linalg.norm(honest, axis=1)))


def _sane(values: Floats) -> Floats:
    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


FORGES: Mapping[str, Forge] = {"flip": _flip, "noise": _noise, "ipm": _against, "alie": _little}
ATTACKS = (*FORGES, "mimic")
