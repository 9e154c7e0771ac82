"""The screen's verdict on a delta: a paired test in integers (docs/spec/pol.md).

A juror evaluates the model with and without a fifth of the delta on the same hidden slices.
Averages hide harm and luck alike, so the decision is Student's paired statistic

    t = mean(d) / (s / sqrt(n)),   d_i = base_i - delta_i,   s the sample deviation of d

against z = 2.33 (one-sided 1 %), compared as squares so that no square root is rounded. A juror
looks at a part of the slices first, and at all of them only where that part leaves a doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from chain.errors import InputError
from chain.transactions import Verdict

Z_HUNDREDTHS = 233
FIRST_LOOK = 4  # one slice in so many,
LEAST_SLICES = 64  # where there are as many at all
# What a first look must reach for the rest to be left out, in hundredths of the statistic.
CLEAR_HARM, CLEAR_HELP, CLEAR_PROVEN = 400, 330, 100


@dataclass(frozen=True, slots=True)
class Decision:
    """`mean` and `lower` are gains in nano-nats per byte: how far the delta lowers the loss, on
    average and at least (the one-sided 99 % confidence bound)."""

    verdict: Verdict
    mean: int
    lower: int


def verdict(base: Sequence[int], delta: Sequence[int], proven: bool) -> Decision:
    """Judge a delta by its slices' losses in nano-nats per byte, without and with it.

    A delta that a manifest proves is refused only if it is significantly harmful: honest work
    late in training helps by less than the noise. Nothing but its effect speaks for one that is
    not proven, so that one has to help significantly. Raises InputError for fewer than two
    slices or unequal counts.
    """
    n, total, spread = _paired(base, delta)
    significant = _exceeds(n, total, spread, Z_HUNDREDTHS)
    harms, helps = total < 0 and significant, total > 0 and significant
    passes = not harms if proven else helps
    margin = isqrt(Z_HUNDREDTHS**2 * spread // (10_000 * (n - 1)))  # z * s * sqrt(n), floor
    return Decision(Verdict.YES if passes else Verdict.NO, total // n, (total - margin - 1) // n)


def looks(count: int) -> list[list[int]]:
    """The slices of each look, by index: some of all, evenly spread, then the rest."""
    if count < LEAST_SLICES:
        return [list(range(count))]
    first = range(0, count, FIRST_LOOK)
    return [list(first), [i for i in range(count) if i not in first]]


def is_clear(base: Sequence[int], delta: Sequence[int], proven: bool) -> bool:
    """Whether a first look says enough: more slices would hardly ever turn its verdict.

    Where it does not, the verdict is that of all slices. Raises InputError as `verdict` does.
    """
    n, total, spread = _paired(base, delta)
    needed = CLEAR_HARM if total < 0 else CLEAR_PROVEN if proven else CLEAR_HELP
    return _exceeds(n, total, spread, needed)


def _paired(base: Sequence[int], delta: Sequence[int]) -> tuple[int, int, int]:
    """n, the sum of the gains, and n (n-1) times their sample variance."""
    n = len(base)
    if n < 2 or len(delta) != n:
        raise InputError(f"{n} and {len(delta)} losses; the paired test needs two or more pairs")
    gains = [b - d for b, d in zip(base, delta, strict=True)]
    total = sum(gains)
    return n, total, n * sum(g * g for g in gains) - total * total


def _exceeds(n: int, total: int, spread: int, hundredths: int) -> bool:
    """Whether |t| > hundredths / 100."""
    return 10_000 * total * total * (n - 1) > hundredths**2 * spread
