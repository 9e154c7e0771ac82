"""`blyan announce`, run as people run it: what the chain holds then, what is refused before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chain import records as r
from chain.address import peer_id_of
from chain.limits import MAX_ADDRESSES
from chain.transactions import Roles
from tests.kit.commands import Run, runner
from tests.kit.local_chain import LocalChain
from wallet.keys import KeyPair, Keys

HOST = "/dns/node.example.org/tcp/9645"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(tmp_path, epoch_blocks=8) as made:
        yield made


@pytest.fixture
def acting(chain: LocalChain) -> list[Keys]:
    """Who acts: the first. A validator of genesis, which has announced its keys and no address."""
    return [chain.validators[0]]


@pytest.fixture
def run(
    chain: LocalChain,
    acting: list[Keys],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    return runner("announce", chain, lambda: acting[0], tmp_path / "home", monkeypatch, capsys)


def held(chain: LocalChain, keys: Keys) -> r.NodeRecord | None:
    return chain.state.get(r.NodeRecord, r.node_key(keys.account.public))


def test_what_is_announced_is_on_the_chain(chain: LocalChain, acting: list[Keys], run: Run) -> None:
    words = ("--role", "host", "--role", "validator", "--capacity", "4096", "--address", HOST)
    code, said = run(*words, "--yes", "--json")
    assert code == 0
    record, node_id = held(chain, acting[0]), peer_id_of(acting[0].node.public)
    assert record is not None
    assert record.roles == Roles.VALIDATOR | Roles.HOST
    assert record.capacity_tiles == said["capacity_tiles"] == 4096
    assert list(record.addresses) == said["addresses"] == [f"{HOST}/p2p/{node_id}"]
    assert (record.node_id, said["roles"]) == (node_id, ["validator", "host"])


def test_what_is_not_named_stays(chain: LocalChain, acting: list[Keys], run: Run) -> None:
    run("--role", "validator", "--capacity", "7", "--address", HOST, "--yes")
    before = held(chain, acting[0])
    assert run("--capacity", "8", "--yes")[0] == 0
    after = held(chain, acting[0])
    assert before is not None
    assert after is not None
    assert (after.roles, after.addresses) == (before.roles, before.addresses)
    assert after.capacity_tiles == 8
    code, text = run("--role", "none", "--address", "none", "--yes")
    last = held(chain, acting[0])
    assert last is not None
    assert (code, last.roles, last.addresses, last.capacity_tiles) == (0, 0, (), 8)
    assert "roles      none" in text
    assert "capacity   8 tiles" in text


def test_a_newcomer_says_what_it_does(chain: LocalChain, acting: list[Keys], run: Run) -> None:
    old = acting[0]
    fresh = Keys.from_seeds(old.account.seed, *(bytes([n]) * 32 for n in (51, 52, 53)))
    acting[0] = Keys(KeyPair.from_seed(bytes([50]) * 32), fresh.node, fresh.consensus, fresh.vrf)
    code, text = run("--capacity", "1", "--yes")
    assert (code, held(chain, acting[0])) == (2, None)
    assert "--role" in text
    acting[0] = fresh  # the same account with other keys of its node: it goes on with them
    assert run("--role", "validator", "--yes")[0] == 0
    record = held(chain, fresh)
    assert record is not None
    assert record.consensus_key == fresh.consensus.public
    assert record.vrf_key == fresh.vrf.public


def test_another_s_consensus_key_is_refused(
    chain: LocalChain, acting: list[Keys], run: Run
) -> None:
    one, two = chain.validators[:2]
    acting[0] = Keys(one.account, one.node, two.consensus, one.vrf)
    code, text = run("--role", "validator", "--yes")
    assert code == 4
    assert "another account has announced this consensus key" in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--address", "node.example.org:9645"), "is no address"),
        (("--address", "/ip4/0.0.0.0/tcp/9645"), "nobody can dial that"),
        (("--address", "/ip4/192.0.2.1/tcp/0"), "nobody can dial that"),
        (("--address", HOST, "--address", "none"), "goes with no other address"),
        (("--address", HOST) * (MAX_ADDRESSES + 1), f"at most {MAX_ADDRESSES}"),
        (("--address", f"{HOST}/p2p/{peer_id_of(bytes(32))}"), "is not that of the node's key"),
        (("--role", "none", "--role", "host"), "goes with no other role"),
        (("--role", "king"), "king"),
    ],
)
def test_what_makes_no_sense_is_not_sent(
    chain: LocalChain, run: Run, words: tuple[str, ...], why: str
) -> None:
    code, text = run(*words, "--yes")
    assert code == 2
    assert why in text
    assert chain.chain.tip.height == 0
