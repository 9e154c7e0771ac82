"""Generation: the cache changes no bit that matters, and the commands on a real chain's model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chain.errors import InputError
from learning.evaluate import holdout_loss, holdout_windows
from learning.generate import Generator, generate
from learning.init import initial_shards
from learning.model import forward, weights_from_shards
from learning.spec import ModelSpec
from node.worker.client import Worker
from tests.kit.nano import TINY, library

BASE = initial_shards(TINY)
TEXT = library(10_000)[:400]


def whole(text: bytes, spec: ModelSpec = TINY) -> torch.Tensor:
    """Logits after the last byte, without a cache."""
    with torch.inference_mode():
        tokens = torch.tensor([list(text)])
        return forward(spec, weights_from_shards(spec, initial_shards(spec)), tokens).logits[0, -1]


def test_every_form_of_a_model_may_be_read_in_pieces() -> None:
    for form in ({"routing": "hash"}, {"shared_experts": 2}, {"top_k": 1}, {"experts": 9}):
        spec = replace(TINY, **form)  # type: ignore[arg-type]
        model = Generator(spec, initial_shards(spec))
        for start in range(0, 16, 4):
            logits = model.read(TEXT[start : start + 4])
            expected = whole(TEXT[: start + 4], spec)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [(1,) * 16, (16,), (5, 1, 10), (15, 1), (3, 13)])
def test_a_context_read_in_any_pieces_gives_the_same_logits(cuts: tuple[int, ...]) -> None:
    model, at = Generator(TINY, BASE), 0
    for size in cuts:
        logits = model.read(TEXT[at : at + size])
        at += size
        torch.testing.assert_close(logits, whole(TEXT[:at]), rtol=1e-4, atol=1e-5)


def test_beyond_the_context_a_byte_sees_the_last_ones() -> None:
    """One layer's attention depends on what is in reach alone: then the window moves exactly."""
    spec = replace(TINY, layers=1)
    shards = initial_shards(spec)
    model = Generator(spec, shards)
    moved = model.read(TEXT[:100])
    with torch.inference_mode():
        window = torch.tensor([list(TEXT[100 - spec.context : 100])])
        again = forward(spec, weights_from_shards(spec, shards), window).logits[0, -1]
    torch.testing.assert_close(moved, again, rtol=1e-3, atol=1e-4)
    pieces = Generator(spec, shards)
    for byte in TEXT[:100]:
        logits = pieces.read(bytes([byte]))
    torch.testing.assert_close(logits, moved, rtol=1e-4, atol=1e-5)
    kept = pieces._kept[0]
    assert kept is not None
    assert kept[0].shape[2] == spec.context - 1  # bounded for ever


def test_a_seed_names_a_text() -> None:
    def text(**options: float) -> bytes:
        return bytes(generate(TINY, BASE, b"ab", 60, **options))  # type: ignore[arg-type]

    assert len(text()) == 60
    assert text() == text() != text(seed=1)
    assert text(temperature=0) == text(temperature=0, seed=5) == text(top_k=1)
    likeliest = int(whole(b"ab").argmax())
    assert text(temperature=0)[0] == likeliest


def test_draws_follow_the_probabilities() -> None:
    """The first byte of 2,000 seeds against the softmax, within five standard deviations."""
    count = 2000
    draws = [
        next(generate(TINY, BASE, b"q", 1, temperature=1, top_k=256, seed=s)) for s in range(count)
    ]
    expected = F.softmax(whole(b"q").double(), 0).numpy()
    found = np.bincount(draws, minlength=256) / count
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-3).all()


@pytest.mark.parametrize(
    ("prompt", "count", "options"),
    [
        (b"", 1, {}),
        (b"a", 1, {"temperature": -1}),
        (b"a", 1, {"temperature": float("nan")}),
        (b"a", 1, {"top_k": 0}),
        (b"a", 1, {"top_k": 257}),
        (b"a" * 2**20, 1, {}),
    ],
)
def test_what_cannot_be_is_refused(prompt: bytes, count: int, options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        list(generate(TINY, BASE, prompt, count, **options))  # type: ignore[arg-type]


def test_the_worker_tells_each_byte_as_it_comes() -> None:
    async def run() -> None:
        worker = Worker()
        try:
            said: list[int] = []
            options = {"temperature": 0.8, "top_k": 40, "seed": 3}
            seconds = await worker.generate(TINY, BASE, b"ab", 20, said.append, **options)  # type: ignore[arg-type]
            assert bytes(said) == bytes(generate(TINY, BASE, b"ab", 20, seed=3))
            assert seconds > 0
            windows = holdout_windows(TEXT, TINY.context)
            measured = await worker.measure(TINY, BASE, windows)
            losses = measured.losses
            assert len(measured.imbalance) == TINY.layers
            assert all(1 <= layer <= TINY.experts for layer in measured.imbalance)
            assert len(losses) == len(windows)
            mean = sum(losses) / len(losses)
            assert mean == pytest.approx(holdout_loss(TINY, BASE, TEXT), rel=1e-6)
            with pytest.raises(InputError):
                await worker.measure(TINY, BASE, windows[:, 1:])
        finally:
            await worker.close()

    asyncio.run(run())
