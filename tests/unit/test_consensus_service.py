"""The driver of the core: one validator alone is a quorum, so a chain grows in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chain import records as r
from chain.codec import decode, encode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.records import DatasetStatus, RoundPhase
from chain.transactions import AuditReport, DatasetSubmit, JoinRound, Verdict
from chain.types import (
    BlobId,
    DoubleVote,
    Epoch,
    EvidenceItem,
    Grains,
    Height,
    View,
    Vote,
    VoteKind,
)
from consensus.evidence import double_vote
from consensus.simplex.messages import BlockRequest, Envelope, Evidence, Record, SignFloor
from consensus.simplex.sign_state import LAST_VIEW
from node.config import Config, load_genesis
from node.daemon import Node
from node.founding import found_home, founding_genesis, write_genesis
from node.genesis import build_genesis
from node.home import Home
from node.log_frames import framed
from node.services.consensus import ConsensusService
from node.services.evidence_pool import AGAIN_S, EvidencePool
from tests.kit.local_chain import LocalChain
from tests.kit.waiting import TIMEOUT_S, reached
from wallet.signing import sign_vote

T = TypeVar("T")


class NoPeers:
    """The part of the network port that consensus uses, with nobody there; what was tried."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.reports: list[tuple[str, str]] = []

    peer_id = "nobody"

    def on_message(self, handler: Any) -> None: ...

    def peers(self) -> list[Any]:
        return []

    def link_info(self) -> list[Any]:
        return []

    def on_peer(self, handler: Any) -> None: ...

    def subscribe(self, topic: str, handler: Any) -> None: ...

    def send(self, peer: str, data: bytes) -> bool:
        self.sent.append((peer, data))
        return False

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reports.append((peer, reason))

    async def publish(self, topic: str, data: bytes) -> None: ...


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(tmp_path, validators=1, epoch_blocks=128, empty_interval_ms=50) as chain:
        yield chain


def service(local: LocalChain, wal: Path, net: NoPeers | None = None) -> ConsensusService:
    return ConsensusService(
        local.chain,
        local.pool,
        net or NoPeers(),  # type: ignore[arg-type]
        local.validators[0],
        wal,
        lambda peer, height: None,
        lambda report: None,
    )


def run(local: LocalChain, wal: Path, blocks: int = 3, **hooks: Any) -> list[Record]:
    """Let the validator make blocks; what its log holds then."""

    async def main() -> None:
        node = service(local, wal)
        prepare: Callable[[ConsensusService], None] = hooks.get("prepare", lambda node: None)
        prepare(node)
        goal = local.chain.tip.height + blocks
        node.start()
        started: Callable[[ConsensusService], None] = hooks.get("started", lambda node: None)
        started(node)
        try:
            await reached(
                lambda: node.halted or local.chain.tip.height >= goal, TIMEOUT_S, "blocks"
            )
        finally:
            node.stop()
        assert node.halted == ""

    asyncio.run(main())
    node = service(local, wal)
    node.stop()
    return [decode(Record, raw) for raw in node._wal.records()]


def votes(records: list[Record], epoch: int) -> list[Vote]:
    return [r for r in records if isinstance(r, Vote) and r.epoch == epoch]


def expired(local: LocalChain) -> EvidenceItem:
    """Two votes in an epoch whose validators the state does not keep."""
    return evidence(local, epoch=77)


def evidence(local: LocalChain, index: int = 0, epoch: int = 0) -> DoubleVote:
    own = local.validators[index].consensus
    pair = [
        sign_vote(
            own,
            chain_id=local.genesis.chain_id,
            kind=VoteKind.NOTARIZE,
            epoch=Epoch(epoch),
            view=View(5),
            block_hash=Hash32(letter * 32),
        )
        for letter in (b"a", b"b")
    ]
    return double_vote(*pair)


def test_expired_evidence_does_not_stop_a_leader(local: LocalChain, tmp_path: Path) -> None:
    kept: list[ConsensusService] = []

    def prepare(node: ConsensusService) -> None:
        node._one(Evidence(expired(local)))
        kept.append(node)

    run(local, tmp_path / "wal", prepare=prepare)
    assert len(kept[0]._evidence) == 0  # forgotten once a block was final


def test_relayed_evidence_gets_into_a_block(local: LocalChain, tmp_path: Path) -> None:
    item = evidence(local)
    run(
        local,
        tmp_path / "wal",
        started=lambda node: node._received("peer", encode(Envelope((item,)))),
    )
    assert local.state.raw(r.evidence_key(item.first.signer, Epoch(0))) is not None
    blocks = [local.store.block(Height(h)) for h in range(1, local.chain.tip.height + 1)]
    assert [x for b in blocks if b is not None for x in b.evidence] == [item]  # once


def told(net: NoPeers, item: EvidenceItem) -> list[str]:
    """Who was sent an item. (Blocks are sent as well, if this node leads.)"""
    return [peer for peer, packet in net.sent if item in decode(Envelope, packet).messages]


def test_evidence_is_verified_and_passed_on_once(tmp_path: Path) -> None:
    async def main(local: LocalChain) -> None:
        net = NoPeers()
        node = service(local, tmp_path / "wal", net)
        node.start()
        net.sent.clear()
        item, others = evidence(local, 1), [v.node_id for v in local.genesis.validators[1:]]
        packet = encode(Envelope((item,)))
        node._received("peer", packet)
        assert sorted(told(net, item)) == sorted(others)
        node._received("peer", packet)
        node._received("peer", encode(Envelope((expired(local),))))
        assert len(told(net, item)) == len(others)
        assert told(net, expired(local)) == []
        assert net.reports == []
        other = evidence(local, 2)
        forged = double_vote(other.first, replace(other.second, signature=item.first.signature))
        node._received("liar", encode(Envelope((forged,))))
        assert [peer for peer, _ in net.reports] == ["liar"]
        node._one(Evidence(other))  # what this node has found itself is told as well
        assert sorted(told(net, other)) == sorted(others)
        assert len(node._evidence) == 2
        node.stop()

    with LocalChain(tmp_path, validators=4) as local:
        asyncio.run(main(local))


def test_evidence_that_is_not_used_is_said_again(local: LocalChain, tmp_path: Path) -> None:
    """What this node found while nobody heard it."""
    now = [100.0]
    pool = EvidencePool(local.genesis.chain_id, local.genesis.params, lambda: now[0])
    items = [evidence(local), evidence(local, epoch=1)]
    assert all(pool.judge(local.state, item) for item in items)
    assert pool.committed(local.state) == ()
    now[0] += AGAIN_S
    assert set(pool.committed(local.state)) == set(items)
    assert pool.committed(local.state) == ()
    now[0] += AGAIN_S
    state = local.state
    used = r.EvidenceRecord(local.validators[0].account.public, Grains(1), Height(1))
    state.put(r.evidence_key(items[0].first.signer, Epoch(0)), used)
    assert pool.committed(state) == (items[1],)


def test_evidence_does_not_wait_out_the_empty_interval(tmp_path: Path) -> None:
    """A leader that has nothing to propose is waiting when it comes."""

    async def main(local: LocalChain) -> None:
        node = service(local, tmp_path / "wal")
        node.start()
        await reached(lambda: node._build is not None, TIMEOUT_S, "a leader that waits")
        assert local.chain.tip.height == 0
        node._received("peer", encode(Envelope((evidence(local),))))
        assert local.chain.tip.height == 1
        node.stop()

    with LocalChain(tmp_path, validators=1, empty_interval_ms=10**6) as local:
        asyncio.run(main(local))


def test_a_deadline_does_not_wait_out_the_empty_interval(tmp_path: Path) -> None:
    """The join window of a round closes at its time, though nobody has anything to propose."""

    async def main(local: LocalChain) -> None:
        node = service(local, tmp_path / "wal")
        node.start()
        dataset, learner = Hash32(b"d" * 32), local.learners[0]
        submit = DatasetSubmit(dataset, BlobId(b"m" * 32), 1, 1000, 1, "MIT", "a dataset")
        local.send(submit, learner)
        node.wake()
        local.duty(AuditReport(dataset, Verdict.YES, 90, (), dataset), local.validators[0])
        node.wake()
        status = DatasetStatus.ACTIVE
        await reached(
            lambda: local.state.dataset(dataset).status == status, TIMEOUT_S, "a dataset in use"
        )
        local.send(JoinRound(0, ()), learner)
        node.wake()
        assert local.state.round().joined
        await reached(lambda: local.state.round().phase == RoundPhase.TRAIN, TIMEOUT_S, "a seed")
        node.stop()

    window = {"blocks": 1, "ms": 50}
    with LocalChain(tmp_path, validators=1, empty_interval_ms=10**6, join=window) as local:
        asyncio.run(main(local))


def test_the_log_is_rotated_only_when_nothing_waits(
    local: LocalChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a waiting `Deliver` makes final is in the old log only."""
    monkeypatch.setattr("node.services.consensus.ROTATE_BYTES", 0)
    waiting: list[int] = []

    def prepare(node: ConsensusService) -> None:
        real = node._wal.rotate

        def rotate(records: Any) -> None:
            waiting.append(len(node._effects))
            real(records)

        monkeypatch.setattr(node._wal, "rotate", rotate)

    run(local, tmp_path / "wal", prepare=prepare)
    assert waiting
    assert set(waiting) == {0}


def test_what_comes_before_the_replay_has_ended_is_dropped(
    local: LocalChain, tmp_path: Path
) -> None:
    async def main() -> None:
        node = service(local, tmp_path / "wal")
        node._received("peer", b"garbage, which would be charged")
        node._received("peer", encode(Envelope((BlockRequest(Hash32(bytes(32))),))))
        assert not node._from_flood("peer", BlockRequest(Hash32(bytes(32))))
        assert node.counts["refused"] == 0
        node.start()
        node._received("peer", b"garbage, which would be charged")
        assert node.counts["refused"] == 1
        node.stop()

    asyncio.run(main())


def test_a_node_replays_its_log_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole node, whose network fails to start: by then consensus has begun."""
    founded = found_home(Home(tmp_path / "home"), Config())
    config = Config(api_port=0, p2p_port=0, link_port=0)
    write_genesis(founded.home, founding_genesis([founded]))
    seen: list[int] = []

    async def main() -> None:
        genesis = build_genesis(load_genesis(founded.home))
        node = Node(founded.home, config, genesis, founded.keys)

        async def start() -> None:
            seen.append(node.consensus.counts["built"] + len(node.consensus._timers.running))
            raise UnreachableError("the test")

        monkeypatch.setattr(node.net, "start", start)
        with pytest.raises(UnreachableError, match="the test"):
            await node.run(asyncio.Event())

    asyncio.run(main())
    assert seen[0] > 0


def test_a_new_home_signs(local: LocalChain, tmp_path: Path) -> None:
    records = run(local, tmp_path / "wal")
    assert votes(records, 0)


def test_a_home_without_its_log_signs_nothing_in_this_epoch(
    local: LocalChain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signs: list[object] = []
    run(local, tmp_path / "wal", started=lambda node: signs.append(node.info()["abstains"]))
    assert signs == [None]
    (tmp_path / "wal" / "consensus.log").unlink()
    height = local.chain.tip.height

    async def main() -> None:
        node = service(local, tmp_path / "wal")
        node.start()
        await reached(lambda: node.info()["delta_ms"], TIMEOUT_S, "a start")
        for timer in node._timers.running:  # every timeout at once: it nullifies nothing either
            node._fire(timer)
        node._try_build()
        signs.append(node.info()["abstains"])
        node.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "is missing or empty" in caplog.text
    assert "signs nothing in epochs that may have begun before now" in caplog.text
    again = service(local, tmp_path / "wal")  # also after another start
    again.stop()
    said = {"epoch": 0, "until_height": 129}
    for found, why in (
        (signs[1], "is missing or empty"),
        (again.info()["abstains"], "was lost or copied"),
    ):
        assert isinstance(found, dict)
        assert why in found.pop("reason")
        assert found == said
    records = [decode(Record, raw) for raw in again._wal.records()]
    assert records[0] == SignFloor(Epoch(0), LAST_VIEW)
    assert votes(records, 0) == []
    assert local.chain.tip.height == height


def test_a_log_that_is_moved_away_at_genesis_is_missed_as_well(tmp_path: Path) -> None:
    """A vote has left before the first block is final, and the key must not contradict it."""

    async def main(local: LocalChain) -> None:
        node = service(local, tmp_path / "wal")
        node.start()
        for timer in node._timers.running:
            node._fire(timer)
        node.stop()
        assert local.chain.tip.height == 0
        (tmp_path / "wal" / "consensus.log").rename(tmp_path / "damaged.log")
        again = service(local, tmp_path / "wal")
        again.stop()
        records = [decode(Record, raw) for raw in again._wal.records()]
        assert records == [SignFloor(Epoch(0), LAST_VIEW)]

    with LocalChain(tmp_path, validators=4) as local:
        asyncio.run(main(local))


def test_a_log_whose_last_entry_rotted_signs_nothing_in_this_epoch(
    local: LocalChain, tmp_path: Path
) -> None:
    before = run(local, tmp_path / "wal")
    path = tmp_path / "wal" / "consensus.log"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    node = service(local, tmp_path / "wal")
    node.stop()
    records = [decode(Record, raw) for raw in node._wal.records()]
    assert records[-1] == SignFloor(Epoch(0), LAST_VIEW)
    assert records[:-1] == before[: len(records) - 1]
    assert encode(records[-1]) in path.read_bytes()


def test_a_log_with_a_torn_tail_signs_on(local: LocalChain, tmp_path: Path) -> None:
    run(local, tmp_path / "wal")
    path = tmp_path / "wal" / "consensus.log"
    with path.open("ab") as file:
        file.write(framed([bytes(4096)], path.stat().st_size)[:77])
    records = run(local, tmp_path / "wal")
    assert not any(isinstance(r, SignFloor) and r.view == LAST_VIEW for r in records)
