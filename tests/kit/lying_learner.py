"""Learners that lie. Each takes part in rounds as an honest one does (`node.learner`), and sends
something else than what it has learnt, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from chain import records as r
from chain.errors import TxError
from chain.hashes import ZERO_HASH, Hash32
from chain.rounds import manifest_root
from chain.transactions import DeltaCommit, DeltaReveal
from chain.types import ShardIndex, TxId
from learning.compress import LARGEST
from learning.spec import TrainingSpec
from node.learner import Learner
from node.learner_files import LearnerFiles, Prepared
from node.submission import Progress, Submission, Summary
from node.verified import VerifiedReader
from node.worker.client import Worker
from node.worker.training import TrainOutcome
from tiles.delta import decode_delta, encode_delta, payload_root
from tiles.layout import ShardSpec
from wallet.keys import Keys

HARMFUL_SCALE = 0.15  # of a weight's own size, as node.devnet.garbage has it
Floats = npt.NDArray[np.float32]


class Lie(Enum):
    FLIP = "sign-flip x10"
    NOISE = "noise"
    HARMFUL = "harmful"
    GARBAGE = "garbage payload"
    SILENT = "no reveal"
    COPY = "copied commit"


def forged(lie: Lie, payload: bytes, specs: Sequence[ShardSpec], seed: int) -> bytes:
    """What a liar sends in place of an honest payload; the same for the kinds that lie later."""
    source = np.random.default_rng(seed)
    if lie is Lie.GARBAGE:
        return source.bytes(len(payload))
    change: Callable[[Floats], Floats]
    if lie is Lie.FLIP:
        change = lambda x: -10 * x  # noqa: E731 - one of three
    elif lie is Lie.NOISE:
        # As long as the honest one, so that only its direction gives it away.
        change = lambda x: source.permutation(x) * source.choice((-1, 1), len(x))  # noqa: E731
    elif lie is Lie.HARMFUL:
        change = lambda x: source.normal(0, HARMFUL_SCALE, len(x))  # noqa: E731
    else:
        return payload
    honest = decode_delta(payload, specs)
    values = {
        i: np.clip(change(shard.floats()), -LARGEST, LARGEST).astype(np.float32)
        for i, shard in honest.shards.items()
    }
    return encode_delta(honest.base_root, values, specs, honest.density)[0]


class LyingSubmission(Submission):
    """Commits, and does not reveal; or commits to what another has committed to."""

    lie = Lie.FLIP

    async def finish(self, prepared: Prepared) -> Summary:
        if self.lie is Lie.SILENT:
            return await self._end(prepared, await self._commit(prepared))
        if self.lie is Lie.COPY:
            return await self._copy(prepared)
        return await super().finish(prepared)

    async def _copy(self, prepared: Prepared) -> Summary:
        """Take over another's commitment and blob as they stand on the chain, and its salt as soon
        as that is revealed."""
        number = prepared.round

        async def committed() -> r.RoundRecord | None:
            found = await self.reader.round(number)
            return found if found.deltas or found.phase > r.RoundPhase.TRAIN else None

        record = await self.watch.until(committed)
        if not record.deltas:
            raise TxError("wrong_phase", "nobody has committed to anything")
        victim = await self.reader.delta(record.deltas[0])
        manifest = replace(prepared.manifest, payload_root=Hash32(bytes(32)))
        delta, _ = await self._send(
            DeltaCommit(
                number,
                victim.base_root,
                victim.commitment,
                manifest_root(manifest),
                victim.blob,
                victim.blob_bytes,
            )
        )
        await self._send(manifest)

        async def revealed() -> r.DeltaRecord | None:
            found = await self.reader.delta(victim.id)
            over = (await self.reader.round(number)).phase > r.RoundPhase.REVEAL
            return found if found.salt != ZERO_HASH or over else None

        victim = await self.watch.until(revealed)
        try:
            await self._send(DeltaReveal(delta, victim.salt))
        except TxError as error:
            if error.code not in ("bad_opening", "wrong_phase"):
                raise
        return await self._end(prepared, delta)

    async def _end(self, prepared: Prepared, delta: TxId) -> Summary:
        await self.watch.round(prepared.round, lambda x: x.phase == r.RoundPhase.DONE)
        self.files.drop_pending()
        return await self.summary(delta)


class LyingLearner(Learner):
    """Tells the lie of `choose` in each round. `lies`: what was told, by round."""

    def __init__(
        self,
        reader: VerifiedReader,
        keys: Keys,
        files: LearnerFiles,
        worker: Worker,
        progress: Progress,
        choose: Callable[[int], Lie],
    ) -> None:
        super().__init__(reader, keys, files, worker, progress)
        self._lying = LyingSubmission(reader, keys, files, progress)
        self._submission, self._choose = self._lying, choose
        self.lies: dict[int, Lie] = {}

    async def _prepare(
        self,
        record: r.RoundRecord,
        rule: TrainingSpec,
        outcome: TrainOutcome,
        batch_root: Hash32,
        shards: tuple[ShardIndex, ...],
    ) -> Prepared:
        lie = self.lies[record.number] = self._lying.lie = self._choose(record.number)
        payload = forged(lie, outcome.payload, self._reader.specs, record.number)
        root = Hash32(bytes(31) + b"g") if lie is Lie.GARBAGE else payload_root(payload)
        outcome = replace(outcome, payload=payload, payload_root=root)
        return await super()._prepare(record, rule, outcome, batch_root, shards)
