"""A few hundred sequences; more with `python -m tests.property.campaign`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from chain import ledger
from chain.state import State
from chain.transactions import Payload
from chain.types import PubKey
from tests.property import campaign


def test_what_must_hold_holds_after_every_block() -> None:
    tally = campaign.play(1, 0, 2 * campaign.FAMILY)
    assert tally.failure is None, tally.failure
    assert tally.sequences == 2 * campaign.FAMILY
    assert {kind for kind, _ in tally.receipts} >= {kind.__name__ for kind in get_args(Payload)}
    kinds_in_force = {kind for kind, code in tally.receipts if code == "ok"}
    assert len(kinds_in_force) > 12, "the cases are not mere noise"
    assert tally.refused_blocks > 10


def test_roots_do_not_depend_on_pythons_hash_seed() -> None:
    here = campaign.play(2, 0, 25)
    assert here.failure is None, here.failure
    assert here.blocks > 25
    for hash_seed in (1, 2):
        assert campaign.roots_with(hash_seed, 2, 0, 25) == here.roots.hexdigest()


def mint(state: State, source: PubKey, target: PubKey, amount: int) -> None:
    state.put_account(target, balance=state.account(target).balance + amount)


def raises(*_: Any) -> None:
    raise ValueError("a bug")


@pytest.mark.parametrize(
    ("target", "name", "bug", "says"),
    [
        (State, "move", mint, "grains were made or lost"),
        (ledger, "transfer", raises, "ValueError: a bug"),
        (State, "undo", lambda self, mark: None, "changed"),
    ],
    ids=["minting", "raising", "not undone"],
)
def test_a_bug_is_found_and_told_with_a_line_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, bug: Callable[..., Any], says: str
) -> None:
    monkeypatch.setattr(target, name, bug)
    tally = campaign.play(1, 0, campaign.FAMILY)
    assert tally.failure is not None
    assert says in tally.failure
    assert "--seed 1 --first 0 --sequences" in tally.failure
