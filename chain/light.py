"""The light client: headers that nobody has to be believed for (docs/spec/light-client.md).

From one header that is trusted it reaches any later one by certificates alone: within the epoch
and the next directly, since a header names both validator sets; further ahead if more than a third
of the trusted set's stake has signed there as well, which an honest member must be among while the
trusted header is young enough. Pure: the caller fetches what `Walk.wanted` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from chain.certificates import verify_certificate
from chain.codec import Seq, encode, wire
from chain.errors import VerifyError, invariant
from chain.limits import MAX_LIGHT_HEADERS
from chain.types import (
    Certificate,
    ChainId,
    ConflictingCertificates,
    Header,
    Height,
    ValidatorSet,
    VoteKind,
)


class TooFar(VerifyError):
    """Too little of the trusted set's stake has signed: a header between is needed."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """A header that is believed, and the set of its epoch, which has its `validators_hash`."""

    header: Header
    validators: ValidatorSet

    def __post_init__(self) -> None:
        if self.validators.hash() != self.header.validators_hash:
            raise VerifyError("the validator set shown is not the trusted header's")


@wire(18)
@dataclass(frozen=True, slots=True)
class LightBlock:
    """What shows that a header is final: the headers from it to one that has a finalization, each
    the parent of the next; and the set of their epoch."""

    headers: Annotated[tuple[Header, ...], Seq(MAX_LIGHT_HEADERS)]
    finalization: Certificate
    validators: ValidatorSet

    @property
    def header(self) -> Header:
        return self.headers[0]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a light client is run with. `trust_ms`: how long a header may be trusted, below the
    evidence age and so below unbonding: who signs two histories in it can still be slashed."""

    chain_id: ChainId
    trust_ms: int
    drift_ms: int  # how far a header's time may be ahead of the own clock


def check_form(terms: Terms, block: LightBlock) -> None:
    """What a light block says by itself, its certificate included. VerifyError if it does not
    hold together. Whether its set is the right one is not asked here."""
    headers = block.headers
    if not 0 < len(headers) <= MAX_LIGHT_HEADERS:
        raise VerifyError(f"{len(headers)} headers where 1 to {MAX_LIGHT_HEADERS} are allowed")
    for header in headers:
        if header.chain_id != terms.chain_id or header.version != 1:
            raise VerifyError(f"header {header.height} is of another chain or version")
    for parent, child in pairwise(headers):
        if child.parent != parent.hash() or child.height != parent.height + 1:
            raise VerifyError(f"header {child.height} does not follow the one before")
        if child.time_ms <= parent.time_ms or child.epoch != parent.epoch:
            raise VerifyError(f"header {child.height} is of an earlier time or another epoch")
    last, certificate = headers[-1], block.finalization
    if certificate.kind != VoteKind.FINALIZE or certificate.block_hash != last.hash():
        raise VerifyError(f"the certificate does not finalize header {last.height}")
    if certificate.epoch != last.epoch:
        raise VerifyError(f"the certificate is of epoch {certificate.epoch}, not {last.epoch}")
    shown = block.validators.hash()
    if any(header.validators_hash != shown for header in headers):
        raise VerifyError(f"the validator set shown is not that of header {last.height}")
    verify_certificate(terms.chain_id, block.validators, certificate)


def check_step(terms: Terms, trusted: Trusted, block: LightBlock, now_ms: int) -> Trusted:
    """Go from a trusted header to a later one. VerifyError if that does not hold; TooFar if it may
    but cannot be told from here."""
    _check_order(terms, trusted, block, now_ms)
    check_form(terms, block)
    return _believe(trusted, block)


def _check_order(terms: Terms, trusted: Trusted, block: LightBlock, now_ms: int) -> None:
    """Times, heights, and the set of an epoch that the trusted header names."""
    if not block.headers:
        raise VerifyError("a light block without headers")
    old, new = trusted.header, block.header
    if now_ms >= old.time_ms + terms.trust_ms:
        raise VerifyError(
            f"header {old.height} is older than the trust period of {terms.trust_ms} ms: start "
            "from a newer one that you know to be right (--trust HEIGHT:HASH)"
        )
    if new.height <= old.height or new.time_ms <= old.time_ms:
        raise VerifyError(f"header {new.height} is not after the trusted {old.height}")
    if new.time_ms > now_ms + terms.drift_ms:
        raise VerifyError(f"header {new.height} is from the future; is this clock right?")
    if new.epoch < old.epoch:
        raise VerifyError(f"header {new.height} is of an earlier epoch than header {old.height}")
    if new.epoch > old.epoch + 1:
        return
    named = old.validators_hash if new.epoch == old.epoch else old.next_validators_hash
    if new.validators_hash != named:
        raise VerifyError(f"header {new.height} names another validator set than {old.height}")


def _believe(trusted: Trusted, block: LightBlock) -> Trusted:
    """The header of a block whose order and form hold."""
    old, new = trusted.header, block.header
    if new.epoch > old.epoch + 1 and 3 * _common(trusted.validators, block) <= (
        trusted.validators.total
    ):
        raise TooFar(f"at most a third of the stake at {old.height} has signed {new.height}")
    return Trusted(new, block.validators)


def _common(validators: ValidatorSet, block: LightBlock) -> int:
    """The stake in `validators` of those whose keys have signed a block."""
    members = block.validators.members
    keys = {members[index].consensus_key for index in block.finalization.indices()}
    return sum(v.stake for v in validators.members if v.consensus_key in keys)


class Walk:
    """The way from a trusted header to a height: straight there if it can be, else by halves."""

    def __init__(self, terms: Terms, trusted: Trusted, target: Height) -> None:
        self._terms, self.trusted = terms, trusted
        self._kept: list[LightBlock] = []  # whose form holds, but that are too far; nearest last
        self._next = target if target > trusted.header.height else None
        self.block: LightBlock | None = None  # the one of the trusted header, once it is a new one
        self.steps = 0  # headers that became trusted
        if target < trusted.header.height:
            raise VerifyError(f"height {target} is below the trusted {trusted.header.height}")

    @property
    def wanted(self) -> Height | None:
        """The height of the light block to `give` next; None once the target is trusted."""
        return self._next

    def give(self, block: LightBlock, now_ms: int) -> None:
        """Take the block of height `wanted`. VerifyError: whoever sent it lies, or it is too late;
        nothing has changed, and another peer may be asked. What was too far and turns out to be
        wrong from nearer by is asked for again."""
        if not block.headers or block.header.height != self._next:
            raise VerifyError(f"not a header of height {self._next}")
        _check_order(self._terms, self.trusted, block, now_ms)
        check_form(self._terms, block)
        self._kept.append(block)
        while self._kept:
            block = self._kept[-1]
            try:
                _check_order(self._terms, self.trusted, block, now_ms)
                self.trusted = _believe(self.trusted, block)
            except TooFar:
                self._next = Height((self.trusted.header.height + block.header.height) // 2)
                return
            except VerifyError:
                self._next = self._kept.pop().header.height
                return
            self.block, self.steps = self._kept.pop(), self.steps + 1
        self._next = None


def compare(own: Walk, witness: Walk) -> None:
    """Compare where two walks from one trusted header have come, the second by what a witness
    showed: only what was verified counts, so a witness cannot raise a false alarm. Raises Attack if
    both are final and differ."""
    first, second = own.block, witness.block
    invariant(own.wanted is None and witness.wanted is None, "both walks have ended")
    if first is None or second is None or first.header.hash() == second.header.hash():
        return
    invariant(first.header.height == second.header.height, "both walks have one target")
    raise Attack(first, second)


class Attack(VerifyError):
    """Two final headers of one height: over a third of a validator set has signed two histories."""

    def __init__(self, first: LightBlock, second: LightBlock, hint: str = "ask people") -> None:
        height = first.header.height
        super().__init__(
            f"two final blocks of height {height}: {first.header.hash().hex()} and "
            f"{second.header.hash().hex()}. Believe neither; {hint}"
        )
        self.blocks = (first, second)

    def evidence(self) -> ConflictingCertificates | None:
        """What the chain slashes for it: if both were certified in one view of one epoch and set.
        (Finality of different views is no pair of votes that one key may not give.)"""
        first, second = self.blocks
        a, b = first.finalization, second.finalization
        if (a.epoch, a.view) != (b.epoch, b.view) or first.validators != second.validators:
            return None
        a, b = sorted((a, b), key=encode)
        return ConflictingCertificates(a, b)
