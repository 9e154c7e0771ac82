"""All states of four validators, one a liar, within a view or two. More: `python -m
tests.sim.explore`."""

from __future__ import annotations

import pytest

from consensus.simplex.rules import Rule
from tests.sim import explore, mutants
from tests.sim.explore import LEADERS, main
from tests.sim.local import LIAR
from tests.sim.oracle import Violation


@pytest.mark.parametrize("leaders", LEADERS[1])
def test_the_reduction_loses_nothing(leaders: tuple[int, ...]) -> None:
    reduced = explore.explore(leaders)
    whole = explore.explore(leaders, reduced=False)
    assert reduced.said == whole.said
    assert reduced.alone == whole.alone
    assert reduced.states < whole.states / 4


def test_what_liars_make_nodes_do_is_reached() -> None:
    rules = explore.explore((LIAR,)).rules
    assert {Rule.R4_EQUIVOCATED, Rule.R4_FINALIZE, Rule.R5_NULLIFIED} <= rules
    assert {Rule.R6_NULLIFIED, Rule.R7_FINAL, Rule.R8_FETCH} <= rules


def test_two_views_with_an_honest_leader_in_each() -> None:
    found = explore.explore((0, 1))
    assert found.seen["final [1, 2], nullified []"] > 0
    assert found.seen["final [2], nullified [1]"] > 0
    assert found.seen["final [], nullified [1, 2]"] > 0


@pytest.mark.parametrize(
    ("bug", "leaders"),
    [
        ("finalize after nullify", (LIAR,)),
        ("any vote is signed", (LIAR,)),
        ("notarize twice", (LIAR,)),
        ("parents without nullifications between", (0, LIAR)),
    ],
)
def test_exploration_shows_a_seeded_bug(bug: str, leaders: tuple[int, ...]) -> None:
    with mutants.planted(bug), pytest.raises(Violation):
        explore.explore(leaders)


def test_a_failure_prints_the_line_that_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    with mutants.planted("finalize after nullify"):
        assert main(["--views", "1"]) == 1
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("FAILED python -m tests.sim.explore --leaders 3 --twins 1  # ")
    assert main(["--leaders", "3"]) == 0  # without the bug
