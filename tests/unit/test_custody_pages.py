"""What the API, the explorer and the command line say of custody events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from chain.address import format_address
from chain.custody_records import CustodyPhase
from chain.hashes import Hash32
from chain.transactions import CustodyOpening
from chain.types import PubKey
from node.api import resources as res
from node.api import resources_custody as kept
from node.api import resources_learning as learn
from node.api.app import create_app
from node.cli.query import _custody_table
from node.query.plain import plain
from tests.kit.custody_chain import (
    CUSTODY_PARAMS,
    commit,
    event_of,
    keys_of,
    troubled_event,
    until,
)
from tests.kit.local_chain import LocalChain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain"), **CUSTODY_PARAMS) as made:
        made.ended = troubled_event(made)  # type: ignore[attr-defined]
        until(made, CustodyPhase.COMMIT)
        commit(made, 0)
        made.block()
        yield made


@pytest.fixture(scope="module")
def app(chain: LocalChain) -> FastAPI:
    return create_app(chain)


@pytest.fixture(scope="module")
def ended(chain: LocalChain) -> Hash32:
    seed: Hash32 = chain.ended  # type: ignore[attr-defined]
    return seed


def ask(app: FastAPI, path: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(get())


def get(app: FastAPI, path: str) -> Any:
    answer = ask(app, f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answers_have_the_form_they_document(app: FastAPI, ended: Hash32) -> None:
    TypeAdapter(kept.CustodyList).validate_python(get(app, "custody"), strict=True)
    for which in ("current", ended.hex()):
        found = get(app, f"custody/{which}")
        TypeAdapter(kept.CustodyEvent).validate_python(found, strict=True)


def test_the_list_has_the_event_in_progress_and_those_that_ended(
    app: FastAPI, chain: LocalChain, ended: Hash32
) -> None:
    page = get(app, "custody")
    assert page["current"]["event"] == event_of(chain).seed.hex()
    assert page["current"]["phase"] == "commit"
    assert (page["current"]["asked"], page["current"]["committed"]) == (3, 1)
    (row,) = page["events"]
    assert (row["event"], row["phase"]) == (ended.hex(), "closed")
    assert (row["custodians"], row["committed"], row["missed"], row["convicted"]) == (4, 2, 1, 1)
    assert row["disputed"] == 1
    assert page["next_anchor"] % page["interval_blocks"] == 0 < page["next_anchor"]
    table = _custody_table({"events": page["events"]})
    assert "2/4" in table
    assert get(app, f"custody?before={row['closed']}")["events"] == []
    assert get(app, "custody?limit=1")["next"] == row["closed"]


def test_an_event_that_ended_tells_what_happened(app: FastAPI, ended: Hash32) -> None:
    event = get(app, f"custody/{ended.hex()}")
    assert sorted(m["status"] for m in event["members"]) == [
        *("committed", "committed", "convicted", "missed")
    ]
    assert [d["what"] for d in event["disputes"]] == ["disputed", "wrong", "shown"]
    wrong = event["disputes"][1]
    assert wrong["lost"] == 2 * wrong["reward"] > 0
    place = event["place_list"][0]
    assert [k["rank"] for k in place["custodians"]] == [0, 1, 2]
    assert place["custodians"][0]["account"] == wrong["custodian"]
    assert all(k["commitment"] is None for p in event["place_list"] for k in p["custodians"])


def test_the_event_in_progress_shows_commitments(app: FastAPI, chain: LocalChain) -> None:
    event = get(app, "custody/current")
    account = format_address(event_of(chain).members[0].account)
    made = [k for p in event["place_list"] for k in p["custodians"] if k["commitment"]]
    assert {k["account"] for k in made} == {account}
    (member,) = [m for m in event["members"] if m["account"] == account]
    assert (member["committed"], len(member["places"])) == (chain.chain.tip.height, len(made))


def test_accounts_and_tiles_say_what_custody_has_to_say_of_them(
    app: FastAPI, chain: LocalChain
) -> None:
    event = get(app, "custody/current")
    place = event["place_list"][0]
    tile = get(app, f"tiles/{place['shard']}/{place['tile']}")
    TypeAdapter(learn.Tile).validate_python(tile, strict=True)
    assert tile["custody"]["event"] == event["event"]
    assert place["subtile"] in tile["custody"]["subtiles"]
    owner = keys_of(chain, 0).account.public.hex()
    account = get(app, f"accounts/{owner}")
    TypeAdapter(res.Account).validate_python(account, strict=True)
    assert account["custody"]["asked"] == 1
    assert get(app, f"accounts/{chain.learners[0].public.hex()}")["custody"] is None
    assert get(app, f"search?q={event['event']}")[0]["url"] == f"/custody/{event['event']}"


def test_pages_show_events_and_link_to_them(app: FastAPI, chain: LocalChain, ended: Hash32) -> None:
    page = ask(app, "/custody").text
    assert f'href="/custody/{ended.hex()}"' in page
    old = ask(app, f"/custody/{ended.hex()}").text
    assert "not shown" not in old
    for text in ("convicted", "missed", "Disputes and openings"):
        assert text in old
    now = ask(app, "/custody/current").text
    place = event_of(chain).places[0]
    assert f'href="/tiles/{place.shard}/{place.tile}"' in now
    tile = ask(app, f"/tiles/{place.shard}/{place.tile}").text
    assert f'href="/custody/{event_of(chain).seed.hex()}"' in tile
    owner = format_address(keys_of(chain, 0).account.public)
    assert 'href="/custody"' in ask(app, f"/accounts/{owner}").text.partition("<main")[2]


def test_what_is_not_there_is_told(app: FastAPI) -> None:
    assert ask(app, f"/api/v1/custody/{'00' * 32}").status_code == 404
    assert ask(app, "/api/v1/custody/7").status_code == 400
    assert ask(app, "/custody/7").status_code == 400


def test_before_the_first_event_pages_say_when_it_comes(tmp_path: Any) -> None:
    with LocalChain(tmp_path, **CUSTODY_PARAMS) as fresh:
        app = create_app(fresh)
        assert "No events yet" in ask(app, "/custody").text
        assert ask(app, "/custody/current").status_code == 404
        until(fresh, CustodyPhase.SEED)
        assert "drawn from the blocks after" in ask(app, "/custody/current").text
        assert get(app, "custody/current")["place_list"] == []
        assert "seed not drawn yet" in ask(app, "/custody").text


def test_an_opening_is_not_shown_byte_by_byte() -> None:
    """A quarter of a MiB in hex would be most of the page."""
    zero = Hash32(bytes(32))
    shown = plain(CustodyOpening(zero, PubKey(zero), 0, (), b"x" * 70_000))
    assert len(shown["subtile"]) < 100
    assert shown["subtile"].endswith("70000 bytes")
