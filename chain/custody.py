"""Proof of custody: who keeps a tile shows it when asked (docs/spec/custody.md).

    SEED     the anchor is fixed: model and custodians       seed_blocks blocks
    COMMIT   a seed has named subtiles; custodians commit    all have, or custody_commit
    DISPUTE  what is wrong is opened; whoever doubts         custody_open, then as long again for
             disputes                                        each dispute that is open

One event at a time. A commitment that an opening contradicts, or that nobody opens when it is
disputed, costs its custodian a part of its stake; silence costs merit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chain import custody_records as c
from chain import datasets, ledger
from chain import records as r
from chain.codec import decode, encode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.errors import TxError, invariant
from chain.hashes import CUSTODY, ZERO_HASH, Hash32, keyed_hash
from chain.limits import (
    MAX_CUSTODY_DISPUTES,
    MAX_SUBTILES_PER_CHALLENGE,
    SUBTILE_BYTES,
    TILE_BYTES,
)
from chain.params import Params, Window
from chain.prf import Prf, below
from chain.rules import Rules
from chain.state import CUSTODY_BONDS, REWARD_POOL, State
from chain.transactions import Custody, CustodyDispute, CustodyOpening, Payload
from chain.types import Epoch, Height, PubKey, ShardIndex, TileIndex, TimeMs, u64_be

FINDER_SHARE = 2  # whoever is right gets 1/2 of what it costs the other, the pool the rest
_SUBTILES = TILE_BYTES // SUBTILE_BYTES


def commitment(account: PubKey, seed: Hash32, position: int, subtile: bytes | memoryview) -> Hash32:
    """What a custodian commits to: only with all of the bytes, and only once the seed is known."""
    return keyed_hash(CUSTODY.hash(account, seed, u64_be(position)), subtile)


def current(state: State) -> c.CustodyEvent | None:
    """The event in progress."""
    return state.get(c.CustodyEvent, c.CUSTODY)


def member_of(event: c.CustodyEvent, account: PubKey) -> int | None:
    """A custodian's number in the event."""
    return next((i for i, m in enumerate(event.members) if m.account == account), None)


def positions(event: c.CustodyEvent, member: int) -> list[int]:
    """The places that a member has to show, in order."""
    return [i for i, place in enumerate(event.places) if member in place.custodians]


def committed(state: State, event: c.CustodyEvent, member: int, position: int) -> Hash32 | None:
    """A member's commitment at one of its places, if it has made any."""
    answer = state.get(c.CustodyAnswer, c.custody_answer_key(event.members[member].account))
    if answer is None:
        return None
    return answer.commitments[positions(event, member).index(position)]


def claims(state: State) -> list[c.CustodyClaim]:
    """Open disputes in order of custodian and position."""
    return [decode(c.CustodyClaim, raw) for _, raw in state.items(c.CUSTODY_CLAIMS)]


def custody_roots(state: State) -> set[tuple[int, Hash32]]:
    """(shard, root) of the versions that the event in progress may still ask for, beside those of
    the newest model: whoever has to show them must not drop them before it ends."""
    event = current(state)
    return {(p.shard, p.shard_root) for p in event.places} if event is not None else set()


def custody_tiles(state: State, account: PubKey) -> set[tuple[int, Hash32, int]]:
    """(shard, shard root, tile) that the event in progress asks of an account: to be kept until it
    ends, also if the account's epoch is over meanwhile."""
    event = current(state)
    member = member_of(event, account) if event is not None else None
    if event is None or member is None:
        return set()
    places = (event.places[at] for at in positions(event, member))
    return {(p.shard, p.shard_root, p.tile) for p in places}


def at_stake(state: State) -> set[PubKey]:
    """Accounts that the event in progress may still convict: their stake is not paid out until it
    ends, whatever its windows are."""
    event = current(state)
    may = (CustodyStatus.ASKED, CustodyStatus.COMMITTED)
    return {m.account for m in event.members if m.status in may} if event is not None else set()


def is_asked(state: State, account: PubKey, payload: Payload) -> bool:
    """Whether `payload` is an answer of one of the event's custodians: free even if the account
    has left the validators since the event's epoch."""
    if not isinstance(payload, Custody | CustodyOpening):
        return False
    event = current(state)
    return event is not None and member_of(event, account) is not None


# --- transactions -------------------------------------------------------------------------


def _in_phase(state: State, name: Hash32, phase: CustodyPhase) -> c.CustodyEvent:
    event = current(state)
    if event is None or event.seed != name or name == ZERO_HASH:
        raise TxError("unknown_event", f"custody event {name.hex()} is not in progress")
    if event.phase != phase:
        now = CustodyPhase(event.phase).name.lower()
        raise TxError(
            "wrong_phase", f"the event is in phase {now}; this belongs to {phase.name.lower()}"
        )
    return event


def commit(state: State, sender: PubKey, tx: Custody) -> None:
    event = _in_phase(state, tx.event, CustodyPhase.COMMIT)
    member = member_of(event, sender)
    if member is None:
        raise TxError("not_drawn", "no place of this event is this account's to show")
    if event.members[member].status != CustodyStatus.ASKED:
        raise TxError("duplicate", "this account has committed already")
    expected = len(positions(event, member))
    if len(tx.commitments) != expected:
        raise TxError(
            "wrong_count",
            f"{len(tx.commitments)} commitments; the event has {expected} places for this account",
        )
    answer = c.CustodyAnswer(sender, state.head.height, tx.commitments)
    state.put(c.custody_answer_key(sender), answer)
    _mark(state, event, member, CustodyStatus.COMMITTED)


def dispute(state: State, params: Params, sender: PubKey, tx: CustodyDispute) -> None:
    event = _in_phase(state, tx.event, CustodyPhase.DISPUTE)
    if _passed(state, event):
        raise TxError("wrong_phase", "the time for disputes of this event is over")
    member = _suspect(event, tx.custodian, tx.position)
    if sender == tx.custodian:
        raise TxError("own_work", "nobody disputes its own commitment")
    own = member_of(event, sender)
    bonded = state.account(sender).bonded >= params.min_bond_grains
    if not bonded and (own is None or own not in event.places[tx.position].custodians):
        raise TxError(
            "not_bonded",
            f"a dispute needs a custodian of the place, or {params.min_bond_grains} grains bonded",
        )
    if tx.bond < params.custody_bond_grains:
        raise TxError(
            "bond_too_small", f"the bond of a dispute is {params.custody_bond_grains} grains"
        )
    waiting = claims(state)
    if any((x.custodian, x.position) == (tx.custodian, tx.position) for x in waiting):
        raise TxError("duplicate", "this commitment is in dispute already")
    if any(x.disputer == sender for x in waiting):
        raise TxError("no_slot", "this account has a dispute open already")
    if len(waiting) >= MAX_CUSTODY_DISPUTES:
        raise TxError("no_slot", f"{MAX_CUSTODY_DISPUTES} disputes are open, the limit")
    state.move(sender, CUSTODY_BONDS, tx.bond)
    height, time_ms = _deadline(state, params.custody_open)
    claim = c.CustodyClaim(
        event.members[member].account,
        tx.position,
        sender,
        tx.bond,
        state.head.height,
        height,
        time_ms,
    )
    state.put(c.custody_claim_key(tx.custodian, tx.position), claim)
    _tell(state, event, "disputed", tx.custodian, tx.position, disputer=sender.hex())


def _suspect(event: c.CustodyEvent, custodian: PubKey, position: int) -> int:
    """The member whose commitment at a place can be doubted."""
    if position >= len(event.places):
        raise TxError("unknown_place", f"the event has the places 0 to {len(event.places) - 1}")
    member = member_of(event, custodian)
    if member is None or member not in event.places[position].custodians:
        raise TxError("not_drawn", f"place {position} is not that account's to show")
    status = event.members[member].status
    if status == CustodyStatus.CONVICTED:
        raise TxError("decided", "this custodian has lost in this event already")
    if status != CustodyStatus.COMMITTED:
        raise TxError("not_committed", "this custodian has committed to nothing")
    return member


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an opening decides: whether the custodian's commitment is right, and about which
    dispute, if there is one."""

    event: c.CustodyEvent
    member: int
    right: bool
    claim: c.CustodyClaim | None

    @property
    def subject(self) -> Subject:
        """What it decides, and decides but once."""
        account = self.event.members[self.member].account
        if self.claim is None or not self.right:
            return Subject(self.event.seed, account, None, Height(0))
        return Subject(self.event.seed, account, self.claim.position, self.claim.opened)


@dataclass(frozen=True, slots=True)
class Subject:
    """A conviction of `custodian` (`position` None), or the end of a dispute with it."""

    event: Hash32
    custodian: PubKey
    position: int | None
    opened: Height


def is_undecided(state: State, subject: Subject) -> bool:
    """Whether an opening about it can still decide something."""
    event = current(state)
    if event is None or event.seed != subject.event:
        return False
    member = member_of(event, subject.custodian)
    if member is None or event.members[member].status != CustodyStatus.COMMITTED:
        return False
    if subject.position is None:
        return True
    key = c.custody_claim_key(subject.custodian, subject.position)
    claim = state.get(c.CustodyClaim, key)
    return claim is not None and claim.opened == subject.opened


def judge(state: State, rules: Rules, tx: CustodyOpening) -> Verdict:
    """What an opening decides in this state; TxError if nothing. Changes nothing."""
    event = _in_phase(state, tx.event, CustodyPhase.DISPUTE)
    member = _suspect(event, tx.custodian, tx.position)
    place = event.places[tx.position]
    problem = rules.check_subtile(
        place.tile_root, place.tile_bytes, place.subtile, tx.siblings, tx.subtile
    )
    if problem is not None:
        raise TxError("bad_path", problem)
    claimed = committed(state, event, member, tx.position)
    right = claimed == commitment(tx.custodian, event.seed, tx.position, tx.subtile)
    claim = state.get(c.CustodyClaim, c.custody_claim_key(tx.custodian, tx.position))
    if right and claim is None:
        raise TxError("no_dispute", "the commitment is right, and nobody disputes it")
    return Verdict(event, member, right, claim)


def opening(state: State, params: Params, rules: Rules, sender: PubKey, tx: CustodyOpening) -> None:
    found = judge(state, rules, tx)
    if not found.right:
        finder = found.claim.disputer if found.claim is not None else sender
        _convict(state, params, found.member, tx.position, finder, "wrong")
    elif found.claim is not None:  # always: a right one is opened only against a dispute
        # Not all of it: disputing one's own would cost nothing, and could hold all slots for ever.
        share = found.claim.bond // FINDER_SHARE
        state.move(CUSTODY_BONDS, tx.custodian, share)
        state.move(CUSTODY_BONDS, REWARD_POOL, found.claim.bond - share)
        state.delete(c.custody_claim_key(tx.custodian, tx.position))
        _tell(
            state,
            found.event,
            "shown",
            tx.custodian,
            tx.position,
            disputer=found.claim.disputer.hex(),
            bond=found.claim.bond,
        )


def _convict(
    state: State, params: Params, member: int, position: int, finder: PubKey, why: str
) -> None:
    """Once an event: a part of the stake goes, half of it to the finder; whoever else disputes
    this custodian has its bond back."""
    event = current(state)
    invariant(event is not None, "nobody is convicted without an event")
    if event is None:
        return
    account = event.members[member].account
    lost = ledger.forfeit(state, account, params.custody_slash_permille)
    reward = 0 if finder == account else lost // FINDER_SHARE
    state.put_account(finder, balance=state.account(finder).balance + reward)
    pool = state.account(REWARD_POOL).balance
    state.put_account(REWARD_POOL, balance=pool + lost - reward)
    for claim in claims(state):
        if claim.custodian == account:
            state.move(CUSTODY_BONDS, claim.disputer, claim.bond)
            state.delete(c.custody_claim_key(account, claim.position))
    _mark(state, event, member, CustodyStatus.CONVICTED)
    known = _record(state, account)
    state.put(c.custodian_key(account), replace(known, convicted=known.convicted + 1))
    state.emit("slash", account, lost=lost)
    _tell(state, event, why, account, position, finder=finder.hex(), lost=lost, reward=reward)


# --- transitions --------------------------------------------------------------------------


def advance(state: State, params: Params, rules: Rules) -> None:
    """At the end of a block, before the round moves: at most one phase further."""
    event = current(state)
    if event is None:
        if state.head.height % params.custody_interval_blocks == 0:
            _anchor(state, params)
    elif event.phase == CustodyPhase.SEED:
        if event.model_root != state.model.root:
            _anchor(state, params)  # nobody had the new model when its custodians were fixed
        elif state.head.height >= event.anchor + params.seed_blocks:
            _draw(state, params, rules, event)
    elif event.phase == CustodyPhase.COMMIT:
        if _passed(state, event) or all(m.status == CustodyStatus.COMMITTED for m in event.members):
            _close_commitments(state, params, event)
    else:
        _end_disputes(state, params, event)


def _anchor(state: State, params: Params) -> None:
    """Asked are the custodians of the epoch in which the seed is drawn: its ranks are known, and
    those whose epoch is over by then may have let go of their tiles."""
    head = state.head
    drawn = Epoch((head.height + params.seed_blocks - 1) // params.epoch_blocks)
    event = c.CustodyEvent(
        anchor=head.height,
        epoch=min(drawn, Epoch(head.epoch + 1)),
        model_root=state.model.root,
        phase=CustodyPhase.SEED,
        seed=ZERO_HASH,
        phase_height=head.height,
        deadline_height=Height(0),
        deadline_ms=TimeMs(0),
        places=(),
        members=(),
    )
    state.put(c.CUSTODY, event)


def _draw(state: State, params: Params, rules: Rules, event: c.CustodyEvent) -> None:
    """The seed names subtiles, each with the first ranks of its tile at the anchor."""
    name = b"custody" + u64_be(event.anchor)
    seed = datasets.event_seed(state, params, name, event.anchor)
    epoch = state.epoch(event.epoch)
    numbers: dict[PubKey, int] = {}  # members in order of their first place
    places = []
    for shard, number in _named(state, seed):
        tile, subtile = divmod(number, _SUBTILES)
        custodians = rules.ranks(epoch, shard.index, tile, params.custody_replicas)
        roots = state.need(r.TileRoots, r.tiles_key(shard.index)).roots
        places.append(
            c.CustodyPlace(
                ShardIndex(shard.index),
                TileIndex(tile),
                subtile,
                min(TILE_BYTES, shard.data_bytes - tile * TILE_BYTES),
                shard.root,
                roots[tile],
                tuple(numbers.setdefault(a, len(numbers)) for a in custodians),
            )
        )
    members = tuple(c.CustodyMember(a, CustodyStatus.ASKED) for a in numbers)
    event = replace(event, seed=seed, places=tuple(places), members=members)
    _enter(state, event, CustodyPhase.COMMIT, params.custody_commit)


def _named(state: State, seed: Hash32) -> list[tuple[r.ShardRecord, int]]:
    """Up to 16 different subtiles, each as likely as any other: (shard, number in the shard).

    A Fisher-Yates shuffle of all subtile numbers, of which only the first steps are done.
    """
    last = state.need(r.ShardRecord, r.shard_key(state.model.shards - 1))
    total = last.first_subtile + subtile_count(last.data_bytes)
    count = min(MAX_SUBTILES_PER_CHALLENGE, total)
    moved: dict[int, int] = {}
    found = []
    for i, word in enumerate(Prf(seed, "custody").words(count)):
        j = i + below(word, total - i)
        found.append(_place(state, moved.get(j, j)))
        moved[j] = moved.get(i, i)
    return found


def subtile_count(data_bytes: int) -> int:
    """Subtiles of a shard: a tile is a whole number of them."""
    return -(-data_bytes // SUBTILE_BYTES)


def _place(state: State, number: int) -> tuple[r.ShardRecord, int]:
    """The shard that holds the model's subtile `number`, and its number there."""
    low, high = 0, state.model.shards - 1
    while low < high:
        middle = (low + high + 1) // 2
        if state.need(r.ShardRecord, r.shard_key(middle)).first_subtile <= number:
            low = middle
        else:
            high = middle - 1
    shard = state.need(r.ShardRecord, r.shard_key(low))
    return shard, number - shard.first_subtile


def _close_commitments(state: State, params: Params, event: c.CustodyEvent) -> None:
    """Whoever was silent is noted and loses one of its merit; stake stays."""
    members = []
    for member in event.members:
        known = _record(state, member.account)
        known = replace(known, asked=known.asked + 1)
        if member.status == CustodyStatus.ASKED:
            member = replace(member, status=CustodyStatus.MISSED)
            known = replace(known, missed=known.missed + 1, last_missed=state.head.height)
            merit = state.account(member.account).merit
            state.put_account(member.account, merit=max(0, merit - 1))
        state.put(c.custodian_key(member.account), known)
        members.append(member)
    event = replace(event, members=tuple(members))
    _enter(state, event, CustodyPhase.DISPUTE, params.custody_open)


def _end_disputes(state: State, params: Params, event: c.CustodyEvent) -> None:
    """Whoever cannot show it in time loses; then the event may end, and leaves the state."""
    head = state.head
    for claim in claims(state):
        if head.height >= claim.deadline_height and head.time_ms >= claim.deadline_ms:
            known = state.get(c.CustodyClaim, c.custody_claim_key(claim.custodian, claim.position))
            member = member_of(event, claim.custodian)
            if known is not None and member is not None:  # else an earlier one has convicted it
                _convict(state, params, member, claim.position, claim.disputer, "not_shown")
    ended = current(state)
    if ended is None or claims(state) or not _passed(state, ended):
        return
    for key, _ in list(state.items(c.CUSTODY_ANSWERS)):
        state.delete(key)
    state.delete(c.CUSTODY)
    state.emit("custody", ended.seed, record=encode(ended).hex())


# --- parts ----------------------------------------------------------------------------------


def _enter(state: State, event: c.CustodyEvent, phase: CustodyPhase, window: Window) -> None:
    height, time_ms = _deadline(state, window)
    event = replace(
        event,
        phase=phase,
        phase_height=state.head.height,
        deadline_height=height,
        deadline_ms=time_ms,
    )
    state.put(c.CUSTODY, event)


def _deadline(state: State, window: Window) -> tuple[Height, TimeMs]:
    head = state.head
    return Height(head.height + window.blocks), TimeMs(head.time_ms + window.ms)


def _passed(state: State, event: c.CustodyEvent) -> bool:
    head = state.head
    return head.height >= event.deadline_height and head.time_ms >= event.deadline_ms


def _mark(state: State, event: c.CustodyEvent, member: int, status: CustodyStatus) -> None:
    members = list(event.members)
    members[member] = replace(members[member], status=status)
    state.put(c.CUSTODY, replace(event, members=tuple(members)))


def _record(state: State, account: PubKey) -> c.CustodianRecord:
    found = state.get(c.CustodianRecord, c.custodian_key(account))
    return found or c.CustodianRecord(account, 0, 0, 0, Height(0))


def _tell(
    state: State, event: c.CustodyEvent, what: str, custodian: PubKey, position: int, **more: object
) -> None:
    """A row of history; not part of consensus."""
    state.emit(
        "custody_dispute",
        event.seed,
        what=what,
        custodian=custodian.hex(),
        position=position,
        **more,
    )
