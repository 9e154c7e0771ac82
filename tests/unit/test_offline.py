"""A stopped node's home still answers those who read, and refuses those who would write."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from chain.errors import LockedError
from chain.store import ChainStore
from node.cli import blyan
from node.cli.session import run_program
from node.config import Config
from node.founding import Founded, found_home, founding_genesis, write_genesis
from node.genesis import build_genesis
from node.home import Home
from node.offline import offline_client
from node.rules import ProtocolRules
from node.services.chain import ChainService
from tiles.store import TileStore


@pytest.fixture
def founded(tmp_path: Path) -> Founded:
    """A home whose node has written its genesis block and stopped."""
    made = found_home(Home(tmp_path / "home"), Config(api_port=1, p2p_port=2))
    genesis = write_genesis(made.home, founding_genesis([made]))
    start = build_genesis(genesis)
    with ChainStore(made.home.chain_db) as store:
        ChainService(start, store, ProtocolRules())
    with TileStore(made.home.tiles, start.specs) as tiles:
        for index, (data, shard) in enumerate(zip(start.shards, start.rooted, strict=True)):
            tiles.put_shard(index, data, shard.root)
    return made


def blyan_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = run_program(blyan.program, "blyan", [*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out or err.splitlines()[-1])


def test_a_stopped_home_is_read_from_its_disk(
    founded: Founded, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = str(founded.home.path)
    code, status = blyan_json(capsys, "query", "status", "--home", home)
    assert (code, status["height"], status["synced"]) == (0, 0, False)
    out = tmp_path / "model.safetensors"
    code, model = blyan_json(capsys, "model", "export", str(out), "--home", home)
    assert code == 0
    assert model["root"] == status["model_root"]
    assert out.stat().st_size > 1_000_000
    code, _ = blyan_json(capsys, "query", "block", "7", "--home", home)
    assert code != 0


def test_its_model_speaks_and_is_measured(
    founded: Founded, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = str(founded.home.path)
    code, said = blyan_json(capsys, "generate", "ab", "--bytes", "8", "--home", home)
    assert (code, len(bytes.fromhex(said["hex"]))) == (0, 8)
    code, status = blyan_json(capsys, "query", "status", "--home", home)
    assert said["root"] == status["model_root"]
    assert (
        run_program(blyan.program, "blyan", ["generate", "ab", "--bytes", "3", "--home", home]) == 0
    )
    assert capsys.readouterr().out.startswith("ab")

    file = tmp_path / "text"
    file.write_bytes(b"The loss of a model that has learnt nothing yet. " * 40)
    code, found = blyan_json(capsys, "eval", str(file), "--home", home)
    assert code == 0
    assert found["loss"] > 5
    assert found["windows"] == (file.stat().st_size - 1) // 64
    assert run_program(blyan.program, "blyan", ["eval", str(file), "--home", home]) == 0
    assert "nats per byte" in capsys.readouterr().out
    code, answer = blyan_json(capsys, "eval", "--home", home)
    assert (code, answer["error"]["code"]) == (2, "bad_input")
    assert "give a FILE" in answer["error"]["message"]
    file.write_bytes(b"short")
    code, answer = blyan_json(capsys, "eval", str(file), "--home", home)
    assert (code, answer["error"]["code"]) == (2, "bad_input")


def test_what_needs_a_node_says_so(founded: Founded, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(founded.home.path)
    to = founded.keys.account.public.hex()
    code, answer = blyan_json(capsys, "wallet", "send", to, "1", "--yes", "--home", home)
    assert (code, answer["error"]["code"]) == (3, "unreachable")


def test_a_home_that_is_owned_is_not_read_behind_its_owners_back(founded: Founded) -> None:
    async def status() -> Any:
        with offline_client(founded.home, founded.config) as client:
            return await client.status()

    with founded.home.lock(), pytest.raises(LockedError):
        asyncio.run(status())
    assert asyncio.run(status())["peers"] == 0
