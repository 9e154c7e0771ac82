"""The bf16 profile on a processor, and what of a GPU's way can be tried without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.learning_replay import tally
from learning import profile
from learning.bf16 import Bf16Ops, best_device
from learning.conformance import profile_of
from learning.init import initial_shards
from learning.ops import NATIVE, Ops
from learning.profile import bf16_class, kind_of
from learning.state import TrainState
from learning.train import Progress, train_segment
from tests.kit.nano import TINY, TINY_TRAINING, tiny_batches

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def test_new_processes_replay_the_same_bits() -> None:
    found = tally("bf16", 2)
    assert (found.wrong, found.tries, found.processes) == (0, 2, 1)


def test_it_learns_as_native_does_in_other_bits() -> None:
    rule = replace(TINY_TRAINING, learning_rate_nano=10_000_000)
    losses: dict[str, list[float]] = {}
    ends = {}
    kinds: dict[str, Ops] = {"native": NATIVE, "bf16": Bf16Ops(CPU)}
    for name, ops in kinds.items():
        seen: list[Progress] = []
        start, batch = TrainState.fresh(initial_shards(TINY)), tiny_batches()[0]
        ends[name] = train_segment(TINY, rule, start, lambda _, b=batch: b, 8, seen.append, ops)
        losses[name] = [p.loss for p in seen]
    assert losses["bf16"] == pytest.approx(losses["native"], abs=0.1)
    assert losses["bf16"][-1] < losses["bf16"][0] - 0.3
    assert ends["bf16"].hash() != ends["native"].hash()
    smallest = np.frombuffer(ends["bf16"].weights[0], "<u4")
    assert np.count_nonzero(smallest & 0xFFFF) > len(smallest) // 2  # weights are kept in fp32


def test_products_are_of_operands_in_bf16() -> None:
    rng = np.random.default_rng(3)
    a, b = (torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in ((5, 7), (7, 3)))
    found = Bf16Ops(CPU).matmul(a, b)
    assert found.dtype == torch.float32
    exact = a.bfloat16().double() @ b.bfloat16().double()
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=2**-7)


def test_the_way_of_a_gpu_finds_the_same_attention() -> None:
    """Its kernels, asked to run on the processor."""
    rng = np.random.default_rng(4)
    shape = (2, 3, 9, 8)
    parts = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(3)]
    query, key, value = parts
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    for seen in (None, mask):
        one = Bf16Ops(CPU).attention(query, key, value, seen)
        other = Bf16Ops(GPU).attention(query, key, value, seen)
        assert torch.allclose(one, other, atol=0.03)
        assert one.dtype == other.dtype == torch.float32


def test_a_class_names_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    if best_device() == CPU:
        assert profile_of("bf16").startswith(f"{bf16_class(CPU)}/")
    assert bf16_class(CPU).startswith("bf16/torch-")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (SXM) " * 4)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    name = bf16_class(GPU)
    assert name.startswith("bf16/torch-")
    assert "/cuda-12.8/nvidia-h200-sxm-" in name
    assert name.endswith("-sm90")
    assert len(f"{name}/{'0' * 16}".encode()) <= 128
    assert kind_of(name) == "bf16"
    assert "CUBLAS_WORKSPACE_CONFIG" in profile.environment()
