"""An honest node, one with a second history, and `blyan verify` before them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from chain.transactions import Transfer
from chain.types import Grains
from node.cli.blyan import program
from node.cli.session import run_program
from tests.kit.liar import Liar, Lie
from tests.kit.lies import PAID, TIP, TO, Run
from tests.kit.local_chain import START_MS, STEP_MS, LocalChain
from tests.kit.site import Site


def fill(salt: int) -> Callable[[LocalChain], None]:
    """A chain whose history differs by `salt` from block 20 on, and all of whose keys are alike."""

    def build(chain: LocalChain) -> None:
        for height in range(1, TIP + 1):
            if height == PAID:
                chain.send(Transfer(TO, Grains(5 + salt)), chain.learners[0])
                chain.send(Transfer(TO, Grains(9)), chain.learners[1])
            chain.block()

    return build


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("honest"), fill(0)) as site:
        yield site


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A second history that all validators have signed as well."""
    with Site(tmp_path_factory.mktemp("forked"), fill(1)) as site:
        yield site


@pytest.fixture
def blyan(
    honest: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`blyan verify …` with the genesis file, a second after the newest block."""
    genesis = tmp_path / "genesis.json"
    genesis.write_text(json.dumps(dict(honest.chain.genesis.document)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("node.cli.verify.wall_ms", lambda: START_MS + (TIP + 1) * STEP_MS)

    def call(url: str, *words: str, trust: str | None = None) -> tuple[int, str]:
        anchor = ["--trust", trust] if trust else ["--genesis", str(genesis)]
        arguments = ["verify", *words, *anchor, "--node", url, "--home", str(tmp_path / "none")]
        code = run_program(program, "blyan", arguments)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture
def lying(honest: Site) -> Iterator[Callable[[Lie], str]]:
    """Where a liar listens."""
    with ExitStack() as stack:

        def start(lie: Lie) -> str:
            liar: AbstractContextManager[Liar] = Liar(honest.url, lie)
            return stack.enter_context(liar).url

        yield start
