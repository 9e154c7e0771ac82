"""A learner that finds its round gone on when it looks again: stopped with Ctrl-Z, a closed lid, a
node away. It takes the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.errors import TxError, VerifyError
from chain.records import RoundPhase, RoundRecord
from learning.init import initial_shards
from learning.state import sections_root
from node.learner import Learner
from node.round_specs import RoundSpecs
from node.submission import Summary
from node.verified import VerifiedReader
from tests.kit.nano import TINY, TINY_TRAINING
from tests.unit.test_learner_resume import ROUND, Quiet, files
from tiles import merkle

BASE = initial_shards(TINY)
NEWER = [bytes(len(section)) for section in BASE]
MERGED_AT = 40  # the height from which on the newest model is another
JOINED = replace(ROUND, phase=RoundPhase.SEED, phase_height=20)
SUMMARY = Summary(1, "d", "merged", True, None, 0, 0, 0, "", None, None, True)


class Node:
    """A node at a height at which the round has merged, which has its base's versions still."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    async def model(self, height: int | None = None) -> dict[str, Any]:
        self.asked.append(height)
        sections = BASE if height is not None and height < MERGED_AT else NEWER
        roots = [[root.hex() for root in merkle.tile_roots(section)] for section in sections]
        return {"shards": [{"tile_roots": found} for found in roots]}

    async def tile_data(self, shard: int, tile: int, root: bytes) -> bytes:
        await asyncio.sleep(0)
        return BASE[shard]


class Rounds:
    """Stands for `Submission` and its watch: the joined round, each time it is waited for."""

    account = b"a" * 32

    def __init__(self, seen: Sequence[RoundRecord]) -> None:
        self.watch = self
        self.joined = 0
        self._seen = iter(seen)

    async def resume(self) -> Summary | None:
        return SUMMARY if self.joined else None  # the next round

    async def join(self, shards: Sequence[int] = ()) -> RoundRecord:
        self.joined += 1
        return replace(JOINED, phase=RoundPhase.OPEN)

    async def round(self, number: int, ready: Any) -> RoundRecord:
        for record in self._seen:
            if ready(record):
                return record
            await asyncio.sleep(0)
        raise AssertionError("nobody looks so often")

    async def in_training(self, number: int) -> RoundRecord:
        raise AssertionError("the round has gone on")


class Process:
    async def profile(self, kind: str) -> str:
        return "native/a"


def learner(directory: Path, node: Node, rounds: Rounds) -> Learner:
    reader = object.__new__(VerifiedReader)
    reader.client, reader.specs = node, TINY.shards()  # type: ignore[assignment]

    async def specs(*_: object) -> RoundSpecs:
        return RoundSpecs(TINY, TINY_TRAINING)

    async def data(record: RoundRecord) -> None:
        await asyncio.Event().wait()  # a node that never answers

    reader.specs_now = reader.round_specs = specs  # type: ignore[method-assign]
    made = object.__new__(Learner)
    made._reader, made._submission, made._worker = reader, rounds, Process()  # type: ignore[assignment]
    made._files, made._progress = files(directory), Quiet()
    made._profile, made._experts, made._text = "native", (), None
    made._data = data  # type: ignore[method-assign, assignment]
    return made


@pytest.mark.parametrize("phase", [RoundPhase.REVEAL, RoundPhase.AGGREGATE, RoundPhase.DONE])
def test_a_round_that_is_past_training_is_left_for_the_next(
    tmp_path: Path, phase: RoundPhase
) -> None:
    node, rounds = Node(), Rounds([replace(JOINED, phase=phase, phase_height=60)])
    made = learner(tmp_path, node, rounds)
    assert asyncio.run(asyncio.wait_for(made.train_round(), 10)) == SUMMARY
    assert not node.asked
    (line,) = made._progress.lines  # type: ignore[attr-defined]
    assert "the round went on without us" in line
    assert "round 0 has passed its training phase" in line


def test_a_round_that_passes_while_it_is_fetched_is_left_for_the_next(tmp_path: Path) -> None:
    over = replace(JOINED, phase=RoundPhase.REVEAL, phase_height=60)
    node, rounds = Node(), Rounds([JOINED, *[JOINED] * 9, over])
    made = learner(tmp_path, node, rounds)
    assert asyncio.run(asyncio.wait_for(made.train_round(), 10)) == SUMMARY
    assert "has passed its training phase" in made._progress.lines[-1]  # type: ignore[attr-defined]


def test_the_base_is_asked_for_at_its_height(tmp_path: Path) -> None:
    """The round may merge between our look at it and our question."""
    node = Node()
    made = learner(tmp_path, node, Rounds([]))
    assert asyncio.run(made._base(JOINED)) == list(BASE)
    assert node.asked == [JOINED.phase_height]
    with pytest.raises(VerifyError, match="do not lead to model root"):
        asyncio.run(made._reader.model_roots(sections_root(BASE)))


def test_what_comes_in_time_is_taken(tmp_path: Path) -> None:
    made = learner(tmp_path, Node(), Rounds([JOINED] * 1000))

    async def found() -> int:
        return 7

    async def lost() -> int:
        raise TxError("no_slot", "lost")

    assert asyncio.run(made._in_time(JOINED, found())) == 7
    with pytest.raises(TxError, match="lost"):
        asyncio.run(made._in_time(JOINED, lost()))
