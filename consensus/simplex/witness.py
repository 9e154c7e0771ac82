"""What a node takes for true of what others show it."""

from __future__ import annotations

from chain.errors import VerifyError
from chain.types import Proposal, VoteKind
from consensus.simplex.supply import Supply

PROOFS = frozenset({VoteKind.NOTARIZE, VoteKind.FINALIZE})  # of a parent (`Ballots.proof_of`)


class Witness(Supply):
    """Nothing counts, and nothing is done about it, before its signatures have been verified."""

    def _check_shown(self, proposal: Proposal) -> None:
        """R3: what a proposal shows is of this epoch and of the right kind; VerifyError otherwise.

        An epoch's first proposals stand on its view 0 and show no proof at all, so no honest leader
        shows a certificate of another epoch: nothing here could verify one.
        """
        proof = proposal.parent_notarization
        shown = proposal.nullifications if proof is None else (proof, *proposal.nullifications)
        for certificate in shown:
            if certificate.epoch != self.epoch:
                raise VerifyError(f"a proposal shows a certificate of epoch {certificate.epoch}")
        if proof is not None and proof.kind not in PROOFS:
            raise VerifyError(f"a proposal shows kind {proof.kind} as its parent's notarization")
        for certificate in proposal.nullifications:
            if certificate.kind != VoteKind.NULLIFY:
                raise VerifyError(f"a proposal shows kind {certificate.kind} as a nullification")
