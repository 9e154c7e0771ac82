"""What a round's work earns once it is settled, and what it costs to let one down
(docs/spec/rounds.md, "Rewards and merit")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chain import records as r
from chain import rounds
from chain.params import Params
from chain.records import DeltaStatus
from chain.state import REWARD_POOL, State
from chain.transactions import Verdict
from chain.types import Grains, PubKey, TxId

PAID_GAINS = 2  # times the median of a round's gains are paid at most
MISMATCH_MERIT = 10  # that a delta costs whose replay came out otherwise


def gain(record: r.DeltaRecord) -> int:
    """Nano-nats per byte: the median of what jurors measured; half of them would have to lie to
    move it."""
    return _median([v.gain for v in record.votes if _has_losses(v)])


def helps(record: r.DeltaRecord, jurors: int) -> bool:
    """Whether more than half of so many jurors found that it lowers the loss, significantly."""
    return 2 * sum(_has_losses(v) and v.lower >= 0 for v in record.votes) > jurors


def pay_learners(state: State, params: Params, deltas: Sequence[TxId]) -> None:
    """Share a round's reward among its merged deltas, as they gain, up to twice what is usual: a
    delta that is made longer gains more at a fifth of itself, and no more once it is merged. What
    does not lower the loss earns neither money nor merit."""
    records = [state.delta(d) for d in deltas]
    gains = {d.id: gain(d) for d in records if d.status == DeltaStatus.MERGED and gain(d) > 0}
    most = PAID_GAINS * _median(list(gains.values()))
    pool = min(params.round_reward_grains, state.account(REWARD_POOL).balance)
    total = sum(min(most, g) for g in gains.values())
    for delta in records:
        if delta.id not in gains:
            continue
        share = Grains(pool * min(most, gains[delta.id]) // total)
        state.move(REWARD_POOL, delta.sender, share)
        state.put(r.delta_key(delta.id), replace(delta, reward=share))
        state.put_account(delta.sender, merit=state.account(delta.sender).merit + 1)


def credit_primaries(state: State, number: int) -> None:
    """One merit for a round's work on tiles, in however many updates it was sent."""
    ids = {slot.update for _, _, slot in rounds.slots(state, number) if slot.provisional}
    made = {state.need(r.UpdateRecord, r.update_key(i)).primary for i in ids}
    for account in sorted(made):
        state.put_account(account, merit=state.account(account).merit + 1)


def disprove(state: State, account: PubKey) -> None:
    """A replay came out otherwise: merit is lost, and what the manifest has left for the next one
    to start from is as false as it is."""
    lose_merit(state, account, MISMATCH_MERIT)
    key = r.learner_key(account)
    if state.get(r.LearnerRecord, key) is not None:
        state.delete(key)


def lose_merit(state: State, account: PubKey, much: int = 1) -> None:
    merit = state.account(account).merit
    if merit:
        state.put_account(account, merit=max(0, merit - much))


def _has_losses(vote: r.JurorVote) -> bool:
    return bool(vote.revealed) and vote.verdict in (Verdict.NO, Verdict.YES)


def _median(values: Sequence[int]) -> int:
    """The upper one, 0 of none."""
    return sorted(values)[len(values) // 2] if values else 0
