"""Between asyncio (main thread) and trio (libp2p's thread): posts, calls, cancellation.

asyncio to trio: `TrioToken.run_sync_soon`; back: `loop.call_soon_threadsafe`. Whoever waits on
the other side forwards its cancellation; if the trio thread dies, everyone waiting for it gets
UnreachableError. Callbacks into asyncio are collected and run in batches, since waking a
thread costs more than most of what is sent across.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import trio

from chain.errors import BlyanError, UnreachableError
from node.net import limits

T = TypeVar("T")
log = logging.getLogger("blyan.net")
_BATCH, _BATCH_S = 256, 0.02  # callbacks run before asyncio gets to do something else


class Metrics:
    """Counters shared by both threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))


class _Call:
    """One coroutine that asyncio awaits and trio runs."""

    __slots__ = ("args", "cancelled", "fn", "future", "scope")

    def __init__(self, future: asyncio.Future[Any], fn: Any, args: tuple[Any, ...]) -> None:
        self.future, self.fn, self.args = future, fn, args
        self.scope: trio.CancelScope | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.scope is not None:
            self.scope.cancel()

    def finish(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Bridge:
    """Both directions. Methods say on which side they may be called."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._calls: set[_Call] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._posts: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._draining = False
        self._drain_lock = threading.Lock()
        self._commands: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_commanded = False
        self._commands_lock = threading.Lock()

    # --- asyncio side -------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def to_trio(self, fn: Callable[..., object], *args: Any) -> bool:
        """Run `fn(*args)` in the trio thread soon. False: there is no such thread now."""
        token = self._token
        if token is None:
            return False
        with self._commands_lock:
            self._commands.append((fn, args))
            if self._is_commanded:
                return True
            self._is_commanded = True
        try:
            token.run_sync_soon(self._obey)
        except trio.RunFinishedError:
            return False
        return True

    async def call(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await the trio coroutine `fn(*args)`. Raises what it raises, or UnreachableError."""
        if len(self._calls) >= limits.MAX_CALLS:
            self.metrics.add("calls_refused")
            raise UnreachableError(
                f"{limits.MAX_CALLS} network operations are under way: try again later"
            )
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = _Call(future, fn, args)
        self._calls.add(call)
        try:
            if not self.to_trio(self._begin, call):
                raise UnreachableError("the network is not running (starting, or restarting)")
            return await future
        except asyncio.CancelledError:
            self.to_trio(call.cancel)
            raise
        finally:
            self._calls.discard(call)

    def fail_calls(self) -> None:
        """The trio thread ended: nobody will answer these."""
        for call in list(self._calls):
            call.fail(UnreachableError("the network stopped before it answered"))

    async def cancel_tasks(self) -> None:
        """Cancel the handlers that the trio side had asked for."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- trio side ----------------------------------------------------------------

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        with self._commands_lock:
            self._commands.clear()  # meant for a run that has ended
            self._is_commanded = False
        self._token = trio.lowlevel.current_trio_token()

    def _obey(self) -> None:
        """Run what `to_trio` collected. An exception here would end the trio thread."""
        while True:
            with self._commands_lock:
                if not self._commands:
                    self._is_commanded = False
                    return
                fn, args = self._commands.popleft()
            try:
                fn(*args)
            except Exception:
                log.exception("a network command failed")
                self.metrics.add("operation_errors")

    def shut(self) -> None:
        """After the trio run ended; called in its thread."""
        self._token = self._nursery = None
        self.to_loop(self.fail_calls)

    def _begin(self, call: _Call) -> None:
        if not call.cancelled and self._nursery is not None:
            self._nursery.start_soon(self._run, call)

    async def _run(self, call: _Call) -> None:
        with trio.CancelScope() as call.scope:
            try:
                result = await call.fn(*call.args)
            except Exception as error:
                if not isinstance(error, BlyanError):
                    log.exception("network operation failed")
                    self.metrics.add("operation_errors")
                    error = UnreachableError(f"network error: {error}")
                self.to_loop(call.fail, error)
            else:
                self.to_loop(call.finish, result)

    async def ask(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await the asyncio coroutine `fn(*args)` from trio. Raises what it raises."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        box: list[asyncio.Task[T]] = []
        cancelled = False

        def begin() -> None:
            if cancelled or self._loop is None:
                return
            task = self._loop.create_task(fn(*args))
            box.append(task)
            self._tasks.add(task)
            task.add_done_callback(finished)

        def finished(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()  # taken note of, even if nobody waits any more
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                log.debug("a handler finished after the network had stopped")

        def cancel() -> None:
            if box:
                box[0].cancel()

        self.to_loop(begin)
        try:
            await done.wait()
        except trio.Cancelled:
            cancelled = True
            self.to_loop(cancel)
            raise
        if box[0].cancelled():
            raise UnreachableError("the handler was cancelled")
        return box[0].result()

    # --- either side --------------------------------------------------------------

    def to_loop(self, fn: Callable[..., object], *args: Any) -> None:
        """Run `fn(*args)` in the asyncio thread soon, in the order of the calls."""
        with self._drain_lock:
            self._posts.append((fn, args))
            if self._draining:
                return
            self._draining = True
        self._schedule()

    def _schedule(self) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: the process is on its way out
            log.debug("asyncio has ended; %d posts dropped", len(self._posts))

    def _drain(self) -> None:
        until = time.monotonic() + _BATCH_S
        for _ in range(_BATCH):
            with self._drain_lock:
                if not self._posts:
                    self._draining = False
                    return
                fn, args = self._posts.popleft()
            try:
                fn(*args)
            except Exception:
                log.exception("a network handler raised")
                self.metrics.add("handler_errors")
            if time.monotonic() > until:
                break
        self._schedule()
