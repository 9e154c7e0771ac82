"""Grains are neither made nor lost, and no sequence of transactions makes execution raise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import encode
from chain.hashes import ZERO_HASH, Hash32
from chain.transactions import (
    Attest,
    AuditReport,
    Bond,
    Custody,
    CustodyDispute,
    CustodyOpening,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    GovernanceVote,
    JoinRound,
    LatencyReport,
    Payload,
    Propose,
    Transfer,
    Unbond,
    Unjail,
)
from chain.types import BlobId, Grains, Height, PubKey, TxId
from tests.kit.machine import Machine, key

NAMES = ("ann", "ben", "eve")
amounts = st.one_of(st.integers(0, 3), st.integers(0, 2 * 10**10), st.just(2**64 - 1)).map(Grains)
hashes = st.sampled_from([ZERO_HASH, Hash32(b"\x01" * 32)])
keys = st.sampled_from([key(n).public for n in NAMES] + [PubKey(bytes(32))])
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(Transfer, keys, amounts),
    st.builds(Bond, amounts),
    st.builds(Unbond, amounts),
    st.just(Unjail()),
    st.builds(JoinRound, st.integers(0, 2), st.just(())),
    st.builds(
        DeltaCommit, st.integers(0, 1), hashes, hashes, hashes, hashes.map(BlobId), st.just(1)
    ),
    st.builds(DeltaReveal, hashes.map(TxId), hashes),
    st.builds(
        Attest,
        st.integers(0, 5),
        st.integers(0, 2),
        hashes,
        st.integers(0, 3),
        st.integers(-1, 1),
        hashes,
    ),
    st.builds(AuditReport, hashes, st.integers(0, 2), st.just(1), st.just(()), hashes),
    st.builds(Custody, hashes, st.lists(hashes, max_size=2).map(tuple)),
    st.builds(CustodyDispute, hashes, keys, st.integers(0, 2), amounts),
    st.builds(CustodyOpening, hashes, keys, st.integers(0, 2), st.just(()), st.just(b"x")),
    st.builds(
        Propose,
        st.sampled_from(["min_fee_grains", "ranks", "vote.ms", "epoch_blocks", "model", ""]),
        st.sampled_from([b"", b"\x01", b"\xcd\x07\xd0", b"{}"]),
        st.integers(0, 12).map(lambda epoch: Height(4 * epoch + 1)),
    ),
    st.builds(GovernanceVote, hashes.map(TxId), st.integers(0, 2)),
    st.builds(LatencyReport, st.integers(0, 2), st.binary(max_size=5)),
    st.builds(
        DatasetSubmit,
        hashes,
        hashes.map(BlobId),
        st.just(1),
        st.integers(0, 10**9),
        st.integers(0, 2),
        st.sampled_from(["", "CC0-1.0"]),
        st.just("t"),
    ),
)
steps = st.lists(
    st.lists(
        st.tuples(st.sampled_from(NAMES), payloads, st.sampled_from([0, 1000, 10**9, 2**63])),
        max_size=4,
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps)
def test_the_sum_of_all_grains_never_changes(
    blocks: list[list[tuple[str, Payload, int]]],
) -> None:
    machine = Machine(
        funded=NAMES,
        epoch_blocks=4,
        unbonding_blocks=17,
        min_bond_grains=2,
        seed_blocks=1,
        custody_interval_blocks=3,
        vote={"blocks": 2, "ms": 0},
        proposal_deposit_grains=10**7,
    )
    total = machine.grains()
    for block in blocks:
        raws = [encode(machine.tx(key(n), payload, fee=fee)) for n, payload, fee in block]
        machine.block(*raws)
        assert machine.grains() == total
    for _ in range(20):
        machine.block()
    assert machine.grains() == total
