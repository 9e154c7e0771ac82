"""The real server over a `LocalChain`, for tests that come from outside; and a browser's tab."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from playwright.sync_api import BrowserContext, Page

from node.api.server import ApiServer
from tests.kit.local_chain import LocalChain

T = TypeVar("T")
START_S = 120.0


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
