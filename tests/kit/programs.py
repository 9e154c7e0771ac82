"""Our two programs as real processes, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from node.config import load_config
from node.home import Home
from tests.kit.waiting import until

PYTHON = (sys.executable, "-P", "-m")


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BLYAN_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def call(
    program: str, *arguments: str | Path, timeout_s: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run `blyan` or `blyan-node` to its end."""
    return subprocess.run(
        [*PYTHON, module(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        stdin=subprocess.DEVNULL,
        check=False,
    )


def module(program: str) -> str:
    return {"blyan": "node.cli.blyan", "blyan-node": "node.cli.node"}[program]


@contextmanager
def running(
    program: str, arguments: Sequence[str | Path], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, its output in `log`; ended with SIGTERM, or at last SIGKILL."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*PYTHON, module(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


class Api:
    """A node's HTTP API as tests ask it: None when nobody answers."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.url = load_config(home, environment={}).api_url

    def get(self, path: str) -> Any:
        try:
            answer = httpx.get(f"{self.url}/api/v1/{path}", timeout=10, trust_env=False)
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def post(self, path: str, data: bytes) -> httpx.Response:
        kind = {"Content-Type": "application/octet-stream"}
        url = f"{self.url}/api/v1/{path}"
        return httpx.post(url, content=data, headers=kind, timeout=10, trust_env=False)

    @property
    def height(self) -> int:
        """-1 when nobody answers."""
        status = self.get("status")
        return -1 if status is None else int(status["height"])

    def wait_height(self, height: int, timeout_s: float) -> None:
        until(lambda: self.height >= height, timeout_s, f"{self.url} at height {height}")

    def block_hash(self, height: int) -> str | None:
        block = self.get(f"blocks/{height}")
        return None if block is None else str(block["hash"])

    def kill(self) -> None:
        """kill -9 of the node that owns the home, and wait until the kernel has let go of it."""
        owner = self.home.owner()
        assert owner is not None, f"no node runs on {self.home.path}"
        os.kill(owner, signal.SIGKILL)
        until(lambda: self.home.owner() is None, 60, f"process {owner} is gone")


def parsed(result: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a program printed, if it went well."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
