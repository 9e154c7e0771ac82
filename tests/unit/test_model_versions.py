"""Versions of the model's documents: which step a change is, and from which round on it counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain import datasets, model_versions
from chain.errors import TxError, VerifyError
from chain.model_versions import Documents, ModelChange, Version, canonical, check_step, claimed
from chain.records import RoundPhase
from learning.spec import NANO_MODEL, NANO_TRAINING
from learning.versions import change_between
from tests.kit.round_run import RoundRun
from tests.kit.voting import EPOCH, VALIDATORS, VOTE_BLOCKS, Assembly

BASE = Documents(NANO_MODEL.to_json(), NANO_TRAINING.to_json())
PATCHES = {
    "steps": 100,
    "segment_steps": 25,
    "batch": 8,
    "learning_rate_nano": 1,
    "warmup_steps": 0,
    "beta1_ppm": 1,
    "beta2_ppm": 1,
    "epsilon_nano": 1,
    "weight_decay_ppm": 1,
    "clip_ppm": 1,
    "bias_rate_ppm": 1,
    "error_feedback_ppm": 1,
    "densities": [1],
    "aux_loss_ppm": 1,
    "micro_batch": 4,
    "codec": "int8",
    "dropout_ppm": 1,
}
RANK = {"codec": "lowrank", "rank": 4}  # neither without the other
MINORS = {"context": 128, "top_k": 1}
MAJORS = {
    "layers": 3,
    "width": 192,
    "heads": 2,
    "experts": 8,
    "expert_width": 256,
    "init_seed": "x",
    "routing": "hash",
    "shared_experts": 1,
}


def changed(**fields: Any) -> Documents:
    model, training = dict(BASE.model), dict(BASE.training)
    for name, value in fields.items():
        (model if name in model else training)[name] = value
    return Documents(model, training)


def test_a_field_that_an_old_genesis_lacks_has_not_changed() -> None:
    old = Documents(dict(BASE.model), dict(BASE.training))
    del old.model["routing"], old.model["shared_experts"]
    del old.training["aux_loss_ppm"], old.training["codec"], old.training["dropout_ppm"]
    assert change_between(old, BASE) == change_between(BASE, old)
    assert change_between(old, BASE)[0] is ModelChange.NONE
    assert change_between(old, changed(shared_experts=1))[0] is ModelChange.MAJOR


def test_every_field_is_of_one_kind() -> None:
    assert PATCHES.keys() | RANK.keys() == BASE.training.keys()
    assert MINORS.keys() | MAJORS.keys() == BASE.model.keys()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({n: v}, ModelChange.PATCH) for n, v in PATCHES.items()]
    + [({n: v}, ModelChange.MINOR) for n, v in MINORS.items()]
    + [({n: v}, ModelChange.MAJOR) for n, v in MAJORS.items()]
    + [
        (RANK, ModelChange.PATCH),
        ({}, ModelChange.NONE),
        ({"steps": 10, "top_k": 1}, ModelChange.MINOR),
        ({"top_k": 1, "experts": 8}, ModelChange.MAJOR),
    ],
)
def test_a_change_is_of_the_kind_of_its_gravest_field(
    fields: dict[str, Any], kind: ModelChange
) -> None:
    assert change_between(BASE, changed(**fields))[0] == kind


@pytest.mark.parametrize("name", MINORS)
def test_what_is_called_minor_moves_no_tensor(name: str) -> None:
    spec = type(NANO_MODEL).from_json(dict(changed(**{name: MINORS[name]}).model))
    assert spec.shards() == NANO_MODEL.shards()


@pytest.mark.parametrize("fields", [{"steps": 7}, {"steps": True}, {"top_k": 9}, {"context": "64"}])
def test_documents_of_no_model_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(VerifyError):
        change_between(BASE, changed(**fields))


def test_a_number_claims_the_step_that_it_is() -> None:
    assert claimed((1, 2, 3), (1, 2, 4)) == ModelChange.PATCH
    assert claimed((1, 2, 3), (1, 3, 0)) == ModelChange.MINOR
    assert claimed((1, 2, 3), (2, 0, 0)) == ModelChange.MAJOR
    for other in ((1, 2, 3), (1, 2, 5), (1, 3, 1), (1, 4, 0), (2, 1, 0), (0, 9, 9), (1, 2, 2)):
        assert claimed((1, 2, 3), other) == ModelChange.NONE


def step(number: tuple[int, int, int], least: ModelChange) -> str:
    try:
        check_step("1.2.3", Version(number, BASE), least, "model.top_k changes")
    except TxError as error:
        return error.code
    return "ok"


def test_a_number_may_claim_more_than_it_changes_but_not_less() -> None:
    assert step((1, 2, 4), ModelChange.PATCH) == "ok"
    assert step((1, 3, 0), ModelChange.PATCH) == "ok"
    assert step((1, 3, 0), ModelChange.MINOR) == "ok"
    assert step((1, 2, 4), ModelChange.MINOR) == "wrong_version"
    assert step((1, 2, 5), ModelChange.PATCH) == "wrong_version"
    assert step((2, 0, 0), ModelChange.MINOR) == "major_change"
    assert step((2, 0, 0), ModelChange.MAJOR) == "major_change"
    assert step((1, 3, 0), ModelChange.MAJOR) == "major_change"
    assert step((1, 2, 4), ModelChange.NONE) == "no_change"


DOCUMENT = {"version": "1.0.1", "model": BASE.model, "training": changed(batch=8).training}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"[" * 9000,
        b"9" * 9000,
        b'{"model":{},"training":{},"version":"1.0.1","z":1}',
        b'{"model":{},"training":{}}',
        b'{"model":[],"training":{},"version":"1.0.1"}',
        b'{"model":{},"training":{},"version":"1.0.1","version":"1.0.1"}',
        b'{"model":{"x":1.0},"training":{},"version":"1.0.1"}',
        b'{"model":{"x":NaN},"training":{},"version":"1.0.1"}',
        b'{"model":{"x":-0},"training":{},"version":"1.0.1"}',
        b'{"model":{"init_seed":"\\ud800"},"training":{},"version":"1.0.1"}',
        json.dumps(DOCUMENT).encode(),  # spaces, and keys in another order
        canonical(DOCUMENT) + b"\n",
        canonical(DOCUMENT | {"version": "1.0.1-rc1"}),
        canonical(DOCUMENT | {"version": "1.0.01"}),
        canonical(DOCUMENT | {"version": "1.0.\u0661"}),
        canonical(DOCUMENT | {"version": 1}),
        b"\xff",
    ],
)
def test_a_document_has_one_form(raw: bytes) -> None:
    with pytest.raises(VerifyError):
        model_versions.parse_document(raw)
    chain = Assembly()
    assert chain.propose("model", raw) == "bad_document"


def test_a_document_in_that_form_is_read() -> None:
    found = model_versions.parse_document(canonical(DOCUMENT))
    assert found.number == (1, 0, 1)
    assert found.documents.training["batch"] == 8


def test_a_version_is_put_in_force_at_its_height() -> None:
    chain = Assembly()
    assert chain.propose("model", chain.document("1.0.1", top_k=1)) == "wrong_version"
    assert chain.propose("model", chain.document("1.1.0", experts=8)) == "major_change"
    assert chain.propose("model", chain.document("1.0.1")) == "no_change"
    assert chain.propose("model", chain.document("1.0.1", steps=7)) == "bad_document"
    proposal = chain.proposed("model", chain.document("1.1.0", top_k=1))
    assert chain.propose("model", chain.document("1.0.1", batch=8)) == "known_proposal"
    chain.agree(proposal)
    at = chain.records[0].activate
    chain.to(at - 2)
    assert model_versions.current(chain.m.state) == "1.0.0"
    chain.m.block()
    assert model_versions.current(chain.m.state) == "1.1.0"
    assert chain.said() == ["active"]
    now = model_versions.documents(chain.m.state, chain.m.genesis, "1.1.0")
    assert now.model["top_k"] == 1
    first = model_versions.documents(chain.m.state, chain.m.genesis, "1.0.0")
    assert first.model["top_k"] == 2
    # The next is compared with what is in force by now.
    assert chain.propose("model", chain.document("1.1.1", top_k=1)) == "no_change"
    assert chain.propose("model", chain.document("1.0.1", top_k=1, batch=8)) == "wrong_version"
    assert chain.propose("model", chain.document("1.1.1", batch=8)) == "wrong_version"  # top_k 2
    assert chain.propose("model", chain.document("1.1.1", top_k=1, batch=8)) == "ok"


def version_of(run: RoundRun) -> str:
    return model_versions.of_round(run.m.state, run.round.number)


def test_a_round_is_of_the_version_at_its_anchor() -> None:
    chain = Assembly(join={"blocks": 3, "ms": 0}, train={"blocks": 40, "ms": 0})
    run = RoundRun()
    run.m = chain.m  # votes and rounds on one chain
    run.dataset()
    at = chain.soonest() + 2 * EPOCH
    chain.agree(chain.proposed("model", chain.document("1.0.1", batch=8), at))
    chain.to(at - 2 * EPOCH)
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    assert run.round.number == 0
    chain.to(at)
    assert version_of(run) == "1.0.0"  # it trains by what it was anchored with
    assert model_versions.current(chain.m.state) == "1.0.1"
    while run.round.number == 0:
        chain.m.block()
    assert version_of(run) == "1.0.1"  # until its anchor says otherwise
    assert model_versions.of_round(chain.m.state, 0) == "1.0.0"


def test_a_round_that_nobody_has_joined_is_of_what_is_in_force_when_it_begins() -> None:
    chain = Assembly(join={"blocks": 3, "ms": 0})
    run = RoundRun()
    run.m = chain.m
    run.dataset()
    chain.agree(chain.proposed("model", chain.document("1.0.1", batch=8)))
    chain.to(chain.records[0].activate)
    assert run.round.number == 0
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    assert version_of(run) == "1.0.1"


def test_what_is_measured_otherwise_is_another_holdout() -> None:
    chain = Assembly()
    used = datasets.active(chain.m.state)
    first = datasets.holdout_id(chain.m.state, used)
    chain.agree(chain.proposed("model", chain.document("1.0.1", batch=8)))
    chain.to(chain.records[0].activate)
    assert datasets.holdout_id(chain.m.state, used) == first
    chain.agree(chain.proposed("model", chain.document("1.1.0", batch=8, context=32)))
    chain.to(chain.records[0].activate)
    assert datasets.holdout_id(chain.m.state, used) != first


def test_a_version_waits_for_the_vote_and_no_longer() -> None:
    chain = Assembly()
    chain.agree(chain.proposed("model", chain.document("1.0.1", batch=8)), voters=VALIDATORS[:2])
    chain.to(chain.m.height + VOTE_BLOCKS)
    assert not chain.records
    assert chain.propose("model", chain.document("1.0.1", batch=8)) == "ok"
