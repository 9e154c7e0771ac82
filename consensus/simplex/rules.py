"""The branches of the protocol's rules by name (`core.Simplex`): each reports itself when it is
taken (`Config.on_rule`), so that a simulator can show which it has reached."""

from __future__ import annotations

from enum import Enum

from chain.types import VoteKind


class Rule(Enum):
    """The value says when: the rule, then the branch."""

    R1_TIMERS = "R1 a view is entered: both timers start"
    R1_HURRY = "R1 a proposal is here: 2Δ to advance"
    R2_PROPOSE = "R2 the leader extends a parent"
    R2_LACK = "R2 the leader asks for certificates it lacks"
    R3_NOTARIZE = "R3 notarize"
    R3_ONCE = "R3 no second notarize in a view"
    R3_LACK = "R3 a proposal waits for what it rests on"
    R3_UNFOUNDED = "R3 a proposal can never be valid"
    R3_INVALID = "R3 a proposal does not execute to its roots"
    R3_UNTIMELY = "R3 no vote: the block's time is ahead of the clock"
    R4_NOTARIZED = "R4 a notarization"
    R4_FINALIZE = "R4 finalize"
    R4_EQUIVOCATED = "R4 no finalize: the leader has equivocated"
    R5_NULLIFY = "R5 nullify"
    R5_NO_PROPOSAL = "R5 nullify at 2Δ"
    R5_OVERDUE = "R5 nullify at 3Δ"
    R5_LEADER = "R5 nullify with the leader"
    R5_REJECTED = "R5 nullify a view whose proposal is not valid"
    R5_FINALIZED = "R5 no nullify after finalize"
    R5_NULLIFIED = "R5 no finalize after nullify"
    R6_NULLIFIED = "R6 a nullification"
    R7_FINALIZED = "R7 a finalization"
    R7_FORWARD = "R7 the leader forwards a finalization"
    R7_FINAL = "R7 blocks are final"
    R8_JUMP = "R8 a certificate of a later view"
    R8_FETCH = "R8 a missing block is asked for"
    R8_SYNC = "R8 too many are missing: sync"
    RT_AGAIN = "RT what is not final is sent again"
    RT_BLOCK = "RT a block is given to who asks"
    RT_CERTIFICATES = "RT certificates are given to who asks"
    EP_AGAIN = "EP the epoch's last block is proposed again"
    EP_BEGIN = "EP an epoch begins"
    EP_ANSWER = "EP an old vote is answered with the finalization that ended its epoch"
    EP_EARLY = "EP a message of the next epoch is kept"
    DL_DOUBLE = "DL Δ doubles"
    DL_HALVE = "DL Δ halves"
    SK_SKIP = "SK a silent leader is skipped"
    MX_EMPTY = "MX an empty block behind 16 with transactions"
    SG_REPLAY = "SG own votes come back from the log"
    SG_ADOPT = "SG a signature of one's own key is adopted"
    SG_FLOOR = "SG nothing is signed at or below the floor"
    EV_VOTES = "EV two votes convict"
    EV_PROPOSALS = "EV two proposals convict"


SIGNED = {
    VoteKind.NOTARIZE: Rule.R3_NOTARIZE,
    VoteKind.NULLIFY: Rule.R5_NULLIFY,
    VoteKind.FINALIZE: Rule.R4_FINALIZE,
}
REFUSED = {
    VoteKind.NOTARIZE: Rule.R3_ONCE,
    VoteKind.NULLIFY: Rule.R5_FINALIZED,
    VoteKind.FINALIZE: Rule.R5_NULLIFIED,
}
CERTIFIED = {
    VoteKind.NOTARIZE: Rule.R4_NOTARIZED,
    VoteKind.NULLIFY: Rule.R6_NULLIFIED,
    VoteKind.FINALIZE: Rule.R7_FINALIZED,
}


def unobserved(rule: Rule) -> None:
    """Nobody counts."""
