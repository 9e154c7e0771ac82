"""A network of real node processes that is attacked, and what must hold of it at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from chain.codec import decode
from chain.params import Genesis, parse_genesis
from chain.types import CertifiedBlock
from node.config import Config
from node.founding import (
    Founded,
    found_home,
    founding_genesis,
    set_bootstrap,
    template,
    write_genesis,
)
from node.home import PASSPHRASE_FILE, Home
from tests.kit.programs import environment
from tests.kit.waiting import until

P2P_OFFSET = 1000
START_S = 180.0
GOES_ON_S = 5.0  # new blocks after an attack (the bound), on a machine that does nothing else
MEMORY_MB = 250
MAX_TRACEBACKS = 3  # in all logs of one node


@dataclass(slots=True)
class Victim:
    """One node: its home with all its keys, and the process if it runs."""

    founded: Founded
    process: subprocess.Popen[bytes] | None = None
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=f"{self.founded.config.api_url}/api/v1/", timeout=20, trust_env=False
        )

    @property
    def home(self) -> Home:
        return self.founded.home

    @property
    def peer_id(self) -> str:
        return self.founded.node_id

    @property
    def address(self) -> str:
        return self.founded.address

    @property
    def api(self) -> tuple[str, int]:
        return self.founded.config.api_host, self.founded.config.api_port

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "node.cli.node", "start", "--home"]
        with (self.home.logs / "out.txt").open("ab") as output:
            self.process = subprocess.Popen(
                [*command, str(self.home.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )

    def end(self, number: int = signal.SIGTERM, wait_s: float = 20) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        return answer.json() if answer.status_code == 200 else None

    def status(self) -> dict[str, Any]:
        """Empty when nobody answers."""
        try:
            return self.get("status") or {}
        except httpx.HTTPError:
            return {}

    @property
    def height(self) -> int:
        return int(self.status().get("height", -1))

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.founded.config.api_url}/metrics", trust_env=False).text
        rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
        return {name.removeprefix("blyan_"): float(value) for name, value in rows}

    def block(self, height: int) -> CertifiedBlock:
        raw = self.client.get(f"blocks/{height}/raw").content
        found: CertifiedBlock = decode(CertifiedBlock, raw, most=len(raw))
        return found

    def logs(self) -> str:
        files = [*sorted(self.home.logs.glob("node.log*")), self.home.logs / "out.txt"]
        return "\n".join(f.read_text(errors="replace") for f in files if f.exists())


class Victims:
    """`count` validators, and `followers` who have no vote, on loopback ports from `base`."""

    def __init__(
        self,
        directory: Path,
        count: int,
        base: int,
        followers: int = 0,
        slack: float = 1.0,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """`params`: of the genesis, in place of the template's."""
        self.slack = slack
        made = [self._found(directory / f"node-{i}", base + i) for i in range(count + followers)]
        document = template()
        document["params"].update(params or {})
        self.text = founding_genesis(made[:count], document=document)
        self.genesis: Genesis = parse_genesis(self.text)
        for node in made:
            write_genesis(node.home, self.text)
        self.nodes = [
            Victim(set_bootstrap(node, [n.address for n in made if n is not node])) for node in made
        ]
        self.validators = self.nodes[:count]
        self.hostile: list[Victim] = []  # whose keys an attack has used: may be charged
        self.directory, self._next = directory, base + count + followers
        self._stack = ExitStack()

    @staticmethod
    def _found(path: Path, port: int) -> Founded:
        config = Config(api_port=port, p2p_port=port + P2P_OFFSET, link_port=0, log_level="info")
        return found_home(Home(path), config)

    def stranger(self, bootstrap: list[str]) -> Victim:
        """One more node of this network, not started."""
        port, self._next = self._next, self._next + 1
        made = self._found(self.directory / f"stranger-{port}", port)
        write_genesis(made.home, self.text)
        return Victim(set_bootstrap(made, bootstrap))

    def __enter__(self) -> Victims:
        for node in self.nodes:
            node.start()
        try:
            until(lambda: min(self.heights()) >= 2, START_S, "the network makes blocks")
            until(lambda: self.joined(), START_S, "all are connected")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            if node.alive and node.process is not None:
                node.process.terminate()
        for node in self.nodes:
            if node.process is not None:
                try:
                    node.process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(node.process.pid, signal.SIGKILL)
                    node.process.wait()
            node.client.close()

    @property
    def hostile_keys(self) -> set[str]:
        return {n.founded.keys.consensus.public.hex() for n in self.hostile}

    # --- what must hold ---------------------------------------------------------------------

    def heights(self) -> list[int]:
        return [node.height for node in self.nodes]

    def joined(self) -> bool:
        """Every node is connected to every other."""
        for node in self.nodes:
            found = {p["peer_id"] for p in (node.get("peers") or {"peers": []})["peers"]}
            if not {n.peer_id for n in self.nodes if n is not node} <= found:
                return False
        return True

    def check(self, after: str) -> float:
        """All of the promises; the seconds until every node had a new block."""
        for node in self.nodes:
            assert node.alive, f"{after}: {node.home} has ended: {node.logs()[-2000:]}"
        began = time.monotonic()
        goal = max(self.heights()) + 1
        until(
            lambda: min(self.heights()) >= goal,
            GOES_ON_S * self.slack,
            f"{after}: every node has block {goal}",
        )
        took = time.monotonic() - began
        until(lambda: self.joined(), 3 * GOES_ON_S * self.slack, f"{after}: all are connected")
        self.agree(goal)
        for node in self.nodes:
            status = node.status()
            assert status["memory_mb"] < MEMORY_MB, f"{after}: {status['memory_mb']} MB"
            self._friends(node, after)
            self._clean(node, after)
        return took

    def agree(self, height: int) -> None:
        blocks = [node.get(f"blocks/{height}") for node in self.nodes]
        found = {block["hash"] + block["state_root"] for block in blocks}
        assert len(found) == 1, f"{len(found)} different blocks at height {height}"

    def memory(self) -> list[float]:
        return [node.status()["memory_mb"] for node in self.nodes]

    def _friends(self, node: Victim, after: str) -> None:
        """Nobody holds anything serious against an honest peer."""
        honest = {n.peer_id for n in self.nodes if n not in self.hostile}
        for peer in node.get("peers")["peers"]:
            if peer["peer_id"] in honest:
                assert peer["violations"] < 50, f"{after}: an honest peer is charged: {peer}"
        for line in node.logs().splitlines():
            refused = " is refused for " in line and any(p in line for p in honest)
            assert not refused, f"{after}: an honest peer is banned: {line}"

    def _clean(self, node: Victim, after: str) -> None:
        """No secret and no flood of tracebacks in the logs."""
        text = node.logs()
        keys = node.founded.keys
        secrets = {
            "token": node.home.token(),
            "words": node.founded.words,
            "passphrase": (node.home.keystore / PASSPHRASE_FILE).read_text().strip(),
            **{n: getattr(keys, n).seed.hex() for n in ("account", "node", "consensus", "vrf")},
        }
        for name, secret in secrets.items():
            assert secret not in text, f"{after}: the {name} of {node.home} stands in a log"
        count = text.count("Traceback (most recent call last)")
        assert count <= MAX_TRACEBACKS, f"{after}: {count} tracebacks: {node.home}"
