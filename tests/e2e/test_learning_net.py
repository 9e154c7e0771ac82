"""One round of the long run (`python -m tests.e2e.learning_net`): real nodes, and a liar."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.learning_net import learning_net

SEED = 12


def test_a_network_learns_beside_a_liar(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = learning_net(3, 1, 1, SEED, tmp_path, told.append, steps=8)
    assert outcome.ok, "\n".join([*told, *outcome.lines()])
    assert len(outcome.fates) == 1
    assert abs(outcome.losses[0] - outcome.simulated[0]) < 1e-6  # the same model on the same text
