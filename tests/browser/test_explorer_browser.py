"""The explorer in a real browser: every page, narrow and wide, live, without scripts, verifying."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route, expect

from chain.hashes import Context
from chain.transactions import Transfer
from chain.types import Grains
from tests.kit.learning import add_dataset
from tests.kit.local_chain import key
from tests.kit.site import Site, Tab

Open = Callable[..., Tab]

PAGES = [
    "/",
    "/blocks",
    "/blocks/0",
    "/blocks/{height}",
    "/blocks/{hash}",
    "/txs",
    "/txs/{tx}",
    "/txs/{commit}",
    "/txs/{vote}",
    "/txs/{update}",
    "/accounts/{account}",
    "/accounts/{validator}",
    "/validators",
    "/shards",
    "/shards/layers.0.experts.1",
    "/tiles/layers.0.experts.1/0",
    "/rounds",
    "/rounds/0",
    "/rounds/current",
    "/deltas",
    "/deltas/{commit}",
    "/deltas/{harmful}",
    "/updates/{update}",
    "/datasets",
    "/datasets/{dataset}",
    "/peers",
    "/search?q=zzz",
    "/search?q=1",
]


def api(site: Site, path: str) -> Any:
    return httpx.get(f"{site.url}/api/v1/{path}", trust_env=False).json()


def names(site: Site) -> dict[str, str]:
    done = api(site, "rounds/0")
    block = next(b for b in api(site, "blocks?limit=100")["blocks"] if b["tx_count"] > 2)
    txs = api(site, "txs?limit=100")["txs"]
    return {
        "height": str(block["height"]),
        "hash": block["hash"],
        "tx": txs[0]["id"],
        "vote": next(t["id"] for t in txs if t["kind"] == "pol_vote"),
        "commit": done["accepted"][0],
        "harmful": next(d["id"] for d in done["delta_list"] if d["status"] == "harmful"),
        "update": done["update_list"][0]["id"],
        "account": done["joined"][0],
        "validator": api(site, "validators")["validators"][0]["account"],
        "dataset": done["datasets"][0],
    }


def width_of(tab: Tab) -> int:
    return int(tab.page.evaluate("() => document.documentElement.scrollWidth"))


@pytest.mark.parametrize("width", [1280, 360])
def test_every_page_is_whole_at_both_widths(site: Site, open_tab: Open, width: int) -> None:
    tab, known = open_tab(site, width), names(site)
    for path in PAGES:
        assert tab.go(path.format(**known)) == 200, path
        expect(tab.page.locator("h1")).to_have_count(1)
        expect(tab.page.locator("main")).to_have_count(1)
        expect(tab.page.locator("#lamp.on")).to_have_count(1)  # connected to the events
        assert width_of(tab) <= width, f"{path} scrolls sideways at {width}"
        assert tab.errors == [], path


def test_without_scripts_the_pages_say_the_same(site: Site, open_tab: Open) -> None:
    tab = open_tab(site, script=False)
    tab.go("/")
    page = tab.page
    expect(page.locator("#stats")).to_contain_text("Holdout loss")
    expect(page.locator("#round .phases li.now")).to_have_text(re.compile("Verdict"))
    expect(page.locator("#loss svg .point")).to_have_count(3)
    expect(page.locator("#blocks tbody tr")).to_have_count(8)
    expect(page.locator("button.copy").first).to_be_hidden()
    page.locator("#search").fill("layers.0.experts.1:0")
    page.locator("#search").press("Enter")
    expect(page.locator("h1")).to_have_text("Search")
    page.locator(".hits a").first.click()
    expect(page.locator("h1")).to_have_text("layers.0.experts.1:0")
    expect(page.locator(".nojs")).to_be_visible()
    expect(page.locator("#verify")).to_be_hidden()


def test_the_overview_is_live(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)
    tab.go("/")
    page = tab.page
    expect(page.locator("#lamp.on")).to_have_count(1)
    page.evaluate("() => { window.same = true }")
    before = site.run(lambda chain: chain.chain.tip.height)

    def spend(chain: Any) -> str:
        chain.send(Transfer(key("x").public, Grains(1)), chain.learners[0])
        chain.block()
        return str(chain.store.latest_txs(1)[0].id.hex())

    tx_id = site.run(spend)
    row = page.locator(f"#blocks tr[data-key='{before + 1}']")
    expect(row).to_be_visible()
    expect(row).to_have_class("fresh")
    expect(page.locator("header [data-height]")).to_have_text(str(before + 1))
    expect(page.locator("#stats dd").first).to_contain_text(str(before + 1))
    expect(page.locator(f"#txs a[href='/txs/{tx_id}']")).to_be_visible()
    assert page.evaluate("() => window.same") is True  # no reload
    assert tab.errors == []


def test_a_waiting_transaction_becomes_final_before_the_eyes(site: Site, open_tab: Open) -> None:
    send = Transfer(key("y").public, Grains(7 * 10**8))
    tx_id = site.run(lambda chain: chain.send(send, chain.learners[1]).hex())
    tab = open_tab(site)
    tab.go(f"/txs/{tx_id}")
    expect(tab.page.locator("#tx")).to_contain_text("Waiting for a block")
    expect(tab.page.locator("main")).to_contain_text("7 BLY")
    site.run(lambda chain: chain.block())
    expect(tab.page.locator("#tx")).to_contain_text("Executed in block")


def test_the_slash_key_and_search(site: Site, open_tab: Open) -> None:
    tab, known = open_tab(site), names(site)
    tab.go("/peers")
    page = tab.page
    expect(page.locator("#lamp.on")).to_have_count(1)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type(known["commit"])
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Search")  # a delta and its transaction
    expect(page.locator(".hits .pill").first).to_have_text("delta")
    page.locator("#search").fill(known["dataset"])
    page.locator("#search").press("Enter")
    expect(page).to_have_url(f"{site.url}/datasets/{known['dataset']}")
    page.locator("#search").fill("no such thing")
    page.locator("#search").press("Enter")
    expect(page.locator("main")).to_contain_text("Nothing found.")


def test_copying_a_hash(site: Site, open_tab: Open) -> None:
    tab, known = open_tab(site), names(site)
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.go(f"/blocks/{known['height']}")
    button = tab.page.locator("dl.facts button.copy").first
    button.click()
    expect(button).to_have_class("copy done")
    assert tab.page.evaluate("() => navigator.clipboard.readText()") == known["hash"]


def test_a_tile_is_verified_in_the_browser(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)
    tab.go("/tiles/embed/0")
    expect(tab.page.locator(".tree .node.ours")).to_have_count(4)
    tab.page.locator("#verify").click()
    checks = tab.page.locator("#checks li")
    expect(checks).to_have_count(7)
    expect(tab.page.locator("#checks li.ok")).to_have_count(7)
    expect(checks.last).to_have_text("This tile is what the chain says it is.")
    assert tab.errors == []


def test_a_flipped_byte_is_found_in_the_browser(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)

    def corrupt(route: Route) -> None:
        body = bytearray(route.fetch().body())
        body[100] ^= 1
        route.fulfill(status=200, body=bytes(body), content_type="application/octet-stream")

    tab.page.route("**/data?root=*", corrupt)
    tab.go("/tiles/embed/0")
    tab.page.locator("#verify").click()
    checks = tab.page.locator("#checks li")
    expect(checks).to_have_count(7)
    expect(checks.first).to_have_class("failed")
    expect(checks.last).to_have_text("This tile is not what the chain says.")


def test_blake3_in_the_browser_agrees_with_ours(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)
    tab.go("/")
    sizes = [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 3072, 7168, 8193, 31744, 102400]
    sizes.append(256 * 1024)
    hashes = tab.page.evaluate(
        """async (sizes) => {
            const { hash } = await import("/static/blake3.js");
            const { hex } = await import("/static/proof.js");
            const bytes = (n) => Uint8Array.from({ length: n }, (_, i) => i % 251);
            return sizes.map((n) => hex(hash("subtile", bytes(n))));
        }""",
        sizes,
    )
    ours = Context("subtile")
    assert hashes == [ours.hash(bytes(i % 251 for i in range(n))).hex() for n in sizes]


def test_empty_pages_say_what_to_do(empty_site: Site, open_tab: Open) -> None:
    tab = open_tab(empty_site, 360)
    for path, command in [
        ("/", "blyan dataset submit PATH --license SPDX"),
        ("/txs", "blyan wallet send ADDRESS 1"),
        ("/deltas", "blyan train --rounds 1"),
        ("/datasets", "blyan dataset submit PATH --license SPDX"),
        ("/rounds", "blyan train --rounds 1"),
        ("/rounds/0", "blyan train --rounds 1"),
        ("/blocks/0", "genesis"),
        ("/validators", "active"),
    ]:
        assert tab.go(path) == 200
        expect(tab.page.locator("main")).to_contain_text(command)
        assert width_of(tab) <= 360, path


def test_what_is_not_there_is_told_on_a_page(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)
    assert tab.go("/blocks/99999999") == 404
    expect(tab.page.locator("main")).to_contain_text("there is no block 99999999")
    assert tab.go("/nothing/here") == 404
    expect(tab.page.locator("h1")).to_have_text("Not found")
    assert tab.go("/accounts/bly1nonsense") == 400
    tab.page.locator("main a", has_text="overview").click()
    expect(tab.page.locator("h1")).to_have_text("Overview")


def test_text_from_the_chain_cannot_become_markup(site: Site, open_tab: Open) -> None:
    title = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
    dataset = site.run(lambda chain: add_dataset(chain, title).hex())
    tab = open_tab(site)
    for path in (
        "/datasets",
        f"/datasets/{dataset}",
        "/search?q=%3Cscript%3Ealert(1)%3C/script%3E",
    ):
        tab.go(path)
        expect(tab.page.locator("main script, main img")).to_have_count(0)
        assert "owned" not in tab.page.title().split("·")[-1]
        assert tab.errors == []
    tab.go(f"/datasets/{dataset}")
    expect(tab.page.locator("h1")).to_have_text(title)


def test_headings_landmarks_and_names(site: Site, open_tab: Open) -> None:
    """What a screen reader needs: landmarks, labels, one h1, no control without a name."""
    tab, known = open_tab(site), names(site)
    for path in ("/", "/rounds/0", "/tiles/embed/0", "/blocks/{height}"):
        tab.go(path.format(**known))
        page = tab.page
        for role in ("banner", "main", "contentinfo", "search"):
            expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
        expect(page.get_by_role("navigation", name="Sections")).to_have_count(1)
        expect(page.get_by_role("searchbox", name="Search the chain")).to_be_visible()
        unnamed = "button:not([aria-label]):empty, img:not([alt]), svg[role=img]:not([aria-label])"
        expect(page.locator(unnamed)).to_have_count(0)
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_pictures_of_the_main_pages(
    site: Site, open_tab: Open, tmp_path: Path, width: int, scheme: str
) -> None:
    """Kept where BLYAN_SCREENSHOTS says, for people to look at."""
    folder = Path(os.environ.get("BLYAN_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    tab, known = open_tab(site, width, scheme=scheme), names(site)
    pages = {"overview": "/", "block": "/blocks/{height}", "tile": "/tiles/embed/0"}
    for name, path in {**pages, "round": "/rounds/0"}.items():
        tab.go(path.format(**known))
        expect(tab.page.locator("#lamp.on")).to_have_count(1)
        picture = folder / f"{name}-{width}-{scheme}.png"
        tab.page.screenshot(path=picture, full_page=True, animations="disabled")
        assert picture.stat().st_size > 10_000
