"""Scenarios of a key that runs twice. More: `python -m tests.sim.twins`."""

from __future__ import annotations

import re

import pytest

from tests.sim import mutants, twins
from tests.sim.oracle import Violation
from tests.sim.twins import PARTITIONS, SEAT_OF, Schedule, Twins, main, play


def test_every_scenario_of_one_view() -> None:
    assert twins.how_many(1) == 84
    for number in range(84):
        assert isinstance(found := play(1, 0, number), twins.Outcome), found


def test_some_scenarios_of_two_views_and_of_six() -> None:
    for views, step in ((2, 311), (6, 1)):
        for number in range(0, 30 * step, step):
            found = play(views, 0, number)
            assert isinstance(found, twins.Outcome), (views, number, found)
            assert found.counts["scenarios whose views all ended"] == 1


def test_scenarios_of_two_views_are_counted() -> None:
    """Burnside's lemma: as many orbits as a renaming has fixed rounds, squared, on average."""
    assert len(PARTITIONS) == 52
    everyone = twins.counted(2)
    assert len(everyone) == len(set(everyone)) == 4695
    fixed = 0
    for names in twins.RENAMINGS:
        same = [r for r in twins.ROUNDS if twins.renamed(names, *r) == r]
        fixed += len(same) ** 2
    assert fixed == len(everyone) * len(twins.RENAMINGS)


def test_a_partition_is_kept_while_its_view_lasts() -> None:
    """With three seats on one side and one on the other, only the three get anywhere."""
    schedule = Schedule(0, (3, 0), ((0, 0, 1, 0, 1), (0, 0, 1, 0, 1)))
    scenario = Twins(schedule)
    heard: list[tuple[int, int]] = []
    for node in scenario.nodes:
        node._receive = lambda source, _, index=node.index: heard.append((source, index))  # type: ignore[method-assign,misc]
        scenario.world.listen(node.index, node._receive)
        node.start()
    scenario.world.censor = scenario._part
    scenario.world.run(lambda: False, 1000)
    assert heard
    assert all((source in (2, 4)) == (target in (2, 4)) for source, target in heard)


def test_both_copies_propose_and_are_found_out() -> None:
    alone, together = (0, 1, 2, 0, 1), (0,) * len(SEAT_OF)
    schedule = Schedule(0, (3, 3), (alone, together))
    counts = Twins(schedule).run().counts
    assert counts["liar twin"] > 0
    assert counts["EV two proposals convict"] > 0
    assert counts["EV two votes convict"] > 0


def test_a_scenario_replays_exactly() -> None:
    one, again, other = (play(6, 7, number) for number in (5, 5, 6))
    assert isinstance(one, twins.Outcome)
    assert isinstance(other, twins.Outcome)
    assert one == again
    assert one.trace != other.trace


def test_a_failure_prints_the_line_that_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    with mutants.planted("finalize after nullify"):
        assert main(["--views", "6", "--scenarios", "3", "--jobs", "1"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    replay = re.fullmatch(
        r"FAILED python -m tests.sim.twins (--views 6 .*--scenario \d+)  # .*", line
    )
    assert replay is not None
    assert main([*replay[1].split(), "--jobs", "1"]) == 0  # without the bug


@pytest.mark.parametrize(
    "bug",
    [
        "a half is a quorum",
        "finalize after nullify",
        "notarize twice",
        "any vote is signed",
        "parents without nullifications between",
        "the log is not synced",
    ],
)
def test_twins_show_a_seeded_bug(bug: str) -> None:
    with mutants.planted(bug):
        found = next(x for n in range(60) if isinstance(x := play(6, 0, n), str))
    assert found.startswith(Violation.__name__)
