"""What transactions cost, and who has the slots that they ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.cost_cases import all_cases
from chain import hosting, stamps, trigger_slots
from chain import records as r
from chain.codec import encode
from chain.costs import (
    COSTS,
    STAMP_SHARE,
    UNIT_BYTES,
    Room,
    StampClass,
    spend,
    undeclared,
    unreadable,
)
from chain.hashes import DATASET, Hash32
from chain.limits import (
    MAX_BLOCK_TXS,
    MAX_LEARNERS,
    MAX_NEWCOMER_DATASET_BYTES,
    MAX_OPENING_TX_BYTES,
    MAX_TX_BYTES,
)
from chain.params import parse_genesis
from chain.price_records import DATASETS, DatasetIndex, StampLoad, stamp_class_key
from chain.records import RoundPhase
from chain.rounds import put_round
from chain.state import State
from chain.transactions import (
    AuditReport,
    CustodyOpening,
    DatasetSubmit,
    JoinRound,
    Transfer,
    Verdict,
)
from chain.types import BlobId, Grains, Height, PubKey
from node.stamping import spend_of
from tests.kit.machine import TEMPLATE, Machine, key
from tests.kit.round_run import RoundRun

EVE = key("eve")
SEED = Hash32(b"s" * 32)


# --- costs ----------------------------------------------------------------------------------


def test_every_kind_has_a_cost_and_fits_the_share_of_stamps() -> None:
    assert not undeclared()
    params = parse_genesis(TEMPLATE.read_text()).params
    for kind, cost in COSTS.items():
        most = MAX_OPENING_TX_BYTES if kind is CustodyOpening else MAX_TX_BYTES
        assert cost.us + cost.us_per_kib * most // 1024 <= params.block_cost_us // STAMP_SHARE, kind
        assert most <= Room(params.block_cost_us).stamped_bytes


def test_a_block_has_room_for_as_many_transfers_as_it_may_count() -> None:
    params = parse_genesis(TEMPLATE.read_text()).params
    asked = spend_of(Transfer(EVE.public, Grains(2**64 - 1)))
    assert asked.units == 1
    assert asked.us * MAX_BLOCK_TXS <= params.block_cost_us


def test_what_is_dear_is_priced_by_time_or_by_bytes_whichever_is_more() -> None:
    opening = CustodyOpening(SEED, EVE.public, 0, (), bytes(1000))
    assert spend(opening, 256 * UNIT_BYTES).units == 256
    assert spend(opening, 256 * UNIT_BYTES + 1).units == 257
    assert spend(Transfer(EVE.public, Grains(1)), 300).units == 1
    dear = next(case for case in all_cases(4) if "certificates" in case.name)
    asked = spend(dear.payload, len(dear.raw))
    assert asked.units == -(-asked.us // 500) > len(dear.raw) // UNIT_BYTES


def test_every_kind_that_is_measured_is_taken() -> None:
    """The bench's cases are transactions that the next block takes, or refuses late; what they cost
    is for `python -m bench.costs`."""
    seen = set()
    for case in all_cases(4):
        machine = case.machine
        before = machine.tree, machine.height, machine.time_ms, machine.parent
        (receipt,) = machine.block(case.raw)
        assert receipt.code == case.code, receipt.reason
        machine.tree, machine.height, machine.time_ms, machine.parent = before
        seen.add(type(case.payload).__name__)
    idle = {"Challenge", "ChallengeResponse", "FraudProof", "DatasetVote"}
    assert seen | idle == {kind.__name__ for kind in COSTS}


def test_garbage_takes_room_too() -> None:
    room = Room(10**6)
    room.take(unreadable(100_000))
    assert room.us < 10**6
    assert room.bytes < Room(10**6).bytes
    assert room.stamped_bytes == Room(10**6).stamped_bytes


@pytest.mark.parametrize(("field", "value"), [("block_cost_us", 1000), ("stamp_target_units", 0)])
def test_a_genesis_without_room_for_anything_is_refused(field: str, value: int) -> None:
    from chain.errors import GenesisError

    document = json.loads(TEMPLATE.read_text())
    document["params"][field] = value
    with pytest.raises(GenesisError, match=field):
        parse_genesis(json.dumps(document))


def test_a_genesis_of_before_goes_on_with_what_was_so_far() -> None:
    document = json.loads(TEMPLATE.read_text())
    now = parse_genesis(json.dumps(document)).params
    for name in ("block_cost_us", "quota_day", "stamp_target_units", "audit_patience"):
        del document["params"][name]
    assert parse_genesis(json.dumps(document)).params == now


# --- retarget -------------------------------------------------------------------------------


def test_a_stamp_begun_before_difficulty_rose_still_counts() -> None:
    machine = Machine(stamp_retarget_blocks=4, stamp_bits=3)
    for _ in range(9):
        machine.block()
    state = machine.state

    def needed(height: int, now: int, before: int) -> int:
        state.put(stamp_class_key(StampClass.MONEY), StampLoad(now, before, Height(8), 0))
        return stamps.difficulty(state, machine.genesis.params, StampClass.MONEY, height)

    assert [needed(h, 32, 16) for h in (7, 8)] == [16, 32]
    assert [needed(h, 16, 32) for h in (7, 8)] == [16, 16]  # nor need it be more than now
    assert needed(8, 2, 2) == 8  # the floor was raised meanwhile


# --- learners -------------------------------------------------------------------------------


def standings(*merits: int) -> tuple[State, list[PubKey]]:
    machine = Machine()
    state = machine.state
    accounts = [key(f"learner {i}").public for i in range(len(merits))]
    for account, merit in zip(accounts, merits, strict=True):
        state.put_account(account, merit=merit)
    return state, accounts


def draw(state: State, accounts: list[PubKey], slots: int, seed: Hash32 = SEED) -> list[int]:
    params = parse_genesis(TEMPLATE.read_text()).params
    chosen = trigger_slots.draw(state, params, seed, accounts, slots)
    assert list(chosen) == [a for a in accounts if a in chosen]
    return [accounts.index(a) for a in chosen]


def test_all_have_slots_while_there_are_slots_for_all() -> None:
    state, accounts = standings(*[0] * 5, *[9] * 3)
    assert draw(state, accounts, 8) == list(range(8))


def test_three_quarters_go_by_merit_and_a_quarter_by_lot() -> None:
    state, accounts = standings(*[0] * 20, *range(10, 30))
    lots = set()
    for i in range(40):
        found = draw(state, accounts, 8, DATASET.hash(bytes([i])))
        assert found[2:] == list(range(34, 40))  # the six with most merit
        lots.update(found[:2])
    assert len(lots) > 15  # any of the newcomers


@pytest.mark.parametrize("trusted", [0, 1, 5, 6, 7, 40])
def test_what_one_side_leaves_is_the_others(trusted: int) -> None:
    state, accounts = standings(*[0] * 40, *[5] * trusted)
    found = draw(state, accounts, 8)
    assert len(found) == 8
    assert sum(i >= 40 for i in found) == min(trusted, 6)
    state, accounts = standings(0, *[5] * trusted)
    found = draw(state, accounts, 8)
    assert len(found) == min(8, trusted + 1)
    assert 0 in found


def test_newcomers_cannot_fill_the_list_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_slots, "MAX_LEARNERS", 4)
    monkeypatch.setattr(trigger_slots, "TRUSTED_JOINS", 1)
    run = RoundRun()
    run.dataset()
    state = run.m.state
    for i in range(4):
        state.put_account(key(f"new {i}").public, balance=10**6)
    state.put_account(EVE.public, merit=3)
    run.m.tree = state.commit()
    codes = [run.send(f"new {i}", JoinRound(0, ())) for i in range(4)]
    assert codes == ["ok", "ok", "ok", "no_slot"]
    assert run.send("eve", JoinRound(0, ())) == "ok"
    assert run.send("ann", JoinRound(0, ())) == "no_slot"


def test_who_was_not_drawn_has_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chain.rounds.MAX_DELTAS", 2)
    monkeypatch.setattr("chain.phases.MAX_DELTAS", 2)
    monkeypatch.setattr(trigger_slots.draw, "__defaults__", (2,))
    run = RoundRun()
    run.dataset()
    run.join("ann", "ben", "eve")
    run.until(RoundPhase.TRAIN)
    assert len(run.round.joined) == 2
    names = {n: key(n).public in run.round.joined for n in ("ann", "ben", "eve")}
    for name in sorted(names, key=lambda n: names[n]):
        code = run.commit(name, run.manifest(name))
        assert code == ("ok" if names[name] else "no_slot")


# --- bytes that wait for an audit ------------------------------------------------------------


def submit(run: RoundRun, name: str, number: int, size: int) -> str:
    dataset = DATASET.hash(number.to_bytes(2, "big"))
    payload = DatasetSubmit(dataset, BlobId(dataset), 10, size, 3, "CC0-1.0", str(number))
    return run.send(name, payload)


def test_a_new_account_has_64_mib_waiting_and_no_more() -> None:
    run = RoundRun(dataset_bytes_most=2**40)
    half = MAX_NEWCOMER_DATASET_BYTES // 2
    assert submit(run, "ann", 1, half) == "ok"
    assert submit(run, "ann", 2, half + 1) == "no_slot"
    assert submit(run, "ann", 2, half) == "ok"
    assert submit(run, "ann", 3, 1) == "no_slot"
    state = run.m.state
    state.put_account(key("ann").public, merit=3)
    run.m.tree = state.commit()
    assert submit(run, "ann", 3, 10 * half) == "ok"
    report = AuditReport(DATASET.hash(b"\0\x01"), Verdict.NO, 0, (), SEED)
    for validator in run.m.validators[:3]:
        assert run.send_duty(validator, report) == "ok"
    now = run.m.state.need(DatasetIndex, DATASETS)
    assert (now.newcomers, now.newcomer_bytes, now.pending_bytes) == (1, half, 11 * half)


def test_new_accounts_share_a_quarter_of_all_that_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RoundRun(hosted_bytes_most=4000, trusted_merit=5)
    assert submit(run, "ann", 1, 600) == "ok"
    assert submit(run, "ben", 2, 401) == "no_slot"
    assert submit(run, "ben", 2, 400) == "ok"
    state = run.m.state
    state.put_account(EVE.public, merit=5)
    run.m.tree = state.commit()
    assert submit(run, "eve", 3, 3001) == "no_slot"
    assert submit(run, "eve", 3, 2000) == "ok"
    monkeypatch.setattr(hosting, "MAX_DATASETS", 8)
    assert submit(run, "ann", 4, 0) == "empty_dataset"
    monkeypatch.setattr(hosting, "NEWCOMER_SHARE", 3)
    assert submit(run, "ann", 4, 1) == "no_slot"  # by number: two of eight are a quarter


def test_what_nobody_audits_gives_its_room_back() -> None:
    run = RoundRun(audit_patience={"blocks": 6, "ms": 20_000}, hosted_bytes_most=4000)
    assert submit(run, "ann", 1, 1000) == "ok"
    began = run.m.height
    while run.m.height < began + 19:  # blocks of a second: the time has not passed
        assert submit(run, "ben", 2, 1) == "no_slot"
    run.m.block()
    run.m.block()
    assert submit(run, "ben", 2, 1000) == "ok"
    now = run.m.state.need(DatasetIndex, DATASETS)
    assert (now.held, now.newcomers, now.vacant) == (2, 1, (DATASET.hash(b"\0\x01"),))
    for prefix, count in ((b"host/", 1), (b"hown/", 1), (b"hdue/", 1)):
        assert len(list(run.m.tree.items(prefix))) == count


def test_a_state_without_an_index_gets_one_from_its_datasets() -> None:
    run = RoundRun()
    run.dataset()
    before = run.m.state.need(DatasetIndex, DATASETS)
    state = run.m.state
    state.delete(DATASETS)
    run.m.tree = state.commit()
    run.m.block()
    assert run.m.state.need(DatasetIndex, DATASETS) == before


def test_a_round_is_full_whatever_its_record_says() -> None:
    """All of a round's places taken, a join writes the longest record there is."""
    run = RoundRun(trusted_merit=0)
    run.dataset()
    state = run.m.state
    others = tuple(PubKey(DATASET.hash(bytes([i]))) for i in range(MAX_LEARNERS - 1))
    put_round(state, r.RoundRecord(**{**_fields(run.round), "joined": others}))
    run.m.tree = state.commit()
    assert run.send("ann", JoinRound(0, ())) == "ok"
    assert run.send("ben", JoinRound(0, ())) == "no_slot"


def _fields(record: r.RoundRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def test_the_size_that_is_priced_is_the_transactions() -> None:
    machine = Machine(funded=("eve",))
    tx = machine.tx(EVE, Transfer(key("bob").public, Grains(1)))
    assert spend(tx.payload, len(encode(tx))).us <= spend_of(tx.payload).us
    assert Height(machine.height) == 0
