"""What a custodian owes an event of custody, as a function of the state and of what this node has
found (docs/spec/custody.md, "Duties")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chain import custody
from chain import custody_records as c
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.hashes import Hash32
from chain.state import State
from chain.types import PubKey

TURN_BLOCKS = 2  # an opening is large: the next custodian posts it only if the one before did not

Suspect = tuple[PubKey, int]  # a custodian and the position at which its commitment is wrong
# What this node found wrong in an event, or None if it has not looked yet.
Checked = Callable[[Hash32], tuple[Suspect, ...] | None]


def unchecked(event: Hash32) -> tuple[Suspect, ...] | None:
    return None


class CustodyChecks:
    """What was found in the newest event. A restart looks again: it costs milliseconds."""

    def __init__(self) -> None:
        self._event, self._wrong = b"", tuple[Suspect, ...]()

    def note(self, event: Hash32, wrong: tuple[Suspect, ...]) -> None:
        self._event, self._wrong = event, wrong

    def found(self, event: Hash32) -> tuple[Suspect, ...] | None:
        return self._wrong if event == self._event else None


@dataclass(frozen=True, slots=True)
class CommitCustody:
    """Commit to the subtiles that an event asks of this account."""

    event: Hash32


@dataclass(frozen=True, slots=True)
class CheckCustody:
    """Recompute what the other custodians of these subtiles committed to."""

    event: Hash32


@dataclass(frozen=True, slots=True)
class OpenCustody:
    """Show a subtile: against a wrong commitment, or in answer to a dispute."""

    event: Hash32
    custodian: PubKey
    position: int


CustodyDuty = CommitCustody | CheckCustody | OpenCustody


def owed(state: State, account: PubKey, checked: Checked) -> Iterator[CustodyDuty]:
    event = custody.current(state)
    me = custody.member_of(event, account) if event is not None else None
    if event is None or me is None:
        return
    if event.phase == CustodyPhase.COMMIT and event.members[me].status == CustodyStatus.ASKED:
        yield CommitCustody(event.seed)
    elif event.phase == CustodyPhase.DISPUTE:
        yield from _disputes(state, event, me, checked(event.seed))


def _disputes(
    state: State, event: c.CustodyEvent, me: int, wrong: tuple[Suspect, ...] | None
) -> Iterator[CustodyDuty]:
    own = event.members[me].account
    waiting = custody.claims(state)
    for claim in waiting:  # first of all: our stake waits for it
        if claim.custodian == own:
            yield OpenCustody(event.seed, own, claim.position)
    if wrong is None:
        yield CheckCustody(event.seed)
    openings: dict[PubKey, OpenCustody] = {}
    for custodian, position in wrong or ():
        member = custody.member_of(event, custodian)
        if member is None or event.members[member].status != CustodyStatus.COMMITTED:
            continue  # convicted meanwhile
        if state.head.height >= event.phase_height + _turn(event, me, member, position):
            openings.setdefault(custodian, OpenCustody(event.seed, custodian, position))
    yield from openings.values()
    for claim in waiting:
        opening = OpenCustody(event.seed, claim.custodian, claim.position)
        if claim.custodian == own or opening in openings.values():
            continue
        patience = (claim.deadline_height - claim.opened) // 2
        ours = me in event.places[claim.position].custodians
        # Nobody should lose because it was down for a moment: the others answer for it then.
        if ours and state.head.height >= claim.opened + patience:
            yield opening


def _turn(event: c.CustodyEvent, me: int, liar: int, position: int) -> int:
    """Blocks after which it is this member's turn to open a wrong commitment."""
    order = [i for i in event.places[position].custodians if i != liar].index(me)
    half = (event.deadline_height - event.phase_height) // 2
    return min(order * TURN_BLOCKS, half)
