"""Documents of a genesis that are each sound and cannot work together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain import limits
from chain.errors import GenesisError, VerifyError
from chain.hashes import ZERO_HASH
from chain.model_versions import Documents, ModelChange
from chain.params import parse_genesis
from learning.documents import JOB_BYTES_A_PARAMETER, check_together, least_part, read_documents
from learning.held import held_experts, layout_of
from learning.sizes import SIZES, SMALL_MODEL
from learning.spec import (
    MAX_JOB_BYTES,
    MAX_PARAMETERS,
    NANO_MODEL,
    NANO_TRAINING,
    ModelSpec,
    TrainingSpec,
)
from learning.versions import change_between
from node.config import Config
from node.founding import found_home, founding_genesis, template, write_genesis
from node.genesis import build_genesis
from node.home import Home
from node.sealed import seal
from node.worker.protocol import MAX_FRAME_BYTES
from tests.kit.nano import TINY
from tests.kit.voting import Assembly
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.delta import encode_delta, largest_payload
from tiles.layout import SUBTILE_ELEMENTS
from tiles.sections import _rice_bits, _stream_bytes, most_sparse_bytes

INT8 = replace(NANO_TRAINING, codec="int8")
EIGHTY = replace(SMALL_MODEL, experts=8)  # 79 million parameters
HUNDREDS = replace(SMALL_MODEL, experts=64)  # 0.6 thousand million


def test_the_models_with_a_name_and_the_template_go_together() -> None:
    for size in SIZES.values():
        assert read_documents(size.model.to_json(), size.training.to_json()) == (
            size.model,
            size.training,
        )
    document = template()
    read_documents(document["model"], document["training"])
    check_together(NANO_MODEL, INT8)


@pytest.mark.parametrize(
    ("model", "training", "reason"),
    [
        (
            EIGHTY,
            INT8,
            r"training.codec: int8: a payload of the model's 78921240 parameters may have 78962671 "
            r"bytes, and a blob holds 67108848; take another codec, or take a smaller model",
        ),
        (
            HUNDREDS,
            replace(NANO_TRAINING, densities=(256, 1024, 64)),
            r"training.densities: 1024: .* may have \d{9} bytes, .*; lower the densities, or take",
        ),
        (
            HUNDREDS,
            replace(NANO_TRAINING, codec="lowrank", rank=64),
            r"training.rank: 64: .* may have \d{9} bytes, .*; lower the rank, or take a smaller",
        ),
        (
            NANO_MODEL,
            replace(NANO_TRAINING, steps=100_000, segment_steps=1000, batch=1024),
            r"training.steps: .*: 197864 parameters\) a worker is given 6659957280 bytes, 6656"
            r"000000 of them text, and takes 4294967296; lower steps, batch or model.context",
        ),
        (
            ModelSpec(9, 4096, 8, 1, 1, 512, 8, "dense"),
            replace(NANO_TRAINING, densities=(16,)),
            r"model: to train the least part .*: 6\d{8} parameters\) a worker is given 1\d{10} "
            r"bytes, 7200 of them text, and takes 4294967296; lower layers, width, shared_experts",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anybody_trains(
    model: ModelSpec, training: TrainingSpec, reason: str
) -> None:
    documents = model.to_json(), training.to_json()
    assert (ModelSpec.from_json(documents[0]), TrainingSpec.from_json(documents[1])) == (
        model,
        training,
    )
    with pytest.raises(GenesisError, match=reason):
        read_documents(*documents)


def test_the_bound_is_that_of_a_blob_to_the_byte() -> None:
    """The largest rank that fits does, and so does what it may make; the next is refused."""
    model = replace(SMALL_MODEL, experts=16)

    def fits(rank: int) -> bool:
        try:
            check_together(model, replace(NANO_TRAINING, codec="lowrank", rank=rank))
        except GenesisError:
            return False
        return True

    ranks = [rank for rank in range(1, 65) if fits(rank)]
    assert ranks == list(range(1, len(ranks) + 1))
    assert 1 < len(ranks) < 64
    sizes = [largest_payload(model.shards(), low_rank_number(len(ranks) + i)) for i in (0, 1)]
    assert sizes[0] <= limits.MAX_PAYLOAD_BYTES < sizes[1]
    assert len(seal(bytes(1000), bytes(32))) == 1000 + limits.MAX_BLOB_BYTES - (
        limits.MAX_PAYLOAD_BYTES
    )


def test_a_whole_model_fits_a_workers_job() -> None:
    """Weights and the largest payload, as a juror's evaluation is given; one expert more is said
    to be too much."""
    assert MAX_FRAME_BYTES == MAX_JOB_BYTES
    assert 4 * MAX_PARAMETERS + limits.MAX_BLOB_BYTES + 128 * 8193 < MAX_JOB_BYTES
    largest = replace(SMALL_MODEL, experts=106)
    assert MAX_PARAMETERS - 10_000_000 < largest.parameters <= MAX_PARAMETERS
    assert ModelSpec.from_json(largest.to_json()) == largest
    with pytest.raises(GenesisError, match=r"all of them, \d+ bytes, and takes 4294967296; lower"):
        ModelSpec.from_json(replace(largest, experts=107).to_json())


def test_the_least_part_is_what_a_learner_may_hold_least() -> None:
    for model in (TINY, NANO_MODEL, SIZES["tiny"].model, replace(NANO_MODEL, shared_experts=2)):
        shards = [
            s.index for s in model.shards() if ".experts." not in s.name or s.name.endswith("s.1")
        ]
        held = held_experts(model, shards)
        assert sum(s.elements for s in layout_of(model, held)) == least_part(model)
    assert JOB_BYTES_A_PARAMETER * SMALL_MODEL.parameters < MAX_JOB_BYTES


# --- the largest payload -------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 64, 1000, 4096, INT8_NUMBER, low_rank_number(3)])
def test_no_payload_is_larger_than_what_is_said(number: int) -> None:
    shards = NANO_MODEL.shards()
    draw = np.random.default_rng(1)
    values = {
        s.index: (draw.standard_normal(s.elements) / 100).clip(-0.9, 0.9).astype(np.float32)
        for s in shards
    }
    payload, _ = encode_delta(ZERO_HASH, values, shards, number)
    most = largest_payload(shards, number)
    assert len(payload) <= most
    if number == INT8_NUMBER or number > 0x3000:
        assert len(payload) == most
    else:
        assert len(payload) > 0.75 * most


@pytest.mark.parametrize("elements", [1, 2, 17, 300, 1000])
def test_the_largest_sparse_section_has_a_count_before_a_change_of_bits(elements: int) -> None:
    for density in (1, 2, 3, 7, 64, 333, 1000):
        most = min(elements, density)
        expected = max(_stream_bytes(count, elements) for count in range(most + 1))
        assert most_sparse_bytes(elements, density) == 4 + 4 + expected


@pytest.mark.parametrize("count", [1, 16, 300, 1024])
def test_gaps_as_unequal_as_can_be_have_the_bytes_that_are_counted(count: int) -> None:
    """All values but the first at the end of a chunk: one long gap."""
    spec = replace(NANO_MODEL.shards()[0], tensors=TINY.shards()[0].tensors)
    elements = spec.elements
    assert elements == 4096 < SUBTILE_ELEMENTS
    values = np.zeros(elements, np.float32)
    values[elements - count :] = 0.5
    payload, _ = encode_delta(ZERO_HASH, {0: values}, [spec], count)
    assert _rice_bits(count, elements) == (elements // count).bit_length() - 1
    assert largest_payload([spec], count) - 2 <= len(payload) <= largest_payload([spec], count)


# --- where documents come in ----------------------------------------------------------------


def test_a_genesis_that_cannot_work_is_neither_taken_nor_started(tmp_path: Path) -> None:
    founded = found_home(Home(tmp_path / "home"), Config())
    document: dict[str, Any] = json.loads(founding_genesis([founded]))
    write_genesis(founded.home, json.dumps(document))
    document["model"], document["training"] = EIGHTY.to_json(), INT8.to_json()
    text = json.dumps(document)
    with pytest.raises(GenesisError, match=r"training\.codec: int8"):
        write_genesis(founded.home, text)
    with pytest.raises(GenesisError, match=r"training\.codec: int8"):
        build_genesis(parse_genesis(text))
    assert json.loads(founded.home.genesis_file.read_text())["model"] != EIGHTY.to_json()


def test_a_vote_cannot_make_a_network_that_cannot_work() -> None:
    base = Documents(EIGHTY.to_json(), NANO_TRAINING.to_json())
    with pytest.raises(VerifyError, match=r"training.codec: int8: .*; take another codec"):
        change_between(base, Documents(base.model, INT8.to_json()))
    batch = base.training | {"batch": 4096, "steps": 100_000, "segment_steps": 1000}
    with pytest.raises(VerifyError, match=r"training.steps: .* lower steps, batch or model.cont"):
        change_between(base, Documents(base.model, batch))
    fine = Documents(base.model, base.training | {"codec": "lowrank", "rank": 8})
    assert change_between(base, fine)[0] == ModelChange.PATCH
    other = Documents(HUNDREDS.to_json(), INT8.to_json())  # refused for what it is
    assert change_between(base, other) == (ModelChange.MAJOR, "model.experts changes")


def test_such_a_proposal_is_a_bad_document() -> None:
    chain = Assembly()
    raw = chain.document("1.0.1", steps=100_000, segment_steps=1000, batch=4096)
    assert chain.propose("model", raw) == "bad_document"
    assert chain.propose("model", chain.document("1.0.1", steps=100)) == "ok"
