"""Rounds of other codings, and a delta of a base that has moved on (`tests.e2e.odd_rounds`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from chain.hashes import ZERO_HASH, Hash32
from chain.types import PubKey
from corpus.batches import Assignment
from learning.spec import ModelSpec, TrainingSpec
from learning.state import Sections, TrainState
from learning.train import train_segment
from node.client import Json
from node.data import RoundData
from node.delta_file import BASE_KEY
from tests.e2e.fleet import Failure
from tests.e2e.odd_stage import MERGED, Stage
from tests.e2e.school import Pupil
from tiles.codings import codec_of

CODED_ROUNDS = 2
OWN_STEPS = 60  # of who trains elsewhere
REFUSED, OK = 4, 0  # exit codes

Tensors = Mapping[str, npt.NDArray[np.float32]]

# --- other codings --------------------------------------------------------------------------------


async def int8(stage: Stage) -> None:
    await _coded(stage, "int8")


async def lowrank(stage: Stage) -> None:
    await _coded(stage, "lowrank")


async def _coded(stage: Stage, codec: str) -> None:
    """Rounds whose rule has another coding, all the way; each begins at the last one's result."""
    await stage.start(*stage.pupils)
    last = await stage.settled(stage.pupils)
    before = await judged(stage, last, codec)
    for _ in range(1, CODED_ROUNDS):
        shown = await stage.ordinary(int(last["number"]) + 1, stage.pupils)
        name = "the next round begins at the result"
        stage.book.same(name, "its base", shown["base_root"], last["result_root"])
        found = await judged(stage, shown, codec)
        for sender, delta in found.items():
            manifest = delta["manifest"]
            stage.book.same(name, "a delta's base", manifest["base_root"], last["result_root"])
            for part in ("residual", "optimizer"):
                kept = before[sender]["manifest"][f"{part}_after"]
                stage.book.same(name, f"its {part}", manifest[f"{part}_before"], kept)
        last, before = shown, found


async def judged(stage: Stage, shown: Json, codec: str) -> dict[str, Json]:
    """The deltas of a round by their sender, each of which was screened, and one replayed."""
    number = shown["number"]
    fell = shown["loss_after"] < shown["loss_before"]
    losses = f"round {number}: {shown['loss_before']} → {shown['loss_after']}"
    stage.book.true("the loss falls", losses, shown["loss_after"] > 0 and fell)
    found, audits = {}, 0
    for row in shown["delta_list"]:
        delta = await stage.school.ask(lambda c, i=row["id"]: c.delta(i))
        found[str(row["sender"])] = delta
        stage.book.same("deltas have the rule's coding", number, codec_of(row["density"]), codec)
        said = [v["verdict"] for v in delta["votes"]]
        what = f"round {number}: {said}"
        stage.book.true("jurors screen each delta", what, 2 * said.count("yes") > len(said) > 0)
        if delta["audit"] is not None:
            audits += 1
            said = [v["verdict"] for v in delta["audit"]["votes"]]
            good = 2 * said.count("yes") > len(delta["audit"]["auditors"])
            stage.book.true("a segment is replayed bit by bit", f"round {number}: {said}", good)
    stage.book.same("a segment is replayed bit by bit", f"audits in round {number}", audits, 1)
    sizes = [f"{d['blob_bytes']:,}" for d in shown["delta_list"]]
    stage.say(f"  {codec}: payloads of {' and '.join(sizes)} bytes")
    return found


# --- a base that has moved on ---------------------------------------------------------------------


async def rebase(stage: Stage) -> None:
    """A delta trained elsewhere, on a base that the network has left; by the real commands."""
    learner, owner = stage.pupils
    directory = stage.school.directory
    base_file, file = directory / "base.safetensors", directory / "delta.safetensors"
    old = (await _called(owner, "model", "show"))["root"]
    await _called(owner, "model", "export", "--model", "chain", base_file)
    await learner.start(rounds=1)
    shown = await stage.ordinary(0, [learner])
    code = await learner.ended(stage.school.left_s("settle"))
    stage.book.same("a learner of one round ends", "exit code", code, OK)
    specs, data = await stage.school.lesson(0)
    base = load_file(base_file)
    made = await asyncio.to_thread(trained, specs.model, specs.training, data, base)
    save_file(dict(made), file, {BASE_KEY: old})

    new = str(shown["result_root"])
    name = "a delta of an old base is refused, with the base to rebase on"
    code, _, told = await owner.call("delta", "submit", file)
    stage.book.same(name, told, code, REFUSED)
    named = all(word in told for word in (old, new, "blyan delta rebase"))
    stage.book.true(name, told, named)
    taken = await _called(owner, "delta", "rebase", file)
    name = "rebase says from where and to where"
    stage.book.same(name, f"{taken}", [taken["from"], taken["onto"]], [old, new])
    now = load_file(file)
    same = now.keys() == made.keys() and all((now[k] == made[k]).all() for k in made)
    stage.book.true("rebase changes no value", "it did", same)

    good = await _submitted(stage, owner, file, OK, MERGED)
    name = "what proves nothing must help"
    least = [v["lower"] for v in good["votes"]]
    stage.book.true(name, f"{least}", bool(least) and all(x >= 0 for x in least))
    stage.book.true(name, f"reward {good['reward']}", int(good["reward"]) > 0)
    after = (await _called(owner, "model", "show"))["root"]
    stage.book.true("it is in the model", f"root {after}", after != new)

    bad = directory / "harm.safetensors"
    save_file({k: -v for k, v in made.items()}, bad, {BASE_KEY: after})
    await _submitted(stage, owner, bad, REFUSED, "harmful")
    left = (await _called(owner, "model", "show"))["root"]
    stage.book.same("harm is not in the model", "root", left, after)


async def _submitted(stage: Stage, owner: Pupil, file: Path, code: int, status: str) -> Json:
    """A file taken through a round alone: its delta as the node shows it."""
    found, out, told = await owner.call("delta", "submit", file, "--json")
    if not out:
        raise Failure(f"blyan delta submit {file.name}: exit code {found}: {told}")
    name = "the jury judges a delta that proves nothing"
    stage.book.same(name, told, found, code)
    summary = json.loads(out)
    stage.book.same(name, told, [summary["status"], summary["proven"]], [status, False])
    shown = await stage.finished(int(summary["round"]))
    stage.say(f"{file.name}: exit code {found}, gain {summary['gain']}; {stage.told(shown)}")
    return await _called(owner, "delta", "show", summary["delta"])


async def _called(owner: Pupil, *arguments: str | Path) -> Json:
    """What a command prints as data."""
    code, out, told = await owner.call(*arguments, "--json")
    if code != OK:
        raise Failure(f"blyan {' '.join(map(str, arguments))}: exit code {code}: {told}")
    found: Json = json.loads(out)
    return found


def trained(model: ModelSpec, rule: TrainingSpec, data: RoundData, base: Tensors) -> Tensors:
    """New minus base of every tensor, after some steps of our own on the network's text."""
    sections: Sections = tuple(
        b"".join(base[f"{s.name}.{t.name}"].tobytes() for t in s.tensors) for s in model.shards()
    )
    shape = {"steps": OWN_STEPS, "batch": rule.batch, "context": model.context}
    batches = Assignment(data.train, Hash32(ZERO_HASH), PubKey(bytes(32)), 0, **shape)
    state = TrainState.fresh(sections)
    state = train_segment(model, rule, state, batches.batch, OWN_STEPS)
    found = {}
    for shard, section in zip(model.shards(), state.weights, strict=True):
        for tensor in shard.tensors:
            start, end = shard.offsets()[tensor.name]
            values = np.frombuffer(section[start:end], "<f4").reshape(tensor.shape)
            name = f"{shard.name}.{tensor.name}"
            found[name] = np.ascontiguousarray(values - base[name])
    return found
