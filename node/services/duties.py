"""A validator's duties, as an idempotent reconciler (docs/spec/rounds.md, "Duties").

After each final block the plan says what this account owes in that state. What is owed and not
in hand is started, what is in hand and no longer owed is cancelled. Nothing is remembered that a
restart would need: the state is the list of what is done. A duty that fails is logged, counted
and tried again; it never ends the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from chain.errors import BlyanError, TxError
from node.services import duty_aggregate, duty_custody, duty_dataset, duty_jury, duty_latency
from node.services.custody_plan import CheckCustody, CommitCustody, OpenCustody
from node.services.duty_context import DutyContext, DutyNode
from node.services.duty_plan import (
    Aggregate,
    AuditDataset,
    CheckUpdate,
    Duty,
    Evaluate,
    HoldModel,
    OpenVote,
    Prepare,
    Replay,
    ReportLatency,
    Screen,
    plan,
)
from node.worker.client import Worker
from tiles.stored import StoredPayload

log = logging.getLogger("blyan.duties")

RETRY_FIRST_S, RETRY_MOST_S = 0.5, 20.0  # a failed duty waits, each time twice as long
AT_ONCE = 8  # duties in hand; more wait
CUSTODY_AT_ONCE = 16  # beside the others: each waits for its block, and eight may be ours to answer
AUDITS_AT_ONCE = 1  # an audit takes a core, and is never urgent
# The chain refuses a duty that came late or twice: nothing to repeat, nobody to blame.
_LATE = frozenset(
    (
        *("duplicate", "wrong_phase", "wrong_round", "decided", "unknown_update"),
        *("unknown_event", "no_dispute", "wrong_epoch"),
    )
)

_HANDLERS: dict[type, Callable[[DutyContext, Any], Awaitable[None]]] = {
    AuditDataset: duty_dataset.audit_dataset,
    HoldModel: duty_aggregate.hold_model,
    Evaluate: duty_jury.evaluate,
    Prepare: duty_jury.prepare,
    Screen: duty_jury.screen,
    OpenVote: duty_jury.open_vote,
    Replay: duty_jury.replay,
    Aggregate: duty_aggregate.aggregate,
    CheckUpdate: duty_aggregate.check_update,
    CommitCustody: duty_custody.commit,
    CheckCustody: duty_custody.check,
    OpenCustody: duty_custody.open_subtile,
    ReportLatency: duty_latency.report,
}


class Duties:
    """One node's duties. `run` until cancelled, then `close`. Use within one event loop."""

    def __init__(self, node: DutyNode, worker: Worker | None = None) -> None:
        self._context = DutyContext(node, worker or Worker())
        self._node = node
        self._tasks: dict[Duty, asyncio.Task[None]] = {}
        self._failures: dict[Duty, tuple[int, float]] = {}  # times, when to try again
        self._room = asyncio.Semaphore(AT_ONCE)
        self._audit_room = asyncio.Semaphore(AUDITS_AT_ONCE)
        self._early_room = asyncio.Semaphore(1)  # one that nobody waits for keeps nothing back
        self._custody_room = asyncio.Semaphore(CUSTODY_AT_ONCE)
        self._wake = asyncio.Event()
        self._round = -1
        self._counts: Counter[str] = Counter()
        node.chain.finalized(lambda *_: self._wake.set())

    @property
    def worker(self) -> Worker:
        return self._context.worker

    def local_payloads(self, round_: int) -> list[StoredPayload] | None:
        """Payloads of the deltas that a round accepted, if all are here; for a thread."""
        return self._context.local_payloads(round_)

    async def run(self) -> None:
        self._wake.set()
        while True:
            await self._woken()
            try:
                self.reconcile()
            except Exception:
                self._counts["crashed"] += 1
                self._failures.clear()  # or what is due would wake us at once again
                log.exception("the plan of duties failed; it is made again after the next block")

    async def close(self) -> None:
        """Cancel what is in hand and end the worker."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._context.close()

    def metrics(self) -> dict[str, int | float]:
        return {
            "duties_in_hand": len(self._tasks),
            "duties_done": self._counts["done"],
            "duties_late": self._counts["late"],
            "duties_failed": self._counts["failed"],
            "duties_crashed": self._counts["crashed"],
        }

    def in_hand(self) -> list[Duty]:
        return list(self._tasks)

    # --- reconciling ---------------------------------------------------------------------

    def reconcile(self) -> None:
        """Start what is owed and not in hand; cancel what is in hand and not owed."""
        state = self._context.state()
        context = self._context
        owed = plan(
            state,
            context.params(),
            context.rules,
            context.account,
            context.holds,
            context.custody.found,
            context.is_prepared,
        )
        if state.head.round != self._round:
            self._round = state.head.round
            self._context.files.forget_before(self._round - 1)
            self._context.payloads.forget_before(self._round)
        wanted, loop = set(owed), asyncio.get_running_loop()
        for duty, task in self._tasks.items():
            if duty not in wanted:
                loop.call_soon(task.cancel)  # after it has heard of a receipt in this very block
        for duty in [d for d in self._failures if d not in wanted]:
            del self._failures[duty]
        now = loop.time()
        for duty in owed:
            waits = duty in self._failures and self._failures[duty][1] > now
            if duty not in self._tasks and not waits:
                self._start(duty)

    async def _woken(self) -> None:
        """Until a block is final, a duty has ended, or a failed one is due again."""
        loop = asyncio.get_running_loop()
        waiting = (at for duty, (_, at) in self._failures.items() if duty not in self._tasks)
        due = min(waiting, default=None)
        timeout = None if due is None else max(0.0, due - loop.time())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass  # a failed duty is due again
        self._wake.clear()

    def _start(self, duty: Duty) -> None:
        task = asyncio.create_task(self._perform(duty), name=str(duty))
        self._tasks[duty] = task

        def ended(_: asyncio.Task[None]) -> None:
            del self._tasks[duty]
            self._wake.set()

        task.add_done_callback(ended)

    async def _perform(self, duty: Duty) -> None:
        name = type(duty).__name__
        room = self._room_of(duty)
        try:
            async with room:
                await _HANDLERS[type(duty)](self._context, duty)
            self._counts["done"] += 1
            self._failures.pop(duty, None)
            log.debug("%s is done", duty)
        except TxError as error:
            late = error.code in _LATE
            self._counts["late" if late else "failed"] += 1
            self._fail(duty)
            log.log(logging.DEBUG if late else logging.WARNING, "%s refused: %s", name, error)
        except BlyanError as error:
            self._counts["failed"] += 1
            self._fail(duty)
            log.warning("%s failed, will be tried again: %s", name, error)
        except Exception:
            self._counts["crashed"] += 1
            self._fail(duty)
            log.exception("%s crashed, will be tried again", name)

    def _room_of(self, duty: Duty) -> asyncio.Semaphore:
        if isinstance(duty, CommitCustody | CheckCustody | OpenCustody):
            return self._custody_room
        if isinstance(duty, Prepare):
            return self._early_room
        return self._audit_room if isinstance(duty, AuditDataset) else self._room

    def _fail(self, duty: Duty) -> None:
        times = self._failures.get(duty, (0, 0.0))[0] + 1
        wait = min(RETRY_FIRST_S * 2 ** (times - 1), RETRY_MOST_S)
        self._failures[duty] = (times, asyncio.get_running_loop().time() + wait)
