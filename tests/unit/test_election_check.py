"""`blyan query election`, and the same computed again from what it shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chain import records as r
from chain.address import format_address
from chain.codec import decode, encode
from chain.errors import BlyanError, InputError, VerifyError
from chain.hashes import ZERO_HASH
from chain.rounds import tile_ranks
from chain.types import Certificate, Signature
from node.api.app import create_app
from node.cli.blyan import program
from node.cli.query import _election
from node.cli.session import run_program
from node.client import Client
from node.election_check import check_election
from tests.kit.local_chain import LocalChain

Json = dict[str, Any]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        made.block()
        made.block()
        yield made


@pytest.fixture
def answer(chain: LocalChain) -> Json:
    async def body() -> Json:
        client = Client("http://localhost", None, httpx.ASGITransport(create_app(chain)))
        async with client:
            return await client.election("layers.0.experts.1", 0)

    return asyncio.run(body())


def test_what_the_node_says_follows_from_its_proof(chain: LocalChain, answer: Json) -> None:
    found = check_election(answer, chain.genesis)
    ranks = tile_ranks(chain.chain.state(), chain.rules, answer["shard"], 0)
    assert found["ranks"] == [format_address(a) for a in ranks]
    assert found["ranks"] == [row["account"] for row in answer["ranks"]]
    assert found["finality"] == "certified by the genesis validators"
    first = answer["meetings"][0]["accounts"][0]
    assert first == found["ranks"][0]
    assert len(answer["weights"]) == len(ranks)


def test_people_see_ranks_beside_the_probes_that_made_them(answer: Json) -> None:
    shown = _election(answer)
    assert answer["seed"] in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] == ["0"]]
    first, probe = answer["ranks"][0]["account"], str(answer["meetings"][0]["probe"])
    assert rows == [["0", first, rows[0][2], probe, "65536"]]
    full = [{"account": first, "refuses": True}]
    assert _election(answer | {"full": full}).splitlines()[-4].split()[-2:] == [probe, "full"]
    older = {k: v for k, v in answer.items() if k != "meetings"}  # a node of before
    assert " -" in _election(older)


def test_another_order_or_inputs_are_noticed(chain: LocalChain, answer: Json) -> None:
    lies: list[Json] = [
        {"ranks": answer["ranks"][::-1]},
        {"ranks": answer["ranks"][:1]},
        {"ranks": []},
        {"ranks": [answer["ranks"][0] | {"stake": 1}, *answer["ranks"][1:]]},
        {"tile": 1, "shard": answer["shard"]},
        {"shard": 99},
        {"tile": -1},
        {"shard": 0},
        {"seed": ZERO_HASH.hex()},
        {"scale": answer["scale"] + 1},
        {"lot": "0" * 16},
        {"weights": answer["weights"][1:]},
        {"meetings": answer["meetings"][1:]},
        {"name": "layers.9"},
        {"epoch": answer["epoch"] + 1},
    ]
    for lie in lies:
        with pytest.raises(VerifyError):
            check_election(answer | lie, chain.genesis)


def test_another_record_header_or_certificate_is_noticed(chain: LocalChain, answer: Json) -> None:
    proof = answer["state"]
    record = decode(r.EpochRecord, bytes.fromhex(proof["value"]))
    forged = encode(replace(record, seed=ZERO_HASH)).hex()
    certificate = decode(Certificate, bytes.fromhex(proof["certificate"]))
    unsigned = replace(
        certificate, signatures=tuple(Signature(bytes(64)) for _ in certificate.signatures)
    )
    lies: list[Json] = [
        {"value": forged},
        {"value": None},
        {"proof": ""},
        {"header": proof["header"][:-2]},
        {"certificate": encode(unsigned).hex()},
        {"certificate": "00"},
    ]
    for lie in lies:
        with pytest.raises(BlyanError):
            check_election(answer | {"state": proof | lie}, chain.genesis)
    # Without a certificate the ranks hold, and the report does not claim more than that.
    bare = check_election(answer | {"state": proof | {"certificate": None}}, chain.genesis)
    assert bare["finality"].startswith("not checked")


def test_what_is_no_answer_says_what_one_is(chain: LocalChain, answer: Json) -> None:
    for wrong in ({}, answer | {"ranks": 5}, answer | {"state": None}, answer | {"tile": "x"}):
        with pytest.raises(InputError, match="blyan query election --json"):
            check_election(wrong, chain.genesis)


def test_a_saved_answer_is_checked_without_a_node(
    chain: LocalChain, answer: Json, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home, saved = tmp_path / "home", tmp_path / "election.json"
    home.mkdir()
    (home / "genesis.json").write_text(json.dumps(dict(chain.genesis.document)))
    command = ["--home", str(home), "tile", "verify-election", str(saved)]
    for content, code, says in (
        (json.dumps(answer), 0, "the ranks hold"),
        (json.dumps(answer | {"ranks": answer["ranks"][::-1]}), 65, "ask another node"),
        ("[]", 2, "expected a JSON object"),
        ("{", 2, "expected a JSON object"),
        ("{" + " " * (1 << 20) + "}", 2, "at most 1 MiB"),
    ):
        saved.write_text(content)
        assert run_program(program, "blyan", command) == code
        shown = capfd.readouterr()
        assert says in shown.out + shown.err
