"""A browser and a site for it: Debian's Chromium, and the real server over a `LocalChain`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from chain.records import RoundPhase
from tests.kit.local_chain import LocalChain
from tests.kit.site import Site, Tab

# Nothing that speaks on the network: the tests are on loopback alone.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def chromium_path() -> str:
    """Where Chromium is; in CI it must be there, elsewhere its absence skips the tests."""
    found = os.environ.get("BLYAN_CHROMIUM") or shutil.which("chromium")
    if found:
        return found
    reason = "no Chromium: apt-get install chromium, or name one in BLYAN_CHROMIUM"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two finished rounds, one with a harmful delta, and a third that is being judged."""

    def fill(chain: LocalChain) -> None:
        chain.learn(learners=3, garbage=1)
        chain.learn()
        chain.learn(stop_in=RoundPhase.SCREEN_REVEAL)

    with Site(tmp_path_factory.mktemp("site"), fill) as running:
        yield running


@pytest.fixture(scope="module")
def empty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("empty"), lambda chain: None) as running:
        yield running


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    contexts: list[BrowserContext] = []

    def make(site: Site, width: int = 1280, *, script: bool = True, scheme: str = "light") -> Tab:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            java_script_enabled=script,
            color_scheme="dark" if scheme == "dark" else "light",
        )
        contexts.append(context)
        return Tab(context, site.url)

    yield make
    for context in contexts:
        context.close()
