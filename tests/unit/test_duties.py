"""Duties: what is owed in which state, and how the reconciler goes about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain import limits
from chain.errors import InputError, TxError, UnreachableError, VerifyError
from chain.hashes import BLOB, TX, ZERO_HASH, Hash32
from chain.receipts import Receipt
from chain.records import DeltaRecord, RoundPhase, round_key
from chain.transactions import Phase, PolVote, TileChange, Verdict
from chain.types import BlobId, Grains, Height, ShardIndex, TileIndex, TxId
from corpus.dataset import build
from corpus.ingest import Document
from node.data import fetch_dataset
from node.sealed import seal, unseal
from node.services import duties as module
from node.services.duties import Duties
from node.services.duty_aggregate import pack
from node.services.duty_dataset import NOT_AS_PROMISED, report_on
from node.services.duty_files import DutyFiles
from node.services.duty_plan import AuditDataset, Duty, HoldModel, Prepare, plan
from tests.kit.duty_net import DutyNet
from tests.kit.learning import add_dataset
from tests.kit.local_chain import LocalChain
from tiles import merkle


def kinds(chain: LocalChain, index: int) -> list[str]:
    account = chain.validators[index].account.public
    found = plan(chain.state, chain.genesis.params, chain.rules, account, lambda shard, root: True)
    return [type(duty).__name__ for duty in found]


# --- what is owed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "owed"),
    [
        (RoundPhase.TRAIN, {"Evaluate"}),
        (RoundPhase.REVEAL, {"Evaluate"}),
        (RoundPhase.SCREEN_COMMIT, {"Screen", "Replay", "Evaluate"}),
        (RoundPhase.SCREEN_REVEAL, {"OpenVote", "Evaluate"}),
        (RoundPhase.AGGREGATE, {"Aggregate", "Evaluate"}),
        (RoundPhase.SETTLE, {"Evaluate"}),
        (RoundPhase.DONE, set()),
    ],
)
def test_duties_of_each_phase(tmp_path: Path, phase: RoundPhase, owed: set[str]) -> None:
    with LocalChain(tmp_path) as chain:
        chain.learn(stop_in=phase)
        found = [kinds(chain, i) for i in range(4)]
        assert set().union(*map(set, found)) == owed
        if phase == RoundPhase.SCREEN_COMMIT:
            assert [f.count("Screen") for f in found] == [2, 2, 2, 2]
            assert sum(f.count("Replay") for f in found) == chain.genesis.params.auditors
        assert all(len(set(f)) == len(f) or "Screen" in f or "OpenVote" in f for f in found)


def test_a_screen_is_prepared_once_for_each_delta_that_comes(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        chain.learn(stop_in=RoundPhase.REVEAL)
        state, number = chain.state, chain.state.round().number
        account = chain.validators[0].account.public

        def owed(is_prepared: bool) -> list[Duty]:
            found = plan(
                state,
                chain.genesis.params,
                chain.rules,
                account,
                lambda *_: True,
                is_prepared=lambda current: is_prepared,
            )
            return [d for d in found if isinstance(d, Prepare)]

        assert owed(False) == [Prepare(number)]
        assert owed(True) == []
        state.put(round_key(number), replace(state.round(), phase=RoundPhase.SCREEN_COMMIT))
        assert owed(False) == []


def test_what_a_screen_needs_is_here_before_it(tmp_path: Path) -> None:
    """Of two deltas one can be had: it is here then, and the other is no failure."""

    async def body(duties: Duties, net: DutyNet) -> None:
        context = duties._context
        current = net.state.round()
        assert context.is_prepared(current)  # nothing has come yet
        state = net.state
        kept, lost = b"sealed", BlobId(bytes(32))
        net.local.blobs.put(kept)
        asked: list[BlobId] = []

        async def get(blob: BlobId, most: int = 0, *, keep: bool = True) -> bytes:
            asked.append(blob)
            if blob == lost:
                raise UnreachableError("nobody has it")
            return kept

        record = DeltaRecord(
            TxId(b"d" * 32),
            current.number,
            net.local.learners[0].public,
            Height(1),
            *(Hash32(bytes(32)),) * 3,
            BlobId(BLOB.hash(kept)),
            len(kept),
            None,
            Hash32(bytes(32)),
            0,
            (),
            Grains(0),
        )
        other = replace(record, id=TxId(b"e" * 32), blob=lost)
        for delta in (record, other):
            state.put(b"delt/" + delta.id, delta)
        context.state = lambda: state  # type: ignore[method-assign]
        context.node.blobs.get = get  # type: ignore[method-assign]
        context.worker.profile = worker_profile  # type: ignore[method-assign]
        current = replace(current, deltas=(record.id, other.id))
        assert not context.is_prepared(current)
        await context.prepare(current)
        assert context.is_prepared(current)
        assert not context.is_prepared(replace(current, deltas=(*current.deltas, record.id)))
        assert asked == [record.blob, lost]

    run(tmp_path, body)


async def worker_profile() -> str:
    return "none is started"


def test_a_pending_dataset_is_audited_by_every_validator_once(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        dataset = add_dataset(chain)
        record = chain.state.dataset(dataset)
        account = chain.validators[0].account.public
        assert kinds(chain, 0) == []
        state = chain.state
        pending = replace(record, status=0, reports=record.reports[:1])
        state.put(b"data/" + dataset, pending)
        reported = pending.reports[0].auditor
        for validator in chain.validators:
            found = plan(
                state, chain.genesis.params, chain.rules, validator.account.public, lambda *_: True
            )
            expected = [] if validator.account.public == reported else [AuditDataset(dataset)]
            assert found == expected
        missing = plan(
            state, chain.genesis.params, chain.rules, account, lambda shard, root: shard != 2
        )
        assert missing[0] == HoldModel(state.model.root)


def test_who_is_no_validator_only_holds_the_model(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        chain.learn(stop_in=RoundPhase.SCREEN_COMMIT)
        stranger = chain.learners[0].public
        assert plan(chain.state, chain.genesis.params, chain.rules, stranger, lambda *_: True) == []
        found = plan(chain.state, chain.genesis.params, chain.rules, stranger, lambda *_: False)
        assert found == [HoldModel(chain.state.model.root)]


# --- the reconciler ------------------------------------------------------------------------


class Script:
    """A plan and handlers that a test decides on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owed: list[Duty]) -> None:
        self.owed, self.log = owed, list[str]()
        self.outcome: Callable[[], Awaitable[None]] = self.nothing
        monkeypatch.setattr(module, "plan", lambda *_: list(self.owed))
        monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
        monkeypatch.setattr(module, "RETRY_MOST_S", 0.01)
        monkeypatch.setitem(module._HANDLERS, AuditDataset, self.handle)

    async def nothing(self) -> None:
        return None

    async def handle(self, context: Any, duty: Duty) -> None:
        self.log.append("start")
        self.context = context
        try:
            await self.outcome()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        self.owed.clear()


VOTE = PolVote(0, TxId(bytes(32)), Phase.COMMIT, ZERO_HASH, ZERO_HASH, 0, ())
DUTY = AuditDataset(Hash32(bytes(32)))


def run(directory: Path, body: Callable[[Duties, DutyNet], Awaitable[None]]) -> None:
    async def main() -> None:
        net = DutyNet(directory, validators=1)
        duties = net.duties[0]
        task = asyncio.create_task(duties.run())
        try:
            await asyncio.wait_for(body(duties, net), 120)
        finally:
            task.cancel()
            await duties.close()
            net.local.store.close()

    asyncio.run(main())


async def spin(reached: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    for _ in range(1_000_000):
        if reached():
            return
        await asyncio.sleep(0)
    raise AssertionError("not reached")


def test_a_failed_duty_is_tried_again_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, [DUTY])
    done = asyncio.Event()
    errors: list[Exception] = [UnreachableError("gone"), RuntimeError("a bug"), TxError("x", "y")]

    async def outcome() -> None:
        if errors:
            raise errors.pop(0)
        done.set()

    script.outcome = outcome

    async def body(duties: Duties, net: DutyNet) -> None:
        await done.wait()
        metrics = duties.metrics()
        assert (metrics["duties_failed"], metrics["duties_crashed"]) == (2, 1)

    run(tmp_path, body)
    assert script.log == ["start"] * 4


def test_what_is_no_longer_owed_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, [DUTY])
    started = asyncio.Event()

    async def outcome() -> None:
        started.set()
        await asyncio.Event().wait()

    script.outcome = outcome

    async def body(duties: Duties, net: DutyNet) -> None:
        await started.wait()
        net.local.block()  # still owed: the same task goes on
        await asyncio.sleep(0)
        assert duties.in_hand() == [DUTY]
        script.owed.clear()
        net.local.block()
        await spin(lambda: not duties.in_hand())

    run(tmp_path, body)
    assert script.log == ["start", "cancelled"]


def test_what_is_sent_is_seen_through_though_its_duty_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the nonces of later duties would wait for one that was refused (a real deadlock)."""
    script = Script(monkeypatch, [DUTY])
    sent, receipt = asyncio.Event(), Receipt(TxId(bytes(32)), "ok", "")

    async def body(duties: Duties, net: DutyNet) -> None:
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        seen = list[Receipt]()

        async def submit(payload: Any) -> Receipt:
            sent.set()
            seen.append(await future)
            return seen[0]

        monkeypatch.setattr(net.nodes[0], "submit_duty", submit)
        await sent.wait()
        script.owed.clear()
        net.local.block()
        await spin(lambda: not duties.in_hand())
        future.set_result(receipt)
        await spin(lambda: seen == [receipt])

    async def outcome() -> None:
        await script.context.send(VOTE)

    script.outcome = outcome
    run(tmp_path, body)
    assert script.log == ["start", "cancelled"]


def test_a_plan_that_fails_does_not_end_the_reconciler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, [DUTY])
    broken = [True]

    def planned(*_: Any) -> list[Duty]:
        if broken:
            broken.pop()
            raise RuntimeError("a bug")
        return list(script.owed)

    monkeypatch.setattr(module, "plan", planned)

    async def body(duties: Duties, net: DutyNet) -> None:
        await spin(lambda: duties.metrics()["duties_crashed"] > 0)
        net.local.block()
        await spin(lambda: duties.metrics()["duties_done"] > 0)

    run(tmp_path, body)
    assert not broken
    assert script.log[0] == "start"


# --- datasets ------------------------------------------------------------------------------

TEXT = "".join(f"Line {i} of a text that is worth learning from, {i * i}.\n" for i in range(400))


def test_an_auditor_reports_what_it_finds(tmp_path: Path) -> None:
    """One good dataset, one whose submission lies, one that nobody has."""
    good = build([Document("a.txt", TEXT.encode())], "MIT", "good")

    async def body(duties: Duties, net: DutyNet) -> None:
        context = duties._context
        blobs = net.local.blobs
        for data in (good.manifest_bytes, *good.chunks):
            blobs.put(data)
        add_dataset(net.local, "any")
        (known,) = [net.state.dataset(d) for d in (good_id(net),)]
        record = replace(
            known,
            id=good.id,
            manifest=BlobId(BLOB.hash(good.manifest_bytes)),
            manifest_bytes=len(good.manifest_bytes),
            size_bytes=good.manifest.size_bytes,
            documents=1,
            license="MIT",
            title="good",
        )
        assert (await fetch_dataset(record, context.blob, context.keep))[1] == TEXT.encode()
        report = await report_on(context, record)
        assert (report.verdict, report.findings) == (Verdict.YES, ())
        again = await report_on(context, record)
        assert again == report
        lie = await report_on(context, replace(record, license="CC0-1.0"))
        assert (lie.verdict, lie.findings) == (Verdict.NO, (NOT_AS_PROMISED,))
        other = await report_on(context, replace(record, id=Hash32(b"x" * 32)))
        assert other.report_root != lie.report_root
        with pytest.raises(UnreachableError):
            await report_on(context, replace(record, manifest=BlobId(bytes(32))))

    run(tmp_path, body)


def good_id(net: DutyNet) -> Hash32:
    return next(Hash32(key[5:]) for key, _ in net.state.items(b"data/"))


# --- parts ---------------------------------------------------------------------------------


def test_a_blob_opens_with_its_salt_alone() -> None:
    blob = seal(b"payload", b"s" * 32)
    assert unseal(blob, b"s" * 32) == b"payload"
    for wrong in (blob[:-1], blob[:-1] + bytes([blob[-1] ^ 1]), b"", blob + b"\0"):
        with pytest.raises(VerifyError):
            unseal(wrong, b"s" * 32)
    with pytest.raises(VerifyError):
        unseal(blob, b"t" * 32)
    with pytest.raises(InputError, match="too large"):
        seal(bytes(limits.MAX_BLOB_BYTES), b"s" * 32)


def change(tile: int, gram: int) -> TileChange:
    return TileChange(
        ShardIndex(0), TileIndex(tile), ZERO_HASH, ZERO_HASH, ZERO_HASH, bytes(gram), ()
    )


def test_changes_are_packed_into_as_few_transactions_as_they_need() -> None:
    small = [change(i, 16) for i in range(600)]
    groups = list(pack(small))
    assert [len(g) for g in groups] == [256, 256, 88]
    assert [c for g in groups for c in g] == small
    large = [change(i, 33_000) for i in range(3)]
    assert [len(g) for g in pack(large)] == [1, 1, 1]
    assert list(pack([])) == []


def test_duty_files_keep_votes_and_tiles_until_their_round_is_over(tmp_path: Path) -> None:
    files = DutyFiles(tmp_path / "duties")
    delta = TxId(TX.hash(b"delta"))
    vote = PolVote(3, delta, Phase.REVEAL, ZERO_HASH, Hash32(b"s" * 32), 1, ())
    files.save_vote(vote)
    assert DutyFiles(tmp_path / "duties").vote(3, delta) == vote
    assert files.vote(4, delta) is None
    tile = b"tile" * 8
    root = merkle.tile_root(tile)
    files.save_tile(3, root, tile)
    assert [files.has_tile(n, root) for n in (2, 3)] == [False, True]
    assert files.tile(3, root) == tile
    (path,) = (tmp_path / "duties" / "tiles").iterdir()
    path.write_bytes(b"tilf" * 8)
    assert files.tile(3, root) is None
    files.forget_before(3)
    assert files.vote(3, delta) == vote
    files.forget_before(4)
    assert files.vote(3, delta) is None
    assert list((tmp_path / "duties" / "tiles").iterdir()) == []
