"""Genesis weights: the same bytes on every machine (docs/spec/model.md, "Start").

Matrices are uniform: a 24-bit integer times an integer scale, exact in a double, rounded to fp32
once. Norms are one, router biases zero. Nothing here depends on a library's random numbers.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from chain.hashes import PRF
from chain.prf import Prf
from learning.spec import ModelSpec
from tiles.layout import ShardSpec, TensorSpec

_SCALE_BITS = 20  # the scale is an integer times 2**-20
_DRAW_BITS = 24  # signed draws, so one half is 2**-23


def initial_shards(spec: ModelSpec) -> list[bytes]:
    """Data sections of all shards, in shard order."""
    return [initial_shard(spec, shard) for shard in spec.shards()]


def initial_shard(spec: ModelSpec, shard: ShardSpec) -> bytes:
    """The data section of one shard, without the others."""
    seed = PRF.hash(spec.init_seed.encode())
    return b"".join(
        _tensor(Prf(seed, "init", shard.index, j), tensor, _fan_in(spec, shard.name, tensor))
        for j, tensor in enumerate(shard.tensors)
    )


def _tensor(prf: Prf, tensor: TensorSpec, fan_in: int) -> bytes:
    if tensor.name.endswith("norm"):
        return np.ones(tensor.shape, "<f4").tobytes()
    if tensor.name == "bias":
        return np.zeros(tensor.shape, "<f4").tobytes()
    # a uniform draw in [-a, a) has variance a*a/3; wanted is 1 / fan_in
    scale = isqrt((3 << 2 * _SCALE_BITS) // fan_in)
    words = np.frombuffer(prf.read(4 * tensor.elements), "<u4")
    draws = (words >> (32 - _DRAW_BITS)).astype(np.int64) - (1 << _DRAW_BITS - 1)
    exact = (draws * scale).astype(np.float64)  # below 2**53, so nothing is rounded here
    return np.ldexp(exact, 1 - _DRAW_BITS - _SCALE_BITS).astype("<f4").tobytes()


def _fan_in(spec: ModelSpec, shard: str, tensor: TensorSpec) -> int:
    """One over the variance of a matrix: its rows, but 1024 for the embedding, so that tokens
    start small, and 2 * layers times as many where a block writes to the residual stream."""
    if shard == "embed":
        return 1024
    if tensor.name in ("output", "down"):
        return tensor.shape[0] * 2 * spec.layers
    return tensor.shape[0]
