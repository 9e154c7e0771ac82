"""`blyan` in this process, on a node whose every transaction gets a block at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from node.api.app import create_app
from node.cli.blyan import program
from node.cli.session import Session, run_program
from node.client import Client
from tests.kit.local_chain import LocalChain
from wallet.keys import Keys

Run = Callable[..., tuple[int, Any]]  # exit code, and what was said: JSON if it was asked for


def runner(
    command: str,
    chain: LocalChain,
    keys: Callable[[], Keys],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `blyan COMMAND …` with the keys that `keys` gives then, in `home`."""
    app = create_app(chain)

    async def node(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if scope["type"] == "http" and scope["method"] == "POST" and chain.pool.size:
            chain.block()

    def client(url: str, token: str | None) -> Client:
        return Client(url, token, httpx.ASGITransport(node))

    monkeypatch.setattr("node.client.Client", client)
    monkeypatch.setattr(Session, "keys", lambda session, name=None: keys())

    def call(*words: str) -> tuple[int, Any]:
        common = ["--home", str(home), "--node", "http://localhost"]
        code = run_program(program, "blyan", [command, *words, *common])
        said = capsys.readouterr()
        text = said.out if code == 0 else said.err
        return code, json.loads(text) if "--json" in words else text

    return call
