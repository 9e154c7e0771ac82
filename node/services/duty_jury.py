"""The duties of jurors and auditors (docs/spec/rounds.md, "Screen", "Replay")."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile

from chain import limits
from chain import records as r
from chain.errors import (
    ConfigError,
    DecodeError,
    InputError,
    StorageError,
    UnreachableError,
    VerifyError,
    WorkerError,
)
from chain.hashes import ZERO_HASH, Hash32
from chain.transactions import (
    Attest,
    AttestKind,
    LossSlice,
    Phase,
    PodlManifest,
    PolVote,
    Verdict,
    pol_commitment,
)
from consensus import pol
from corpus.batches import Slices
from learning.held import Held, held_experts, layout_of
from learning.memory import shortage
from learning.profile import kind_of
from learning.spec import MAX_STEPS, ModelSpec
from learning.state import (
    TrainState,
    deserialize_residual,
    deserialize_state,
    is_residual,
    is_state,
    sections_root,
)
from learning.state_parts import (
    is_index,
    is_parted,
    is_residual_index,
    is_residual_parted,
    is_tile,
    join,
    read_index,
    read_residual_index,
)
from node.round_specs import RoundSpecs
from node.sealed import SALT_BYTES
from node.services.duty_context import DutyContext
from node.services.duty_plan import Evaluate, OpenVote, Prepare, Replay, Screen
from node.worker.client import Worker
from node.worker.training import Closed, Closing
from tiles import copies, merkle
from tiles.delta import DeltaHeader, delta_header, payload_root

log = logging.getLogger("blyan.duties")
WORDS_PER_WINDOW = 2  # of the data PRF, as learning.train counts them (it needs torch)
SLICES = limits.MAX_SLICES  # windows of one verdict: the paired test is as sharp as a vote holds
TOGETHER_S = 1.0  # for which a vote waits for our others: blocks that have one each cost most
TILES_AT_ONCE = 4  # of a checkpoint that is asked for
UPLOAD_PAUSES_S = (0.25, 0.5, 1.0, 2.0)  # while a checkpoint may be on its way from its learner
FRACTION = (1, 5)  # of the delta that is evaluated: the whole one overshoots


# --- before the screen -----------------------------------------------------------------


async def prepare(context: DutyContext, duty: Prepare) -> None:
    await context.prepare(context.state().round(duty.round))


# --- the screen ------------------------------------------------------------------------


async def screen(context: DutyContext, duty: Screen) -> None:
    """Evaluate a delta, keep the opening, commit to it."""
    state = context.state()
    current, record = state.round(duty.round), state.delta(duty.delta)
    vote = context.files.vote(duty.round, duty.delta)
    if vote is None:  # else we were stopped between keeping and sending it
        with context.screens:
            verdict, slices = await _judge(context, current, record)
        salt = Hash32(secrets.token_bytes(SALT_BYTES))
        vote = PolVote(duty.round, duty.delta, Phase.REVEAL, ZERO_HASH, salt, int(verdict), slices)
        await asyncio.to_thread(context.files.save_vote, vote)
        await context.screens.over(TOGETHER_S)
    commitment = pol_commitment(context.node.genesis.chain_id, context.account, vote)
    await context.send(PolVote(duty.round, duty.delta, Phase.COMMIT, commitment, ZERO_HASH, 0, ()))


async def open_vote(context: DutyContext, duty: OpenVote) -> None:
    vote = context.files.vote(duty.round, duty.delta)
    if vote is None:
        raise InputError("the opening of this vote is not in the home; it cannot be revealed")
    await context.send(vote)


async def _judge(
    context: DutyContext, current: r.RoundRecord, record: r.DeltaRecord
) -> tuple[Verdict, tuple[LossSlice, ...]]:
    """Verdict and losses. Raises UnreachableError while there is time to wait for the blob."""
    manifest = record.manifest
    try:
        payload = await context.payload(record)
        await asyncio.to_thread(check_payload, context, current, record, payload)
        if await _is_copy(context, current, record):
            log.info("delta %s is a copy", record.id.hex()[:16])
            return Verdict.COPY, ()
        assignment = await context.assignment(current, record.sender)
        slices = assignment.jury_slices(current.jury_seed, SLICES)
        if len(slices.starts) < 2:
            raise VerifyError("the datasets hold too little text to judge by")
        base = await context.newest_model(context.state())
        model, proven = context.specs(current.number).model, bool(manifest and manifest.proven)
        # An audit that finds nothing to replay leaves the losses alone to speak for a delta.
        alone = not proven or record.id == current.audited
        found = await _look(context.worker, model, base, payload, slices, not alone)
    except UnreachableError:
        if not context.late(current, context.params().screen.ms):
            raise
        return Verdict.UNAVAILABLE, ()
    except (DecodeError, VerifyError) as error:
        log.info("delta %s is refused: %s", record.id.hex()[:16], error)
        return Verdict.UNAVAILABLE, ()
    verdict, gain, _ = context.rules.pol_verdict(found, proven)
    log.info("delta %s: verdict %d, gain %d nano-nats", record.id.hex()[:16], verdict, gain)
    return Verdict(verdict), found


async def _is_copy(context: DutyContext, current: r.RoundRecord, record: r.DeltaRecord) -> bool:
    """Whether it is one of an earlier delta: those that claim a proof are first, then the order of
    the commits decides. Only of what is here, so that nobody waits for a blob that is withheld."""
    state = context.state()
    revealed = [d for d in map(state.delta, current.deltas) if d.status == r.DeltaStatus.REVEALED]
    ranked = sorted(revealed, key=lambda d: not (d.manifest and d.manifest.proven))
    earlier = list(takewhile(lambda d: d.id != record.id, ranked))
    try:
        return await asyncio.to_thread(_copies_one_of, context, current, record, earlier)
    except StorageError as error:  # a full disk is no reason to say nothing of the losses
        log.warning("delta %s is not compared with others: %s", record.id.hex()[:16], error)
        return False


def _copies_one_of(
    context: DutyContext,
    current: r.RoundRecord,
    record: r.DeltaRecord,
    earlier: Sequence[r.DeltaRecord],
) -> bool:
    specs = context.node.tiles.specs
    places = copies.drawn(current.jury_seed, specs)
    others = []
    for other in earlier:
        with suppress(DecodeError, VerifyError):  # what does not open is nobody's original
            found = context.payloads.local(other)
            if found is not None:
                _check(context, current, other, found.root, found.header)
                others.append(copies.sample(found, places, specs))
    own = context.payloads.local(record) if others else None
    return own is not None and copies.is_copy(copies.sample(own, places, specs), others, places)


async def _look(
    worker: Worker,
    model: ModelSpec,
    base: Sequence[bytes],
    payload: bytes,
    slices: Slices,
    proven: bool,
) -> tuple[LossSlice, ...]:
    """Losses on a part of the slices, spread over all of them; on all where that part leaves a
    doubt. Ascending by slice."""
    found: dict[int, LossSlice] = {}
    for look in pol.looks(len(slices.starts)):
        losses = await worker.evaluate(
            model,
            base,
            payload,
            slices.windows[look],
            numerator=FRACTION[0],
            denominator=FRACTION[1],
        )
        for index, before, after in zip(look, losses.base, losses.delta, strict=True):
            found[index] = LossSlice(slices.starts[index], before, after)
        if pol.is_clear(losses.base, losses.delta, proven):
            break
    return tuple(found[index] for index in sorted(found))


def check_payload(
    context: DutyContext, current: r.RoundRecord, record: r.DeltaRecord, payload: bytes
) -> None:
    """Structure checks before anything is evaluated. Raises DecodeError or VerifyError."""
    _check(context, current, record, payload_root(payload), delta_header(payload))


def _check(
    context: DutyContext,
    current: r.RoundRecord,
    record: r.DeltaRecord,
    root: Hash32,
    header: DeltaHeader,
) -> None:
    manifest = record.manifest
    if manifest is None or root != manifest.payload_root:
        raise VerifyError("the payload is not the one that the manifest names")
    if header.base_root != current.base_root:
        raise VerifyError("the payload is a delta of another base")
    if header.density != manifest.density:
        raise VerifyError("the payload has another density than its manifest")
    if manifest.shards and not {e.shard for e in header.shards} <= set(manifest.shards):
        raise VerifyError("the payload has a shard that the manifest does not name")
    specs = context.specs(current.number)
    if not specs.training.is_coded_by(header.density):
        raise VerifyError("the payload has another coding than the round's training rule")
    if manifest.proven:
        check_claim(specs, manifest)
        try:
            kind_of(manifest.profile)
        except InputError as error:
            raise VerifyError(str(error)) from None


def check_claim(specs: RoundSpecs, manifest: PodlManifest) -> Held | None:
    """What a proven manifest holds, if its steps, density and shards are those of the round's rule.
    VerifyError if not: the chain knows no rule, so until here a stranger has chosen them."""
    rule = specs.training
    expected = (rule.steps, rule.segment_steps, rule.density(manifest.round))
    if (manifest.steps, manifest.segment_steps, manifest.density) != expected:
        raise VerifyError("the manifest's steps or density are not the protocol's")
    try:
        return held_experts(specs.model, manifest.shards)
    except InputError as error:
        raise VerifyError(str(error)) from None


# --- replay ------------------------------------------------------------------------------


async def replay(context: DutyContext, duty: Replay) -> None:
    """Train the drawn segment again; say whether the manifest's state hash comes out, and of the
    last segment its payload, residual and optimizer."""
    state = context.state()
    current, record = state.round(duty.round), state.delta(duty.delta)
    if record.manifest is None:
        return
    try:
        verdict, evidence = await _replayed(context, current, record.manifest, duty.segment)
    except (UnreachableError, WorkerError) as error:  # a state may be what a worker dies of
        opening = current.phase == r.RoundPhase.SCREEN_REVEAL
        if not (opening and context.late(current, context.params().screen.ms)):
            raise
        log.warning("a segment of %s cannot be replayed: %s", record.id.hex()[:16], error)
        verdict, evidence = Verdict.UNAVAILABLE, ZERO_HASH
    if verdict != Verdict.YES and evidence == record.manifest.state_hashes[duty.segment + 1]:
        evidence = ZERO_HASH  # the chain takes a claimed state hash for 'yes', whatever it is of
    log.info("replay of %s, segment %d: %s", record.id.hex()[:16], duty.segment, verdict.name)
    await context.send(
        Attest(AttestKind.REPLAY, duty.round, Hash32(record.id), int(verdict), 0, evidence)
    )


async def _replayed(
    context: DutyContext, current: r.RoundRecord, manifest: PodlManifest, segment: int
) -> tuple[Verdict, Hash32]:
    """Verdict and the state hash obtained. UnreachableError if the start cannot be had, WorkerError
    if the replay fails."""
    specs = context.specs(current.number)
    model, training = specs.model, specs.training
    try:  # before anything is done: what follows costs as much as the manifest says
        held = check_claim(specs, manifest)
    except VerifyError as error:
        log.info("a manifest of round %d claims another training: %s", current.number, error)
        return Verdict.NO, ZERO_HASH
    try:
        kind_of(manifest.profile)
    except InputError:  # perhaps a newer version knows it: nothing is shown either way
        return Verdict.UNAVAILABLE, ZERO_HASH
    assignment = await context.assignment(current, manifest.learner)
    root = await asyncio.to_thread(assignment.root, training.steps)
    if root != manifest.batch_root:
        return Verdict.NO, root  # not the batches that the seed assigns
    first, last = training.segment_range(segment)
    base_root = _base_root(context, current, model, held)
    checkpoint = await _checkpoint(context, model, manifest.state_hashes[segment], held)
    try:
        state = await asyncio.to_thread(deserialize_state, model, checkpoint, held)
    except DecodeError:  # of tiles that have their roots and are not whole ones
        return Verdict.NO, ZERO_HASH
    drawn = first * training.batch * WORDS_PER_WINDOW
    sound = (state.step, state.draws) == (first, drawn)
    sound &= 0 <= state.updates - first <= current.number * MAX_STEPS  # of the rounds before
    if segment == 0:
        sound &= await asyncio.to_thread(starts_at_base, state, base_root, manifest)
    if not sound:
        return Verdict.NO, ZERO_HASH  # the state has its hash, but training cannot lead to it
    batches = await asyncio.to_thread(assignment.batches, first, last)
    closing = None
    if last == training.steps:
        try:
            closing = await _closing(context, current, model, manifest, held)
        except DecodeError:  # of tiles that have their roots and are not whole ones
            return Verdict.NO, ZERO_HASH
    if (warning := shortage(model, training, context.worker.most_bytes)) is not None:
        log.warning("a replay: %s", warning)
    try:
        found = await context.worker.replay(
            *(model, training, checkpoint, batches, manifest.profile, manifest.shards),
            assignment.mask_key(),
            closing=closing,
        )
    except (ConfigError, InputError) as error:  # a profile that is unknown, or not had here
        log.warning("the audit of a delta of round %d is left out: %s", current.number, error)
        return Verdict.UNAVAILABLE, ZERO_HASH
    if found.profile != manifest.profile:
        return Verdict.UNAVAILABLE, ZERO_HASH  # other hardware: a difference would prove nothing
    if (found.before, found.after) != manifest.state_hashes[segment : segment + 2]:
        return Verdict.NO, found.after
    if closing is not None and found.closed != claimed_end(manifest):
        return Verdict.NO, found.closed.payload_root if found.closed else ZERO_HASH
    return Verdict.YES, found.after


def claimed_end(manifest: PodlManifest) -> Closed:
    """What a manifest says that its last state and the residual before lead to."""
    return Closed(
        manifest.payload_root,
        manifest.residual_before,
        manifest.residual_after,
        manifest.optimizer_after,
    )


async def _closing(
    context: DutyContext,
    current: r.RoundRecord,
    model: ModelSpec,
    manifest: PodlManifest,
    held: Held | None,
) -> Closing:
    """What the last segment's result is compressed with. UnreachableError if the residual cannot be
    had, DecodeError if it is none."""
    residual = None
    if manifest.residual_before != ZERO_HASH:
        data = await _residual(context, model, manifest.residual_before, held)
        residual = await asyncio.to_thread(deserialize_residual, model, data, held)
    shards = [shard.index for shard in layout_of(model, held)]
    base = await context.newest_model(context.state(), shards)  # the round's base, until it merges
    return Closing(current.number, current.base_root, base, residual)


def _base_root(
    context: DutyContext, current: r.RoundRecord, model: ModelSpec, held: Held | None
) -> Hash32:
    """The root over the shards of a part of the round's base: the newest model's, until the round
    is aggregated."""
    if held is None:
        return current.base_root
    state = context.state()
    shards = [state.need(r.ShardRecord, r.shard_key(s.index)) for s in layout_of(model, held)]
    return merkle.model_root([shard.root for shard in shards])


async def _checkpoint(
    context: DutyContext, model: ModelSpec, state_hash: Hash32, held: Held | None
) -> bytes:
    """A training state by its hash, recomputed here. Its learner uploads it as soon as it is drawn,
    as we ask for it: UnreachableError if nobody has it after a few tries."""
    if not is_parted(model, held):
        is_of = partial(is_state, model, state_hash=state_hash, held=held)
        return await _uploaded(context, state_hash, is_of)
    is_of = partial(is_index, model, state_hash=state_hash, held=held)
    raw = await _uploaded(context, state_hash, is_of)
    index = read_index(model, raw, state_hash, held)
    return await asyncio.to_thread(join, index, await _tiles(context, index.tile_roots))


async def _residual(
    context: DutyContext, model: ModelSpec, root: Hash32, held: Held | None
) -> bytes:
    """The residual that a learner began a round with, likewise."""
    if not is_residual_parted(model, held):
        return await _uploaded(context, root, partial(is_residual, model, root=root, held=held))
    is_of = partial(is_residual_index, model, root=root, held=held)
    roots = read_residual_index(model, await _uploaded(context, root, is_of), root, held)
    tiles = await _tiles(context, roots)
    return b"".join(tiles[each] for each in roots)


async def _tiles(context: DutyContext, roots: Sequence[Hash32]) -> dict[Hash32, bytes]:
    """Tiles by their roots, equal ones once."""
    room = asyncio.Semaphore(TILES_AT_ONCE)

    async def tile(root: Hash32) -> bytes:
        async with room:
            return await _part(context, root, limits.TILE_BYTES, partial(is_tile, root=root))

    wanted = list(set(roots))
    return dict(zip(wanted, await asyncio.gather(*map(tile, wanted)), strict=True))


async def _uploaded(context: DutyContext, name: Hash32, matches: Callable[[bytes], bool]) -> bytes:
    """What a learner has uploaded under a hash, or uploads by and by."""
    for pause in UPLOAD_PAUSES_S:
        try:
            return await _part(context, name, limits.MAX_BLOB_BYTES, matches)
        except UnreachableError:
            await asyncio.sleep(pause)
    return await _part(context, name, limits.MAX_BLOB_BYTES, matches)


async def _part(
    context: DutyContext, name: Hash32, most: int, matches: Callable[[bytes], bool]
) -> bytes:
    data = await context.node.blobs.get_checkpoint(name, most=most, check=matches)
    if not await asyncio.to_thread(matches, data):  # another asker's fetch, less strict
        raise UnreachableError(f"no checkpoint {name.hex()} that holds")
    return data


def starts_at_base(state: TrainState, base_root: Hash32, manifest: PodlManifest) -> bool:
    """Whether a round's first state is its base, or the part with this root, with the optimizer
    that the manifest chains."""
    moments = (*state.first, *state.second)
    fresh = all(part.count(0) == len(part) for part in moments)
    return (
        sections_root(state.weights) == base_root
        and state.optimizer_root() == manifest.optimizer_before
        and (state.updates > 0 or fresh)  # without updates the root says nothing of the moments
    )


# --- evaluation ----------------------------------------------------------------------------


async def evaluate(context: DutyContext, duty: Evaluate) -> None:
    """Measure a model on the holdout for the public loss curve."""
    state = context.state()
    if state.model.root != duty.root:
        return  # a newer model came meanwhile; it has a duty of its own
    data = await context.round_data(state.round(duty.round))
    shards = await context.newest_model(state)
    model = context.specs(duty.round).model
    loss = await context.worker.holdout(model, shards, data.holdout)
    await context.send(
        Attest(AttestKind.EVAL, duty.round, duty.root, Verdict.YES, loss, duty.holdout)
    )
