"""20,000 cases of the fuzz programs; more with `python -m tests.attacks.tiles.fuzz`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tests.attacks import fuzzing as fuzz
from tests.attacks.tiles.fuzz import PROGRAM
from tests.attacks.tiles.fuzz_framing import FramingTarget
from tests.attacks.tiles.fuzz_header import HeaderTarget
from tests.attacks.tiles.fuzz_proof import ProofTarget


@pytest.mark.parametrize(
    ("target", "cases"),
    [(HeaderTarget(), 7000), (ProofTarget(), 7000), (FramingTarget(), 6000)],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_nothing_crashes_hangs_or_grows(target: fuzz.Target, cases: int) -> None:
    with fuzz.alarm():
        outcome = fuzz.fuzz(target, 1, 0, cases, PROGRAM)
    assert outcome.failure is None, outcome.failure
    assert outcome.cases == cases
    accepted = outcome.results["accepted"] + outcome.results["unchanged"]
    assert accepted + outcome.results["taken"] > cases // 100  # the cases are not mere noise


class Wrong:
    """A target whose case 32 misbehaves; it is one whose memory is traced."""

    name = "wrong"
    size = 1000

    def __init__(self, act: Callable[[], object]) -> None:
        self._act, self._bad = act, fuzz.seeded("wrong", 3, 32).random()

    def run(self, random: Random) -> str:
        if random.random() == self._bad:
            self._act()
        return "fine"


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: [][0], "IndexError"),
        (lambda: bytearray(fuzz.CASE_BYTES + fuzz.PER_BYTE * 1000 + 1), "MemoryError"),
        (hang, "Hung: still in hang"),
    ],
)
def test_what_goes_wrong_is_told_with_a_line_that_replays_it(
    act: Callable[[], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "CASE_S", 0.01)
    with fuzz.alarm():
        outcome = fuzz.fuzz(Wrong(act), 3, 0, 50, PROGRAM)
    assert outcome.cases == 32
    assert outcome.failure is not None
    assert outcome.failure.startswith(says)
    assert outcome.failure.endswith(f"-m {PROGRAM} --only wrong --seed 3 --first 32 --cases 1")
