"""Whatever is proposed and voted: nothing raises, no grain is lost, what is in force is sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chain import governance, model_versions, parameters
from chain.codec import encode
from chain.errors import VerifyError
from chain.limits import MAX_PROPOSALS
from chain.params import check_params
from chain.plain import pack
from chain.transactions import GovernanceVote, Payload, Propose
from chain.types import Height
from learning.spec import ModelSpec, TrainingSpec
from node.stamping import spend_of
from tests.kit.machine import key
from tests.kit.voting import EPOCH, FUNDED, VALIDATORS, Assembly

NAMES = sorted(parameters.CHANGEABLE)


def edges(name: str) -> st.SearchStrategy[bytes]:
    least, most = parameters.CHANGEABLE[name]
    near = st.sampled_from([least, least + 1, most, most + 1, 4, 12, 100, 2**64 - 1])
    return st.one_of(st.integers(least, min(most, least + 200)), near).map(pack)


settings_made = st.sampled_from(NAMES).flatmap(lambda n: st.tuples(st.just(n), edges(n)))
odd = st.tuples(
    st.sampled_from(["epoch_blocks", "vote", "model", "model.top_k", "", "x" * 128]),
    st.binary(max_size=12),
)
versions = st.tuples(
    st.sampled_from(["1.0.1", "1.0.2", "1.1.0", "1.1.1", "2.0.0"]),
    st.sampled_from(
        [{"batch": 8}, {"steps": 30}, {"top_k": 1}, {"experts": 8}, {"context": 32}, {"steps": 7}]
    ),
)
who = st.sampled_from(FUNDED)
ahead = st.one_of(st.integers(0, 3), st.integers(-1, 6))
proposing = st.tuples(st.just("propose"), who, st.one_of(settings_made, settings_made, odd), ahead)
versioning = st.tuples(st.just("version"), who, versions, ahead)
voters = st.one_of(st.just(15), st.integers(0, 15))  # a bit each says who is for it
voting = st.tuples(st.just("vote"), st.integers(0, 15), voters, st.just(0))
waiting = st.tuples(st.just("wait"), st.integers(1, 9), st.just(0), st.just(0))
runs = st.lists(
    st.one_of(proposing, proposing, versioning, voting, voting, waiting), min_size=6, max_size=40
)


def test_no_vote_leads_to_a_network_that_cannot_run() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(runs)
    def play(run: list[tuple[Any, ...]]) -> None:
        chain = Assembly(min_bond_grains=2, vote={"blocks": 6, "ms": 2000})
        total, genesis = chain.m.grains(), chain.m.genesis.params
        for step in [*run, *[("wait", 1, 0, 0)] * 12 * EPOCH]:  # whatever is asked ends
            perform(chain, seen, *step)
            assert chain.m.grains() == total
        params = chain.m.state.params(genesis)
        for name in parameters.names(genesis):
            if name not in parameters.CHANGEABLE:
                assert parameters.value_of(params, name) == parameters.value_of(genesis, name)

    play()
    assert min(seen["active"], seen["rejected"]) > 10, seen


def perform(chain: Assembly, seen: Counter[str], kind: str, first: Any, what: Any, n: int) -> None:
    height = Height(max(0, chain.soonest() + n * EPOCH))
    match kind:
        case "propose":
            block(chain, seen, {first: Propose(*what, height)})
        case "version":
            number, changes = what
            raw = chain.document(number, **changes)
            block(chain, seen, {first: Propose("model", raw, height)})
        case "vote":
            waiting = governance.proposals(chain.m.state)
            if waiting:
                proposal = waiting[first % len(waiting)].id
                ballots = {
                    name: GovernanceVote(proposal, what >> i & 1)
                    for i, name in enumerate(VALIDATORS)
                }
                block(chain, seen, ballots)
        case "wait":
            for _ in range(first):
                block(chain, seen, {})


def block(chain: Assembly, seen: Counter[str], payloads: Mapping[str, Payload]) -> None:
    fee = min(chain.params.min_fee_grains, 10**7)  # in vain if it is more: refused is as good
    chain.m.block(
        *(encode(chain.m.tx(key(n), p, fee=fee * spend_of(p).units)) for n, p in payloads.items())
    )
    seen.update(chain.said())
    check(chain)


def check(chain: Assembly) -> None:
    state = chain.m.state
    params = state.params(chain.m.genesis.params)
    check_params(params)
    assert params.delta_floor_ms <= params.delta_cap_ms
    changed = [n for n in NAMES if value(chain, n) != parameters.value_of(params, n)]
    for name in changed:
        least, most = parameters.CHANGEABLE[name]
        assert least <= parameters.value_of(params, name) <= most
    assert len(governance.proposals(state)) <= MAX_PROPOSALS
    version = model_versions.current(state)
    documents = model_versions.documents(state, chain.m.genesis, version)
    shards = ModelSpec.from_json(dict(documents.model)).shards()
    assert shards == ModelSpec.from_json(dict(chain.m.genesis.model)).shards()
    TrainingSpec.from_json(dict(documents.training))


def value(chain: Assembly, name: str) -> int:
    return parameters.value_of(chain.m.genesis.params, name)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_random_bytes_are_no_document(raw: bytes) -> None:
    try:
        model_versions.parse_document(raw)
    except VerifyError:
        return
    raise AssertionError(f"{raw!r} is a document")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["layers", "top_k", "init_seed", "context"]), json_values),
    st.dictionaries(st.sampled_from(["steps", "batch", "densities", "x"]), json_values),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_document_of_anything_never_stops_a_block(
    model: dict[str, object], training: dict[str, object]
) -> None:
    chain = Assembly()
    base = chain.m.genesis
    raw = model_versions.canonical(
        {
            "version": "1.0.1",
            "model": dict(base.model) | model,
            "training": dict(base.training) | training,
        }
    )
    codes = {"ok", "bad_document", "no_change", "wrong_version", "major_change"}
    assert chain.propose("model", raw) in codes
