"""What a node takes for true of what others show it, and what it says against them."""

from __future__ import annotations

from chain.certificates import verify_certificate, verify_seal, verify_vote, votes_of
from chain.errors import VerifyError
from chain.types import Certificate, Epoch, Proposal, ProposalSeal, Vote, VoteKind
from consensus.evidence import certificates_conflict, conflicting_certificates, double_proposal
from consensus.simplex.ballots import contradict
from consensus.simplex.messages import Effect, Evidence
from consensus.simplex.rules import Rule
from consensus.simplex.sign_state import LAST_VIEW
from consensus.simplex.supply import Supply

KINDS = frozenset(VoteKind)
PROOFS = frozenset({VoteKind.NOTARIZE, VoteKind.FINALIZE})  # of a parent (`Ballots.proof_of`)


class Witness(Supply):
    """Nothing counts, and nothing is done about it, before its signatures have been verified.

    What is wrong is a VerifyError, which charges its sender. What two signatures of one validator
    prove is evidence; what two certificates prove stops the node.
    """

    def _check_vote(self, vote: Vote) -> None:
        verify_vote(self._config.chain_id, self._context.validators, vote)
        self._adopt(vote)

    def _check_seal(self, seal: ProposalSeal) -> None:
        """A seal for a proposal, by its view's leader."""
        verify_seal(self._config.chain_id, self._context.validators, seal)
        if seal.signer != self.leader(seal.view):
            raise VerifyError(f"a proposal for view {seal.view} by another than its leader")
        self._adopt(seal)

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

    def _is_news(self, certificate: Certificate) -> bool:
        """Whether a certificate of this epoch says something new; then it is verified, and the
        votes in it count. Below the last final view nothing is news, and at it only a
        contradiction is."""
        if certificate.kind not in KINDS:
            raise VerifyError(f"certificate of unknown kind {certificate.kind}")
        floor, final = self._chamber.floor, self._chamber.floor_proof
        if certificate.view <= floor and (
            certificate.view < floor or final is None or not contradict(final, certificate)
        ):
            return False
        held = self._ballots.certificate(VoteKind(certificate.kind), certificate.view)
        if held is not None and held.block_hash == certificate.block_hash:
            return False
        verify_certificate(self._config.chain_id, self._context.validators, certificate)
        self._unpack(certificate)
        return True

    def _stands(self, certificate: Certificate) -> bool:
        """Whether nothing verified contradicts a certificate. Otherwise the node halts: more than
        W/3 lie, and the evidence against them has been given out."""
        held = self._ballots.against(certificate)
        final = self._chamber.floor_proof
        if held is None and final is not None and final.view == certificate.view:
            held = final if contradict(final, certificate) else None
        if held is not None:
            if certificates_conflict(held, certificate):
                self._out.effect(Evidence(conflicting_certificates(held, certificate)))
            kinds = " and ".join(VoteKind(c.kind).name.lower() for c in (held, certificate))
            self._halt(f"two certificates of view {held.view} contradict: {kinds}")
        return held is None

    def _unpack(self, certificate: Certificate) -> None:
        """The votes of a verified certificate are votes: who splits them between peers is caught by
        whoever sees both, one of them in a certificate."""
        for vote in votes_of(self._context.validators, certificate):
            self._adopt(vote)
            self._heed(vote)

    def _heed(self, vote: Vote) -> None:
        """Count a verified vote, and accuse its signer if it contradicts an earlier one."""
        self._attendance.heard([vote.signer])
        evidence = self._ballots.add(vote)
        if evidence is not None:
            self._did(Rule.EV_VOTES)
            self._out.effect(Evidence(evidence))

    def _heed_seal(self, seal: ProposalSeal) -> bool:
        """Whether this is the first seal that was seen of its view; a second one is evidence."""
        earlier = self._seals.setdefault(seal.view, seal)
        if earlier.block_hash == seal.block_hash:
            return True
        self._equivocated.add(seal.view)  # R4: no finalize in this view
        self._did(Rule.EV_PROPOSALS)
        self._out.effect(Evidence(double_proposal(earlier, seal)))
        return False

    def _adopt(self, record: Vote | ProposalSeal) -> None:
        """What our own key has signed elsewhere, or before a log was lost, binds us as well."""
        if self._signs.adopt(record):
            self._did(Rule.SG_ADOPT)
            self._out.record(record)

    def silence(self, epoch: Epoch) -> list[Effect]:
        """Sign nothing more in `epoch` or before. The driver knows of a reason why the log may have
        forgotten what was signed there; it says so before the epoch begins here."""
        self._signs.prune(epoch, LAST_VIEW)
        self._out.record(self._signs.floor)
        return self._out.flush()
