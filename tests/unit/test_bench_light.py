"""The benchmark of light clients: every row, of a short chain."""

from __future__ import annotations

from bench.light_chain import SMALL, LightChain, follow, rows


def test_every_row() -> None:
    found = {row.name: row for row in rows(SMALL)}
    assert list(found) == [
        *("light_worst", "light_worst_blocks", "light_worst_shown"),
        *("light_usual", "light_usual_blocks", "light_stable", "light_stable_blocks"),
    ]
    assert found["light_stable_blocks"].value == 1
    assert found["light_usual_blocks"].value < found["light_worst_blocks"].value
    assert all(row.value > 0 for row in found.values())


def test_the_worst_chain_needs_every_epoch_s_certificate() -> None:
    """An epoch further is as far as a certificate leads when all have left: halving meets each."""
    walked = follow(LightChain(SMALL, leave=SMALL.validators))
    epochs = SMALL.blocks // SMALL.epoch_blocks
    assert epochs - 1 <= walked.steps <= walked.blocks <= 2 * epochs
    assert walked.signatures == 14 * walked.blocks
