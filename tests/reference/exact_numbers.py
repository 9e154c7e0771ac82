"""Numbers of the `exact` profile, slowly: products of integers, sums by halves, functions
(docs/spec/numeric-profiles.md). Shares no code with the project.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

F = np.float32
A = npt.NDArray[Any]


def grid(x: A) -> tuple[A, int]:
    """Integers and the power of two that they count."""
    largest = float(np.abs(x).max()) if x.size else 0.0
    e = -100
    while largest > 2.0**e:
        e += 1
    return np.rint(x.astype(np.float64) * 2.0 ** (21 - e)).astype(np.int64), e - 21


def product(a: tuple[A, int], b: tuple[A, int]) -> A:
    """One matrix times another: sums of integers below 2**53."""
    (left, i), (right, j) = a, b
    total = np.zeros((left.shape[0], right.shape[1]))
    for k in range(0, left.shape[1], 2048):
        exact = left[:, k : k + 2048] @ right[k : k + 2048]
        assert np.abs(exact).max(initial=0) <= 2**53
        total = total + exact.astype(np.float64) * 2.0 ** (i + j)
    return total.astype(F)


def flip(a: tuple[A, int]) -> tuple[A, int]:
    return a[0].T, a[1]


def fold(x: A) -> A:
    """Sum over the first dimension by halves."""
    while len(x) > 1:
        k = (len(x) + 1) // 2
        y = x[:k].copy()
        y[: len(x) - k] += x[k:]
        x = y
    return x[0]


def last_fold(x: A) -> A:
    return fold(np.moveaxis(x, -1, 0))[..., None]


def length(vector: A) -> F:
    padded = np.zeros(-(-len(vector) // 4096) * 4096, F)
    padded[: len(vector)] = vector * vector
    return np.sqrt(fold(last_fold(padded.reshape(-1, 4096)).ravel()))


def exp(x: A) -> A:
    x = np.clip(x, F(-87), F(87))
    n = np.rint(x * F(1.4426950408889634))
    r = (x - n * F(0.693359375)) - n * F(-2.12194440e-4)
    y = r * F(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        y = (y + F(c)) * r
    y = (y * r + r) + F(1)
    return y * np.array([2.0 ** int(k) for k in n.ravel()], F).reshape(n.shape)


def log(x: float) -> float:
    mantissa, e = math.frexp(x)
    mantissa, e = 2 * mantissa, e - 1
    if mantissa > 1.4142135623730951:
        mantissa, e = mantissa / 2, e + 1
    z = (mantissa - 1.0) / (mantissa + 1.0)
    y = 1 / 21
    for odd in range(19, 0, -2):
        y = y * (z * z) + 1 / odd
    return (y * z) * 2.0 + e * 0.6931471805599453


def exp_double(x: float) -> float:
    n = float(round(x * 1.4426950408889634))
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    y = 0.0
    for k in range(16, -1, -1):
        y = y * r + 1 / math.factorial(k)
    return y * 2.0**n


def turn(position: int, i: int, half: int) -> tuple[F, F]:
    """Cosine and sine of a position's i-th angle."""
    angle = position * exp_double(-(i / half) * 9.210340371976184)
    n = float(round(angle * (2 / math.pi)))
    r = (angle - n * 1.57079632673412561417e00) - n * 6.07710050650619224932e-11
    minus, s, c = -(r * r), 0.0, 0.0
    for k in range(17, 0, -2):
        s = s * minus + 1 / math.factorial(k)
        c = c * minus + 1 / math.factorial(k - 1)
    s = s * r
    cosine, sine = ((c, s), (-s, c), (-c, -s), (s, -c))[int(n) % 4]
    return F(cosine), F(sine)


def shares(x: A) -> tuple[A, A, A]:
    relative = x - x.max(-1, keepdims=True)
    each = exp(relative)
    total = last_fold(each)
    return each / total, relative, total
