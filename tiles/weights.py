"""The weights of a tile's deltas, a written rule of their Gram matrix alone
(docs/spec/aggregation.md). The rules:

W1 Norm: s_i = isqrt(G_ii). A delta with s_i = 0 has weight 0 and no say.
W2 Cap: every delta is scaled to at most the lower median of the norms.
W3 Mixing: among m >= 5 deltas, each is replaced by the mean of the m - f that point most nearly
   its way (itself included), f = (m - 1) // 3. With fewer there is no majority to mix towards.
   Directions, not distances: sparse deltas are nearly orthogonal, so a short one is near to all.
W4 Centred clipping: from v = 0, three times v += mean(clip(z_i - v)), each difference clipped
   to the lower median of their lengths.
W5 The result is a combination of the deltas; its coefficients, rounded down to 2**-20, are the
   weights. They are never negative and their sum is at most 1.

All in integers: the same on every machine, and defined for any symmetric matrix, so that a
hostile one gives some weights rather than an error. Sources: norm clipping and CenteredClip,
arXiv 2012.10333; nearest-neighbour mixing, arXiv 2302.01772 (there by distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

from tiles.gram import gram_matrix

WEIGHT_BITS = 20  # weights are in units of 2**-20
MIX_FROM = 5  # deltas from which nearest-neighbour mixing is used
CLIP_STEPS = 3
_FINE_BITS = 30  # precision of scales and coefficients inside the rule
_ONE = 1 << _FINE_BITS
_MIX_BITS = 40  # inner products are cut to this before mixing: 64 * 64 of them fit int64

Matrix = Sequence[Sequence[int]]


def weights(gram: Matrix) -> tuple[int, ...]:
    """Weight of each delta in units of 2**-20, from the symmetric (n, n) Gram matrix."""
    norms = [isqrt(max(0, gram[i][i])) for i in range(len(gram))]
    active = [i for i, norm in enumerate(norms) if norm > 0]  # W1
    result = [0] * len(gram)
    if active:
        cap = _lower_median([norms[i] for i in active])
        scales = [_scale(norms[i], cap) for i in active]  # W2
        capped = [
            [a * b * gram[i][j] for b, j in zip(scales, active, strict=True)]
            for a, i in zip(scales, active, strict=True)
        ]
        alike = [[_likeness(gram[i][j], norms[i] * norms[j]) for j in active] for i in active]
        mixing, width, mixed = _mix(capped, alike)  # W3
        shares = _clip(mixed)  # W4
        for k, i in enumerate(active):  # W5
            share = sum(u for u, row in zip(shares, mixing, strict=True) if row[k])
            result[i] = scales[k] * share // (width << (2 * _FINE_BITS - WEIGHT_BITS))
    return tuple(result)


def check_weights(gram: bytes, claimed: Sequence[int]) -> bool:
    """Whether a tile update's `weights` follow from its `gram` bytes. Never raises."""
    matrix = gram_matrix(gram, len(claimed))
    return matrix is not None and weights(matrix) == tuple(claimed)


def _lower_median(values: Sequence[int]) -> int:
    return sorted(values)[(len(values) - 1) // 2]


def _scale(norm: int, cap: int) -> int:
    """What brings a length down to `cap`, at most 1, in units of 2**-30."""
    return _ONE if norm <= cap else (cap << _FINE_BITS) // norm


def _likeness(product: int, norms: int) -> int:
    """The cosine of two deltas, in units of 2**-40 and within 1."""
    bound = 1 << _MIX_BITS
    return max(-bound, min(bound, (product << _MIX_BITS) // norms))


def _mix(
    inner: list[list[int]], alike: list[list[int]]
) -> tuple[list[list[int]], int, list[list[int]]]:
    """W3: which deltas make up each mixed one (0 or 1), how many, inner products of the sums."""
    m = len(inner)
    if m < MIX_FROM:
        return [[int(i == j) for j in range(m)] for i in range(m)], 1, inner
    width = m - (m - 1) // 3
    bound = 1 << _MIX_BITS
    cut = max(0, max(inner[i][i] for i in range(m)).bit_length() - _MIX_BITS)
    small = np.array(
        [[max(-bound, min(bound, value >> cut)) for value in row] for row in inner], np.int64
    )
    order = np.argsort(-np.array(alike, np.int64), axis=1, kind="stable")  # ties: lower index
    nearest = order[:, :width]
    mixing = np.zeros((m, m), np.int64)
    np.put_along_axis(mixing, nearest, 1, axis=1)
    return mixing.tolist(), width, (mixing @ small @ mixing.T).tolist()


def _clip(inner: list[list[int]]) -> list[int]:
    """W4: coefficients of the clipped centre over the vectors with these inner products."""
    m = len(inner)
    shares = [0] * m
    for _ in range(CLIP_STEPS):
        along = [sum(u * value for u, value in zip(shares, row, strict=True)) for row in inner]
        centre = sum(u * value for u, value in zip(shares, along, strict=True))
        squares = [
            (inner[i][i] << 2 * _FINE_BITS) - (along[i] << _FINE_BITS + 1) + centre
            for i in range(m)
        ]
        lengths = [isqrt(max(0, square)) for square in squares]
        radius = _lower_median(lengths)
        pulls = [_scale(length, radius) for length in lengths]
        stay = (m << _FINE_BITS) - sum(pulls)
        shares = [
            (u * stay + (pull << _FINE_BITS)) // (m << _FINE_BITS)
            for u, pull in zip(shares, pulls, strict=True)
        ]
    return shares
