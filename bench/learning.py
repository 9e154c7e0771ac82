"""What a learning round's own arithmetic costs, on one core.

    python -m bench.learning [--json] [--only GROUP]... [--small] [--tries N] [--plots DIR]
                             [--hivemind PYTHON]

The groups are `codec` (a tile's delta as bytes and back), `aggregate` (many deltas of a tile),
`payloads` (memory of a validator that aggregates many large ones, four duties at once),
`moe` (a layer's experts against a plain loop over them), `profiles` (a training step in each
numeric profile), `memory` (of a step: whole batches, pieces of them, layers computed again) and
`replay` (N replays in each profile, in other processes, threads and instruction sets).
Six train whole runs in one process, seeded, and leave their curves as SVG in DIR: `suite20` (loss
at several compressions against averaging in fp32; 4 minutes of an idle core), `rounds` (rounds to
the same loss; 3), `robust` (bad learners among good ones; 8), `moments` (what is kept between
rounds; 6), `momentum` (over rounds of 30 steps; 16) and `guard` (the worst of many rounds without
anybody bad; 2).
`peers` starts real networks, ours and others' (hivemind in PYTHON's environment, bare gloo), which
train the same model (25 minutes; see bench/learning_peers.py): 30 steps a round, for the wall time.
`peers-short`, 10 steps a round, is for the bytes (15 minutes), `peers-nano` for a small model (10).
Every row stands beside its floor from the same run where there is one. Exit code 1 if a target is
missed. `--small` does little: its figures mean nothing.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core, whatever the machine has
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `learning` would be this file

import numpy as np
import numpy.typing as npt

from bench.measure import Row, at_most, in_turns, quantile, run_groups, seconds
from chain import limits
from chain.hashes import ZERO_HASH
from tiles.aggregate import aggregate_tile
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.delta import PayloadTile, decode_delta, encode_delta
from tiles.layout import ShardSpec, TensorSpec

DENSITY = 256  # of 4096: one entry in 16
OTHERS = {"int8": INT8_NUMBER, "lowrank_8": low_rank_number(8)}  # codings beside the sparse one


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    elements: int = limits.TILE_BYTES // 4
    deltas: int = 32
    samples: int = 15
    width: int = 256  # of a mixture of experts
    shapes: tuple[str, ...] = ("nano", "wide")  # of learning_profiles
    trained: tuple[str, int, int] = ("small", 32, 2)  # model, batch and steps of learning_memory
    payloads: tuple[int, int] = (32, 16)  # of learning_payloads: how many, and their tiles
    tries: int = 20  # replays in each profile; a claim wants 1,000
    is_small: bool = False
    plots: Path | None = None
    hivemind: str | None = None  # an interpreter that has it


SMALL = Amount(10_000, 3, 2, 16, ("nano",), ("nano", 8, 1), (3, 1), 2, is_small=True)


def _values(amount: Amount, count: int) -> Iterator[npt.NDArray[np.float32]]:
    """Deltas with a common direction and as much noise of their own."""
    rng = np.random.default_rng(1)
    common = rng.standard_normal(amount.elements)
    for _ in range(count):
        noise = rng.standard_normal(amount.elements)
        yield ((common + noise) * 1e-3).astype(np.float32)


def _spec(amount: Amount) -> ShardSpec:
    return ShardSpec(0, "expert", "sparse", (TensorSpec("w", "F32", (amount.elements,)),))


def codec(amount: Amount) -> Iterator[Row]:
    """One tile's delta, encoded and decoded. Floors: putting each chunk in order as far as its
    largest go; finding the ones of the bits."""
    spec, (values,) = _spec(amount), _values(amount, 1)
    payload, _ = encode_delta(ZERO_HASH, {0: values}, [spec], DENSITY)
    whole = values[: len(values) // limits.CHUNK_ELEMENTS * limits.CHUNK_ELEMENTS]
    sizes = np.abs(whole.reshape(-1, limits.CHUNK_ELEMENTS))
    bits = np.frombuffer(payload, np.uint8)
    made, read, order, ones = in_turns(
        amount.samples,
        lambda: encode_delta(ZERO_HASH, {0: values}, [spec], DENSITY),
        lambda: decode_delta(payload, [spec]),
        lambda: np.partition(sizes, limits.CHUNK_ELEMENTS - DENSITY, axis=1),
        lambda: np.flatnonzero(np.unpackbits(bits).view(np.bool_)),
    )
    yield at_most("encode_tile", _ms(made), "ms", 10.0, _ms(order))
    yield at_most("decode_tile", _ms(read), "ms", 2.5, _ms(ones))
    yield at_most("encode_ratio", 100 * len(payload) / values.nbytes, "%", None)
    for name, number in OTHERS.items():
        yield from _other_coding(name, number, values, spec, amount)


def _other_coding(
    name: str, number: int, values: npt.NDArray[np.float32], spec: ShardSpec, amount: Amount
) -> Iterator[Row]:
    payload, _ = encode_delta(ZERO_HASH, {0: values}, [spec], number)
    made, read = in_turns(
        amount.samples,
        lambda: encode_delta(ZERO_HASH, {0: values}, [spec], number),
        lambda: decode_delta(payload, [spec]),
    )
    yield at_most(f"encode_{name}", _ms(made), "ms", None)
    yield at_most(f"decode_{name}", _ms(read), "ms", None)
    yield at_most(f"{name}_ratio", 100 * len(payload) / values.nbytes, "%", None)


def aggregate(amount: Amount) -> Iterator[Row]:
    """Decoded deltas of one tile to its new bytes: Gram matrix with its root, weights, sum, tile
    root; and the same from payloads. Floor: the bare inner products in float64."""
    spec = _spec(amount)
    payloads = [
        encode_delta(ZERO_HASH, {0: values}, [spec], DENSITY)[0]
        for values in _values(amount, amount.deltas)
    ]
    base = np.zeros(amount.elements, "<f4").tobytes()
    once = partial(_aggregate, base, payloads, spec)
    table = np.ones((amount.deltas, amount.elements // 16))
    decoded = [PayloadTile(payload, [spec], 0, 0) for payload in payloads]
    aggregate_tile(base, decoded)  # from here on they have what they decode
    held, taken, products = in_turns(
        max(2, amount.samples // 3),
        lambda: aggregate_tile(base, decoded),
        once,
        lambda: [table @ table.T for _ in range(16)],
    )
    yield at_most(f"aggregate_{amount.deltas}", _ms(held), "ms", 250.0, _ms(products))
    yield at_most("aggregate_from_payloads", _ms(taken), "ms", None, _ms(products))
    tracemalloc.start()
    seconds(once)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    yield at_most("aggregate_memory", most / 1e6, "MB", 64.0)


def _aggregate(base: bytes, payloads: list[bytes], spec: ShardSpec) -> None:
    aggregate_tile(base, [PayloadTile(payload, [spec], 0, 0) for payload in payloads])


def payloads(amount: Amount) -> Iterator[Row]:
    """Peaks of processes that aggregate."""
    from bench.learning_payloads import payload_rows

    return payload_rows(*amount.payloads)


def moe(amount: Amount) -> Iterator[Row]:
    """A layer's mixture of experts; torch is imported for this group alone."""
    from bench.learning_moe import moe_rows

    return moe_rows(amount.width, amount.samples)


def profiles(amount: Amount) -> Iterator[Row]:
    """A training step in each numeric profile, against torch left to itself."""
    from bench.learning_bf16 import loss_rows
    from bench.learning_profiles import profile_rows

    yield from profile_rows(amount.shapes, amount.samples)
    yield from loss_rows(2 if amount.is_small else 150)


def memory(amount: Amount) -> Iterator[Row]:
    """Peaks of training processes."""
    from bench.learning_memory import memory_rows

    return memory_rows(*amount.trained)


def replay(amount: Amount) -> Iterator[Row]:
    """Replayed segments that come out otherwise."""
    from bench.learning_replay import replay_rows

    return replay_rows(amount.tries)


def curves(group: str, amount: Amount) -> Iterator[Row]:
    """What the rules of a round do to the loss; torch is imported for these groups alone."""
    from bench.learning_curves import FEW, GROUPS, Curves

    much = FEW if amount.is_small else Curves()
    return GROUPS[group](replace(much, plots=amount.plots))


def peers(size: str, amount: Amount) -> Iterator[Row]:
    """Real nodes and learners beside hivemind and gloo."""
    from bench.learning_peers import SMALL_TASK, TASKS, peer_rows

    return peer_rows(SMALL_TASK if amount.is_small else TASKS[size], amount.hivemind)


def _ms(samples: list[float]) -> float:
    return quantile(samples, 0.5) * 1000


# Of bench.learning_curves, which loads torch
CURVES = ("suite20", "rounds", "robust", "moments", "momentum", "guard")
GROUPS: dict[str, Callable[[Amount], Iterator[Row]]] = {
    "codec": codec,
    "aggregate": aggregate,
    "payloads": payloads,
    "moe": moe,
    "profiles": profiles,
    "memory": memory,
    "replay": replay,
    **{name: partial(curves, name) for name in CURVES},
    "peers": partial(peers, "tiny"),
    "peers-short": partial(peers, "short"),
    "peers-nano": partial(peers, "nano"),
}


if __name__ == "__main__":
    sys.exit(
        run_groups(__doc__, GROUPS, Amount(), SMALL, {"tries": int, "plots": Path, "hivemind": str})
    )
