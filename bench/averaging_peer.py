"""One of several peers that train as learners do here and average their weights by others' means.

`bench.learning_peers` starts it, in an interpreter that has hivemind if that is what averages. What
to train on lies in a directory: `plan.json`, `train.bin`, `base.f32`, the model that all begin
with, and `<index>.state`, a checkpoint of the learner whose part this takes. It reads the address
of the first peer (a line of JSON; none if it is the first itself), says its own, then `ready`,
reads `go`, and says of each round what training and averaging took. Weights after each go to files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; no numeric profile: it runs free

import numpy as np
import numpy.typing as npt
import torch

from chain.hashes import Hash32
from chain.types import PubKey
from corpus.batches import Assignment
from learning.spec import ModelSpec, TrainingSpec
from learning.state import Sections, deserialize_state
from learning.train import train_segment

Floats = npt.NDArray[np.float32]
Average = Callable[[Floats], Floats]  # everybody's mean, of what this peer has
STEP_S = 60.0  # one averaging; it stalls now and then


def flat(sections: Sections) -> Floats:
    """fp32 of all shards, in order."""
    return np.frombuffer(b"".join(sections), "<f4").astype(np.float32)


def cut(data: bytes, spec: ModelSpec) -> Sections:
    """The shards of a model from all of its bytes."""
    sizes = [shard.data_bytes for shard in spec.shards()]
    ends = list(accumulate(sizes))
    return tuple(data[end - size : end] for end, size in zip(ends, sizes, strict=True))


class Learner:
    """Trains the rounds of one account: same base, batches and optimizer as on the chain."""

    def __init__(self, directory: Path, index: int) -> None:
        plan = json.loads((directory / "plan.json").read_text())
        self.spec = ModelSpec.from_json(plan["model"])
        self.rounds: dict[int, Hash32] = {
            int(number): Hash32(bytes.fromhex(seed)) for number, seed in plan["seeds"].items()
        }
        self._rule = TrainingSpec.from_json(plan["training"])
        self._key = PubKey(bytes.fromhex(plan["learners"][index]))
        self._text = (directory / "train.bin").read_bytes()
        self.base = cut((directory / "base.f32").read_bytes(), self.spec)
        state = (directory / f"{index}.state").read_bytes()
        self._state = deserialize_state(self.spec, state)

    def train(self, base: Sections, number: int) -> Sections:
        """Weights after this learner's steps of a round; the optimizer's moments carry over."""
        rule, seed = self._rule, self.rounds[number]
        assigned = Assignment(
            self._text,
            seed,
            self._key,
            number,
            steps=rule.steps,
            batch=rule.batch,
            context=self.spec.context,
        )
        state = self._state.next_round(base)
        self._state = train_segment(
            *(self.spec, rule, state, assigned.batch, rule.steps), mask_key=assigned.mask_key()
        )
        return self._state.weights


def hivemind(options: argparse.Namespace, spec: ModelSpec, hear: TextIO) -> Average:
    """One all-reduce a round among as many peers as there are, matched over its DHT."""
    from hivemind import DHT
    from hivemind.averaging import DecentralizedAverager
    from hivemind.compression import NoCompression, Uniform8BitQuantization

    known = json.loads(hear.readline())
    dht = DHT(initial_peers=known, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    say(address=[str(address) for address in dht.get_visible_maddrs()])
    kinds = {"fp32": NoCompression, "8bit": Uniform8BitQuantization}
    counts = [math.prod(tensor.shape) for shard in spec.shards() for tensor in shard.tensors]
    averager = DecentralizedAverager(
        [torch.zeros(count) for count in counts],  # its quantiles are of one tensor each
        dht,
        start=True,
        prefix="blyan-bench",
        target_group_size=options.of,
        min_group_size=options.of,
        min_matchmaking_time=options.matchmaking_s,
        request_timeout=0.6 * options.matchmaking_s,
        compression=kinds[options.compression](),
    )

    def average(mine: Floats) -> Floats:
        with averager.get_tensors() as tensors:
            for tensor, part in zip(tensors, torch.from_numpy(mine).split(counts), strict=True):
                tensor[:] = part
        group = averager.step(timeout=STEP_S)
        if group is None or len(group) != options.of:
            raise SystemExit(f"{0 if group is None else len(group)} of {options.of} peers averaged")
        with averager.get_tensors() as tensors:
            averaged: Floats = torch.cat(tuple(tensors)).numpy()
        return averaged

    return average


def gloo(options: argparse.Namespace, spec: ModelSpec, hear: TextIO) -> Average:
    """A bare all-reduce over TCP."""
    hear.readline()
    say(address=[])
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{options.directory}/gloo",
        rank=options.index,
        world_size=options.of,
    )

    def average(mine: Floats) -> Floats:
        held = torch.from_numpy(mine.copy())
        torch.distributed.all_reduce(held)
        mean: Floats = (held / options.of).numpy()
        return mean

    return average


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--by", choices=("hivemind", "gloo"), required=True)
    parser.add_argument("--compression", choices=("fp32", "8bit"), default="fp32")
    parser.add_argument("--matchmaking-s", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, required=True)
    for name in ("index", "of"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    learner = Learner(options.directory, options.index)
    base = learner.base
    by = {"hivemind": hivemind, "gloo": gloo}[options.by]
    average = by(options, learner.spec, sys.stdin)
    say(ready=options.index)
    sys.stdin.readline()  # go
    began = time.monotonic()
    for number in learner.rounds:
        start = time.monotonic()
        trained = flat(learner.train(base, number))
        done = time.monotonic()
        mean = average(trained)
        ended = time.monotonic()
        mean.astype("<f4").tofile(options.directory / f"{options.index}-{number}.f32")
        base = cut(mean.astype("<f4").tobytes(), learner.spec)
        say(round=number, train_s=done - start, average_s=ended - done, at_s=ended - began)
    sys.stdin.readline()  # until all are done: who leaves early spoils the last average
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # hivemind's processes would be waited for; whoever started us ends the group
