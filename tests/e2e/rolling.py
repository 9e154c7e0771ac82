"""A network of four is upgraded node by node while transfers come in.

    python -m tests.e2e.rolling --rounds 3 [--kind schema-1]

The homes are those of an earlier format (tests/fixtures). Three nodes are started with the program
of today, which brings their files up to date, then the fourth. After that each in turn is told to
end, looked through by the doctor and started again, as an operator does for an upgrade, `rounds`
times. What is looked at is docs/spec/upgrades.md, "A network".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chain.state import State
from chain.store import ChainStore
from chain.types import Epoch, Height, PubKey, View
from consensus import election
from node.config import load_genesis
from tests.fixtures.make_home import payer, transfer
from tests.kit.old_homes import OldHome, unpack
from tests.kit.programs import Api, call, running
from tests.kit.waiting import until

START_S, DOWN_S = 120.0, 30.0
NODES = 4  # that the homes of a fixture are of
MOST_WAITING = 8  # transfers that are not final


@dataclass(slots=True)
class Report:
    """What the upgrade has cost. Views are counted from its beginning on."""

    blocks: int = 0
    transfers: int = 0
    lost_of_stopped: int = 0  # views led by a node while it was down, or on its way
    lost_of_others: int = 0
    down_s: list[float] = field(default_factory=list)  # of each restart, until it was level again
    longest_gap_s: float = 0.0  # between two blocks, by their time

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Rolling:
    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory
        self.homes = unpack(kind, directory)
        self.apis = [Api(old.home) for old in self.homes]
        self._genesis = load_genesis(self.homes[0].home)
        self._stacks = [ExitStack() for _ in self.homes]
        self._away: list[tuple[PubKey, int, int]] = []  # who was down from when to when, in ms
        self._nonce = 0
        self.report = Report()

    # --- nodes ------------------------------------------------------------------------------

    def start(self, index: int) -> None:
        old = self.homes[index]
        log = self._directory / f"{old.home.path.name}.log"
        command = ("start", "--home", old.home.path)
        self._stacks[index].enter_context(running("blyan-node", command, log))

    def stop(self, index: int) -> None:
        old = self.homes[index]
        assert call("blyan-node", "stop", "--home", old.home.path).returncode == 0
        self._stacks[index].close()

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()

    @contextmanager
    def away(self, index: int) -> Iterator[None]:
        """Notes from when to when a node is not there."""
        began = time.time_ns() // 1_000_000
        try:
            yield
        finally:
            key = self.homes[index].keys().consensus.public
            self._away.append((key, began, time.time_ns() // 1_000_000))

    # --- load -------------------------------------------------------------------------------

    def height(self, but: int = -1) -> int:
        """The highest that any node tells, with a transfer put in by the way."""
        heights = [api.height for i, api in enumerate(self.apis) if i != but]
        self._load(but)
        return max(heights)

    def _load(self, but: int) -> None:
        api = self.apis[(but + 1) % len(self.apis)]
        account = api.get(f"accounts/{payer().public.hex()}")
        if account is None or self._nonce - account["nonce"] > MOST_WAITING:
            return
        self._nonce = max(self._nonce, account["nonce"])
        answer = api.post("txs", transfer(self._genesis, self._nonce, payer()))
        if answer.status_code in (200, 202):
            self._nonce += 1
            self.report.transfers += 1

    def wait_blocks(self, count: int, but: int = -1) -> None:
        goal = self.height(but) + count
        until(lambda: self.height(but) >= goal, START_S, f"{count} more blocks")

    def wait_level(self, index: int) -> None:
        goal = self.height(index)
        until(
            lambda: self.height(index) and self.apis[index].height >= goal,
            START_S,
            f"node {index} is level at {goal}",
        )

    # --- the story --------------------------------------------------------------------------

    def run(self, rounds: int, each: int) -> Report:
        """`each`: how many nodes a round upgrades; all, unless time is short."""
        *first, last = range(len(self.homes))
        for index in first:
            self.start(index)
        with self.away(last):
            self.wait_blocks(2, last)
            self.start(last)
            self.wait_level(last)
        began = self.height()
        for _ in range(rounds):
            for index in range(each):
                self._upgrade(index)
        self.wait_blocks(3)
        self._all_final()
        agreed = {api.block_hash(began) for api in self.apis}
        assert len(agreed) == 1
        for index in range(len(self.homes)):
            self.stop(index)
        self._count(began)
        return self.report

    def _upgrade(self, index: int) -> None:
        began = time.monotonic()
        with self.away(index):
            self.stop(index)
            result = call("blyan-node", "doctor", "--deep", "--home", self.homes[index].home.path)
            assert result.returncode == 0, result.stdout
            self.start(index)
            self.wait_level(index)
        self.report.down_s.append(round(time.monotonic() - began, 2))
        self.wait_blocks(2)

    def _all_final(self) -> None:
        def done() -> bool:
            account = self.apis[0].get(f"accounts/{payer().public.hex()}")
            return account is not None and account["nonce"] >= self._nonce

        until(done, START_S, "every transfer that was taken is final")

    def _count(self, began: int) -> None:
        """Views that made no block, by who led them."""
        with ChainStore(self.homes[0].home.chain_db) as store:
            tip, state = store.tip(), State(store.load_state())
            assert tip is not None
            self.report.blocks = tip.height - began
            before = store.header(Height(began))
            for height in range(began + 1, tip.height + 1):
                header = store.header(Height(height))
                assert header is not None
                assert before is not None
                gap = (header.time_ms - before.time_ms) / 1000
                self.report.longest_gap_s = max(self.report.longest_gap_s, gap)
                same = header.epoch == before.epoch
                for view in range(before.view + 1 if same else 1, header.view):
                    self._lost(state, header.epoch, View(view), before.time_ms, header.time_ms)
                before = header

    def _lost(self, state: State, epoch: Epoch, view: View, since: int, until_ms: int) -> None:
        record = state.epoch(epoch)
        led = election.leader(record.seed, view, record.validators)
        leader = record.validators.members[led].consensus_key
        away = any(k == leader and a <= until_ms and since <= b for k, a, b in self._away)
        if away:
            self.report.lost_of_stopped += 1
        else:
            self.report.lost_of_others += 1


def roll(
    directory: Path, rounds: int, kind: str, each: int = NODES
) -> tuple[Report, list[OldHome]]:
    rolling = Rolling(directory, kind)
    try:
        return rolling.run(rounds, each), rolling.homes
    finally:
        rolling.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="schema-1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        report, _ = roll(Path(place), options.rounds, options.kind)
    print(json.dumps(report.as_json(), indent=1))
    return 0 if report.lost_of_others == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
