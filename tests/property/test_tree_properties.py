"""The state tree behaves like a dict with a root that the reference agrees with."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.tree import StateTree, verify_state_proof
from tests.reference import tree as reference

KEYS = st.binary(min_size=1, max_size=2).map(lambda b: bytes(x % 5 for x in b))
VALUES = st.one_of(st.none(), st.binary(max_size=3))
BATCHES = st.lists(st.dictionaries(KEYS, VALUES, max_size=8), max_size=6)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(BATCHES, KEYS)
def test_batches_of_changes(batches: list[dict[bytes, bytes | None]], asked: bytes) -> None:
    tree, model = StateTree.empty(), dict[bytes, bytes]()
    for batch in batches:
        tree = tree.set_many(batch)
        for key, value in batch.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    assert list(tree.items()) == sorted(model.items())
    assert len(tree) == len(model)
    assert tree.root == reference.root(model)
    assert tree.get(asked) == model.get(asked)
    proof = tree.prove(asked)
    assert verify_state_proof(tree.root, asked, model.get(asked), proof)
    assert not verify_state_proof(tree.root, asked, b"a lie", proof)
    if asked in model:
        assert not verify_state_proof(tree.root, asked, None, proof)
    prefix = asked[:1]
    assert [k for k in sorted(model) if k.startswith(prefix)] == list(tree.keys(prefix))
