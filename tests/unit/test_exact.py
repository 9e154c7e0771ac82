"""The exact profile: bit for bit what a plain numpy program computes, and close to the truth."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chain.hashes import Hash32
from learning import conformance
from learning.exact import ExactOps
from learning.exact_math import (
    MAX_INNER,
    DivergedError,
    exp,
    halving_sum,
    log,
    norm,
    product,
    sqrt_,
    to_grid,
    turns,
)
from learning.init import initial_shards
from learning.ops import NATIVE, Ops
from learning.profile import EXACT, kind_of
from learning.spec import ModelSpec, TrainingSpec
from learning.state import TrainState
from learning.train import Progress, train_segment
from tests.reference import exact_numbers, exact_ref

ROOT = Path(__file__).parent.parent.parent
VECTORS = json.loads((ROOT / "tests/vectors/learning/exact.json").read_text())
RNG = np.random.default_rng(5)


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


# --- the whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    VECTORS["trainings"],
    ids=["small", "conformance", "shared", "hash", "pieces", "dropout"],
)
def test_training_is_what_the_vectors_say(case: dict[str, Any]) -> None:
    model, rule = ModelSpec.from_json(case["model"]), TrainingSpec.from_json(case["training"])
    start, seen = TrainState.fresh(initial_shards(model)), list[Progress]()
    batches = conformance.conformance_batches(model, rule)
    key = Hash32(bytes.fromhex(case["mask_key"])) if rule.dropout_ppm else None
    end = train_segment(
        *(model, rule, start, batches.__getitem__, rule.steps, seen.append),
        ops=ExactOps(),
        mask_key=key,
    )
    assert end.hash().hex() == case["state"]
    assert [p.loss for p in seen] == pytest.approx(case["losses"], abs=2e-6)


def test_the_conformance_run_is_the_second_vector() -> None:
    case = VECTORS["trainings"][1]
    assert case["state"] == conformance.EXACT_STATE.hex()
    assert ModelSpec.from_json(case["model"]) == conformance.MODEL
    rule = TrainingSpec.from_json(case["training"])
    assert replace(conformance.TRAINING, densities=rule.densities) == rule
    assert conformance.profile_of("exact") == EXACT


@pytest.mark.parametrize("which", [0, -1], ids=["small", "dropout"])
def test_the_reference_still_gives_the_vectors(which: int) -> None:
    case = VECTORS["trainings"][which]
    text = exact_ref.text(case["model"], case["training"])
    key = bytes.fromhex(case.get("mask_key", ""))
    found = exact_ref.train(case["model"], case["training"], text, key)
    assert (found["state"], found["losses"]) == (case["state"], case["losses"])


def test_a_machine_that_rounds_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "ops_of", lambda kind: NATIVE)
    conformance._profile.cache_clear()
    with pytest.raises(Exception, match="does not round as IEEE 754 says"):
        conformance.profile_of("exact")
    name = conformance.profile_of("native")
    assert kind_of(name) == "native"
    assert len(name.encode()) <= 128
    conformance._profile.cache_clear()


FUSED_OR_LIBRARY = {
    *("addcmul", "addcmul_", "addcdiv", "addcdiv_", "addmm", "baddbmm", "lerp", "lerp_", "einsum"),
    *("mean", "var", "std", "cumsum", "prod", "dot", "vector_norm", "logsumexp", "pow", "pow_"),
    *("exp", "exp_", "log", "log_", "sqrt", "sqrt_", "rsqrt", "sigmoid", "softmax", "silu", "tanh"),
    *("sin", "cos", "scaled_dot_product_attention", "cross_entropy", "rms_norm", "fma"),
}


@pytest.mark.parametrize("module", ["exact.py", "exact_math.py", "routing.py"])
def test_no_kernel_is_used_that_rounds_in_its_own_way(module: str) -> None:
    """Square roots of numpy and of math are the processor's; sums are of doubles on a grid."""
    wrong = []
    for node in ast.walk(ast.parse((ROOT / "learning" / module).read_text())):
        if isinstance(node, ast.Attribute) and node.attr in FUSED_OR_LIBRARY:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner != "ops" and (owner, node.attr) not in {("np", "sqrt"), ("math", "sqrt")}:
                wrong.append(f"{module}:{node.lineno} {node.attr}")
        if isinstance(node, ast.Call):
            names = {keyword.arg for keyword in node.keywords}
            is_sum = isinstance(node.func, ast.Attribute) and node.func.attr == "sum"
            if {"alpha", "value"} & names or (is_sum and module != "routing.py" and not names):
                wrong.append(f"{module}:{node.lineno}")
    assert not wrong


# --- its parts -------------------------------------------------------------------------


def test_numbers_are_those_of_the_vectors() -> None:
    for row in VECTORS["numbers"]:
        x = torch.from_numpy(np.frombuffer(bytes.fromhex(row["x"]), "<f4").copy())
        assert exp(x).numpy().astype("<f4").tobytes().hex() == row["exp"]
    for position, i, cosine, sine in VECTORS["turns"]:
        found = [t[0, i].numpy().astype("<f4").tobytes().hex() for t in turns(position, 1, 12)]
        assert found == [cosine, sine]


def test_functions_are_near_what_they_stand_for() -> None:
    x = torch.linspace(-87, 87, 100_003)
    assert float(((exp(x).double() / x.double().exp()) - 1).abs().max()) < 2e-7
    y = torch.logspace(-20, 20, 10_001, dtype=torch.float64)
    assert float((log(y) - y.log()).abs().max()) < 1e-14
    cosine, sine = turns(7000, 500, 32)
    angle = np.arange(7000, 7500)[:, None] * 10_000.0 ** (-np.arange(16) / 16)
    assert np.abs(cosine.numpy() - np.cos(angle)).max() < 1e-7
    assert np.abs(sine.numpy() - np.sin(angle)).max() < 1e-7
    squares = noise(10_007).square()
    rounded_once = np.sqrt(squares.double().numpy()).astype(np.float32)
    assert np.array_equal(sqrt_(squares).numpy(), rounded_once)
    vector = noise(3 * 4096 + 17)
    assert norm(vector) == pytest.approx(float(vector.double().norm()), rel=1e-6)
    assert norm(vector) == float(exact_numbers.length(vector.numpy()))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 96, 255])
def test_sums_go_by_halves(count: int) -> None:
    x = noise(5, count)
    assert np.array_equal(halving_sum(x).numpy(), exact_numbers.last_fold(x.numpy()))
    assert np.array_equal(halving_sum(x.T, 0)[0].numpy(), exact_numbers.fold(x.numpy().T))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 3.0])
def test_a_grid_is_integers_in_bounds(scale: float) -> None:
    x = noise(40, 30) * scale
    integers, exponent = exact_numbers.grid(x.numpy())
    assert np.abs(integers).max() <= 2**21
    assert np.array_equal(to_grid(x).double().numpy(), integers * 2.0**exponent)
    each = to_grid(noise(3, 4, 5) * torch.tensor([1.0, 1e-3, 1e6])[:, None, None], slices=True)
    again = torch.stack([to_grid(part) for part in each])
    assert torch.equal(each, again)
    minus = torch.tensor([-0.0, -1e-30, 1.0])
    assert not np.signbit(to_grid(minus).numpy()).any()


def test_products_are_exact_at_their_bounds_in_any_order() -> None:
    """Ones as large as a grid has them, at the longest inner dimension and beyond."""
    inner = MAX_INNER + 5
    signs = torch.from_numpy(RNG.choice(np.array([-1.0, 1.0], np.float32), (4, inner)))
    a, b = to_grid(signs), to_grid(torch.ones(inner, 3))
    assert torch.equal(product(a, b)[:, 0], signs.double().sum(1).float())
    a, b = noise(8, inner), noise(inner, 6)
    expected = exact_numbers.product(exact_numbers.grid(a.numpy()), exact_numbers.grid(b.numpy()))
    order = torch.from_numpy(RNG.permutation(MAX_INNER))
    a, b = to_grid(a), to_grid(b)
    assert np.array_equal(product(a, b).numpy(), expected)
    a, b = a[:, :MAX_INNER], b[:MAX_INNER]
    assert torch.equal(product(a[:, order], b[order]), product(a, b))
    zero = product(to_grid(-torch.ones(2, 3)), torch.zeros(3, 2))
    assert not np.signbit(zero.numpy()).any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_what_overflows_is_refused(value: float) -> None:
    x = noise(3, 3)
    x[1, 1] = value
    for refused in (partial(to_grid, x), partial(to_grid, x[None], slices=True)):
        with pytest.raises(DivergedError, match="training has diverged"):
            refused()
    with pytest.raises(DivergedError):
        norm(x.flatten())


# --- gradients ---------------------------------------------------------------------------

Act = Callable[..., Tensor]
TARGETS = torch.from_numpy(RNG.integers(0, 9, 12))
MASK = torch.from_numpy(np.tri(5, 7, 2, dtype=bool))
CASES: dict[str, tuple[Callable[[Ops], Act], list[tuple[int, ...]]]] = {
    "matmul": (lambda ops: ops.matmul, [(2, 5, 8), (8, 6)]),
    "softmax": (lambda ops: ops.softmax, [(12, 9)]),
    "silu": (lambda ops: ops.silu, [(12, 9)]),
    "weigh": (lambda ops: ops.weigh, [(12, 9), (12,)]),
    "rms_norm": (lambda ops: ops.rms_norm, [(2, 6, 9), (9,)]),
    "embedding": (lambda ops: partial(ops.embedding, TARGETS), [(9, 4)]),
    "cross_entropy": (lambda ops: lambda x: ops.cross_entropy(x, TARGETS), [(12, 9)]),
    "causal": (lambda ops: lambda *a: ops.attention(*a, None), [(2, 3, 7, 4)] * 3),
    "masked": (
        lambda ops: lambda *a: ops.attention(*a, MASK),
        [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_near_torch_s(name: str) -> None:
    take, shapes = CASES[name]
    inputs = [noise(*shape) for shape in shapes]
    results = []
    for ops, kind in ((ExactOps(), torch.float32), (NATIVE, torch.float64)):
        given = [x.to(kind).requires_grad_() for x in inputs]
        out = take(ops)(*given)
        weights = torch.cos(torch.arange(out.numel(), dtype=kind)).reshape(out.shape)
        results.append([out.detach(), *torch.autograd.grad((out * weights).sum(), given)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize(("kept", "group"), [(0, 1 << 18), (1 << 24, 1), (0, 100)])
def test_attention_in_groups_or_computed_twice_has_the_same_bits(
    kept: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [noise(2, 3, 7, 4) for _ in range(3)]
    weights = noise(2, 3, 7, 4)

    def found() -> list[Tensor]:
        given = [x.clone().requires_grad_() for x in inputs]
        out = ExactOps().attention(given[0], given[1], given[2], None)
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]

    expected = found()
    monkeypatch.setattr("learning.exact._KEPT", kept)
    monkeypatch.setattr("learning.exact._GROUP", group)
    assert all(map(torch.equal, found(), expected))
