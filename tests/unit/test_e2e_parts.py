"""The parts of the end-to-end runner: manifests, and a verdict that can be 'no'."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e import manifest as manifests
from tests.e2e import perturb, runner
from tests.e2e.fleet import Failure, Fleet
from tests.e2e.load import Told
from tests.e2e.manifest import Manifest, ManifestError, Perturbation, parse
from tests.e2e.verdict import Check, Row, Seen, Whole, all_ok, judge, judge_logs

SOON_S = 120.0  # generous: a busy machine

# --- manifests --------------------------------------------------------------------------------


def test_every_manifest_can_be_read_and_together_they_do_everything():
    found = [manifests.load(name) for name in manifests.names()]
    assert {p.do for m in found for p in m.perturb} == set(manifests.KINDS)
    assert {p.meanwhile for m in found for p in m.perturb} == set(manifests.MEANWHILE)
    assert {p.how for m in found for p in m.perturb} == {"reset", "stall"}
    assert all(m.perturb and m.summary for m in found)


def test_a_manifest_says_what_it_says():
    made = parse(
        "x",
        """
        summary = "s"
        validators = 5
        [clock]
        "4" = -2.5
        [genesis]
        epoch_blocks = 16
        [[perturb]]
        do = "slow"
        nodes = 2
        delay_ms = 10
        at_height = 7
        for_s = 1.5
        """,
    )
    slow = Perturbation("slow", draw=2, at_height=7, for_s=1.5, delay_ms=10)
    genesis = {"epoch_blocks": 16}
    assert made == Manifest("x", "s", 5, clock={4: -2.5}, genesis=genesis, perturb=(slow,))


KILL = '[[perturb]]\ndo = "kill"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sumary = 's'", "x: unknown key 'sumary'; expected summary, validators"),
        ("", "x: summary: expected some text"),
        ("summary = 's'\nvalidators = 17", "x: validators: expected a whole number from 1 to 16"),
        ("summary = 's'\nvalidators = true", "validators: expected a whole number"),
        ("summary = 's'\nrate = 0", "x: rate: expected a number from 0.1 to 200, not 0"),
        ("summary = 's'\nrate = nan", "x: rate: expected a number"),
        ("summary = 's'\n[clock]\n4 = 1", "x: clock: unknown key '4'; expected 0, 1, 2, 3"),
        ("summary = 's'\n[genesis]\nepoch = 1", "x: genesis: unknown key 'epoch'; expected"),
        ("summary = 's'\nperturb = 1", "x: perturb: expected at most 32 tables"),
        ("summary = ", "x: not TOML"),
        ("[[perturb]]\nnodes = [0]", "x: perturb 1: do: expected one of kill, restart"),
        (KILL + "nodes = [0]", "x: perturb 1 (kill): expected one of at_s, at_height, after"),
        (KILL + "nodes = [0]\nafter = 1", "(kill): after: expected a whole number from 1 to 0"),
        (KILL + "nodes = [0]\nat_s = 1\nat_height = 1", "expected one of at_s, at_height, after"),
        (KILL + "nodes = [4]\nat_s = 1", "expected different nodes from 0 to 3"),
        (KILL + "nodes = [1, 1]\nat_s = 1", "expected different nodes"),
        (KILL + "nodes = []\nat_s = 1", "expected different nodes"),
        (KILL + "nodes = 5\nat_s = 1", "expected different nodes"),
        (KILL + "at_s = 1", "expected different nodes"),
        (KILL + "nodes = [0]\nat_s = 1\nfro_s = 2", "(kill): unknown key 'fro_s'; expected do, at"),
        (KILL + "nodes = [0]\nat_s = 1\ndelay_ms = 2", "(kill): unknown key 'delay_ms'"),
        (KILL + "nodes = [0]\nat_s = 1\nmeanwhile = 'no'", "expected one of goes_on, stops"),
        (KILL + "nodes = 4\nat_s = 1\nmeanwhile = 'goes_on'", "it goes_on at nobody"),
        (KILL + "nodes = 2\nat_s = 1\nmeanwhile = 'stops'", "for_s: expected at least 2"),
        ("[[perturb]]\ndo = 'slow'\nnodes = 1\nat_s = 1", "expected delay_ms, bytes_per_s or both"),
        ("[[perturb]]\ndo = 'clock'\nnodes = 1\nat_s = 1", "expected offset_s"),
        ("[[perturb]]\ndo = 'partition'\nat_s = 1\ngroups = [[0, 1]]", "two or more lists"),
        ("[[perturb]]\ndo = 'partition'\nat_s = 1\ngroups = [[0], [1]]", "each node from 0 to 3"),
        ("[[perturb]]\ndo = 'partition'\nat_s = 1\nnodes = [1]", "unknown key 'nodes'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(text, said):
    if text.startswith("[[perturb]]"):
        text = "summary = 's'\n" + text
    with pytest.raises(ManifestError) as refused:
        parse("x", text)
    assert said in str(refused.value)


def test_the_program_knows_its_manifests(capsys):
    assert runner.main(["--manifest", "no-such"]) == 2
    assert "there is no manifest 'no-such'; there are away, clock," in capsys.readouterr().err
    assert runner.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(manifests.names())


# --- the verdict ------------------------------------------------------------------------------


def told() -> Told:
    made = Told()
    made.block("a", 1, "h1")
    made.block("b", 2, "h2")
    made.txs["t1"] = {("a", 1)}
    made.txs["t2"] = {("a", 2), ("b", 2)}
    return made


@dataclass
class Case:
    """What a good run of two nodes leaves: two blocks, a transfer in each."""

    seen: dict[str, Seen]
    blocks: list[Whole]
    told: Told
    sent: dict[str, tuple[int, int]]

    @classmethod
    def good(cls) -> Case:
        rows = [Row("h1", (("t1", "p", 0),)), Row("h2", (("t2", "p", 1),))]
        blocks = [Whole("a", "h1", "h0", ("t1",)), Whole("b", "h2", "h1", ("t2",))]
        seen = {"a": Seen(list(rows), {"B": 0.0}), "b": Seen(list(rows), {"A": 3.0})}
        return cls(seen, blocks, told(), {"t1": (0, 0), "t2": (0, 1)})

    def failed(self) -> set[str]:
        checks = judge(self.seen, self.blocks, self.told, self.sent)
        return {check.name for check in checks if not check.ok}


def set_row(case: Case, node: str, height: int, **changes: Any) -> None:
    case.seen[node].rows[height - 1] = replace(case.seen[node].rows[height - 1], **changes)


def set_block(case: Case, height: int, **changes: Any) -> None:
    case.blocks[height - 1] = replace(case.blocks[height - 1], **changes)


SAME, WHOLE = "blocks are the same on all nodes", "each block is what is listed, on the one before"
TOLD_BLOCKS, TOLD_TXS = (
    "blocks told to be final are there",
    "transactions told to be final are there",
)
PAID, TWICE = "every transfer is final, and took effect", "no transaction is there twice"
ACCUSED, CHARGED = "nobody is shown to have signed twice", "no node holds much against another"


def test_a_good_run_is_told_to_be_good():
    assert Case.good().failed() == set()


def lose_a_transaction(case: Case) -> None:
    set_row(case, "b", 2, txs=())


def fork_a_node(case: Case) -> None:
    set_row(case, "a", 2, hash="h2x")


def leave_a_node_behind(case: Case) -> None:
    del case.seen["b"].rows[1]


def revert_a_told_block(case: Case) -> None:
    case.told.block("b", 2, "h2x")


def tell_a_block_that_nobody_has(case: Case) -> None:
    case.told.block("b", 3, "h3")


def tell_a_transaction_that_nobody_has(case: Case) -> None:
    case.told.txs["t3"].add(("a", 2))


def tell_another_height(case: Case) -> None:
    case.told.txs["t2"].add(("b", 1))


def lose_what_was_sent(case: Case) -> None:
    case.sent["t9"] = (1, 0)


def refuse_a_transfer(case: Case) -> None:
    case.told.failed["t2"] = "no_funds"


def repeat_a_transaction(case: Case) -> None:
    for node in case.seen:
        set_row(case, node, 2, txs=(("t1", "p", 0), ("t2", "p", 1)))
    set_block(case, 2, txs=("t1", "t2"))


def repeat_a_nonce(case: Case) -> None:
    for node in case.seen:
        set_row(case, node, 2, txs=(("t2", "p", 0),))


def list_another_block(case: Case) -> None:
    set_block(case, 2, hash="h2x")


def list_other_transactions(case: Case) -> None:
    set_block(case, 2, txs=())


def break_the_chain(case: Case) -> None:
    set_block(case, 2, parent="h0")


def accuse(case: Case) -> None:
    set_block(case, 1, evidence=1)


def charge(case: Case) -> None:
    case.seen["a"].points = {"B": 60.0}


def tell_nothing(case: Case) -> None:
    case.told, case.sent = Told(), {}


@pytest.mark.parametrize(
    ("spoil", "failing"),
    [
        (lose_a_transaction, {SAME, WHOLE, TOLD_TXS, PAID}),
        (fork_a_node, {SAME, TOLD_BLOCKS}),
        (leave_a_node_behind, {SAME, WHOLE, TOLD_BLOCKS, TOLD_TXS, PAID}),
        (revert_a_told_block, {TOLD_BLOCKS}),
        (tell_a_block_that_nobody_has, {TOLD_BLOCKS}),
        (tell_a_transaction_that_nobody_has, {TOLD_TXS}),
        (tell_another_height, {TOLD_TXS}),
        (lose_what_was_sent, {PAID}),
        (refuse_a_transfer, {PAID}),
        (repeat_a_transaction, {TWICE}),
        (repeat_a_nonce, {TWICE}),
        (list_another_block, {WHOLE}),
        (list_other_transactions, {WHOLE}),
        (break_the_chain, {WHOLE}),
        (accuse, {ACCUSED}),
        (charge, {CHARGED}),
        (tell_nothing, {TOLD_BLOCKS, TOLD_TXS, PAID}),
    ],
)
def test_what_is_wrong_is_found(spoil, failing):
    case = Case.good()
    spoil(case)
    assert case.failed() == failing


@pytest.mark.parametrize(
    ("logs", "codes", "failing"),
    [
        ({"a": "10:00:00 INFO    blyan: fine\n"}, {"a": 0}, 0),
        ({"a": "fine"}, {"a": 1}, 1),
        ({"a": "fine\nTraceback (most recent call last):\n"}, {"a": 0}, 1),
        ({"a": "10:00:00 ERROR   blyan.consensus: halted\n"}, {"a": 0}, 1),
        ({}, {}, 2),
    ],
)
def test_logs_and_exit_codes_count(logs, codes, failing):
    checks = judge_logs(logs, codes)
    assert [check.ok for check in checks].count(False) == failing
    assert all_ok(checks) == (failing == 0)


def test_a_check_says_what_is_wrong():
    assert Check("x", (), 3).line() == "ok    x (3)"
    assert Check("x", ("a", "b", "c", "d"), 3).line() == "WRONG x: a; b; c; and 1 more"
    assert Check("x", (), 0).line() == "WRONG x: there was nothing to look at"
    assert not all_ok([])


# --- what must hold meanwhile -------------------------------------------------------------------


class Standing:
    """A node whose height goes as the test says: one more each time it is asked, or never."""

    def __init__(self, index: int, step: int) -> None:
        self.index, self._height, self._step = index, 5, step

    async def height(self) -> int:
        self._height += self._step
        return self._height


def meanwhile(what: Perturbation, steps: list[int], touched: int) -> None:
    nodes: Any = [Standing(i, step) for i, step in enumerate(steps)]

    async def highest(machines: list[Standing]) -> int:
        return max([await machine.height() for machine in machines])

    fleet: Any = SimpleNamespace(machines=nodes, highest=highest)
    made = perturb.Perturber(fleet, Manifest("x", "s"), Told(), "seed", print)
    asyncio.run(made._meanwhile(what, nodes[:touched]))


def test_a_chain_that_must_stop_or_go_on_is_watched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perturb, "SETTLE_S", 0.0)
    monkeypatch.setattr(perturb, "TICK_S", 0.0)
    monkeypatch.setattr(perturb, "GOES_ON_S", 0.2)
    stops, goes_on = (Perturbation("pause", meanwhile=m) for m in ("stops", "goes_on"))
    meanwhile(stops, [1, 0, 0], touched=1)
    meanwhile(goes_on, [0, 1, 0], touched=1)
    with pytest.raises(Failure, match="without a quorum"):
        meanwhile(stops, [0, 0, 1], touched=1)
    with pytest.raises(Failure, match="did not go on"):
        meanwhile(goes_on, [1, 0, 0], touched=1)


def test_a_node_that_ends_by_itself_is_noticed():
    process: Any = SimpleNamespace(returncode=None)
    machine: Any = SimpleNamespace(name="node-0", process=process, is_told_to_end=False)
    fleet: Any = SimpleNamespace(everyone=[machine])
    Fleet.check_running(fleet)
    process.returncode = 1
    with pytest.raises(Failure, match="node-0 ended by itself with exit code 1"):
        Fleet.check_running(fleet)
    machine.is_told_to_end = True
    Fleet.check_running(fleet)


def test_the_seed_decides_who_is_hit():
    plan = Manifest("x", "s", perturb=(Perturbation("kill", draw=2, at_s=0.0),) * 8)
    fleet: Any = SimpleNamespace(machines=[])

    def drawn(seed: str) -> Any:
        return perturb.Perturber(fleet, plan, Told(), seed, print)._plans

    assert drawn("1") == drawn("1")
    assert drawn("1") != drawn("2")
    assert all(len(set(nodes)) == 2 for _, nodes, _ in drawn("3"))


def test_a_failure_of_a_run_says_how_to_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def fails(*_: object) -> None:
        raise Failure("node-1 ended by itself")

    monkeypatch.setattr(runner, "_run", fails)
    result = runner.run(Manifest("kill", "s"), 7, tmp_path, print)
    assert not result.ok
    text = "\n".join(result.lines())
    assert "WRONG Failure: node-1 ended by itself" in text
    assert "again: python -m tests.e2e.runner --manifest kill --seed 7" in text
    assert str(tmp_path) in text
