"""`blyan stake`, run as people run it: what it prints, what the chain holds then, how it exits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chain import records as r
from chain.address import format_address
from chain.jail import JailReason, jail
from chain.params import Window
from chain.state import State
from tests.kit.commands import Run, runner
from tests.kit.local_chain import LocalChain
from wallet.keys import Keys

EPOCH = 8
BLY = 10**8


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[LocalChain]:
    terms: dict[str, Any] = {
        "downtime_jail": {"blocks": EPOCH, "ms": 0},
        "evidence_jail": {"blocks": 8 * EPOCH, "ms": 0},
    }
    with LocalChain(
        tmp_path, epoch_blocks=EPOCH, unbonding_blocks=40, min_bond_grains=10 * BLY, **terms
    ) as made:
        yield made


@pytest.fixture
def owner(chain: LocalChain) -> Keys:
    return chain.validators[0]


@pytest.fixture
def run(
    chain: LocalChain,
    owner: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    return runner("stake", chain, lambda: owner, tmp_path / "home", monkeypatch, capsys)


def held(chain: LocalChain, owner: Keys) -> r.Account:
    return chain.state.account(owner.account.public)


def put(chain: LocalChain, change: Callable[[State], None]) -> None:
    """Change the state beneath the tip: jail comes from evidence and absence, which take epochs."""
    state = chain.state
    change(state)
    chain.chain._tree = chain.store._state = state.commit()


def test_a_bond_counts_in_the_set_that_freezes_next(
    chain: LocalChain, owner: Keys, run: Run
) -> None:
    before = held(chain, owner)
    chain.block()
    code, said = run("bond", "12.5", "--yes", "--json")
    assert code == 0
    after = held(chain, owner)
    assert after.bonded == before.bonded + said["amount"] == said["bonded"]
    assert said["amount"] == 12.5 * BLY
    assert said["height"] == chain.chain.tip.height == 2
    assert said["counts_from"] == 3
    chain.until(lambda state: state.head.epoch == 3)
    sets = {e: chain.state.epoch(e).validators for e in (2, 3)}
    stakes = {
        e: next(v.stake for v in some.members if v.account == owner.account.public)
        for e, some in sets.items()
    }
    assert stakes == {2: before.bonded, 3: after.bonded}


def test_a_bond_at_an_epoch_s_first_block_counts_one_epoch_earlier(run: Run) -> None:
    code, said = run("bond", "10", "--yes", "--json")
    assert (code, said["height"], said["counts_from"]) == (0, 1, 2)


def test_what_is_unbonded_is_shown_until_it_is_paid_out(
    chain: LocalChain, owner: Keys, run: Run
) -> None:
    before = held(chain, owner)
    code, said = run("unbond", "100", "--yes", "--json")
    assert code == 0
    assert said["release"] == said["height"] + 40
    params = chain.genesis.params
    assert said["release_ms"] == chain.chain.tip.time_ms + params.unbonding_ms
    address = format_address(owner.account.public)
    code, shown = run("show", address, "--json")
    assert code == 0
    wanted = {"amount": 100 * BLY, "release": said["release"], "release_ms": said["release_ms"]}
    assert shown["unbonding"] == [wanted]
    assert shown["bonded"] == before.bonded - 100 * BLY == said["bonded"]
    assert [s["epoch"] for s in shown["sets"]] == [0, 1, 2]
    code, text = run("show", address)
    assert "100 BLY at block 41 or later, not before 20" in text
    assert "jail       no" in text
    assert "announced  as a validator" in text


def test_jail_is_shown_and_left_when_its_term_is_over(
    chain: LocalChain, owner: Keys, run: Run
) -> None:
    account = owner.account.public
    address = format_address(account)
    put(chain, lambda state: jail(state, account, JailReason.DOWNTIME, Window(4, 2000)))
    code, shown = run("show", address, "--json")
    assert code == 0
    assert shown["jail"]["reason"] == "downtime"
    assert (shown["jail"]["until"], shown["jail"]["over"]) == (4, False)
    code, said = run("unjail", "--json")
    assert (code, said["error"]["code"]) == (4, "still_jailed")
    assert held(chain, owner).jailed
    chain.blocks(4)
    code, text = run("show", address)
    assert "over, see `blyan stake unjail`" in text
    code, text = run("unjail")
    assert code == 0
    assert "out of jail in block" in text
    assert not held(chain, owner).jailed
    code, said = run("unjail", "--json")
    assert (code, said["error"]["code"]) == (4, "not_jailed")


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (("bond", "0.5", "--yes"), 4),  # less than the least bond
        (("bond", "1000000", "--yes"), 4),  # more than the balance
        (("unbond", "1000000", "--yes"), 4),  # more than the stake
        (("bond", "nothing", "--yes"), 2),
        (("bond", "10"), 2),  # nobody to ask
        (("show", "bly1nobody"), 2),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    chain: LocalChain, owner: Keys, run: Run, words: tuple[str, ...], exit_code: int
) -> None:
    before = held(chain, owner)
    code, text = run(*words)
    assert code == exit_code
    assert text
    assert held(chain, owner) == before


def test_validators_show_who_is_jailed_and_misses_turns(chain: LocalChain, owner: Keys) -> None:
    from node.query import Query

    account = owner.account.public

    def change(state: State) -> None:
        jail(state, account, JailReason.EVIDENCE, Window(9, 9))
        state.put(r.attendance_key(account), r.Attendance(account, 7, 8))

    put(chain, change)
    rows = {v["account"]: v for v in Query(chain).validators()["validators"]}
    row = rows[format_address(account)]
    assert (row["jailed"], row["jail"]["reason"], row["missed_turns"]) == (True, "evidence", 7)
    others = [v for name, v in rows.items() if name != format_address(account)]
    assert all((v["jailed"], v["jail"], v["missed_turns"]) == (False, None, 0) for v in others)
