"""What the bench beside hivemind and gloo makes of what it has measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.averaging_peer import Learner, flat
from bench.learning_net import Ours
from bench.learning_peers import HIVEMIND, SMALL_TASK, TASKS, peer_rows, rows
from bench.learning_round import keys_of
from bench.learning_task import Side, Task, library
from bench.measure import Row
from bench.socket_bytes import SocketBytes, family, parse
from chain.hashes import Hash32
from learning.init import initial_shards
from learning.state import TrainState, serialize_state
from node.data import RoundData

TASK = replace(TASKS["nano"], rounds=4)
ELEMENTS = TASK.model.parameters
SS = """\
ESTAB 0 0 127.0.0.1:4001 127.0.0.1:5001 users:(("p2pd",pid=7,fd=9)) cubic rto:204 bytes_sent:1500 x
ESTAB 0 0 [::1]:4002 [::1]:5002 users:(("python",pid=8,fd=3),("python",pid=7,fd=3)) bytes_sent:20 x
ESTAB 0 0 127.0.0.1:5001 127.0.0.1:4001 users:(("p2pd",pid=9,fd=9)) cubic bytes_sent:77 x
LISTEN 0 128 127.0.0.1:4003 0.0.0.0:* users:(("p2pd",pid=7,fd=4)) cubic cwnd:10
"""


def side(name: str, losses: tuple[float, ...], second: float, sent: float) -> Side:
    at_s = tuple(second * (i + 1) for i in range(len(losses)))
    return Side(name, losses, at_s, 0.5 * second, sent * ELEMENTS, 0.0)


def ours(losses: tuple[float, ...], second: float, payload: float) -> Ours:
    return Ours(
        side("blyan", losses, second, 4.0),
        RoundData(b"", b""),
        b"",
        (),
        {},
        (3.0, 4.0),
        {"train": 1.0, "aggregate": 0.5},
        payload * ELEMENTS,
        3 * payload * ELEMENTS,
        0.0,
        1.0,
        0,
    )


def found(mine: Ours, task: Task = TASK) -> dict[str, Row]:
    losses = (2.5, 2.2, 2.1, 2.0)
    others = {
        "gloo": side("gloo", losses, 0.5, 6.0),
        "hivemind_fp32": side("hivemind_fp32", losses, 1.0, 6.1),
        "hivemind_8bit": side("hivemind_8bit", (2.5, 2.3, 2.2, 2.1), 0.9, 1.8),
    }
    return {row.name: row for row in rows(task, mine, others)}


def test_wall_time_counts_to_the_given_loss_and_against_the_faster_hivemind() -> None:
    got = found(ours((2.4, 2.05, 2.0, 1.9), 2.0, 0.03))
    assert got["nano_given"].value == 2.1  # gloo's after three of four rounds
    assert got["nano_wall_blyan"].value == 4.0
    assert got["nano_wall_blyan"].target == 1.5 * 3.0  # fp32's third; 8 bits need a fourth: 3.6
    assert got["nano_wall_blyan"].met
    assert got["nano_above_hivemind"].value == pytest.approx(1.9 - 2.1)
    assert got["nano_fewer_relayed"].value == pytest.approx(20)
    assert got["nano_rounds_to_equal_loss"].value == 2
    assert got["nano_fewer_payload_to_equal_loss"].value == pytest.approx(1.8 * 4 / (0.03 * 2))
    assert got["nano_fewer_payload_to_equal_loss"].met


def test_a_side_that_never_gets_there_has_not_met_its_target() -> None:
    got = found(ours((2.4, 2.3, 2.2, 2.15), 0.1, 0.1))
    assert got["nano_wall_blyan"].value == pytest.approx(0.4)
    assert not got["nano_wall_blyan"].met
    assert got["nano_fewer_payload"].value > 15
    assert not got["nano_fewer_payload_to_equal_loss"].met
    assert got["nano_fewer_relayed_to_equal_loss"].target is None


def test_a_task_of_bytes_asks_for_those_of_all_copies_and_not_for_time() -> None:
    task = replace(TASK, asks="bytes", more=2)
    losses = (2.4, 2.3, 2.2, 2.15, 2.05, 2.0)
    got = found(ours(losses, 0.1, 0.03), task)
    assert got["nano_wall_blyan"].target is None
    assert got["nano_wall_blyan"].met
    assert got["nano_loss_blyan"].value == 2.15  # after as many rounds as the others
    assert got["nano_rounds_to_equal_loss"].value == 5
    assert got["nano_fewer_relayed_to_equal_loss"].value == pytest.approx(1.8 * 4 / (0.09 * 5))
    assert got["nano_fewer_relayed_to_equal_loss"].met
    more = found(ours(losses, 0.1, 0.1), task)
    assert not more["nano_fewer_relayed_to_equal_loss"].met
    assert more["nano_fewer_payload_to_equal_loss"].target is None
    never = found(ours((2.4, 2.3, 2.2, 2.15, 2.15, 2.15), 0.1, 0.001), task)
    assert not never["nano_fewer_relayed_to_equal_loss"].met


def test_without_hivemind_nothing_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HIVEMIND, raising=False)
    for python in (None, "no-such-python", sys.executable):
        (row,) = peer_rows(SMALL_TASK, python)
        assert (row.name, row.met) == ("hivemind_is_here", False)


def test_bytes_of_sockets_are_those_of_the_processes_asked_for() -> None:
    assert parse(SS, {7}) == {
        ("127.0.0.1:4001", "127.0.0.1:5001"): 1500,
        ("[::1]:4002", "[::1]:5002"): 20,
    }
    assert parse(SS, {9}) == {("127.0.0.1:5001", "127.0.0.1:4001"): 77}


def test_bytes_count_from_the_start_and_outlive_their_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = [
        {("a:1", "b:2"): 100},
        {("a:1", "b:2"): 150, ("a:3", "b:2"): 7},
        {("a:3", "b:4"): 1},  # the first two are closed
    ]
    monkeypatch.setattr("bench.socket_bytes.read", lambda pids: looks.pop(0))
    counted = SocketBytes(lambda: ())
    counted.start()
    counted.look()
    counted.look()
    assert counted.sent() == 58
    assert counted.sent(lambda own, peer: peer == 4) == 1


def test_a_family_has_children_and_their_children() -> None:
    code = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo; read x; :'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # its child is up
        members = family([child.pid])
        assert {child.pid} < members
        assert os.getpid() not in members
        child.stdin.close()


def test_a_peer_trains_as_the_learner_whose_part_it_takes(tmp_path: Path) -> None:
    base = tuple(initial_shards(SMALL_TASK.model))
    plan = {
        "model": SMALL_TASK.model.to_json(),
        "training": SMALL_TASK.training.to_json(),
        "seeds": {"3": "aa" * 32, "4": "bb" * 32},
        "learners": [keys_of(i).account.public.hex() for i in range(2)],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "train.bin").write_bytes(library(50_000))
    (tmp_path / "base.f32").write_bytes(b"".join(base))
    for i in range(2):
        (tmp_path / f"{i}.state").write_bytes(serialize_state(TrainState.fresh(base)))
    one, other = (Learner(tmp_path, i) for i in range(2))
    assert one.rounds == {3: Hash32(b"\xaa" * 32), 4: Hash32(b"\xbb" * 32)}
    trained = flat(one.train(one.base, 3))
    assert (trained != flat(base)).any()
    assert (trained != flat(other.train(other.base, 3))).any()  # of its own key's batches
    assert (trained == flat(Learner(tmp_path, 0).train(base, 3))).all()
