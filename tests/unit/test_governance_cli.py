"""`blyan governance`, the API and the explorer: a change from its proposal to its effect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from node.api import resources_governance as gov
from node.api.app import create_app
from tests.kit.commands import Run, runner
from tests.kit.local_chain import LocalChain
from wallet.keys import Keys

EPOCH = 8
VOTE = {"blocks": 12, "ms": 0}
DEPOSIT = 10**8


class Who:
    """Whose key signs the next command."""

    keys: Keys


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(
        tmp_path, epoch_blocks=EPOCH, vote=VOTE, proposal_deposit_grains=DEPOSIT
    ) as made:
        made.block()
        yield made


@pytest.fixture
def who(chain: LocalChain) -> Who:
    found = Who()
    found.keys = chain.validators[0]
    return found


@pytest.fixture
def blyan(
    chain: LocalChain,
    who: Who,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    return runner("governance", chain, lambda: who.keys, tmp_path / "home", monkeypatch, capsys)


def get(app: FastAPI, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(ask())


def shown(app: FastAPI, path: str, form: Any) -> Any:
    """An answer, which must have the form that OpenAPI documents, and the page beside it."""
    answer = get(app, f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    TypeAdapter(form).validate_python(answer.json(), strict=True)
    return answer.json()


def carry(chain: LocalChain, blyan: Run, who: Who, proposal: str) -> None:
    """All vote for it; blocks until it is in force."""
    for validator in chain.validators:
        who.keys = validator
        code, said = blyan("vote", proposal, "yes", "--json")
        assert (code, said["verdict"]) == (0, "yes")
    assert said["yes"] == said["total"]
    at = get(create_app(chain), f"/api/v1/governance/{proposal}").json()["activate"]
    chain.until(lambda state: state.head.height >= at)


def test_a_fee_goes_from_a_proposal_to_its_effect(chain: LocalChain, blyan: Run, who: Who) -> None:
    app = create_app(chain)
    code, sent = blyan("propose", "min_fee_grains", "2000", "--activate", "+40", "--yes", "--json")
    assert (code, sent["value"], sent["deposit"]) == (0, 2000, DEPOSIT)
    assert (sent["activate"] - 1) % EPOCH == 0
    page = shown(app, "governance", gov.Governance)
    (row,) = page["proposals"]
    assert (row["id"], row["status"], row["yes"]) == (sent["id"], "open", 0)
    found = shown(app, f"governance/{sent['id']}", gov.Proposal)
    assert found["changes"] == [{"name": "min_fee_grains", "now": 1000, "proposed": 2000}]
    assert [b["verdict"] for b in found["ballots"]] == [None] * len(chain.validators)
    for path in ("/governance", f"/governance/{sent['id']}"):
        assert "min_fee_grains" in get(app, path).text
    carry(chain, blyan, who, sent["id"])
    assert f"/governance/{sent['id']}" in get(app, f"/txs/{sent['id']}").text
    found = shown(app, f"governance/{sent['id']}", gov.Proposal)
    assert found["status"] == "active"
    assert [s["status"] for s in found["steps"]] == ["open", "passed", "active"]
    assert [b["verdict"] for b in found["ballots"]] == ["yes"] * len(chain.validators)
    page = shown(app, "governance", gov.Governance)
    assert page["proposals"] == []
    assert [p["id"] for p in page["ended"]] == [sent["id"]]
    assert [(s["name"], s["value"]) for s in page["changed"]] == [("min_fee_grains", 2000)]
    settings = shown(app, "governance/parameters", gov.Parameters)["parameters"]
    (epoch,) = [s for s in settings if s["name"] == "epoch_blocks"]
    assert epoch["least"] is None
    account = get(app, f"/api/v1/accounts/{chain.validators[0].account.public.hex()}").json()
    assert account["price"]["fee"] == 2000
    # The client pays what holds by now.
    assert blyan("propose", "auditors", "2", "--yes")[0] == 0
    assert get(app, f"/governance/{sent['id']}").status_code == 200
    code, text = blyan("list")
    assert code == 0
    assert "active" in text
    assert "open" in text
    code, text = blyan("params")
    assert "genesis: 1000" in text
    code, text = blyan("show", sent["id"])
    assert (code, text.count("yes")) == (0, len(chain.validators))


def test_a_version_of_the_model_goes_from_a_file_to_the_round(
    chain: LocalChain, blyan: Run, who: Who, tmp_path: Path
) -> None:
    app = create_app(chain)
    file = tmp_path / "changes.json"
    file.write_text(json.dumps({"training": {"learning_rate_nano": 77}}))
    code, sent = blyan("propose-model", str(file), "--version", "1.0.1", "--yes", "--json")
    assert (code, sent["version"], sent["value"]) == (0, "1.0.1", None)
    found = shown(app, f"governance/{sent['id']}", gov.Proposal)
    now = chain.genesis.training["learning_rate_nano"]
    assert found["changes"] == [{"name": "training.learning_rate_nano", "now": now, "proposed": 77}]
    assert "1.0.1" in get(app, f"/governance/{sent['id']}").text
    carry(chain, blyan, who, sent["id"])
    assert shown(app, "governance/model", gov.ModelDocuments)["version"] == "1.0.1"
    first = shown(app, "governance/model?version=1.0.0", gov.ModelDocuments)
    assert first["training"] == chain.genesis.training
    assert get(app, "/api/v1/governance/model?version=9.9.9").status_code == 404
    assert get(app, "/api/v1/rounds/current").json()["model_version"] == "1.0.1"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("propose", "no_such", "1", "--yes"), 4, "no parameter no_such"),
        (("propose", "epoch_blocks", "1", "--yes"), 4, "genesis says"),
        (("propose", "min_fee_grains", "1", "--activate", "3", "--yes"), 4, "with an epoch"),
        (("propose", "min_fee_grains", "1", "--activate", "soon", "--yes"), 2, "expected a height"),
        (("propose", "min_fee_grains", "-1", "--yes"), 2, "No such option"),
        (("vote", "00", "yes"), 2, "64 hexadecimal digits"),
        (("vote", "00" * 32, "yes"), 4, "no proposal"),
        (("vote", "00" * 32, "maybe"), 2, "maybe"),
        (("show", "00" * 32), 2, "there is no proposal"),
        (("propose-model", "{file}", "--version", "1.1.0", "--yes"), 4, "model.layers changes"),
        (("propose-model", "{other}", "--version", "1.0.1", "--yes"), 2, "expected an object"),
        (("propose-model", "/nowhere", "--version", "1.0.1", "--yes"), 2, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(
    blyan: Run, tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    (tmp_path / "file").write_text(json.dumps({"model": {"layers": 3}}))
    (tmp_path / "other").write_text(json.dumps({"layers": 3}))
    named = [w.format(file=tmp_path / "file", other=tmp_path / "other") for w in words]
    found, said = blyan(*named)
    assert found == code, said
    assert text in said


def test_pages_of_nothing(chain: LocalChain) -> None:
    app = create_app(chain)
    assert "No proposals yet" in get(app, "/governance").text
    assert get(app, "/governance/zz").status_code == 400
    assert get(app, f"/governance/{'00' * 32}").status_code == 404
