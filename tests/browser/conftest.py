"""A browser and a site for it: Debian's Chromium, and the real server over a `LocalChain`."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from chain.records import RoundPhase
from node.api.server import ApiServer
from tests.kit.local_chain import LocalChain

T = TypeVar("T")
# Nothing that speaks on the network: the tests are on loopback alone.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
START_S = 30.0


class Site:
    """A chain and its server in a loop of their own; `run` works on it in that loop."""

    def __init__(self, directory: Path, fill: Callable[[LocalChain], object]) -> None:
        self._directory, self._fill = directory, fill
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="site")

    def __enter__(self) -> Site:
        self._thread.start()
        self._ready.wait(START_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_S)

    def run(self, work: Callable[[LocalChain], T]) -> T:
        async def body() -> T:
            return work(self.chain)

        return asyncio.run_coroutine_threadsafe(body(), self._loop).result(START_S)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        with LocalChain(self._directory) as self.chain:
            self._fill(self.chain)
            server = ApiServer(self.chain, "127.0.0.1", 0)
            await server.start()
            self.url = server.url
            self._ready.set()
            await self._stop.wait()
            await server.stop()


def chromium_path() -> str:
    """Where Chromium is; in CI it must be there, elsewhere its absence skips the tests."""
    found = os.environ.get("BLYAN_CHROMIUM") or shutil.which("chromium")
    if found:
        return found
    reason = "no Chromium: apt-get install chromium, or name one in BLYAN_CHROMIUM"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
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


class Tab:
    """A page that remembers what went wrong in it."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.base = base
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None,
        )

    def go(self, path: str) -> int:
        response = self.page.goto(self.base + path)
        return 0 if response is None else response.status


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
