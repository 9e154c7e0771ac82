"""Random numbers, genesis weights, data assignment and splits against the slow reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from chain.errors import InputError
from chain.hashes import Context, Hash32
from chain.prf import Prf, below
from chain.types import PubKey
from corpus.batches import Assignment, page_grid
from corpus.dataset import build
from corpus.ingest import Document
from corpus.similar import clusters
from corpus.split import split
from learning.init import initial_shards
from learning.spec import ModelSpec
from tests.reference import data_ref as reference

VECTORS: dict[str, Any] = json.loads(reference.VECTORS.read_text())
SEED, LEARNER, JURY = (bytes.fromhex(VECTORS[k]) for k in ("seed", "learner", "jury_seed"))
X = Context("x")


def assignment(train: bytes, seed: bytes = SEED, round_: int = 3) -> Assignment:
    return Assignment(train, Hash32(seed), PubKey(LEARNER), round_, steps=5, batch=4, context=64)


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert json.loads(json.dumps(reference.vectors())) == VECTORS


def test_words_follow_the_page() -> None:
    prf = Prf(SEED, "label", 7, LEARNER)
    expected = tuple(int(word) for word in VECTORS["words"])
    assert prf.words(5) == expected
    assert prf.words(2, at=3) == expected[3:]
    assert Prf(SEED, "label", 8, LEARNER).words(1) != expected[:1]
    assert [below(w, 10) for w in (0, 2**63, 2**64 - 1)] == [0, 5, 9]


def test_genesis_weights_follow_the_page() -> None:
    shards = initial_shards(ModelSpec.from_json(VECTORS["model"]))
    assert [X.hash(shard).hex() for shard in shards] == VECTORS["shards"]


@pytest.mark.parametrize("case", VECTORS["assignments"], ids=lambda c: str(c["size"]))
def test_assignments_follow_the_page(case: dict[str, Any]) -> None:
    train = reference.prose(7, case["size"])
    assert list(page_grid(len(train), 65)) == case["grid"]
    given = assignment(train)
    assert list(given.pages) == case["pages"]
    batches = given.batches(0, 5)
    for batch, starts in zip(batches, case["starts"], strict=True):
        assert [bytes(window) for window in batch] == [train[s : s + 65] for s in starts]
    assert given.root(5).hex() == case["batch_root"]
    slices = given.jury_slices(Hash32(JURY), 8)
    assert list(slices.starts) == case["jury"]
    assert [bytes(w) for w in slices.windows] == [train[s : s + 65] for s in case["jury"]]


def test_a_jury_asks_about_pages_that_the_learner_was_not_given() -> None:
    train = reference.prose(1, 100_000)
    given = assignment(train)
    page, count = page_grid(len(train), 65)
    assert 2 * len(given.pages) == count
    slices = given.jury_slices(Hash32(JURY), 128)
    assert len(slices.starts) == len(set(slices.starts)) > 100
    for start in slices.starts:
        first, last = start // page, (start + 64) // page
        assert {min(first, count - 1), min(last, count - 1)}.isdisjoint(given.pages)


def test_learners_rounds_and_seeds_give_other_batches() -> None:
    train = reference.prose(1, 100_000)
    one = assignment(train).batch(0)
    assert np.array_equal(one, assignment(train).batch(0))
    others = [assignment(train, round_=4), assignment(train, seed=JURY)]
    others.append(Assignment(train, Hash32(SEED), PubKey(JURY), 3, steps=1, batch=4, context=64))
    for other in others:
        assert not np.array_equal(one, other.batch(0))
    assert assignment(train).root(2) != assignment(train).root(3)


def test_no_more_steps_are_taken_than_the_round_has() -> None:
    """A manifest says how many: 2^32 of them would take a day."""
    given = assignment(reference.prose(1, 10_000))
    for steps in (6, 2**32 - 1):
        with pytest.raises(InputError, match=f"{steps} steps of a round that has 5"):
            given.root(steps)
        with pytest.raises(InputError, match=f"{steps} steps of a round that has 5"):
            given.batches(steps - 1, steps)
    assert given.batches(3, 5).shape == (2, 4, 65)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="one window takes 65"):
        assignment(bytes(64))


@pytest.mark.parametrize("case", VECTORS["splits"], ids=lambda c: f"{len(c['sizes'])}-units")
def test_splits_follow_the_page(case: dict[str, Any]) -> None:
    parts = [reference.prose(100 + i, n) for i, n in enumerate(case["sizes"])]
    for i in range(case["copies"]):
        parts[2 * i + 1] = b"other" + parts[2 * i][5:]
    assert clusters(parts) == case["clusters"]
    dataset = build([Document(str(i), p) for i, p in enumerate(parts)], "MIT", "t")
    found = split(dataset.manifest, b"".join(parts), Hash32(SEED))
    assert X.hash(found.train).hex() == case["train"]
    assert X.hash(found.holdout).hex() == case["holdout"]


def test_near_duplicates_fall_on_one_side() -> None:
    parts = [reference.prose(i, 2000) for i in range(60)]
    copies = [parts[i].upper().replace(b" ", b"  ") + b"PS\n" for i in range(20)]
    dataset = build([Document(str(i), p) for i, p in enumerate(parts + copies)], "MIT", "t")
    text = b"".join(parts + copies)
    held = 0
    for i in range(10):
        found = split(dataset.manifest, text, X.hash(bytes([i])))
        assert 0 < len(found.holdout) <= len(text) // 4
        for part, copy in zip(parts, copies, strict=False):
            assert (part in found.holdout) == (copy in found.holdout)
            held += part in found.holdout
    assert held > 0  # the rule was put to work at all


@pytest.mark.parametrize("repeated", [b"the same line over and over\n" * 200, b"a" * 4096])
def test_a_text_of_one_thing_still_splits(repeated: bytes) -> None:
    dataset = build([Document("a", repeated)], "MIT", "t")
    found = split(dataset.manifest, repeated, Hash32(SEED))
    assert len(found.train) + len(found.holdout) >= len(repeated)
    assert len(found.holdout) >= 200


def test_another_text_is_refused() -> None:
    text = reference.prose(1, 4096)
    dataset = build([Document("a", text)], "MIT", "t")
    with pytest.raises(InputError, match="the manifest says 4096"):
        split(dataset.manifest, text + b"!", Hash32(SEED))
