"""How far validators are: what both ends of a pair say, and what liars make of it
(docs/spec/election.md, "Latency")."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import encode
from chain.latency import FARTHEST, REPORTS, has_reported
from chain.records import epoch_key
from chain.transactions import LatencyReport
from chain.types import Epoch, PubKey, Stake, ValidatorSet
from node.rules import custodians
from node.services.duty_latency import class_of
from node.services.duty_plan import ReportLatency, plan
from tests.kit.duty_net import DutyNet
from tests.kit.machine import STAKE, Machine, key

EPOCH = 8


def machine_of(size: int, **params: int) -> Machine:
    machine = Machine(size, ("ann",), epoch_blocks=EPOCH, seed_blocks=2, **params)
    machine.block()
    return machine


def members(machine: Machine) -> list[PubKey]:
    return [v.account for v in machine.state.validators()]


def say(machine: Machine, words: list[bytes | None]) -> None:
    """Each member's report in the set's order, all in one block."""
    epoch, order = machine.state.head.epoch, members(machine)
    keys = {v.account.public: v for v in machine.validators}
    machine.ok(
        *(
            machine.duty(keys[account], LatencyReport(epoch, word))
            for account, word in zip(order, words, strict=True)
            if word is not None
        )
    )


def classes(machine: Machine, epoch: int) -> list[int]:
    return [s.latency_class for s in machine.state.epoch(epoch).standings]


def until(machine: Machine, height: int) -> None:
    while machine.height < height:
        machine.block()


def frozen(machine: Machine, words: list[bytes | None]) -> list[int]:
    """The classes that freeze with the set two epochs after the next block's."""
    say(machine, words)
    epoch = machine.state.head.epoch
    until(machine, (epoch + 1) * EPOCH + 1)
    return classes(machine, epoch + 3)


# --- the rule -----------------------------------------------------------------------------


def test_a_round_trip_has_a_class() -> None:
    measured = (0.0, 20.0, 20.1, 50.0, 99.0, 200.0, 200.1, 1e6, None)
    assert [class_of(ms) for ms in measured] == [0, 0, 1, 1, 2, 3, 4, 4, 4]


def test_of_a_pair_the_farther_word_counts_and_of_a_member_the_median() -> None:
    machine = machine_of(4)
    found = frozen(
        machine,
        [
            bytes([0, 1, 2, 3]),
            bytes([1, 4, 1, 1]),
            bytes([0, 0, 0, 0]),
            bytes([0, 0, 4, 0]),
        ],
    )
    # Pairs: 01 1, 02 2, 03 3, 12 1, 13 1, 23 4. Each has three, of which the second nearest.
    assert found == [2, 1, 2, 3]


def test_whoever_says_nothing_is_far_and_takes_nobody_along() -> None:
    machine = machine_of(4)
    near = bytes(4)
    assert frozen(machine, [near, near, near, None]) == [0, 0, 0, FARTHEST]
    assert not list(machine.state.items(REPORTS))
    until(machine, 3 * EPOCH + 1)
    assert classes(machine, 5) == [FARTHEST] * 4  # of this epoch nobody has said anything


def test_a_class_takes_at_most_a_fourth_of_the_weight() -> None:
    machine = machine_of(4)
    frozen(machine, [bytes(4)] * 3 + [None])
    weights = [c.weight for c in custodians(machine.state.epoch(3))]
    assert weights[3] * 4 == weights[0] * 3
    assert all(c.weight == weights[3] for c in custodians(machine.state.epoch(0)))


LIES = st.lists(st.integers(0, FARTHEST), min_size=7, max_size=7).map(bytes)


@settings(max_examples=30, deadline=None)
@given(
    honest=st.lists(LIES, min_size=7, max_size=7),
    lies=st.lists(st.one_of(st.none(), LIES), min_size=2, max_size=2),
)
def test_less_than_a_third_of_the_stake_moves_nobody_beyond_what_the_others_say(
    honest: list[bytes], lies: list[bytes | None]
) -> None:
    """Two of seven: an honest member's class lies within those of its honest pairs; and a liar is
    no nearer than more than half of the others, so at least three honest ones, find it."""
    machine = machine_of(7)
    words: list[bytes | None] = [*lies, *honest[2:]]
    found = frozen(machine, words)
    for i in range(2, 7):
        pairs = sorted(max(honest[i][j], honest[j][i]) for j in range(2, 7) if j != i)
        assert pairs[0] <= found[i] <= pairs[-1]
    for liar in range(2):
        seen = sorted(honest[j][liar] for j in range(2, 7))
        assert found[liar] >= seen[2]  # four of six others, of which one may be its friend


def test_stake_counts_rather_than_names() -> None:
    """Many that stand together have no more to say than what they have at stake."""
    machine = machine_of(7)
    state, record = machine.state, machine.state.epoch(0)
    first, *others = record.validators.members
    heavy = ValidatorSet((replace(first, stake=Stake(9 * STAKE)), *others))
    state.put(epoch_key(0), replace(record, validators=heavy))
    machine.tree = state.commit()
    words: list[bytes | None] = [bytes(7), *(bytes([0, 3, 3, 3, 3, 3, 3]) for _ in range(6))]
    assert frozen(machine, words) == [0] * 7


@pytest.mark.parametrize(
    ("epoch", "said", "code"),
    [
        (0, bytes(4), "ok"),
        (1, bytes(4), "wrong_epoch"),
        (0, bytes(3), "wrong_count"),
        (0, b"", "wrong_count"),
        (0, bytes([0, 0, 0, 5]), "bad_class"),
    ],
)
def test_what_is_no_report_is_refused(epoch: int, said: bytes, code: str) -> None:
    machine = machine_of(4)
    who, tx = machine.validators[0], LatencyReport(Epoch(epoch), said)
    (receipt,) = machine.block(machine.duty(who, tx))
    assert receipt.code == code
    assert has_reported(machine.state, who.account.public) == (code == "ok")
    (again,) = machine.block(machine.duty(who, tx))
    assert again.code == ("duplicate" if code == "ok" else code)


def test_only_members_report() -> None:
    machine = machine_of(4)
    (receipt,) = machine.block(encode(machine.tx(key("ann"), LatencyReport(Epoch(0), bytes(4)))))
    assert receipt.code == "not_a_validator"


# --- the duty -----------------------------------------------------------------------------


def test_a_report_is_owed_once_in_the_second_half_of_each_epoch() -> None:
    machine = machine_of(4)
    who = machine.validators[1]

    def owed() -> list[ReportLatency]:
        params, account = machine.genesis.params, who.account.public
        duties = plan(machine.state, params, machine.rules, account, lambda *_: True)
        return [duty for duty in duties if isinstance(duty, ReportLatency)]

    seen = []
    while machine.height < 2 * EPOCH:
        seen.append(owed())
        machine.block()
    first, second = [ReportLatency(0)], [ReportLatency(1)]
    none: list[ReportLatency] = []
    assert seen == [*[none] * 3, *[first] * 4, *[none] * 4, *[second] * 4]
    until(machine, 2 * EPOCH + 5)
    assert owed() == [ReportLatency(2)]
    machine.ok(machine.duty(who, LatencyReport(Epoch(2), bytes(4))))
    assert owed() == []


def test_a_node_reports_what_its_connections_measure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with DutyNet(tmp_path) as net:
            order = net.state.validators()
            for node in net.nodes:
                node.far = {v.node_id: 30.0 * i for i, v in enumerate(order[:3])}
            while net.state.head.height < net.local.genesis.params.epoch_blocks // 2:
                net.local.block()
            await net.until(lambda state: all(has_reported(state, n.account) for n in net.nodes))
            sent = [p for node in net.nodes for p in node.sent if isinstance(p, LatencyReport)]
            assert sent == [LatencyReport(Epoch(0), bytes([0, 1, 2, FARTHEST]))] * 4

    asyncio.run(scenario())
