"""The screen's verdict on a delta: a paired test in integers (docs/spec/pol.md, DESIGN 7.4).

A juror evaluates the model with and without a fifth of the delta on the same hidden slices.
Averages hide harm and luck alike, so the decision is Student's paired statistic

    t = mean(d) / (s / sqrt(n)),   d_i = base_i - delta_i,   s the sample deviation of d

against z = 2.33 (one-sided 1 %), compared as squares so that no square root is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from chain.errors import InputError
from chain.transactions import Verdict

Z_HUNDREDTHS = 233


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
    n = len(base)
    if n < 2 or len(delta) != n:
        raise InputError(f"{n} and {len(delta)} losses; the paired test needs two or more pairs")
    gains = [b - d for b, d in zip(base, delta, strict=True)]
    total = sum(gains)
    spread = n * sum(g * g for g in gains) - total * total  # n (n-1) s**2
    significant = 10_000 * total * total * (n - 1) > Z_HUNDREDTHS**2 * spread
    harms, helps = total < 0 and significant, total > 0 and significant
    passes = not harms if proven else helps
    margin = isqrt(Z_HUNDREDTHS**2 * spread // (10_000 * (n - 1)))  # z * s * sqrt(n), floor
    return Decision(Verdict.YES if passes else Verdict.NO, total // n, (total - margin - 1) // n)
