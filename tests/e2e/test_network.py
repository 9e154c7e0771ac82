"""Real processes: a round of learning, a node killed with -9, a stranger who joins, bad input.

One network serves all tests of this module: it learns a round with `devnet --exit`, as
`scripts/run` does, and is then resumed, so that everything happens on a chain with a history.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.cli.blyan import program
from node.cli.session import run_program
from node.home import Home
from tests.kit.programs import Api, call, parsed, running
from tests.kit.waiting import until

NODES = 4
ROUND_S = 600  # one round, from nothing; a minute on an idle machine of two cores
START_S = 90  # until the first new block of a resumed network
GOES_ON_S = 5  # blocks after a kill (the bound)
RETURNS_S = 10  # a restarted node is level with the others (the bound)
SLACK = 6  # factor on the two bounds above, for a machine that runs other things
START_MEMORY_MB = 250  # a node before it trains


@dataclass(frozen=True)
class Network:
    directory: Path
    apis: list[Api]
    restarted: ExitStack  # nodes that a test killed and started again, until the module's end

    def restart(self, api: Api) -> None:
        arguments = ("start", "--home", api.home.path)
        log = self.directory / "restarted.log"
        self.restarted.enter_context(running("blyan-node", arguments, log))
        until(lambda: api.height >= 0, START_S, f"{api.home.path} answers after its restart")

    @property
    def height(self) -> int:
        return max(api.height for api in self.apis)

    def agree_at(self, height: int) -> bool:
        return len({api.block_hash(height) for api in self.apis}) == 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def summary(directory: Path) -> dict[str, Any]:
    result = call(
        "blyan-node", "devnet", "--dir", directory, "--rounds", "1", "--exit", timeout_s=ROUND_S
    )
    found: dict[str, Any] = parsed(result)
    return found


@pytest.fixture(scope="module")
def network(directory: Path, summary: dict[str, Any]) -> Iterator[Network]:
    arguments = ("devnet", "--dir", directory, "--rounds", "0")
    log = directory / "devnet.log"
    with ExitStack() as restarted, running("blyan-node", arguments, log) as process:
        until(lambda: "Ctrl-C ends it" in log.read_text(), START_S, "the network has resumed")
        apis = [Api(Home(directory / f"node-{i}")) for i in range(NODES)]
        network = Network(directory, apis, restarted)
        yield network
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert time.monotonic() - began < SLACK * GOES_ON_S
        assert [api.home.owner() for api in network.apis] == [None] * NODES


def test_a_round_of_learning(summary: dict[str, Any]) -> None:
    assert summary["ok"]
    assert summary["loss_after"] < summary["loss_before"] - 0.3
    assert len(summary["accepted"]) == 2
    assert summary["rejected"] == [summary["garbage"]]
    assert summary["tile_updates"]
    assert len(set(summary["state_roots"].values())) == 1
    assert set(summary["model_roots"].values()) == {summary["model_root"]}
    assert len(summary["heights"]) == NODES


def test_a_resumed_network_goes_on_where_it_stopped(
    network: Network, summary: dict[str, Any]
) -> None:
    for api in network.apis:
        api.wait_height(summary["height_end"] + 3, START_S)
        assert api.get("status")["model_root"] == summary["model_root"]
    assert network.agree_at(summary["height_end"] + 1)


def test_a_killed_node_is_not_missed_and_comes_back(network: Network) -> None:
    *others, victim = network.apis
    victim.kill()
    before = network.height
    until(
        lambda: all(api.height > before + 1 for api in others),
        SLACK * GOES_ON_S,
        "three nodes go on without the fourth",
    )
    network.restart(victim)
    goal = network.height
    victim.wait_height(goal, SLACK * RETURNS_S)
    assert network.agree_at(goal)


def test_a_home_has_one_node(network: Network) -> None:
    home = network.apis[0].home
    result = call("blyan-node", "start", "--home", home.path)
    assert result.returncode == 77
    assert f"the home {home.path} is in use by process {home.owner()}" in result.stderr


def test_every_node_has_a_link_with_every_other(network: Network) -> None:
    def linked(api: Api) -> bool:
        found = [peer for peer in api.get("peers")["peers"] if peer["connected"]]
        return len(found) >= len(network.apis) - 1 and all(peer["link"] for peer in found)

    for api in network.apis:
        until(lambda api=api: linked(api), START_S, "a link with every peer")


def test_a_chain_without_a_quorum_waits_and_is_revived(network: Network) -> None:
    """Three of four are needed: with two killed nothing is final, and one that returns suffices."""
    *_, second, victim = network.apis
    others = network.apis[:2]
    second.kill()
    victim.kill()
    stopped = network.height + 1  # one more may have been on its way
    network.restart(victim)
    until(
        lambda: all(api.height > stopped + 1 for api in (*others, victim)),
        START_S,
        "the chain goes on with the returned node's votes",
    )
    network.restart(second)
    second.wait_height(stopped + 1, START_S)
    assert network.agree_at(stopped)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_stranger_joins_with_a_genesis_and_one_address(
    network: Network, tmp_path: Path, summary: dict[str, Any]
) -> None:
    home = Home(tmp_path / "stranger")
    address = network.apis[0].get("status")["addresses"][0]
    made = parsed(
        call(
            "blyan-node",
            *("init", "--home", home.path, "--generate-passphrase", "--json"),
            *("--genesis", network.directory / "genesis.json", "--bootstrap", address),
            *("--api-port", str(free_port()), "--p2p-port", str(free_port()), "--link-port", "0"),
        )
    )
    stranger = Api(home)
    with running("blyan-node", ("start", "--home", home.path), tmp_path / "log") as process:
        until(lambda: stranger.height >= 0, START_S, "the stranger answers")
        assert stranger.get("status")["memory_mb"] <= START_MEMORY_MB
        goal = network.height
        stranger.wait_height(goal, START_S)
        assert stranger.block_hash(goal) == network.apis[0].block_hash(goal)
        status = stranger.get("status")
        assert (status["account"], status["validator"]) == (made["account"], False)
        assert status["model_root"] == summary["model_root"]
        assert call("blyan-node", "stop", "--home", home.path).returncode == 0
        assert process.wait(60) == 0


def test_money_moves(network: Network) -> None:
    home = network.directory / "contributor"
    receiver = network.directory / "learner-0"  # no validator, whom fees would reach
    to = parsed(call("blyan", "wallet", "show", "--home", receiver, "--json"))
    account = f"accounts/{to['address']}"
    before = network.apis[1].get(account)["balance"]
    sent = parsed(
        call("blyan", "wallet", "send", to["address"], "1.5", "--home", home, "--yes", "--json")
    )
    network.apis[1].wait_height(sent["height"], START_S)
    assert network.apis[1].get(account)["balance"] == before + 150_000_000
    result = call("blyan", "wallet", "send", to["address"], "99999999", "--home", home, "--yes")
    assert result.returncode == 4
    assert "the account holds" in result.stderr


def test_every_query_answers(
    network: Network,
    summary: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BLYAN_NODE", raising=False)
    home = network.apis[0].home.path
    sender = summary["deltas"][0]["sender"]
    for question in (
        *("status", "block", "blocks", "validators", "shards", "rounds", "deltas", "datasets"),
        *("peers", "model", "search head", "shard head", "tile head 0", "election head"),
        *(f"account {sender}", f"delta {summary['garbage']}", f"dataset {summary['dataset']}"),
        *(f"tx {summary['garbage']}", "round 0", "block 1"),
    ):
        result = call("blyan", "query", *question.split(), "--home", home)
        assert result.returncode == 0, f"{question}: {result.stderr}"
        assert result.stdout.strip() not in ("", "none"), question
        if question in ("blocks", "validators", "shards", "deltas", "datasets"):
            assert "  -" not in result.stdout, f"{question}: a column that the API does not fill"
        # Only the printing differs: no new process to see that it is JSON.
        arguments = ["query", *question.split(), "--home", str(home), "--json"]
        assert run_program(program, "blyan", arguments) == 0, question
        json.loads(capsys.readouterr().out)


def test_garbage_transactions_are_refused(network: Network) -> None:
    before = network.height
    for data in (b"", b"\x00", os.urandom(17), b"\xc1" * 100, b"\x90" * 70_000):
        answer = network.apis[0].post("txs", data)
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]["code"]
    network.apis[0].wait_height(before + 1, START_S)


@pytest.mark.parametrize(
    ("content", "license", "said"),
    [
        (b"", "MIT", "the file is empty"),
        (os.urandom(4096) + b"\x00\x01", "MIT", "text"),
        (b"words and words " * 500, "NoSuchLicense", "is not known here"),
        (b"words and words " * 500, "", "licence"),
    ],
    ids=["empty", "binary", "unknown licence", "no licence"],
)
def test_bad_datasets_are_refused_before_they_cost_anything(
    network: Network, tmp_path: Path, content: bytes, license: str, said: str
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    arguments = ("dataset", "submit", path, "--license", license)
    result = call("blyan", *arguments, "--home", network.directory / "contributor")
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_told(network: Network, tmp_path: Path) -> None:
    home = tmp_path / "second"
    taken = str(network.apis[0].url.rsplit(":", 1)[1])
    parsed(
        call(
            "blyan-node",
            *("init", "--home", home, "--generate-passphrase", "--json"),
            *("--api-port", taken, "--p2p-port", str(free_port()), "--link-port", "0"),
        )
    )
    result = call("blyan-node", "start", "--home", home)
    assert result.returncode == 1, result.stderr
    assert f"port {taken}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_in_use_is_refused(network: Network, tmp_path: Path) -> None:
    result = call("blyan-node", "devnet", "--dir", network.directory)
    assert result.returncode == 77, result.stderr
    (tmp_path / "mine.txt").write_text("precious")
    result = call("blyan-node", "devnet", "--dir", tmp_path)
    assert result.returncode == 2
    assert "neither empty nor a local network" in result.stderr
