"""The local network's parts without a network: directories, ports, child processes, the summary."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chain.errors import ConfigError, DeadlineError, InputError
from learning.spec import ModelSpec
from node.config import load_config, load_genesis
from node.delta_file import read_delta
from node.devnet import homes, processes
from node.devnet.garbage import write_garbage
from node.devnet.homes import P2P_OFFSET, Layout, Plan, choose_directory, choose_ports, prepare
from node.devnet.processes import Child, ChildError, Processes, call
from node.devnet.summary import Summary
from node.founding import template
from node.home import Home, unlock
from node.net.identity import Address, PortInUseError
from tests.kit.waiting import until


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens, with the ones after it likely free."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


def test_a_network_is_made_once_and_resumed(tmp_path: Path) -> None:
    plan = Plan(nodes=2, learners=1, directory=tmp_path / "net")
    directory = choose_directory(plan)
    layout, configs = prepare(directory, plan)
    genesis = load_genesis(layout.nodes[0])
    assert len(genesis.validators) == 2
    assert {load_genesis(h).chain_id for h in (*layout.nodes, *layout.guests)} == {genesis.chain_id}
    for home, config, other in zip(layout.nodes, configs, reversed(configs), strict=True):
        assert load_config(home, environment={}) == config
        (address,) = map(Address.parse, config.bootstrap)
        assert address.port == other.p2p_port == other.api_port + P2P_OFFSET
    learner = layout.learners[0]
    assert learner.token() == layout.nodes[0].token()
    assert load_config(learner, environment={}).api_url == configs[0].api_url
    keys = unlock(learner, "node")

    again, _ = prepare(choose_directory(plan), replace(plan, nodes=4, learners=3))
    assert [h.path for h in again.nodes] == [h.path for h in layout.nodes]
    assert [h.path for h in again.guests] == [h.path for h in layout.guests]
    assert load_genesis(again.nodes[1]).chain_id == genesis.chain_id
    assert unlock(learner, "node") == keys


def test_other_people_s_directories_stay_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="neither empty nor a local network"):
        choose_directory(Plan(directory=tmp_path))
    (tmp_path / "devnet.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        prepare(tmp_path, Plan(directory=tmp_path))


def test_every_network_gets_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "DEFAULT_PARENT", str(tmp_path))
    assert choose_directory(Plan()).parent == tmp_path


def test_ports_in_use_are_passed_over(
    taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(homes, "API_PORT", taken)
    monkeypatch.setattr(homes, "P2P_OFFSET", 100)
    ports = choose_ports(Plan(nodes=2))
    assert taken not in ports
    assert f"starts at {ports[0]}" in capsys.readouterr().err


def test_a_port_that_was_asked_for_is_not_replaced(taken: int) -> None:
    with pytest.raises(PortInUseError, match=f"port {taken}"):
        choose_ports(Plan(base_port=taken, nodes=1))
    with pytest.raises(InputError, match="at most"):
        choose_ports(Plan(base_port=65535))


def test_garbage_is_a_well_formed_delta(tmp_path: Path) -> None:
    path, model = tmp_path / "garbage.safetensors", template()["model"]
    write_garbage(path, model, "ab" * 32)
    shards = ModelSpec.from_json(model).shards()
    found = read_delta(path, shards)
    assert len(found.shards) == len(shards)
    assert found.base is not None
    assert found.base.hex() == "ab" * 32


# --- child processes -----------------------------------------------------------------------


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments are Python source instead of one of our programs; stdin stays open."""
    monkeypatch.setattr(processes, "PYTHON", (processes.sys.executable, "-c"))


def run(source: str, log: Path, signal_after: int | None) -> tuple[list[Child], Child]:
    """Start a child, end it by a signal of ours or as the network does; (told of, the child)."""
    told: list[Child] = []

    async def body() -> Child:
        children = Processes(told.append)
        child = await children.start("child", "command", [source], log)
        await asyncio.to_thread(until, lambda: "up" in log.read_text(), 20, "the child is up")
        if signal_after is not None:
            child.process.send_signal(signal_after)
            await child.process.wait()
            await asyncio.gather(*children._watchers)
        await children.end()
        return child

    return told, asyncio.run(body())


WAITING = "import signal; print('up', flush=True); signal.pause()"


def test_children_that_are_ended_are_not_reported(programs: None, tmp_path: Path) -> None:
    told, child = run(WAITING, tmp_path / "log", None)
    assert child.process.returncode == -signal.SIGTERM
    assert told == []
    assert child.tail() == "up"


def test_children_that_end_by_themselves_are(programs: None, tmp_path: Path) -> None:
    told, child = run(WAITING, tmp_path / "log", signal.SIGKILL)
    assert told == [child]


def test_stragglers_are_killed(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    source = f"import signal; signal.signal(15, signal.SIG_IGN); {WAITING.partition(';')[2]}"
    _, child = run(source, tmp_path / "log", None)
    assert child.process.returncode == -signal.SIGKILL


def test_calls_give_output_or_an_error(programs: None) -> None:
    assert asyncio.run(call(["print(7)"], 20)) == b"7\n"
    with pytest.raises(ChildError, match="failed with code 3: sorry"):
        asyncio.run(call(["import sys; print('sorry', file=sys.stderr); sys.exit(3)"], 20))
    with pytest.raises(DeadlineError, match="took more than"):
        asyncio.run(call(["import signal; signal.pause()"], 0.2))


# --- the summary -----------------------------------------------------------------------------


def good() -> Summary:
    return Summary(
        accepted=["a"],
        rejected=["g"],
        garbage="g",
        model_roots={"node-0": "r", "node-1": "r"},
        state_roots={"node-0": "s", "node-1": "s"},
        loss_before=2.0,
        loss_after=1.0,
        rounds=1,
    )


def test_a_good_summary_is_ok_and_json() -> None:
    document = json.loads(json.dumps(good().document()))
    assert document["ok"] is True
    assert document["loss_after"] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": "timeout"},
        {"rounds": 0},
        {"accepted": []},
        {"accepted": ["a", "g"]},
        {"loss_after": None},
        {"model_roots": {"node-0": "r", "node-1": "other"}},
        {"state_roots": {"node-0": "s", "node-1": None}},
        {"state_roots": {}},
    ],
)
def test_what_makes_a_summary_bad(wrong: dict[str, object]) -> None:
    assert not replace(good(), **wrong).ok  # type: ignore[arg-type]


def test_a_layout_names_its_homes(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path, 2, 1)
    assert [h.path.name for h in (*layout.nodes, *layout.guests)] == [
        *("node-0", "node-1", "learner-0", "contributor", "outsider")
    ]
    assert isinstance(layout.outsider, Home)
