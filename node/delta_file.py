"""A delta trained elsewhere, from a safetensors file (docs/guides/train.md).

Tensors are named `<shard>.<tensor>` as the model's are, fp32, each value new weight minus base
weight. A shard may be left out, and so may a tensor of one: then it does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from chain import records as r
from chain.errors import InputError, TxError
from chain.hashes import ZERO_HASH, Hash32
from chain.transactions import PodlManifest
from chain.types import PubKey, ShardIndex
from node.learner_files import LearnerFiles, Prepared
from node.submission import Submission, Summary
from tiles.delta import encode_delta, payload_root
from tiles.layout import ShardSpec, TensorSpec

BASE_KEY = "blyan.base"  # metadata: the model root that the delta starts from, if it says so
MAX_FILE_BYTES = 16 * 1024**3

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """A checked delta: flat fp32 values (elements,) of each shard it changes."""

    shards: dict[int, Floats]
    base: Hash32 | None  # what its metadata names


def read_delta(path: Path, specs: Sequence[ShardSpec]) -> DeltaFile:
    """Read and check a file. InputError says which tensor is wrong and what was expected."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a .safetensors file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    places = {f"{s.name}.{t.name}": (s, t) for s in specs for t in s.tensors}
    shards: dict[int, Floats] = {}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                spec, tensor = _place(path, name, places)
                values = _values(path, name, tensor, file)
                flat = shards.setdefault(spec.index, np.zeros(spec.elements, np.float32))
                start, end = spec.offsets()[tensor.name]
                flat[start // 4 : end // 4] = values.reshape(-1)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    shards = {i: flat for i, flat in shards.items() if flat.any()}
    if not shards:
        raise InputError(f"{path}: every value is zero; there is nothing to submit")
    return DeltaFile(shards, _base(path, metadata))


def _place(
    path: Path, name: str, places: dict[str, tuple[ShardSpec, TensorSpec]]
) -> tuple[ShardSpec, TensorSpec]:
    try:
        return places[name]
    except KeyError:
        close = get_close_matches(name, places, 1)
        hint = f"; did you mean {close[0]}?" if close else f", such as {next(iter(places))}"
        raise InputError(
            f"{path}: tensor {name!r} is not in the model; expected <shard>.<tensor>{hint}"
        ) from None


def _values(path: Path, name: str, tensor: TensorSpec, file: Any) -> Floats:
    told = file.get_slice(name)
    if told.get_dtype() != tensor.dtype:
        raise InputError(
            f"{path}: tensor {name} is {told.get_dtype()}, expected {tensor.dtype}; convert it"
        )
    if tuple(told.get_shape()) != tensor.shape:
        raise InputError(
            f"{path}: tensor {name} has the shape {list(told.get_shape())}, "
            f"expected {list(tensor.shape)}"
        )
    values: Floats = np.asarray(file.get_tensor(name), np.float32)
    bad = np.flatnonzero(~np.isfinite(values.reshape(-1)))
    if bad.size:
        raise InputError(
            f"{path}: tensor {name} has {bad.size} values that are not finite, the first at "
            f"{int(bad[0])}; did training diverge?"
        )
    largest = float(np.abs(values).max())
    if largest >= 1.0:
        raise InputError(
            f"{path}: tensor {name} changes a weight by {largest:.3g}; a delta's values are "
            "below 1. Is this new minus base, and not the weights themselves?"
        )
    return values


def _base(path: Path, metadata: dict[str, str]) -> Hash32 | None:
    text = metadata.get(BASE_KEY)
    return None if text is None else parse_root(text, f"{path}: metadata {BASE_KEY}")


def parse_root(text: str, where: str) -> Hash32:
    """A 32-byte hash in hexadecimal."""
    try:
        root = bytes.fromhex(text)
    except ValueError:
        root = b""
    if len(root) != 32:
        raise InputError(f"{where}: expected 64 hexadecimal digits, not {text!r}")
    return Hash32(root)


def start_of(path: Path, delta: DeltaFile, told: Hash32 | None) -> Hash32:
    """The model root that a file's delta starts from: what its metadata name, or `told`.

    InputError if neither says it, TxError `stale_base` if they differ."""
    start = delta.base or told
    if start is None:
        raise InputError(
            f"{path} does not say which model it starts from: name its root with --base ROOT "
            "(`blyan model export` writes it to the exported file as blyan.root), or put it into "
            f"the file's metadata as {BASE_KEY}"
        )
    if told is not None and told != start:
        raise TxError(
            "stale_base",
            f"{path} starts from {start.hex()} by its metadata, not from {told.hex()}",
        )
    return start


def encode_file(
    delta: DeltaFile,
    record: r.RoundRecord,
    learner: PubKey,
    specs: Sequence[ShardSpec],
    density: int,
) -> tuple[bytes, PodlManifest]:
    """Payload and a manifest that says what cannot be proven (all of the training)."""
    payload, _ = encode_delta(record.base_root, delta.shards, specs, density)
    every = len(delta.shards) == len(specs)
    manifest = PodlManifest(
        round=record.number,
        learner=learner,
        base_root=record.base_root,
        proven=0,
        datasets=(),
        seed=ZERO_HASH,
        profile="",
        steps=0,
        segment_steps=0,
        batch_root=ZERO_HASH,
        state_hashes=(),
        residual_before=ZERO_HASH,
        residual_after=ZERO_HASH,
        optimizer_before=ZERO_HASH,
        optimizer_after=ZERO_HASH,
        payload_root=payload_root(payload),
        density=density,
        shards=() if every else tuple(ShardIndex(i) for i in sorted(delta.shards)),
    )
    return payload, manifest


async def submit_delta(
    submission: Submission, files: LearnerFiles, delta: DeltaFile, base: Hash32
) -> Summary:
    """Take a file's delta through the round that trains now or the next one.

    `base`: the model root it starts from; a round with any other is refused (TxError
    `stale_base`). What an interrupted run left in hand is finished first, and then instead.
    """
    resumed = await submission.resume()
    if resumed is not None:
        submission.progress.say("finished the delta in hand instead; run again to submit this one")
        return resumed
    reader = submission.reader
    model = await reader.need(r.ModelRecord, r.MODEL, "model")
    _check_base(base, model.root)
    joined = await submission.join(late=True)
    record = await submission.in_training(joined.number)
    _check_base(base, record.base_root)
    specs = await reader.round_specs(record.number)
    density = specs.training.density(record.number)
    payload, manifest = encode_file(delta, record, submission.account, reader.specs, density)
    salt, blob, size = await submission.upload(payload)
    prepared = Prepared(manifest, salt, blob, size)
    files.save_pending(prepared)
    return await submission.finish(prepared)


def _check_base(base: Hash32, current: Hash32) -> None:
    if base != current:
        raise TxError(
            "stale_base",
            f"the delta starts from {base.hex()}; the model is {current.hex()} now: train again "
            "from what `blyan model export` gives, or take it over with `blyan delta rebase`",
        )
