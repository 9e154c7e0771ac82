"""`blyan tile scrub`: the chain's model and imported ones, with a node and without; and doctor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from chain.store import ChainStore
from node.api.app import create_app
from node.cli import blyan, node
from node.cli import scrub as module
from node.cli.session import Session, run_program
from node.client import Client
from node.config import Config
from node.founding import Founded, found_home, founding_genesis, write_genesis
from node.genesis import build_genesis
from node.home import Home
from node.rules import ProtocolRules
from node.scrub import FETCHED
from node.services.chain import ChainService
from tests.kit.local_chain import LocalChain
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


def scrub(capsys: pytest.CaptureFixture[str], home: Home, *more: str) -> tuple[int, Any]:
    code = run_program(blyan.program, "blyan", ["tile", "scrub", "--home", str(home.path), *more])
    return code, capsys.readouterr().out


def scrub_json(capsys: pytest.CaptureFixture[str], home: Home) -> tuple[int, Any]:
    code, out = scrub(capsys, home, "--json")
    return code, json.loads(out)


def doctor(capsys: pytest.CaptureFixture[str], home: Home) -> tuple[int, str]:
    """Exit code, and what is said of the tiles."""
    arguments = ["doctor", "--home", str(home.path), "--json"]
    code = run_program(node.program, "blyan-node", arguments)
    (found,) = [f for f in json.loads(capsys.readouterr().out) if f["check"] == "tiles"]
    return code, found["detail"]


def flip(path: Path, at: int = -5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_stopped_home(founded: Founded, capsys: pytest.CaptureFixture[str]) -> None:
    home = founded.home
    assert "never scrubbed" in doctor(capsys, home)[1]
    code, found = scrub_json(capsys, home)
    assert (code, found["clean"]) == (0, True)
    (report,) = found["stores"]
    assert report["store"] == "chain"
    assert report["tiles"] > 0
    flip(next(iter(sorted(home.tiles.glob("00003/*.safetensors")))))
    code, found = scrub_json(capsys, home)  # genesis's tiles follow from its seed
    (repair,) = found["stores"][0]["repairs"]
    assert code == 0
    assert (repair["shard"], repair["tile"], repair["action"]) == (3, 0, "rebuilt")
    code, said = doctor(capsys, home)
    assert code == 0
    assert "0 in part; scrubbed 20" in said
    with home.lock():  # another process that is no node answers no call
        assert scrub(capsys, home)[0] == 3


def test_a_home_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    assert scrub(capsys, home)[0] == 2
    home.create()
    code, out = scrub(capsys, home)
    assert (code, out) == (0, "nothing is stored here yet\n")


def test_imported_models(
    founded: Founded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "foreign.safetensors"
    tensors = {f"t.{i}": np.arange(5000 + i, dtype=np.float32) for i in range(3)}
    save_file(tensors, source, {"format": "pt"})
    home = ["--home", str(founded.home.path)]
    assert run_program(blyan.program, "blyan", ["model", "import", str(source), *home]) == 0
    capsys.readouterr()
    code, found = scrub_json(capsys, founded.home)
    assert (code, [r["store"] for r in found["stores"]]) == (0, ["chain", "foreign"])
    model = founded.home.path / "models" / "foreign"
    flip(next(iter(model.rglob("*.safetensors"))))
    code, found = scrub_json(capsys, founded.home)
    report = found["stores"][1]
    assert (code, report["left"], found["clean"]) == (65, 1, False)
    assert "import its file again" in report["repairs"][0]["detail"]
    code, out = scrub(capsys, founded.home)  # it counts as missing now
    assert code == 65
    assert "foreign" in out
    assert "missing, left" in out
    flip(model / "headers")
    code, found = scrub_json(capsys, founded.home)
    assert code == 65
    assert "headers of its sources are damaged" in found["stores"][1]["error"]


def test_a_tile_of_an_import_comes_back_from_an_equal_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors of zeros are many in one shard."""
    source, home = tmp_path / "zeros.safetensors", ["--home", str(tmp_path / "home")]
    save_file({"t": np.zeros(3 << 22, np.uint8)}, source)
    assert run_program(blyan.program, "blyan", ["model", "import", str(source), *home]) == 0
    (shard,) = (tmp_path / "home" / "models" / "zeros").rglob("*.safetensors")
    before = shard.read_bytes()
    flip(shard)
    capsys.readouterr()
    for found in (["rebuilt"], []):
        assert run_program(blyan.program, "blyan", ["tile", "scrub", "--json", *home]) == 0
        (report,) = json.loads(capsys.readouterr().out)["stores"]
        assert [repair["action"] for repair in report["repairs"]] == found
        assert shard.read_bytes() == before


def test_a_running_node_does_it(
    founded: Founded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "chain").mkdir()
    monkeypatch.setattr(module, "POLL_S", 0.0)
    with LocalChain(tmp_path / "chain") as chain, founded.home.lock():

        def ask(session: Session, conversation: Callable[[Client], Awaitable[Any]]) -> Any:
            async def talk() -> Any:
                transport = httpx.ASGITransport(create_app(chain))
                async with Client("http://127.0.0.1", chain.api_token, transport) as client:
                    return await conversation(client)

            return asyncio.run(talk())

        monkeypatch.setattr(Session, "ask", ask)
        code, out = scrub(capsys, founded.home)
        assert code == 65
        assert "tile 0, subtile 3: damaged, left (none of 0 connected peers has it)" in out
        assert out.endswith("damage is left\n")
        chain.scrub.action = FETCHED
        code, found = scrub_json(capsys, founded.home)
        assert (code, found["clean"]) == (0, True)
        assert found["stores"][0]["fetched"] == 1
        assert chain.scrub.scrubs == 2


def test_the_api_wants_the_token(tmp_path: Path) -> None:
    async def post(chain: LocalChain, token: str) -> int:
        transport = httpx.ASGITransport(create_app(chain))
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return (await http.post("/api/v1/tiles/scrub", headers=headers)).status_code

    with LocalChain(tmp_path) as chain:
        assert asyncio.run(post(chain, "guess")) == 401
        assert chain.scrub.scrubs == 0
        assert asyncio.run(post(chain, chain.api_token)) == 202
        assert chain.scrub.scrubs == 1
