"""What a learner may be given or may find on its disk, and what it does then."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from chain.errors import InputError, LockedError, StorageError, TxError, VerifyError
from chain.hashes import BLOB, ZERO_HASH, Hash32
from chain.records import DeltaStatus, RoundPhase
from chain.transactions import JoinRound
from chain.types import BlobId, PubKey
from learning.spec import ModelSpec
from learning.state import TrainState, residual_root, serialize_state
from node import client as client_module
from node import submission as module
from node.api.app import create_app
from node.client import Client
from node.delta_file import DeltaFile, encode_file, read_delta, submit_delta
from node.home import Home
from node.learner_files import LearnerFiles, Prepared
from node.submission import Submission
from node.verified import VerifiedReader
from tests.kit.learning import add_dataset
from tests.kit.local_chain import TINY, LocalChain
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.delta import decode_delta
from wallet.keys import Keys

SPEC = ModelSpec.from_json(TINY)
SPECS = SPEC.shards()
CHAIN = b"c" * 32
ACCOUNT = PubKey(b"a" * 32)


class Quiet:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        raise AssertionError("nothing trains here")


# --- delta files ---------------------------------------------------------------------------


def good() -> dict[str, Any]:
    return {"embed.weight": np.full((256, 16), 0.01, np.float32)}


def read(path: Path, tensors: dict[str, Any], **metadata: str) -> DeltaFile:
    save_file(tensors, path, metadata or None)
    return read_delta(path, SPECS)


def test_a_sound_file_is_read_shard_by_shard(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    root = Hash32(b"r" * 32)
    final = np.full((16,), -0.5, np.float32)
    found = read(path, good() | {"final.norm": final}, **{"blyan.base": root.hex()})
    assert found.base == root
    assert sorted(found.shards) == [0, len(SPECS) - 1]
    assert found.shards[len(SPECS) - 1].tolist() == final.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embed.wieght": np.zeros((256, 16), np.float32)}, "did you mean embed.weight"),
        ({"embed.weight": np.zeros((16, 256), np.float32)}, r"expected \[256, 16\]"),
        ({"embed.weight": np.zeros((256, 16), np.float64)}, "is F64, expected F32"),
        ({"embed.weight": np.full((256, 16), np.nan, np.float32)}, "not finite, the first at 0"),
        ({"embed.weight": np.full((256, 16), 1.5, np.float32)}, "not the weights themselves"),
        ({"embed.weight": np.zeros((256, 16), np.float32)}, "every value is zero"),
    ],
)
def test_bad_tensors_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path / "delta.safetensors", change)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    with pytest.raises(InputError, match="no such file"):
        read_delta(path, SPECS)
    for raw in (b"", b"garbage", b"\xff" * 100):
        path.write_bytes(raw)
        with pytest.raises(InputError, match="not a safetensors file"):
            read_delta(path, SPECS)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        read(path, good(), **{"blyan.base": "here"})


# --- files between rounds --------------------------------------------------------------------


def test_optimizer_and_residual_are_used_only_if_the_chain_names_them(tmp_path: Path) -> None:
    files = LearnerFiles(Home(tmp_path), CHAIN, ACCOUNT)
    sections = [bytes(shard.data_bytes) for shard in SPECS]
    ones = [np.ones(shard.elements, "<f4").tobytes() for shard in SPECS]
    state = TrainState(tuple(sections), tuple(ones), tuple(ones), step=4, updates=4)
    roots = residual_root(ones), state.optimizer_root()
    assert files.memory(SPEC, *roots) is None
    files.save_next(serialize_state(state), ones)
    assert files.memory(SPEC, *roots) is None  # not revealed yet
    files.promote_next()
    memory = files.memory(SPEC, *roots)
    assert memory is not None
    assert memory.residual == tuple(ones)
    assert files.memory(SPEC, roots[0], Hash32(b"x" * 32)) is None
    assert files.memory(SPEC, Hash32(b"x" * 32), roots[1]) is None
    (left,) = tmp_path.rglob("last.residual")
    left.write_bytes(left.read_bytes()[:-1])
    assert files.memory(SPEC, *roots) is None


def test_one_learner_an_account(tmp_path: Path) -> None:
    files = LearnerFiles(Home(tmp_path), CHAIN, ACCOUNT)
    other = LearnerFiles(Home(tmp_path), CHAIN, PubKey(b"b" * 32))
    with files.lock(), other.lock():
        again = LearnerFiles(Home(tmp_path), CHAIN, ACCOUNT)
        with pytest.raises(LockedError, match="in use"), again.lock():
            raise AssertionError


def test_a_damaged_chunk_is_fetched_again(tmp_path: Path) -> None:
    files = LearnerFiles(Home(tmp_path), CHAIN, ACCOUNT)
    blob = BlobId(BLOB.hash(b"chunk"))
    files.save_blob(blob, b"chunk")
    assert files.blob(blob) == b"chunk"
    (path,) = tmp_path.rglob(blob.hex())
    path.write_bytes(b"chunj")
    assert files.blob(blob) is None


# --- a submission, interrupted -----------------------------------------------------------------


class Play:
    """A chain without duties, and one account's submission through its API."""

    def __init__(self, directory: Path, chain: LocalChain, reader: VerifiedReader) -> None:
        self.directory, self.chain, self.reader = directory, chain, reader
        key = chain.learners[0]
        self.keys = Keys(key, key, key, key)
        self.progress = Quiet()

    @property
    def files(self) -> LearnerFiles:
        return LearnerFiles(
            Home(self.directory), self.reader.genesis.chain_id, self.keys.account.public
        )

    def submission(self) -> Submission:
        """A fresh process, as far as a submission can tell."""
        return Submission(self.reader, self.keys, self.files, self.progress)

    def until(self, phase: RoundPhase) -> None:
        self.chain.until(lambda state: state.round().phase == phase)

    async def prepare(self) -> Prepared:
        record = await self.reader.current_round()
        shards = {i: np.full(s.elements, 1e-3, np.float32) for i, s in enumerate(SPECS)}
        submission = self.submission()
        payload, manifest = encode_file(
            DeltaFile(shards, None), record, submission.account, SPECS, 64
        )
        salt, blob, size = await submission.upload(payload)
        prepared = Prepared(manifest, salt, blob, size)
        submission.files.save_pending(prepared)
        return prepared


@pytest.mark.parametrize("number", [64, INT8_NUMBER, low_rank_number(2)])
def test_a_file_is_sent_in_the_rules_coding(number: int) -> None:
    shards = {0: np.full(SPECS[0].elements, 1e-3, np.float32)}
    record = cast(Any, SimpleNamespace(number=0, base_root=bytes(32)))
    learner = PubKey(bytes(32))
    payload, manifest = encode_file(DeltaFile(shards, None), record, learner, SPECS, number)
    found = decode_delta(payload, SPECS)
    assert found.density == manifest.density == number
    assert np.abs(found.shard_float(0) - shards[0]).max() < 1e-3 * (1.01 if number == 64 else 0.02)


def play(
    directory: Path, monkeypatch: pytest.MonkeyPatch, body: Callable[[Play], Awaitable[None]]
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(client_module, "POLL_S", 0.01)

    async def main() -> None:
        window = {"blocks": 2, "ms": 1000}
        with LocalChain(directory, join=window, train={"blocks": 30, "ms": 1000}) as chain:
            add_dataset(chain)
            transport = httpx.ASGITransport(create_app(chain))
            async with Client("http://127.0.0.1:8645", "kit-token", transport) as client:
                chain.send(JoinRound(0, ()), chain.learners[0])
                chain.send(JoinRound(0, ()), chain.learners[1])
                chain.until(lambda state: state.round().phase == RoundPhase.TRAIN)
                await asyncio.wait_for(
                    body(Play(directory, chain, await VerifiedReader.connect(client))), 120
                )

    asyncio.run(main())


async def mined(chain: LocalChain, work: Awaitable[Any]) -> Any:
    """Make a block whenever a transaction waits, until the work is done or waits for a phase."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if chain.pool.size:
            chain.block()
        await asyncio.wait([task], timeout=0.01)
    return task.result()


def test_an_interrupted_submission_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(play: Play) -> None:
        prepared = await play.prepare()  # and then killed: nothing is on the chain
        assert play.files.pending() == prepared
        first = play.submission()
        delta = await mined(play.chain, first._commit(prepared))  # and then killed again
        second = play.submission()
        assert await second._commit(prepared) == delta  # already there: not sent twice
        going = asyncio.create_task(mined(play.chain, second.resume()))
        while play.chain.state.delta(delta).manifest is None:
            await asyncio.wait([going], timeout=0.01)
        play.until(RoundPhase.REVEAL)
        while play.chain.state.delta(delta).status != DeltaStatus.REVEALED:
            await asyncio.wait([going], timeout=0.01)
        play.chain.until(lambda state: state.head.round == 1, most=2000)
        summary = await going
        assert summary.delta == delta.hex()
        assert summary.status == "unavailable"  # nobody does a juror's duty here
        assert not summary.accepted
        assert play.files.pending() is None

    play(tmp_path, monkeypatch, body)


def test_a_delta_that_missed_its_round_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(play: Play) -> None:
        await play.prepare()
        play.chain.until(lambda state: state.head.round == 1, most=2000)
        assert await play.submission().resume() is None
        assert play.files.pending() is None

    play(tmp_path, monkeypatch, body)


def test_a_second_delta_and_a_stale_base_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(play: Play) -> None:
        shards = {0: np.full(SPECS[0].elements, 1e-3, np.float32)}
        stale = Hash32(b"s" * 32)
        with pytest.raises(TxError, match=play.chain.state.model.root.hex()) as caught:
            await submit_delta(play.submission(), play.files, DeltaFile(shards, None), stale)
        assert caught.value.code == "stale_base"
        await mined(play.chain, play.submission()._commit(await play.prepare()))
        other = await play.prepare()
        with pytest.raises(InputError, match="another delta in round 0"):
            await play.submission()._commit(other)

    play(tmp_path, monkeypatch, body)


def test_a_damaged_pending_file_is_named(tmp_path: Path) -> None:
    files = LearnerFiles(Home(tmp_path), CHAIN, ACCOUNT)
    (folder,) = (tmp_path / "learner").glob("*/*")
    for text in ("{", "[]", '{"manifest": "00"}'):
        (folder / "pending.json").write_text(text)
        with pytest.raises(StorageError, match=r"pending\.json is damaged"):
            files.pending()
    shutil.rmtree(folder)
    assert files.pending() is None


# --- what a node may lie about -------------------------------------------------------------------


def test_a_lying_node_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(play: Play) -> None:
        reader, client = play.reader, play.reader.client
        key = b"model"
        honest = await client.state_proof(key)
        found = await reader.proven(key)
        assert found.value == bytes.fromhex(honest["value"])
        assert reader.height == found.header.height > 0
        root = play.chain.state.model.root
        versions = await reader.model_roots(root)
        lies = [
            {"value": honest["value"][:-2] + "00"},
            {"value": None},
            {"header": honest["header"][:-2] + "00"},
            {"certificate": (await client.state_proof(b"head"))["certificate"][:-2] + "00"},
            {"proof": "zz"},
        ]
        for lie in lies:

            async def answer(_: bytes, height: int | None, lie: Any = lie) -> Any:
                return honest | lie

            monkeypatch.setattr(client, "state_proof", answer)
            with pytest.raises(VerifyError):
                await reader.proven(key)
        assert reader.height == found.header.height

        async def wrong_tile(*_: Any) -> bytes:
            return bytes(versions[0].spec.tile_bytes(0))

        monkeypatch.setattr(client, "tile_data", wrong_tile)
        with pytest.raises(VerifyError, match="do not have the root"):
            await reader.tile(versions[0], 0)
        with pytest.raises(VerifyError, match="do not lead to model root"):
            await reader.model_roots(ZERO_HASH)

    play(tmp_path, monkeypatch, body)
