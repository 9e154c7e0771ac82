"""Tiles from peers: many at once, each from several peers at once, every subtile verified as its
last byte arrives (docs/spec/tile-transfer.md).

Memory: at most `buffers` tiles, whole or in part, exist here at a time (4 MiB each); of one peer
at most LANES tiles are outstanding. Times are those of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice

from chain import limits
from chain.errors import UnreachableError, VerifyError
from node.net.priority import Priority
from node.services.peer_rates import PeerRate, PeerRates
from node.services.peers import Peers
from node.services.tile_transfer import BUFFER_BYTES, Run, TileWant, Transfer
from node.services.tile_wire import PROTOCOL

log = logging.getLogger("blyan.tiles")

BUFFERS = 12  # tiles in memory at a time: 48 MiB
IDLE_BUFFERS = 2  # kept while nothing is fetched
LANES = 2  # tiles outstanding at one peer: the next is on its way while one is checked
LOOKAHEAD = 64  # waiting tiles that are tried at a time, so that one slow holder blocks no other
PARTIALS = 4  # given-up tiles whose verified subtiles are kept for the next try
TRIES = 3  # failures of one peer for one tile until it is asked no more

TICK_S = 0.1
SLOW_AFTER_S = 0.75  # a peer shows its speed by then
SLOW_RATE = 64 * 1024  # bytes a second below which a peer stalls, whatever the others give
SUBTILE_S = 30.0  # the longest that one subtile may take where no other peer has the tile
ANSWER_S = 16 * SUBTILE_S  # the longest that any answer can take
TILE_S = 600.0  # a caller's own patience with one tile
RUN_S = 2.0  # a run is cut to what its peer gives in this time
STEAL_AFTER_S = 0.05  # a run younger than this is left alone

POINTS_LIE = 50.0  # a subtile or its hashes that do not lead to the root: proven
POINTS_MALFORMED = 20.0  # an answer of a length that was not asked for


class TileFetcher:
    """Fetches verified tiles. Belongs to one event loop."""

    def __init__(self, net: Peers, *, buffers: int = BUFFERS) -> None:
        self.rates = PeerRates()
        self.fetched = self.fetched_bytes = self.lies = 0
        self.on_missing: Callable[[str, TileWant], None] = lambda peer, want: None
        self._net = net
        self._free: list[memoryview] = []
        self._unmade = buffers  # buffers that were not needed yet
        self._waiting: dict[_Job, None] = {}  # in the order of the calls
        self._active: dict[Transfer, _Job] = {}
        self._wanted: set[TileWant] = set()  # what is active: a tile is fetched once at a time
        self._partials: OrderedDict[TileWant, Transfer] = OrderedDict()
        self._tasks: dict[Run, asyncio.Task[None]] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = 0.0
        self._is_closed = False

    @asynccontextmanager
    async def fetch(
        self, want: TileWant, holders: Sequence[str], *, timeout_s: float = TILE_S
    ) -> AsyncIterator[memoryview]:
        """The verified bytes of a tile, in a buffer that is taken back at the end of the block.

        Tiles are started in the order of the calls. Raises UnreachableError, saying who was asked
        and why each failed, once no holder is left or the time is over.
        """
        if self._is_closed:
            raise UnreachableError("the node is stopping and fetches no more tiles")
        loop = asyncio.get_running_loop()
        job = _Job(want, holders, loop.create_future())
        self._waiting[job] = None
        expiry = loop.call_later(timeout_s, self._expire, job, timeout_s)
        try:
            self._pump()
            transfer = await job.future
            expiry.cancel()
            yield transfer.data.toreadonly()
        finally:
            expiry.cancel()
            self._release(job)

    async def close(self) -> None:
        """End what is under way; whoever waits gets UnreachableError."""
        self._is_closed = True
        for job in [*self._waiting, *self._active.values()]:
            job.fail("the node is stopping")
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._ticker is not None:
            self._ticker.cancel()

    @property
    def rate(self) -> float:
        """Bytes a second that arrive at present."""
        if not self._tasks:
            return 0.0
        now = asyncio.get_running_loop().time()
        return sum(r.live(now) or 0.0 for r in self.rates.all() if r.lanes)

    # --- what is asked of whom ------------------------------------------------------

    def _pump(self) -> None:
        """Give out whatever can be given out now."""
        if self._is_closed:
            return
        now = asyncio.get_running_loop().time()
        for transfer, job in list(self._active.items()):
            self._assign(transfer, job, now)
        busy: set[tuple[str, ...]] = set()  # holders of which none can take more
        for job in list(islice(self._waiting, LOOKAHEAD)):
            if job.future.done() or job.want in self._wanted or job.holders in busy:
                continue
            if not self._usable(job, now):
                job.fail(self._why(job, now))
            elif self._choose(job, now) is not None:
                started = self._activate(job)
                if started is None:
                    break
                self._assign(started, job, now)
            else:
                busy.add(job.holders)
        if self._ticker is None and (self._active or self._waiting):
            self._ticked = now
            self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _activate(self, job: _Job) -> Transfer | None:
        """Give a waiting tile its buffer, with what an earlier try left in it."""
        transfer = self._partials.pop(job.want, None)
        if transfer is not None:
            transfer.resume(job.holders)
        else:
            buffer = self._take_buffer()
            if buffer is None:
                return None
            transfer = Transfer(job.want, job.holders, buffer)
        job.transfer = transfer
        del self._waiting[job]
        self._active[transfer] = job
        self._wanted.add(job.want)
        return transfer

    def _take_buffer(self) -> memoryview | None:
        if self._free:
            return self._free.pop()
        if self._unmade:
            self._unmade -= 1
            return memoryview(bytearray(BUFFER_BYTES))
        if self._partials:
            return self._partials.popitem(last=False)[1].buffer
        return None

    def _assign(self, transfer: Transfer, job: _Job, now: float) -> None:
        if job.future.done():
            return
        while (gap := transfer.gap()) is not None:
            peer = self._choose(job, now)
            if peer is None:
                break
            first, end = gap
            count = min(end - first, self._share(job, transfer, peer, now))
            self._start(transfer.ask(peer.peer, first, first + count, now), now)
        if not transfer.runs and not self._usable(job, now):
            job.fail(self._why(job, now))

    def _usable(self, job: _Job, now: float) -> list[PeerRate]:
        """Holders that may be asked for this tile, now or later; slow ones only if no others."""
        failed = job.transfer.failed if job.transfer else {}
        slow = job.transfer.slow if job.transfer else {}
        rates = [self.rates[p] for p in job.holders if p not in failed]
        rates = [r for r in rates if r.banned_until <= now]
        return [r for r in rates if r.peer not in slow] or rates

    def _choose(self, job: _Job, now: float) -> PeerRate | None:
        """The holder that would have delivered a subtile first; None while that one is busy: a
        peer that is idle for good reasons must not get what a fast one will do sooner."""

        def finish(r: PeerRate) -> tuple[float, float]:
            speed = self.rates.promise(r, now) + 1
            return (r.outstanding + limits.SUBTILE_BYTES) / speed, r.used

        awake = [r for r in self._usable(job, now) if r.paused_until <= now]
        best = min(awake, key=finish, default=None)
        return best if best is not None and best.lanes < LANES else None

    def _share(self, job: _Job, transfer: Transfer, peer: PeerRate, now: float) -> int:
        """How many subtiles of a tile one peer is asked for: all while other tiles wait as well,
        else its share by its speed; never more than it gives within RUN_S."""
        awake = [r for r in self._usable(job, now) if r.paused_until <= now]
        rivals = [r for r in awake if r.lanes < (LANES if peer.lanes else 1)]
        pending = sum(other.missing for other in self._active)
        pending += transfer.want.subtiles * min(len(self._waiting), LOOKAHEAD)
        speed = self.rates.promise(peer, now)
        share = -(-pending * speed // (sum(self.rates.promise(r, now) for r in rivals) + 1))
        most = speed * RUN_S // limits.SUBTILE_BYTES
        return max(1, int(min(share, most)))

    # --- one run ---------------------------------------------------------------------

    def _start(self, run: Run, now: float) -> None:
        self.rates[run.peer].began(now, run.size)
        task = asyncio.create_task(self._carry(run))
        self._tasks[run] = task
        task.add_done_callback(lambda done: self._ended(run, done))

    async def _carry(self, run: Run) -> None:
        """Ask, verify, and judge the peer. Once it ends nothing writes to the buffer any more."""
        loop = asyncio.get_running_loop()
        rate = self.rates[run.peer]

        def progress(count: int) -> None:
            now = loop.time()
            rate.arrived(now, count - run.received)
            if run.arrived(count, now):
                self._pump()  # others can be asked now

        try:
            size = await self._net.fetch(
                run.peer,
                PROTOCOL,
                run.request(),
                into=run.into,
                progress=progress,
                timeout_s=ANSWER_S,
                priority=Priority.BULK,
            )
            progress(size)
        except VerifyError as error:
            self._lied(run, error)
        except UnreachableError as error:
            self._failed(run, str(error))
        else:
            self._judge(run, size)

    def _judge(self, run: Run, size: int) -> None:
        """An answer of `size` bytes came to its end, without a lie."""
        if run.is_done and size == run.size:
            self.rates[run.peer].gave()
        elif size == 0:
            run.transfer.failed[run.peer] = "does not hold it"
            self.rates[run.peer].missed()
            self.on_missing(run.peer, run.transfer.want)
        else:
            reason = f"answered {size} bytes where {run.size} were asked for"
            run.transfer.failed[run.peer] = reason
            self._net.report(run.peer, reason, POINTS_MALFORMED)

    def _lied(self, run: Run, error: VerifyError) -> None:
        """Proven: nothing that this peer still sends is waited for."""
        self.lies += 1
        log.warning("%s served a wrong tile: %s", run.peer, error)
        self._net.report(run.peer, f"served a wrong tile: {error}", POINTS_LIE)
        self.rates[run.peer].lied(asyncio.get_running_loop().time())
        run.transfer.failed[run.peer] = f"lied: {error}"
        for other in list(self._tasks):
            if other.peer == run.peer and other is not run:
                other.transfer.failed[run.peer] = "lied about another tile"
                self._drop(other, "its sender has lied")

    def _failed(self, run: Run, reason: str) -> None:
        log.debug("%s did not serve %s: %s", run.peer, run.transfer.want, reason)
        transfer = run.transfer
        self.rates[run.peer].failed(asyncio.get_running_loop().time())
        transfer.tries[run.peer] += 1
        if transfer.tries[run.peer] >= TRIES:
            transfer.failed[run.peer] = reason
        else:
            transfer.slow[run.peer] = reason

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        """The run's range is free again; its tile may be complete, or hopeless."""
        del self._tasks[run]
        self.rates[run.peer].ended(asyncio.get_running_loop().time(), run.size - run.received)
        transfer = run.transfer
        transfer.end(run)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() and run.verdict is None:
            self._failed(run, "the network has stopped")
        elif error is not None:  # a bug, here or in the network: it must not hold up the tile
            log.error("fetching %s failed", transfer.want, exc_info=error)
            transfer.failed[run.peer] = f"internal error: {error}"
        job = self._active[transfer]
        if not transfer.runs:
            if job.is_over:
                self._retire(transfer)
            elif transfer.is_complete and not job.future.done():
                self.fetched += 1
                self.fetched_bytes += transfer.want.size_bytes
                job.future.set_result(transfer)
        self._pump()

    def _drop(self, run: Run, why: str) -> None:
        """Cancel a run; its range is given out again once it has ended."""
        if run.verdict is None:
            run.verdict = why
            self._tasks[run].cancel()

    # --- time ------------------------------------------------------------------------

    def _tick(self) -> None:
        """Look after the runs: who stalls, who is slower than the others."""
        now = asyncio.get_running_loop().time()
        late = now - self._ticked - TICK_S
        self._ticked, self._ticker = now, None
        if late > TICK_S:  # this process was busy elsewhere: no peer's fault
            for run in self._tasks:
                run.started += late
                run.moved += late
            self.rates.excuse(late)
        else:
            for run in list(self._tasks):
                self._watch(run, now)
        self._pump()

    def _watch(self, run: Run, now: float) -> None:
        silent = now - run.moved
        transfer = run.transfer
        job = self._active[transfer]
        if run.verdict is not None:
            return
        if silent > SUBTILE_S:
            self.rates[run.peer].failed(now)
            transfer.failed[run.peer] = f"sent no whole subtile in {SUBTILE_S:g} s"
            self._drop(run, "it stalls")
            return
        others = [r for r in self._usable(job, now) if r.peer != run.peer]
        if not others or all(r.peer in transfer.slow for r in others):
            return
        if self._is_slow(run, others, now) or self._is_stolen(run, others, now):
            speed = self.rates[run.peer].slowed(now)
            transfer.slow[run.peer] = f"too slow ({speed / 1000:.1f} kB/s)"
            log.debug("%s is too slow for %s", run.peer, transfer.want)
            self._drop(run, "it is slow")

    def _is_slow(self, run: Run, others: list[PeerRate], now: float) -> bool:
        """Whether a peer had its time and gives less than half of what is usual."""
        if now - run.started < SLOW_AFTER_S:
            return False
        usual = self.rates.median([run.peer, *(r.peer for r in others)], now) or 0.0
        return self.rates.speed(self.rates[run.peer], now) < max(SLOW_RATE, usual / 2)

    def _is_stolen(self, run: Run, others: list[PeerRate], now: float) -> bool:
        """Whether a peer that has nothing to do would have the rest in less than half the time."""
        patience = STEAL_AFTER_S if run.received else SLOW_AFTER_S
        if now - run.started < patience:
            return False
        left = run.size - run.received
        idle = [self.rates.speed(r, now) for r in others if not r.lanes and r.paused_until <= now]
        if not idle:
            return False
        rate = self.rates[run.peer]
        own = left * rate.lanes / (self.rates.speed(rate, now) + 1)
        return own > 2 * left / (max(idle) + 1) + STEAL_AFTER_S

    # --- the end of a tile -----------------------------------------------------------

    def _expire(self, job: _Job, timeout_s: float) -> None:
        now = asyncio.get_running_loop().time()
        job.fail(f"not within {timeout_s:g} s; {self._why(job, now)}")

    def _why(self, job: _Job, now: float) -> str:
        """Who was asked for a tile, and why each failed."""
        transfer = job.transfer
        reasons = {p: "has lied" for p in job.holders if self.rates[p].banned_until > now}
        if transfer is not None:
            for run in transfer.runs:
                reasons[run.peer] = f"has sent {run.received} of {run.size} bytes"
            reasons |= transfer.slow | transfer.failed
        named = [f"{peer}: {reasons[peer]}" for peer in job.holders if peer in reasons]
        return "; ".join(named[:8]) or "no peer was asked yet"

    def _release(self, job: _Job) -> None:
        """The caller is gone: its buffer comes back once nothing writes to it."""
        self._waiting.pop(job, None)
        job.is_over = True
        transfer = job.transfer
        if transfer is None:
            return
        for run in transfer.runs:
            self._drop(run, "nobody waits for it any more")
        if not transfer.runs:
            self._retire(transfer)
            self._pump()

    def _retire(self, transfer: Transfer) -> None:
        """Take a buffer back; what is verified of an unfinished tile is kept for the next try."""
        del self._active[transfer]
        self._wanted.remove(transfer.want)
        if transfer.verified and not transfer.is_complete:
            self._partials[transfer.want] = transfer
            if len(self._partials) > PARTIALS:
                self._free.append(self._partials.popitem(last=False)[1].buffer)
        else:
            self._free.append(transfer.buffer)
        if not self._active and not self._waiting:
            self._unmade += len(self._free[IDLE_BUFFERS:])
            del self._free[IDLE_BUFFERS:]


class _Job:
    """One caller's wish. Identity counts: the same tile may be wished for twice."""

    __slots__ = ("future", "holders", "is_over", "transfer", "want")

    def __init__(
        self, want: TileWant, holders: Sequence[str], future: asyncio.Future[Transfer]
    ) -> None:
        self.want, self.holders, self.future = want, tuple(dict.fromkeys(holders)), future
        self.transfer: Transfer | None = None
        self.is_over = False  # the caller waits for nothing more

    def fail(self, reason: str) -> None:
        if not self.future.done():
            count = len(self.holders)
            self.future.set_exception(
                UnreachableError(
                    f"none of {count} connected peers gave {self.want} ({reason}); try again later"
                )
            )
