"""A contributor's round through the HTTP API alone: it works against any node.

What the learner trains on is not its choice: model, datasets, batches and hyper-parameters follow
from the chain, and all of it is verified before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from chain import records as r
from chain.errors import DeadlineError, InputError, TxError, UnreachableError, WorkerError
from chain.hashes import ZERO_HASH, Hash32
from chain.records import RoundPhase
from chain.transactions import PodlManifest
from chain.types import BlobId, PubKey, ShardIndex
from corpus.batches import Assignment
from learning.held import Held, held_experts, shards_of
from learning.memory import shortage
from learning.profile import Kind
from learning.spec import ModelSpec, TrainingSpec
from learning.state import sections_root
from node.data import RoundData, fetch_round_data
from node.learner_files import LearnerFiles, Memory, Prepared
from node.round_specs import RoundSpecs
from node.submission import Progress, Submission, Summary
from node.verified import VerifiedReader
from node.worker.client import Worker
from node.worker.training import TrainJob, TrainOutcome
from wallet.keys import Keys

FETCH_TRIES, FETCH_PAUSE_S = 8, 2.0  # a node that has just got a new model may still assemble it
TRAIN_TRIES = 3  # of a worker that dies; each goes on from the last checkpoint
# What the chain says when a round has gone on without a learner that came late.
MISSED = frozenset(("wrong_phase", "wrong_round", "no_slot"))
T = TypeVar("T")
Made = asyncio.Queue[tuple[Hash32, bytes] | None]  # checkpoints as they come, then None


async def patiently(fetch: Callable[[], Awaitable[T]]) -> T:
    """What a node could not give at once, it may have a little later."""
    for _ in range(FETCH_TRIES - 1):
        try:
            return await fetch()
        except UnreachableError:
            await asyncio.sleep(FETCH_PAUSE_S)
    return await fetch()


def told(outcome: TrainOutcome, steps: int) -> str:
    """One line on a training. Where all steps were done before, nobody has seen their losses."""
    payload = f"payload {len(outcome.payload):,} bytes"
    if not outcome.first_loss:
        return f"all {steps} steps were trained before; {payload}"
    return (
        f"trained {steps} steps in {outcome.seconds:.1f} s; training loss "
        f"{outcome.first_loss:.3f} → {outcome.last_loss:.3f}; busiest expert "
        f"{max(outcome.imbalance):.2f} × the mean; {payload}"
    )


def _passed(number: int) -> TxError:
    return TxError("wrong_phase", f"round {number} has passed its training phase")


class Learner:
    """Trains rounds with one account. The caller holds `files.lock()`."""

    def __init__(
        self,
        reader: VerifiedReader,
        keys: Keys,
        files: LearnerFiles,
        worker: Worker,
        progress: Progress,
        profile: Kind = "native",
        experts: Sequence[int] = (),
    ) -> None:
        """`experts`: of each layer, those that are held and trained beside the trunk; none stands
        for all."""
        self._reader, self._files, self._worker = reader, files, worker
        self._profile: Kind = profile
        self._experts = tuple(sorted(set(experts)))
        self._progress = progress
        self._submission = Submission(reader, keys, files, progress)
        self._text: tuple[Hash32, RoundData] | None = None  # by holdout id

    async def train_round(self) -> Summary:
        """One round from joining to its end, or the rest of one that was interrupted. A round that
        goes on without us is left for the next; a node that is away, or a chain that stands still,
        is waited for as long as it takes, with a word every two minutes."""
        while True:
            try:
                return await self._round()
            except TxError as error:
                if error.code not in MISSED:
                    raise
                self._progress.say(f"the round went on without us ({error}); waiting for the next")
                self._files.drop_pending()
            except (UnreachableError, DeadlineError) as error:
                self._progress.say(f"{error}; waiting for the node")
                with suppress(UnreachableError):  # after two minutes we say so again
                    await self._submission.watch.until(self._reader.head)

    async def _round(self) -> Summary:
        resumed = await self._submission.resume()
        if resumed is not None:
            return resumed
        held = self._held(await self._reader.specs_now())
        joined = await self._submission.join(shards=held)
        profile = asyncio.create_task(self._worker.profile(self._profile))  # while we wait
        try:
            watch = self._submission.watch
            record = await watch.round(joined.number, lambda x: x.phase >= RoundPhase.SEED)
            if record.phase > RoundPhase.TRAIN:  # we were stopped, or the node away
                raise _passed(record.number)
            base, data = await self._in_time(record, self._fetched(record))
            record = await self._submission.in_training(record.number)
            name = await profile
        finally:
            profile.cancel()
            await asyncio.gather(profile, return_exceptions=True)
        if self._submission.account not in record.joined:
            raise TxError(
                "no_slot",
                f"round {record.number} has more learners than slots, and was drawn without us",
            )
        prepared = await self._in_time(record, self._train(record, base, data, name))
        return await self._submission.finish(prepared)

    # --- what to train on --------------------------------------------------------------------

    def _held(self, specs: RoundSpecs) -> tuple[ShardIndex, ...]:
        """The shards of what we hold, none for all. InputError if the model has no such part."""
        if not self._experts:
            return ()
        if strange := [e for e in self._experts if not 0 <= e < specs.model.experts]:
            raise InputError(
                f"expert {strange[0]}: the model has {specs.model.experts} a layer, numbered from 0"
            )
        if len(self._experts) == specs.model.experts:
            return ()
        held = Held((self._experts,) * specs.model.layers)
        return tuple(ShardIndex(i) for i in shards_of(specs.model, held))

    async def _fetched(self, record: r.RoundRecord) -> tuple[list[bytes], RoundData]:
        """Base and text of a round."""
        base, data = await asyncio.gather(
            patiently(lambda: self._base(record)), patiently(lambda: self._data(record))
        )
        return base, data

    async def _base(self, record: r.RoundRecord) -> list[bytes]:
        """The round's base model, as far as we hold it, every tile verified up to the root in the
        round's record. It is the model of the height at which its phase began: the newest may be
        another by the time that we ask."""
        versions = await self._reader.model_roots(record.base_root, record.phase_height)
        if held := self._held(await self._reader.round_specs(record.number)):
            versions = [version for version in versions if version.spec.index in held]
        shards = await self._reader.shards(versions)
        self._progress.say(
            f"fetched model {record.base_root.hex()[:16]}: {len(shards)} shards, "
            f"{sum(map(len, shards)):,} bytes, verified"
        )
        return shards

    async def _data(self, record: r.RoundRecord) -> RoundData:
        """The round's datasets, split: seconds of work for megabytes, so the last ones' text is
        kept. Chunks are kept on disk."""
        if self._text is not None and self._text[0] == record.holdout:
            return self._text[1]
        records = [await self._reader.dataset(dataset) for dataset in record.datasets]
        data = await fetch_round_data(records, self._chunk)
        self._text = record.holdout, data
        self._progress.say(f"{len(data.train):,} bytes of {len(records)} dataset(s) to train on")
        return data

    async def _chunk(self, blob: BlobId, most: int) -> bytes:
        held = await asyncio.to_thread(self._files.blob, blob)
        if held is None:
            held = await self._reader.blob(blob, most)
            await asyncio.to_thread(self._files.save_blob, blob, held)
        return held

    async def _memory(self, spec: ModelSpec, account: PubKey, held: Held | None) -> Memory | None:
        """Optimizer and residual as the chain chains them; None to start from zero."""
        last = await self._reader.read(r.LearnerRecord, r.learner_key(account))
        if last is None or last.residual == ZERO_HASH:
            return None
        memory = await asyncio.to_thread(
            self._files.memory, spec, last.residual, last.optimizer, held
        )
        if memory is None:
            self._progress.say(
                "the last round's optimizer state is not here, or of another part of the model; "
                "starting from zero"
            )
        return memory

    # --- training ------------------------------------------------------------------------------

    async def _in_time(self, record: r.RoundRecord, making: Coroutine[Any, Any, T]) -> T:
        """What is made for a round's training, or TxError as soon as the round goes on without it:
        after a pause there is no use in the rest."""
        work = asyncio.create_task(making)
        over = asyncio.create_task(self._past_training(record.number))
        try:
            await asyncio.wait((work, over), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await over  # it may have failed, too
                raise _passed(record.number)
            return await work
        finally:
            for task in (work, over):
                task.cancel()
            await asyncio.gather(work, over, return_exceptions=True)

    async def _past_training(self, number: int) -> None:
        """Returns once a round is past its training phase; training needs no node meanwhile."""
        while True:
            with suppress(UnreachableError, DeadlineError):
                await self._submission.watch.round(number, lambda x: x.phase > RoundPhase.TRAIN)
                return
            await asyncio.sleep(FETCH_PAUSE_S)

    async def _begin(self, record: r.RoundRecord, profile: str) -> None:
        """Make place for this training's checkpoints. Those of another numeric profile are
        discarded: a manifest names one, in which all of its segments are replayed."""
        kept = await asyncio.to_thread(self._files.training_profile, record)
        if kept not in (None, profile):
            self._progress.say(
                f"the checkpoints of round {record.number} were made in the numeric profile "
                f"{kept or 'of an earlier version'}, and this run trains in {profile}: they are "
                "discarded, and training starts from step 0"
            )
        await asyncio.to_thread(self._files.begin_training, record, profile)

    async def _train(
        self, record: r.RoundRecord, base: Sequence[bytes], data: RoundData, profile: str
    ) -> Prepared:
        """Train, upload the payload, and keep what opens the commitment."""
        specs = await self._reader.round_specs(record.number)
        rule, spec = specs.training, specs.model
        account = self._submission.account
        assignment = Assignment(
            data.train,
            record.seed,
            account,
            record.number,
            steps=rule.steps,
            batch=rule.batch,
            context=spec.context,
        )
        shards = self._held(specs)
        held = held_experts(spec, shards)
        memory = await self._memory(spec, account, held)
        batches = await asyncio.to_thread(assignment.batches, 0, rule.steps)
        await self._begin(record, profile)
        root = await asyncio.to_thread(sections_root, base)
        done = await asyncio.to_thread(self._files.training, spec, rule, record, root, held)
        if done:
            at = (len(done.state_hashes) - 1) * rule.segment_steps
            self._progress.say(f"going on from the checkpoint after step {at} of {rule.steps}")
        job = TrainJob(
            model=spec,
            training=rule,
            round=record.number,
            base_root=record.base_root,
            base=base,
            batches=batches,
            previous=memory.state if memory else None,
            residual=memory.residual if memory else None,
            profile=self._profile,
            done=done,
            shards=shards,
            mask_key=assignment.mask_key(),
        )
        if (warning := shortage(spec, rule, self._worker.most_bytes)) is not None:
            self._progress.say(warning)
        outcome = await self._trained(record, job)
        self._progress.say(told(outcome, rule.steps))
        batch_root = await asyncio.to_thread(assignment.root, rule.steps)
        return await self._prepare(record, rule, outcome, batch_root, shards)

    async def _trained(self, record: r.RoundRecord, job: TrainJob) -> TrainOutcome:
        """The training's outcome, also if a worker dies on the way."""
        for _ in range(TRAIN_TRIES - 1):
            try:
                return await self._try_training(record, job)
            except WorkerError as error:
                self._progress.say(f"{error}; starting another")
            root, held = sections_root(job.base), held_experts(job.model, job.shards)
            done = await asyncio.to_thread(
                self._files.training, job.model, job.training, record, root, held
            )
            job = replace(job, done=done)
        return await self._try_training(record, job)

    async def _try_training(self, record: r.RoundRecord, job: TrainJob) -> TrainOutcome:
        """Checkpoints are kept as they come."""
        steps, tokens = job.training.steps, job.training.batch * job.model.context
        made: Made = asyncio.Queue()
        clock = self._worker.clock
        began = clock.seconds()
        first = len(job.done.state_hashes) if job.done is not None else 0
        keeping = asyncio.create_task(self._keep(record, made, first))
        try:
            try:
                return await self._worker.train(
                    job,
                    lambda done, loss: self._progress.step(
                        done, steps, loss, tokens, clock.seconds() - began
                    ),
                    lambda state_hash, state: made.put_nowait((state_hash, state)),
                )
            finally:  # also what a worker that died has reached is kept
                made.put_nowait(None)
                await keeping
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, record: r.RoundRecord, made: Made, index: int) -> None:
        """Each checkpoint on disk, from this number on: a killed learner goes on from it, and
        whoever replays the training begins at one of them."""
        while (checkpoint := await made.get()) is not None:
            await asyncio.to_thread(self._files.save_checkpoint, record, index, *checkpoint)
            index += 1

    async def _prepare(
        self,
        record: r.RoundRecord,
        rule: TrainingSpec,
        outcome: TrainOutcome,
        batch_root: Hash32,
        shards: tuple[ShardIndex, ...],
    ) -> Prepared:
        manifest = PodlManifest(
            round=record.number,
            learner=self._submission.account,
            base_root=record.base_root,
            proven=1,
            datasets=record.datasets,
            seed=record.seed,
            profile=outcome.profile,
            steps=rule.steps,
            segment_steps=rule.segment_steps,
            batch_root=batch_root,
            state_hashes=outcome.state_hashes,
            residual_before=outcome.residual_before,
            residual_after=outcome.residual_after,
            optimizer_before=outcome.optimizer_before,
            optimizer_after=outcome.optimizer_after,
            payload_root=outcome.payload_root,
            density=rule.density(record.number),
            shards=shards,
        )
        salt, blob, size = await self._submission.upload(outcome.payload)
        prepared = Prepared(manifest, salt, blob, size)
        await asyncio.to_thread(self._files.save_next, outcome.state, outcome.residual)
        self._files.save_pending(prepared)  # before the commit, or a crash would lose the salt
        return prepared
