"""A few runs of `break_store`; more with `python -m tests.attacks.tiles.break_store`."""

from __future__ import annotations

import pytest

from tests.attacks.tiles import break_store
from tests.kit.small_tiles import PATCHES


@pytest.mark.parametrize(
    ("name", "runs", "cuts"), [("crash", 6, 20), ("full", 6, 20), ("kill", 1, 8)]
)
def test_what_was_acknowledged_outlives_every_cut(
    name: str, runs: int, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patch in PATCHES:
        monkeypatch.setattr(*patch)
    for seed in range(1, runs + 1):
        break_store.run(name, seed, cuts)
