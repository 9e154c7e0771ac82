"""A whole learning round with everything real but network and consensus: two learners train and
one sends garbage, through the HTTP API; four validators do their duties."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chain import records as r
from chain.errors import InputError, TxError, VerifyError
from chain.hashes import Hash32
from chain.records import DeltaStatus
from chain.transactions import Verdict
from chain.types import TxId
from corpus.dataset import Dataset, build
from corpus.ingest import Document
from learning import state_parts
from learning.spec import ModelSpec
from node import submission as module
from node.api.app import create_app
from node.client import Client
from node.dataset_submission import export_split, submit_dataset
from node.delta_file import read_delta, submit_delta
from node.export import write_model
from node.home import Home
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.model_at import find_model
from node.submission import Submission, Summary
from node.tile_check import check_tiles, parse_target
from node.verified import Finality, VerifiedReader
from tests.kit.duty_net import DutyNet
from tests.kit.lying_learner import Lie, LyingLearner
from wallet.keys import KeyPair, Keys

TEXT = b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[2].glob("chain/*.py")))


class Silent:
    """Progress that a test can look at."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        self.steps += 1


def keys_of(key: KeyPair) -> Keys:
    return Keys(key, key, key, key)


class Run:
    """The learners' side of a network."""

    def __init__(self, net: DutyNet, reader: VerifiedReader, directory: Path) -> None:
        self.net, self.reader, self.directory = net, reader, directory
        self.keys = [keys_of(key) for key in net.local.learners]
        self.progress = Silent()

    def files(self, who: int) -> LearnerFiles:
        home = Home(self.directory / "home")
        account = self.keys[who].account.public
        return LearnerFiles(home, self.reader.genesis.chain_id, account)

    async def train(self, who: int, experts: Sequence[int] = ()) -> Summary:
        files, keys = self.files(who), self.keys[who]
        with files.lock():
            learner = Learner(
                self.reader, keys, files, self.net.worker, self.progress, experts=experts
            )
            return await learner.train_round()

    async def add_dataset(self) -> Dataset:
        dataset = build([Document("chain.py", TEXT)], "MIT", "sources")
        found = await submit_dataset(self.reader, self.keys[2], dataset, self.progress, wait=True)
        assert (found["status"], found["score"]) == ("active", 100)
        return dataset

    async def garbage(self, who: int) -> Summary:
        noise = np.random.default_rng(7)
        path = self.directory / "garbage.safetensors"
        tensors = {
            f"{s.name}.{t.name}": noise.choice((-0.9, 0.9), t.shape).astype(np.float32)
            for s in self.reader.specs
            for t in s.tensors
        }
        save_file(tensors, path)
        files = self.files(who)
        submission = Submission(self.reader, self.keys[who], files, self.progress)
        delta, root = read_delta(path, self.reader.specs), self.net.state.model.root
        return await submit_delta(submission, files, delta, root)


@asynccontextmanager
async def connected(net: DutyNet, directory: Path) -> AsyncIterator[Run]:
    """Learners of a network that runs."""
    transport = httpx.ASGITransport(create_app(net.local))
    async with Client("http://127.0.0.1:8645", "kit-token", transport) as client:
        yield Run(net, await VerifiedReader.connect(client), directory)


def test_a_whole_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.05)  # an in-process transport streams no events
    asyncio.run(_round(tmp_path))


async def _round(directory: Path) -> None:
    async with DutyNet(directory, learners=3) as net, connected(net, directory) as run:
        dataset = await run.add_dataset()
        with pytest.raises(TxError, match="on the chain already"):
            await submit_dataset(run.reader, run.keys[1], dataset, run.progress, wait=True)
        first = net.state.model.root
        summaries = await asyncio.gather(run.train(0), run.train(1), run.garbage(2))
        _check_round(net, summaries)
        await _check_exports(run, dataset.id, first)
        await _check_tiles(run)
        await _check_part(run)
        await _check_copies(run)


async def _check_copies(run: Run) -> None:
    """One delta under two names: the jury looks at the first."""
    run.net.learners = 3
    honest, *copies = await asyncio.gather(run.train(0), run.garbage(1), run.garbage(2))
    assert honest.status == "merged"
    assert {s.status for s in copies} == {"harmful", "copy"}
    deltas = [run.net.state.delta(d) for d in run.net.state.round(2).deltas]
    first, second = (d for d in deltas if not (d.manifest and d.manifest.proven))
    assert (first.status, second.status) == (DeltaStatus.HARMFUL, DeltaStatus.COPY)
    assert {v.verdict for v in second.votes} == {Verdict.COPY}


async def _check_part(run: Run) -> None:
    """A learner that holds one expert of each layer: only what it holds moves, and its training is
    replayed as any other is."""
    net, before = run.net, _shards(run.net)
    net.learners = 1
    spec = ModelSpec.from_json(run.reader.genesis.model)
    with pytest.raises(InputError, match=f"expert {spec.experts}: the model has"):
        await run.train(0, [0, spec.experts])
    run.net.local.blobs.held.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_parts, "PARTED_BYTES", 0)  # as if it were of a large model
        patch.setattr(net.worker, "most_bytes", 1)  # here as there layers are computed again
        summary = await run.train(0, [1])
    uploaded = [name for name in net.local.blobs.held if name.startswith(b"checkpoint")]
    assert len(uploaded) > 3 * spec.layers  # its tiles, and their index
    assert (summary.status, summary.proven) == ("merged", True)
    said = run.progress.lines
    warned = next(i for i, line in enumerate(said) if "the memory budget is 0 MiB" in line)
    assert any(line.startswith("trained 50 steps") for line in said[warned:])
    assert any(
        "or of another part of the model; starting from zero" in x for x in run.progress.lines
    )
    record = net.state.round(1)
    manifest = net.state.delta(record.deltas[0]).manifest
    assert manifest is not None
    absent = [s.index for s in run.reader.specs if ".experts.0" in s.name]
    assert sorted({*manifest.shards, *absent}) == list(range(len(before)))
    assert [v.verdict for v in record.audit_votes] == [1, 1, 1]
    for old, new in zip(before, _shards(net), strict=True):
        assert (old.root == new.root) == (old.index in absent)


def _check_round(net: DutyNet, summaries: list[Summary]) -> None:
    good, bad = summaries[:2], summaries[2]
    assert [s.status for s in good] == ["merged", "merged"]
    assert bad.status == "harmful"
    assert not bad.accepted
    assert not bad.proven
    record = net.state.round(0)
    assert set(record.accepted) == {TxId(bytes.fromhex(s.delta)) for s in good}
    assert all(v.verdict == 1 for v in record.audit_votes)
    assert len(record.audit_votes) == len(record.auditors) == 3
    uploaded = [name for name in net.local.blobs.held if name.startswith(b"checkpoint")]
    assert len(uploaded) == 1  # what was drawn to be replayed
    assert good[0].loss_before is not None
    assert good[0].loss_after is not None
    assert good[0].loss_after < good[0].loss_before - 0.3
    assert all(s.gain is not None and s.gain > 0 and s.reward > 0 for s in good)
    roots = [s.root for s in _shards(net)]
    for node in net.nodes:  # every validator holds the new model, from its own recomputing
        assert all(root in node.tiles.store.versions(i) for i, root in enumerate(roots))
        assert all(node.tiles.store.has_steps(i, root) for i, root in enumerate(roots))
        assert node.tiles.fetched == 0
    assert net.state.model.version == 1
    for duties in net.duties:
        metrics = duties.metrics()
        assert (metrics["duties_failed"], metrics["duties_crashed"]) == (0, 0)


def _shards(net: DutyNet) -> list[r.ShardRecord]:
    state = net.state
    return [state.need(r.ShardRecord, r.shard_key(i)) for i in range(state.model.shards)]


async def _check_exports(run: Run, dataset: Hash32, first: Hash32) -> None:
    reader = run.reader
    assert await export_split(reader, dataset, "all") == TEXT
    train = await export_split(reader, dataset, "train")
    holdout = await export_split(reader, dataset, "holdout")
    assert len(TEXT) <= len(train) + len(holdout) <= len(TEXT) + 200
    out = run.directory / "model.safetensors"
    for height, root in ((None, run.net.state.model.root), (0, first)):
        model = await find_model(reader, height)
        assert model.root == root
        size = await write_model(out, reader, model, lambda done, total: None)
        assert size == out.stat().st_size
        tensors = load_file(out)
        assert set(tensors) == {f"{s.name}.{t.name}" for s in reader.specs for t in s.tensors}
    assert model.shown_by == "the model record of block 0"
    raw = out.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["blyan.root"] == first.hex()
    told = json.loads(header["__metadata__"]["blyan.model"])
    assert ModelSpec.from_json(told) == ModelSpec.from_json(reader.genesis.model)


async def _check_tiles(run: Run) -> None:
    reader, node = run.reader, run.net.nodes[1]
    spec, tiles = parse_target("layers.0.experts.1", reader.specs)
    for directory in (None, node.home.path / "tiles"):
        report = await check_tiles(reader, spec, tiles, directory)
        assert report.finality is Finality.CERTIFIED
        assert report.model_root == run.net.state.model.root
        assert [t["tile"] for t in report.tiles] == [0]
    path = node.home.path / "tiles" / f"{spec.index:05d}" / f"{report.shard_root.hex()}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(VerifyError, match="tile 0, subtile 0, is damaged"):
        await check_tiles(reader, spec, tiles, node.home.path / "tiles")
    for target in ("nowhere", "embed:1", "embed:x", "99"):
        with pytest.raises(InputError):
            parse_target(target, reader.specs)


def test_what_its_training_does_not_lead_to_is_a_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round is one segment, so its compression is replayed each time: of an honest learner
    without a residual, with one, and of one that trains honestly and sends something else."""
    monkeypatch.setattr(module, "POLL_S", 0.05)
    asyncio.run(_ends(tmp_path))


async def _ends(directory: Path) -> None:
    rule = {"steps": 4, "segment_steps": 4}
    async with DutyNet(directory, learners=1, training=rule) as net:
        transport = httpx.ASGITransport(create_app(net.local))
        async with Client("http://127.0.0.1:8645", "kit-token", transport) as client:
            run = Run(net, await VerifiedReader.connect(client), directory)
            dataset = build([Document("chain.py", TEXT)], "MIT", "sources")
            await submit_dataset(run.reader, run.keys[2], dataset, run.progress, wait=True)
            held = net.local.blobs.held
            for number, uploads in ((0, 1), (1, 1 + 2)):
                assert (await run.train(0)).status == "merged"
                uploaded = [name for name in held if name.startswith(b"checkpoint")]
                assert len(uploaded) == uploads  # a state, and the residual of the round before
                assert [v.verdict for v in net.state.round(number).audit_votes] == [1, 1, 1]
            files = run.files(1)
            liar = LyingLearner(
                run.reader, run.keys[1], files, net.worker, run.progress, lambda _: Lie.NOISE
            )
            with files.lock():
                assert (await liar.train_round()).status == "mismatch"
            assert [v.verdict for v in net.state.round(2).audit_votes] == [0, 0, 0]


def test_statuses_have_the_names_that_summaries_show() -> None:
    assert {s.name.lower() for s in DeltaStatus} >= {"merged", "harmful", "unavailable", "mismatch"}
