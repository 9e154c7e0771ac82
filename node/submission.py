"""A delta's way through a round, as its owner walks it (docs/spec/rounds.md, "A learner's steps"):

    join → (train) → upload → delta_commit → podl_manifest → delta_reveal
        → upload what the replay of the segment that is drawn needs → the round's end

Each step looks at the chain first and does only what is not done, so a run that was interrupted
anywhere goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from chain import records as r
from chain import round_records as rr
from chain.errors import BlyanError, DeadlineError, InputError, TxError, UnreachableError
from chain.hashes import ZERO_HASH, Hash32
from chain.records import DeltaStatus, RoundPhase
from chain.rounds import manifest_root
from chain.transactions import (
    DeltaCommit,
    DeltaReveal,
    JoinRound,
    PodlManifest,
    Verdict,
    delta_commitment,
)
from chain.types import BlobId, PubKey, ShardIndex, TxId
from learning import state_parts
from learning.held import Held, held_experts
from learning.spec import ModelSpec
from learning.state import is_state
from node.learner_files import LearnerFiles, Prepared
from node.patience import Patience, RunningClock
from node.sealed import SALT_BYTES, seal
from node.verified import VerifiedReader
from wallet.keys import Keys

T = TypeVar("T")

POLL_S = 2.0  # without events; with them we are woken at once
STAMP_NEWS_TRIES = 1 << 23  # some seconds of work between two lines about a stamp
STALL_S = 120.0  # a chain without a block for so long has stopped
NANO_PER_NAT = 1_000_000_000


class Progress(Protocol):
    """Whoever watches."""

    def say(self, text: str) -> None:
        """A line on what has been reached."""

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """A training step is done; `tokens`: bytes trained on by each; `seconds` that training has
        run in this process, pauses left out."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a delta fared. Losses and gain in nats per byte, None while unknown; reward in grains."""

    round: int
    delta: str
    status: str
    accepted: bool
    gain: float | None  # mean of the jurors' measurements at 0.2 of the delta
    jurors_for: int
    jurors_against: int
    reward: int
    model_root: str
    loss_before: float | None
    loss_after: float | None
    proven: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Watch:
    """Waits for the chain to get somewhere, woken by the node's events."""

    def __init__(self, reader: VerifiedReader) -> None:
        self._reader = reader
        self._wake = asyncio.Event()

    async def round(self, number: int, ready: Callable[[r.RoundRecord], bool]) -> r.RoundRecord:
        """Round `number` once `ready`, which asks for its phase, says so."""

        async def look() -> r.RoundRecord | None:
            record = await self._reader.round(number)
            return record if ready(record) else None

        return await self.until(look, "phase")

    async def until(self, look: Callable[[], Awaitable[T | None]], event: str = "block") -> T:
        """What `look` finds in the reader's state, once it finds something; it looks after each
        event of this name. DeadlineError if the chain stands still, or UnreachableError if the node
        has gone, for two minutes in which we were not stopped."""
        listener = asyncio.create_task(self._listen(event))
        height: int = -1
        gone: UnreachableError | None = None
        try:
            async with Patience(STALL_S, RunningClock()) as patience:
                while True:
                    self._wake.clear()
                    try:
                        found = await look()
                        if found is not None:
                            return found
                    except UnreachableError as error:  # a node may be restarted under us
                        gone = error
                    else:
                        gone = None
                        if self._reader.height > height:
                            height = self._reader.height
                            patience.progress()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._wake.wait()
        except TimeoutError:
            raise gone or DeadlineError(
                f"no block for {STALL_S:.0f} s (height {height}); are enough validators running? "
                "`blyan-node status` tells"
            ) from None
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self, name: str) -> None:
        """Events as they come. Without a stream (too many are open) polling must do."""
        with suppress(BlyanError):
            is_first = True  # the tip: what was missed before the stream was open is seen now
            async for event in self._reader.client.events():
                if is_first or event.name == name:
                    self._wake.set()
                is_first = False


class Submission:
    """Takes one account's deltas through rounds."""

    def __init__(
        self, reader: VerifiedReader, keys: Keys, files: LearnerFiles, progress: Progress
    ) -> None:
        self.reader, self.files, self.progress = reader, files, progress
        self.watch = Watch(reader)
        self._keys = keys
        self._client = reader.client
        self._told_stamp = False

    @property
    def account(self) -> PubKey:
        return self._keys.account.public

    # --- joining ---------------------------------------------------------------------------

    async def join(self, *, late: bool = False, shards: Sequence[ShardIndex] = ()) -> r.RoundRecord:
        """Declare for the next round that can be declared for, and what is held if that is a part;
        the round. `late`: a round that trains already will do (a delta that proves nothing needs no
        declaration)."""
        while True:
            record = await self.reader.current_round()
            training = record.phase in (RoundPhase.SEED, RoundPhase.TRAIN)
            joined = self.account in record.joined
            if joined and not late and not await self._declared(record, shards):
                self.progress.say(
                    f"round {record.number} was joined with another part of the model; waiting for "
                    "the next one (--experts as before would go on with it)"
                )
                await self.watch.round(record.number, lambda x: x.phase == RoundPhase.DONE)
                continue
            if training and (late or joined):
                return record
            if record.phase == RoundPhase.OPEN:
                if joined or await self._declare(record.number, shards):
                    self.progress.say(f"joined round {record.number}")
                    return record
                continue
            self.progress.say(f"round {record.number} is past joining; waiting for the next one")
            await self.watch.round(record.number, lambda x: x.phase == RoundPhase.DONE)

    async def _declared(self, record: r.RoundRecord, shards: Sequence[ShardIndex]) -> bool:
        """Whether these are what we have declared for a round that lasts: another part proves
        nothing."""
        key = rr.declaration_key(record.number, self.account)
        found = await self.reader.read(rr.Declaration, key)
        return tuple(shards) == (found.held if found is not None else ())

    async def _declare(self, number: int, shards: Sequence[ShardIndex] = ()) -> bool:
        """Whether the declaration was in time."""
        try:
            await self._send(JoinRound(number, tuple(shards)))
        except TxError as error:
            if error.code == "no_slot":
                self.progress.say(f"{error}; waiting for the next round")
                await self.watch.round(number, lambda x: x.phase > RoundPhase.OPEN)
                return False
            if error.code in ("wrong_phase", "wrong_round"):
                return False
            if error.code != "duplicate":
                raise
        return True

    async def in_training(self, number: int) -> r.RoundRecord:
        """The round once its seed is drawn. TxError if it has gone on without us."""
        record = await self.watch.round(number, lambda x: x.phase >= RoundPhase.TRAIN)
        if record.phase != RoundPhase.TRAIN:
            raise TxError("wrong_phase", f"round {number} has passed its training phase")
        return record

    # --- commit and reveal -------------------------------------------------------------------

    async def upload(self, payload: bytes) -> tuple[Hash32, BlobId, int]:
        """Encrypt a payload and have the node host it: (salt, blob, its size)."""
        salt = Hash32(secrets.token_bytes(SALT_BYTES))
        blob = await asyncio.to_thread(seal, payload, salt)
        return salt, await self._client.put_blob(blob), len(blob)

    async def finish(self, prepared: Prepared) -> Summary:
        """From a prepared delta to its end, whatever of it is done already."""
        number = prepared.round
        delta = await self._commit(prepared)
        record = await self.reader.delta(delta)
        if record.manifest is None:  # it had no place beside the commit
            await self._in_time(prepared.manifest)
        await self.watch.round(number, lambda x: x.phase >= RoundPhase.REVEAL)
        record = await self.reader.delta(delta)
        if record.status == DeltaStatus.COMMITTED and await self._in_time(
            DeltaReveal(delta, prepared.salt)
        ):
            self.progress.say("revealed")
        if (await self.reader.delta(delta)).salt != ZERO_HASH:
            self.files.promote_next()
        if prepared.manifest.proven:
            await self._open_training(prepared.manifest, delta)
        await self.watch.round(number, lambda x: x.phase == RoundPhase.DONE)
        summary = await self.summary(delta)
        self.files.drop_pending()
        return summary

    async def _open_training(self, manifest: PodlManifest, delta: TxId) -> None:
        """If a segment of this delta's training is drawn, upload the checkpoint that it begins at,
        and for the last one the residual before the round: the node serves them to those who
        replay it."""
        record = await self.watch.round(
            manifest.round, lambda x: x.phase >= RoundPhase.SCREEN_COMMIT
        )
        if record.audited != delta or record.phase > RoundPhase.SCREEN_REVEAL:
            return
        segment = record.audit_segment
        spec = (await self.reader.round_specs(manifest.round)).model
        held = held_experts(spec, manifest.shards)
        served = await asyncio.to_thread(self._served, spec, manifest, record, held)
        if served is None:
            self.progress.say(
                f"segment {segment} was drawn to be replayed, and the checkpoint that it begins "
                "at, or the residual of the round before, is not here, or damaged: this delta "
                "proves nothing"
            )
            return
        for name, data in served.items():
            await self._client.put_checkpoint(name, data)
        self.progress.say(f"segment {segment} was drawn to be replayed: uploaded its checkpoint")

    def _served(
        self, spec: ModelSpec, manifest: PodlManifest, record: r.RoundRecord, held: Held | None
    ) -> dict[Hash32, bytes] | None:
        """What those who replay the drawn segment ask for, by name, in the order in which it is
        uploaded: who finds the last of it finds all. None if we have it not."""
        segment, found = record.audit_segment, dict[Hash32, bytes]()
        root, expected = manifest.residual_before, manifest.state_hashes[segment]
        if segment == len(manifest.state_hashes) - 2 and root != ZERO_HASH:
            residual = self.files.residual_before(spec, root, held)
            if residual is None:
                return None
            found |= state_parts.served_residual(spec, residual, root, held)
        state = self.files.checkpoint(spec, record, segment, held)
        if state is None or not is_state(spec, state, expected, held):
            return None
        return found | state_parts.served_state(spec, state, expected, held)

    async def resume(self) -> Summary | None:
        """Finish what the last run left in hand; None if there is nothing to be saved."""
        prepared = self.files.pending()
        if prepared is None:
            return None
        current = await self.reader.current_round()
        over = prepared.round < current.number
        own = await self._own(prepared.round) if prepared.round <= current.number else None
        missed = own is None and (over or current.phase != RoundPhase.TRAIN)
        if missed or (own is not None and own.commitment != self._commitment(prepared)):
            self.files.drop_pending()
            return None
        if own is not None and own.salt != ZERO_HASH:
            self.files.promote_next()
        self.progress.say(f"taking up the delta of round {prepared.round} again")
        if over and own is not None:
            self.files.drop_pending()
            return await self.summary(own.id)
        return await self.finish(prepared)

    async def _commit(self, prepared: Prepared) -> TxId:
        manifest, commitment = prepared.manifest, self._commitment(prepared)
        own = await self._own(prepared.round)
        if own is not None:
            if own.commitment != commitment:
                raise InputError(
                    f"this account has another delta in round {prepared.round}: "
                    f"{own.id.hex()}; one a round is allowed"
                )
            return own.id
        commit = DeltaCommit(
            prepared.round,
            manifest.base_root,
            commitment,
            manifest_root(manifest),
            prepared.blob,
            prepared.blob_bytes,
        )
        sent = asyncio.create_task(self._send(commit))
        follows = asyncio.create_task(self._send(manifest))  # with the next nonce: in one block
        try:
            delta, _ = await sent
        except TxError as error:
            own = await self._own(prepared.round) if error.code == "duplicate" else None
            if own is None or own.commitment != commitment:
                raise
            delta = own.id  # it was on its way when the last run ended
        else:
            await asyncio.wait({follows})
        finally:
            for task in (sent, follows):
                task.cancel()
            await asyncio.gather(sent, follows, return_exceptions=True)
        self.progress.say(f"committed delta {delta.hex()}")
        return delta

    async def _in_time(self, payload: PodlManifest | DeltaReveal) -> bool:
        """Send a further step of a committed delta; False if its phase is over: the round goes on
        without it. It may have been on its way when the last run ended."""
        try:
            await self._send(payload)
        except TxError as error:
            if error.code == "duplicate":
                return True
            if error.code != "wrong_phase":
                raise
            self.progress.say(f"too late: {error}")
            return False
        return True

    def _commitment(self, prepared: Prepared) -> Hash32:
        manifest = prepared.manifest
        return delta_commitment(
            self.reader.genesis.chain_id,
            prepared.round,
            self.account,
            manifest.base_root,
            manifest.payload_root,
            prepared.salt,
        )

    async def _own(self, number: int) -> r.DeltaRecord | None:
        """This account's delta in a round."""
        for delta in (await self.reader.round(number)).deltas:
            record = await self.reader.delta(delta)
            if record.sender == self.account:
                return record
        return None

    async def _send(self, payload: Any) -> tuple[TxId, Any]:
        told = 0

        def on_stamp(tries: int, expected: int) -> None:
            nonlocal told
            if not self._told_stamp:
                self._told_stamp = True
                self.progress.say("no funds for a fee: making proof-of-work stamps instead")
            if tries >= told + STAMP_NEWS_TRIES:
                told = tries
                self.progress.say(f"stamp: {tries:,} tries; {expected:,} on average")

        return await self._client.submit(payload, self._keys, on_stamp=on_stamp)

    # --- the end -----------------------------------------------------------------------------

    async def summary(self, delta: TxId) -> Summary:
        """How a delta of a finished round fared."""
        record = await self.reader.delta(delta)
        round_ = await self.reader.round(record.round)
        votes = [v for v in record.votes if v.revealed]
        gains = [v.gain for v in votes if v.verdict in (Verdict.NO, Verdict.YES)]
        undone = record.status == DeltaStatus.ROLLED_BACK
        return Summary(
            round=record.round,
            delta=delta.hex(),
            status=DeltaStatus(record.status).name.lower(),
            accepted=delta in round_.accepted,
            gain=_nats(sum(gains) // len(gains)) if gains else None,
            jurors_for=sum(v.verdict == 1 for v in votes),
            jurors_against=sum(v.verdict != 1 for v in votes),
            reward=record.reward,
            model_root=(round_.base_root if undone else round_.result_root).hex(),
            loss_before=_nats(round_.loss_before) if round_.loss_before else None,
            loss_after=_nats(round_.loss_after) if round_.loss_after else None,
            proven=bool(record.manifest and record.manifest.proven),
        )


def _nats(nano: int) -> float:
    return nano / NANO_PER_NAT
