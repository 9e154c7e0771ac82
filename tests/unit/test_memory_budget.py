"""How much memory a step may take: estimates, who warns, and how the worker hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chain.hashes import Hash32
from learning.init import initial_shards
from learning.memory import (
    ACTIVATION_BYTES,
    MIB,
    activation_bytes,
    recomputed_bytes,
    recomputes,
    shortage,
)
from learning.sizes import SIZES
from learning.state import TrainState, sections_root, serialize_state
from node.cli import train as command
from node.cli.blyan import program
from node.cli.session import Session, run_program
from node.config import Config, load_genesis
from node.daemon import Node
from node.founding import found_home, founding_genesis, write_genesis
from node.genesis import build_genesis
from node.home import Home
from node.submission import Summary
from node.worker import jobs
from node.worker.client import TrainJob, Worker
from node.worker.protocol import Message
from tests.kit.nano import TINY, TINY_TRAINING, tiny_batches

MB = 1_000_000
SMALL = SIZES["small"].model
WHOLE = replace(SIZES["small"].training, batch=32, micro_batch=0)
BASE = initial_shards(TINY)
OTHER = Hash32(bytes(32))


# --- estimates ---------------------------------------------------------------------------


def test_estimates_are_near_what_was_measured() -> None:
    """docs/perf.md, "Memory of a step": 1,503 MB, and 903 with layers computed again."""
    assert activation_bytes(SMALL, WHOLE) == pytest.approx(1503 * MB, rel=0.2)
    assert recomputed_bytes(SMALL, WHOLE) == pytest.approx(903 * MB, rel=0.2)
    pieces = replace(WHOLE, micro_batch=4)
    assert 8 * recomputed_bytes(SMALL, pieces) == recomputed_bytes(SMALL, WHOLE)
    dropout = replace(WHOLE, dropout_ppm=100_000)  # two factors a channel, in each layer kept
    more = 4 * 32 * SMALL.context * 2 * SMALL.width
    assert activation_bytes(SMALL, dropout) - activation_bytes(SMALL, WHOLE) == 3 * more
    assert recomputed_bytes(SMALL, dropout) - recomputed_bytes(SMALL, WHOLE) == 3 * more // 2


def test_the_networks_with_a_name_fit_the_default() -> None:
    for size in SIZES.values():
        assert shortage(size.model, size.training, ACTIVATION_BYTES) is None


def test_a_warning_names_estimate_budget_and_what_would_help() -> None:
    needed = -(-recomputed_bytes(SMALL, WHOLE) // MIB)
    said = shortage(SMALL, WHOLE, 600 * MIB)
    assert said is not None
    for words in (f"about {needed} MiB", "budget is 600 MiB", f"--memory {needed}", "micro_batch"):
        assert words in said
    assert shortage(SMALL, WHOLE, needed * MIB) is None
    assert recomputes(SMALL, WHOLE, needed * MIB)  # fits because its layers are computed again
    small = replace(TINY_TRAINING, batch=1)  # where computing again would take more
    assert recomputed_bytes(TINY, small) > activation_bytes(TINY, small)
    assert shortage(TINY, small, activation_bytes(TINY, small)) is None
    assert shortage(TINY, small, activation_bytes(TINY, small) - 1) is not None


# --- to the worker -----------------------------------------------------------------------


class InProcess(Worker):
    """Does its jobs here."""

    async def _call(
        self, request: Message, on_event: Callable[[Message], None] | None = None
    ) -> Message:
        return jobs.run_job(request, on_event or (lambda _: None))


@pytest.mark.parametrize("most_bytes", [1, ACTIVATION_BYTES])
def test_training_and_replay_get_the_budget_and_the_key(
    most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes]] = []
    train_segment = jobs.train_segment

    def watched(*args: Any, **options: Any) -> TrainState:
        seen.append((options["most_bytes"], options["mask_key"]))
        return train_segment(*args, **options)

    monkeypatch.setattr(jobs, "train_segment", watched)
    rule = replace(TINY_TRAINING, steps=2, segment_steps=1, dropout_ppm=100_000)
    batches, key = tiny_batches()[:2], sections_root(BASE)  # of 32 bytes
    job = TrainJob(TINY, rule, 0, sections_root(BASE), BASE, batches, mask_key=key)
    states: list[bytes] = []

    async def run() -> None:
        worker = InProcess(most_bytes=most_bytes)
        out = await worker.train(job, on_checkpoint=lambda _, state: states.append(state))
        found = await worker.replay(TINY, rule, states[1], batches[1:], out.profile, (), key)
        assert (found.before, found.after) == out.state_hashes[1:]
        other = await worker.replay(TINY, rule, states[1], batches[1:], out.profile, (), OTHER)
        assert other.after != found.after

    asyncio.run(run())
    assert seen == [(most_bytes, key)] * 3 + [(most_bytes, OTHER)]
    plain = TrainState.fresh(BASE)
    assert states[0] == serialize_state(plain)


@pytest.mark.parametrize(("words", "expected"), [((), 333), (("--memory", "64"), 64)])
def test_train_takes_the_option_or_the_configuration(
    words: tuple[str, ...], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    done = Summary(0, "d", "merged", True, None, 0, 0, 0, "r", None, None, True)

    class Trained:
        def __init__(self, reader: Any, keys: Any, files: Any, worker: Worker, *_: Any) -> None:
            seen.append(worker.most_bytes)

        async def train_round(self) -> Summary:
            return done

    async def connect(client: Any) -> Any:
        return SimpleNamespace(genesis=SimpleNamespace(chain_id=bytes(32)))

    def ask(session: Session, conversation: Callable[[Any], Awaitable[Any]]) -> Any:
        async def converse() -> Any:
            return await conversation(None)

        return asyncio.run(converse())

    found_home(Home(tmp_path), Config(memory_mib=333))
    monkeypatch.setattr(command, "Learner", Trained)
    monkeypatch.setattr(command, "VerifiedReader", SimpleNamespace(connect=connect))
    monkeypatch.setattr(Session, "ask", ask)
    assert run_program(program, "blyan", ["train", "--home", str(tmp_path), *words]) == 0
    assert seen == [expected * MIB]


def test_a_node_replays_within_its_configuration(tmp_path: Path) -> None:
    founded = found_home(Home(tmp_path / "home"), Config())
    write_genesis(founded.home, founding_genesis([founded]))
    config = Config(api_port=0, p2p_port=0, link_port=0, memory_mib=77)

    async def main() -> None:
        node = Node(founded.home, config, build_genesis(load_genesis(founded.home)), founded.keys)
        assert node._duties.worker.most_bytes == 77 * MIB

    asyncio.run(main())
