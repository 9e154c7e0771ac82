"""The screen's paired test, and how much a juror looks at (docs/spec/pol.md)."""

from __future__ import annotations

from statistics import mean, stdev

import numpy as np
import pytest

from chain.errors import InputError
from chain.transactions import Verdict
from consensus.pol import is_clear, looks, verdict

SLICES = 128
SEED = 20_261


def gains(source: np.random.Generator, effect: float, count: int = SLICES) -> list[int]:
    """Gains in nano-nats whose paired statistic is about `effect`."""
    found = source.standard_normal(count) + effect / np.sqrt(count)
    return [int(g) for g in np.rint(found * 1e6)]


def decided(found: list[int], proven: bool) -> Verdict:
    return verdict(found, [0] * len(found), proven).verdict


def test_the_verdict_is_students() -> None:
    source = np.random.default_rng(SEED)
    seen = set()
    for effect in np.linspace(-4, 4, 60):
        found = gains(source, float(effect), 40)
        t = mean(found) / (stdev(found) / 40**0.5)
        assert decided(found, True) == (Verdict.NO if t < -2.33 else Verdict.YES)
        assert decided(found, False) == (Verdict.YES if t > 2.33 else Verdict.NO)
        lower = verdict(found, [0] * 40, True).lower
        bound = mean(found) - 2.33 * stdev(found) / 40**0.5
        assert bound - 2 < lower <= bound
        seen.add((t < -2.33, t > 2.33))
    assert len(seen) == 3


def test_equal_losses_neither_harm_nor_help() -> None:
    assert decided([0] * 8, True) == Verdict.YES
    assert decided([0] * 8, False) == Verdict.NO
    assert not is_clear([0] * 8, [0] * 8, True)
    assert is_clear([1] * 8, [0] * 8, False)  # the same gain everywhere is no luck


@pytest.mark.parametrize(("base", "delta"), [([1], [1]), ([], []), ([1, 2], [1])])
def test_less_than_two_pairs_are_no_test(base: list[int], delta: list[int]) -> None:
    for ask in (verdict, is_clear):
        with pytest.raises(InputError, match="two or more pairs"):
            ask(base, delta, True)


def test_looks_are_all_slices_once() -> None:
    for count in (2, 63, 64, 65, 127, 128):
        parts = looks(count)
        assert sorted(i for part in parts for i in part) == list(range(count))
        assert len(parts) == (1 if count < 64 else 2)
        assert all(part == sorted(part) for part in parts)
    first = looks(SLICES)[0]
    assert (len(first), first[0], first[-1]) == (32, 0, 124)


@pytest.mark.parametrize(
    ("effect", "proven", "differ", "most"),
    [  # share of verdicts that a first look turns, and slices looked at on average
        (-4.0, True, 0.01, 128),
        (-2.33, True, 0.01, 128),
        (0.0, True, 0.01, 120),
        (4.0, True, 0.0, 60),
        (8.0, True, 0.0, 36),
        (0.0, False, 0.01, 128),
        (2.33, False, 0.015, 128),
        (10.0, False, 0.0, 48),
    ],
)
def test_a_first_look_saves_slices_and_hardly_turns_a_verdict(
    effect: float, proven: bool, differ: float, most: float
) -> None:
    source, tries = np.random.default_rng(SEED), 400
    turned, looked = 0, 0
    for _ in range(tries):
        found = gains(source, effect)
        first = [found[i] for i in looks(SLICES)[0]]
        if is_clear(first, [0] * len(first), proven):
            turned += decided(first, proven) != decided(found, proven)
            looked += len(first)
        else:
            looked += SLICES
    assert turned / tries <= differ
    assert looked / tries <= most
