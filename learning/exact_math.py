"""Arithmetic with one result, whatever the processor, library and thread count
(docs/spec/numeric-profiles.md).

Two means: single IEEE operations whose order is written here (no kernel that may fuse a product
and a sum), and sums of numbers so coarse that no partial sum is rounded, in any order.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from chain.errors import InputError

GRID_BITS = 21  # a matrix's entries are integers of -2**21 to 2**21 times a power of two
MAX_INNER = 2048  # 2 * 21 + 11 = 53 bits: what a double holds exactly
_SHIFT_BITS = 23 - GRID_BITS  # of an fp32 constant whose last bit is the grid's
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 124  # of the largest entry
_NORM_BLOCK, _NORM_ROWS = 4096, 256

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # 355/512: its products here are exact
# exp on [-ln 2 / 2, ln 2 / 2] to 2**-26, highest power first (Cephes expf's, its square expanded)
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_EXP_RANGE = 87.0
_LN2_HIGH_DOUBLE, _LN2_LOW_DOUBLE = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LN_10000 = 9.210340371976184
# pi / 2, its first 33 bits and the rest (fdlibm)
_QUARTER_HIGH, _QUARTER_LOW = 1.57079632673412561417e00, 6.07710050650619224932e-11


class DivergedError(InputError):
    """A value that is no number, or too large: this training leads nowhere."""


def _diverged() -> DivergedError:
    return DivergedError("training has diverged: a value is infinite or not a number")


# --- grids and products ----------------------------------------------------------------


def to_grid(x: Tensor, slices: bool = False) -> Tensor:
    """x rounded, half to even, to multiples of 2**(E - 21), fp32, with E the least integer for
    which no entry is beyond 2**E (at least -100). No zero has a sign.

    `slices`: each matrix of the last two dimensions has an E of its own.
    """
    if x.numel() == 0:
        return x.clone()
    if slices:
        flat = x.flatten(-2)
        largest = torch.maximum(flat.amax(-1), -flat.amin(-1))
        numbers = [shift_of(value) for value in largest.flatten().tolist()]
        shift = torch.tensor(numbers, dtype=torch.float32).reshape(*largest.shape, 1, 1)
        return x.add(shift).sub_(shift)
    low, high = torch.aminmax(x)
    number = shift_of(max(-float(low), float(high)))
    return x.add(number).sub_(number)


def shift_of(largest: float) -> float:
    """1.5 * 2**(E + 2): an fp32 number that rounds to the grid whatever is added to it."""
    if not math.isfinite(largest):
        raise _diverged()
    mantissa, exponent = math.frexp(largest)
    exponent -= mantissa == 0.5  # a power of two is its own bound
    if exponent > _MOST_EXPONENT:
        raise _diverged()
    if largest == 0.0 or exponent < _LEAST_EXPONENT:
        exponent = _LEAST_EXPONENT
    return math.ldexp(1.5, exponent + _SHIFT_BITS)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices (or stacks of them) on grids: exact, then rounded to fp32 once.

    With an inner dimension over 2048, the exact products of blocks of 2048 are added in double,
    in order.
    """
    return product_of_doubles(a.double(), b.double())


def product_of_doubles(a: Tensor, b: Tensor) -> Tensor:
    """The same, of what has been converted already."""
    inner = a.shape[-1]
    total = a[..., :MAX_INNER] @ b[..., :MAX_INNER, :]
    for start in range(MAX_INNER, inner, MAX_INNER):
        end = min(start + MAX_INNER, inner)
        total += a[..., start:end] @ b[..., start:end, :]
    return total.float().add_(0.0)  # which takes the sign of a zero: kernels differ in it


# --- sums --------------------------------------------------------------------------------


def halving_sum(x: Tensor, dim: int = -1) -> Tensor:
    """Sum over a dimension, which stays with size 1: its second half is added to its first until
    one is left. Of an odd number, the first half has one more, which nothing is added to."""
    while (count := x.shape[dim]) > 1:
        half = (count + 1) // 2
        first, second = x.narrow(dim, 0, half), x.narrow(dim, half, count - half)
        if count % 2:
            first = first.clone()
            first.narrow(dim, 0, count - half).add_(second)
            x = first
        else:
            x = first + second
    return x


def sqrt_(x: Tensor) -> Tensor:
    """In place. numpy's is the processor's own, rounded as IEEE says; torch's comes from MKL, and
    has another last bit for one fp32 number in six."""
    values = x.numpy()
    np.sqrt(values, out=values)
    return x


def norm(vector: Tensor) -> float:
    """Euclidean length, fp32: squares are summed in blocks of 4096 (zeros behind the last), and
    then the blocks."""
    whole = vector.numel() // _NORM_BLOCK * _NORM_BLOCK
    blocks = vector[:whole].view(-1, _NORM_BLOCK)
    sums = [
        halving_sum(blocks[row : row + _NORM_ROWS].square()).flatten()
        for row in range(0, len(blocks), _NORM_ROWS)
    ]
    if whole < vector.numel():
        last = torch.zeros(_NORM_BLOCK)
        last[: vector.numel() - whole] = vector[whole:]
        sums.append(halving_sum(last.square()))
    length = float(sqrt_(halving_sum(torch.cat(sums))))
    if not math.isfinite(length):
        raise _diverged()
    return length


# --- exp, log, turns -----------------------------------------------------------------------


def exp(x: Tensor) -> Tensor:
    """e**x in fp32 to 2 units in the last place; x is cut to [-87, 87] first."""
    x = x.clamp(-_EXP_RANGE, _EXP_RANGE)
    whole = (x * _LOG2_E).round_()
    rest = x.sub_(whole * _LN2_HIGH).sub_(whole * _LN2_LOW)
    value = rest * _EXP[0]
    for factor in _EXP[1:]:
        value.add_(factor).mul_(rest)
    value.mul_(rest).add_(rest).add_(1.0)
    power = whole.to(torch.int32).add_(127).bitwise_left_shift_(23)  # 2**whole, as bits
    return value.mul_(power.view(torch.float32))


def log(x: Tensor) -> Tensor:
    """Natural logarithm in double, of normal positive doubles, to 1e-15 of its size or of 1."""
    bits = x.view(torch.int64)
    exponent = (bits >> 52) - 1023
    mantissa = ((bits & ((1 << 52) - 1)) | (1023 << 52)).view(torch.float64)
    large = mantissa > 1.4142135623730951
    mantissa = torch.where(large, mantissa * 0.5, mantissa)
    exponent = exponent + large
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    value = torch.full_like(x, 1 / 21)
    for odd in range(19, 0, -2):
        value = value * square + 1 / odd
    return value * ratio * 2.0 + exponent.double() * 0.6931471805599453


def turns(first: int, time: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of p * 10000**(-2i / head_width) for positions p from `first` on and
    i < head_width / 2: fp32 [time, head_width / 2], by way of double (arXiv 2104.09864)."""
    half = head_width // 2
    frequency = np.array([_exp_of_float(-(i / half) * _LN_10000) for i in range(half)])
    angle = np.arange(first, first + time, dtype=np.float64)[:, None] * frequency
    quarter = np.rint(angle * (2 / math.pi))
    rest = (angle - quarter * _QUARTER_HIGH) - quarter * _QUARTER_LOW
    square = rest * rest
    sine, cosine = np.zeros_like(rest), np.zeros_like(rest)
    for power in range(17, 0, -2):
        sine = sine * -square + 1 / math.factorial(power)
        cosine = cosine * -square + 1 / math.factorial(power - 1)
    sine = sine * rest
    which = quarter.astype(np.int64) & 3
    cosines = np.choose(which, [cosine, -sine, -cosine, sine]).astype(np.float32)
    sines = np.choose(which, [sine, cosine, -sine, -cosine]).astype(np.float32)
    return torch.from_numpy(cosines), torch.from_numpy(sines)


def _exp_of_float(x: float) -> float:
    """e**x in double, to 1e-15 of its size."""
    whole = float(round(x * _LOG2_E))
    rest = (x - whole * _LN2_HIGH_DOUBLE) - whole * _LN2_LOW_DOUBLE
    value = 0.0
    for power in range(16, -1, -1):
        value = value * rest + 1 / math.factorial(power)
    return math.ldexp(value, int(whole))
