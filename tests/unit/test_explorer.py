"""The explorer's pages without a browser: links, JSON, files, charts and how values are shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from chain.records import RoundPhase
from node.api.app import create_app
from node.explorer import charts, formats
from tests.kit.local_chain import LocalChain

LINK = re.compile(r'(?:href|src|action)="(/[^"]*)"')
JSON = re.compile(r'<a class="json" href="([^"]+)">JSON</a>')


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """A finished round with a harmful delta, and one that is being judged."""
    with LocalChain(tmp_path_factory.mktemp("chain")) as chain:
        chain.learn(learners=3, garbage=1)
        chain.learn(stop_in=RoundPhase.SCREEN_REVEAL)
        yield create_app(chain)


def gets(app: FastAPI, paths: list[str], **headers: str) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get(path, headers=headers) for path in paths]

    return asyncio.run(ask())


def crawl(app: FastAPI, start: str = "/", most: int = 400) -> dict[str, str]:
    """Every page that can be reached from the overview, by address."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting and len(found) < most:
        (answer,) = gets(app, [path := waiting.pop(0)])
        assert answer.status_code in (200, 303), f"{path}: {answer.status_code}"
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        found[path] = answer.text if is_page else ""
        links = LINK.findall(answer.text) if is_page else []
        waiting += [
            target
            for link in links
            if (target := link.replace("&amp;", "&")) not in found
            and target not in waiting
            and not target.startswith("/api/")
        ]
    assert not waiting, "more pages than expected"
    return found


def test_every_page_is_reached_and_every_json_link_works(app: FastAPI) -> None:
    pages = {path: text for path, text in crawl(app).items() if text}
    kinds = {path.split("/")[1].split("?")[0] for path in pages}
    assert kinds == {
        *("", "blocks", "txs", "accounts", "validators", "shards", "tiles", "rounds"),
        *("deltas", "updates", "datasets", "peers", "search", "custody", "governance"),
    }
    links = {link for path, text in pages.items() for link in JSON.findall(text)}
    assert len(links) > 100
    for link, answer in zip(links, gets(app, sorted(links)), strict=True):
        assert answer.status_code == 200, link
        assert answer.headers["content-type"] == "application/json"
    without = {path for path, text in pages.items() if not JSON.search(text)}
    assert without <= {"/search"}


def test_no_page_has_inline_scripts_or_styles(app: FastAPI) -> None:
    for path, text in crawl(app).items():
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), path
        assert not re.search(r"<style|\sstyle=|\son\w+=", text), path


def test_files_may_be_kept_for_good_under_their_hash(app: FastAPI) -> None:
    (page,) = gets(app, ["/"])
    addresses = [link for link in LINK.findall(page.text) if link.startswith("/static/")]
    assert {a.partition("?")[0] for a in addresses} >= {"/static/app.js", "/static/style.css"}
    for answer in gets(app, addresses):
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    plain, missing, outside = gets(
        app, ["/static/app.js", "/static/nothing.js", "/static/..%2fpages.py"]
    )
    assert plain.headers["cache-control"] == "no-cache"
    assert missing.status_code == outside.status_code == 404


def test_a_node_that_is_behind_or_halted_says_so(app: FastAPI) -> None:
    node = app.state.node
    sync, consensus = node.sync.info, node.consensus.info
    node.sync.info = lambda: {"synced": False, "target": 12345}
    abstains = {"reason": "the log is missing", "epoch": 3, "until_height": 5121}
    node.consensus.info = lambda: {
        "epoch": 0, "view": 1, "halted": "two roots at height 7", "abstains": abstains,
    }  # fmt: skip
    try:
        (page,) = gets(app, ["/"])
    finally:
        node.sync.info, node.consensus.info = sync, consensus
    assert "catching up" in page.text
    assert "12,345" in page.text
    assert "two roots at height 7" in page.text
    assert "signs nothing before block 5,121" in page.text
    assert "epoch 3: the log is missing" in page.text


def test_a_search_with_one_hit_goes_there(app: FastAPI) -> None:
    (answer,) = gets(app, ["/search?q=layers.0.experts.1"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/shards/4")


# --- charts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[2.5], [2.5, 2.5], [3.2, 2.1], [5.0, 0.001], [1e-5, 2e-5], [3.21, 2.92, 2.71, 2.5]]
)
def test_a_chart_holds_all_its_points(values: list[float]) -> None:
    chart = charts.line_chart([(str(i), v) for i, v in enumerate(values)])
    assert 2 <= len(chart.ticks) <= 8
    ticks = [float(t) for t in chart.ticks]
    assert ticks == sorted(set(ticks), reverse=True)
    for point, value in zip(chart.points, values, strict=True):
        assert 0 <= point.x <= charts.WIDTH
        assert -1e-6 <= point.y <= charts.HEIGHT + 1e-6
        shown = ticks[0] - point.y / charts.HEIGHT * (ticks[0] - ticks[-1])
        assert shown == pytest.approx(value, abs=(ticks[0] - ticks[-1]) / 50)


def test_the_loss_chart_starts_before_the_first_round() -> None:
    def row(number: int, before: float | None, after: float | None) -> dict[str, object]:
        losses = {"loss_before_nats": before, "loss_after_nats": after}
        return {"round": number, "rolled_back": after == 9.0} | losses

    rows = [row(0, 3.2, 2.9), row(1, 2.9, None), row(2, 2.9, 2.5), row(3, 2.5, 9.0)]
    chart = charts.loss_chart(rows)
    assert chart is not None
    labels = [p.label.partition(":")[0] for p in chart.points]
    assert labels == ["start", "round 0", "round 2", "round 3, rolled back"]
    assert chart.points[-1].y == chart.points[-2].y  # the model is what it was
    assert charts.loss_chart([row(0, None, None)]) is None


# --- values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.short("ab" * 32), "abababab…ababab"),
        (formats.short("short"), "short"),
        (formats.size(0), "0 B"),
        (formats.size(1023), "1023 B"),
        (formats.size(1024), "1.00 KiB"),
        (formats.size(419_048 * 4), "1.60 MiB"),
        (formats.size(3 * 2**40), "3.00 TiB"),
        (formats.bly(150_000_000), "1.5"),
        (formats.bly(10**17 + 1), "1,000,000,000.00000001"),
        (formats.bly2(199_999_999), "1.99"),
        (formats.bly2(10**8), "1"),
        (formats.signed(-0.25, 2), "−0.25"),
        (formats.signed(0.25, 2), "+0.25"),
        (formats.signed(None), "–"),
        (formats.duration(950), "0.9 s"),
        (formats.duration(61_000), "1 min 1 s"),
        (formats.duration(7_260_000), "2 h 1 min"),
        (formats.percent(333), "33.3 %"),
        (formats.absolute(1_790_000_000_000), "2026-09-21 14:13:20 UTC"),
        (formats.meaning(1, "attest", "kind"), "recomputed an update"),
        (formats.meaning(2, "pol_vote", "verdict"), "unavailable"),
        (formats.meaning(7, "transfer", "amount"), 7),
    ],
)
def test_values_are_shown_well(shown: object, expected: object) -> None:
    assert shown == expected


def test_an_account_keeps_its_two_colours() -> None:
    pairs = {formats.hues(f"bly1{i}") for i in range(500)}
    assert len(pairs) > 100
    assert all(a != b and max(a, b) < formats.HUES for a, b in pairs)
