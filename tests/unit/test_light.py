"""The light client: what it believes from one trusted header on, and what nobody can show it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from chain.certificates import assemble
from chain.errors import InvariantError, VerifyError
from chain.hashes import BLOCK, EVIDENCE, ZERO_HASH, Hash32
from chain.light import (
    Attack,
    LightBlock,
    Terms,
    TooFar,
    Trusted,
    Walk,
    check_form,
    check_step,
    compare,
)
from chain.limits import MAX_LIGHT_HEADERS
from chain.types import (
    Certificate,
    ChainId,
    Epoch,
    Header,
    Height,
    Stake,
    TimeMs,
    Validator,
    ValidatorSet,
    View,
    VoteKind,
    tx_root,
)
from consensus.evidence import check_evidence
from tests.kit.local_chain import key
from wallet.keys import KeyPair
from wallet.signing import sign_vote

CHAIN = ChainId(BLOCK.hash(b"light"))
EPOCH_BLOCKS, STEP_MS, START_MS = 10, 1000, 1_790_000_000_000
TERMS = Terms(CHAIN, trust_ms=10_000_000, drift_ms=2000)


@dataclass
class Net:
    """A chain whose set changes by `leave` of four members at each epoch."""

    leave: int = 1
    salt: bytes = b""

    def keys(self, epoch: int) -> list[KeyPair]:
        return sorted(
            (key(f"light {i}") for i in range(self.leave * epoch, self.leave * epoch + 4)),
            key=lambda pair: pair.public,
        )

    def members(self, epoch: int) -> ValidatorSet:
        return ValidatorSet(
            tuple(
                Validator(pair.public, pair.public, pair.public, f"n{i}", Stake(10))
                for i, pair in enumerate(self.keys(epoch))
            )
        )

    def headers(self, last: int) -> list[Header]:
        """Of heights 0 to `last`."""
        found: list[Header] = []
        for height in range(last + 1):
            epoch = max(height - 1, 0) // EPOCH_BLOCKS
            header = Header(
                1,
                CHAIN,
                Epoch(epoch),
                View(height),
                Height(height),
                found[-1].hash() if found else Hash32(ZERO_HASH),
                TimeMs(START_MS + height * STEP_MS),
                self.keys(epoch)[0].public,
                tx_root((self.salt,) if height else ()),
                Hash32(ZERO_HASH),
                self.members(epoch).hash(),
                self.members(epoch + 1).hash(),
                b"",
                b"",
                EVIDENCE.hash(),
            )
            found.append(header)
        return found

    def finalization(self, header: Header, signers: int = 3, view: int = 0) -> Certificate:
        keys = self.keys(header.epoch)[:signers]
        votes = [
            sign_vote(
                pair,
                chain_id=CHAIN,
                kind=VoteKind.FINALIZE,
                epoch=header.epoch,
                view=View(view or header.view),
                block_hash=header.hash(),
            )
            for pair in keys
        ]
        return assemble(self.members(header.epoch), votes)

    def block(self, height: int, descent: int = 1) -> LightBlock:
        headers = tuple(self.headers(height + descent - 1)[height:])
        last = headers[-1]
        return LightBlock(headers, self.finalization(last), self.members(last.epoch))

    def trusted(self, height: int) -> Trusted:
        header = self.headers(height)[height]
        return Trusted(header, self.members(header.epoch))


NET = Net()
NOW = START_MS + 500 * STEP_MS


def walk(net: Net, target: int, now_ms: int = NOW) -> Walk:
    found = Walk(TERMS, net.trusted(0), Height(target))
    while found.wanted is not None:
        found.give(net.block(found.wanted), now_ms)
    return found


# --- steps --------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1, 10, 11, 20])
def test_the_epoch_and_the_next_are_reached_at_once(height: int) -> None:
    step = check_step(TERMS, NET.trusted(0), NET.block(height), NOW)
    assert step.header == NET.headers(height)[height]


def test_a_third_of_the_old_set_is_not_enough_to_skip() -> None:
    """Of the trusted four two are left in epoch 2 and one in epoch 3; everyone signs."""

    def signed_by_all(height: int) -> LightBlock:
        header = NET.headers(height)[height]
        return replace(NET.block(height), finalization=NET.finalization(header, signers=4))

    assert check_step(TERMS, NET.trusted(0), signed_by_all(21), NOW).header.epoch == 2
    with pytest.raises(TooFar):
        check_step(TERMS, NET.trusted(0), signed_by_all(31), NOW)


def test_what_cannot_be_skipped_is_walked_by_halves() -> None:
    found = walk(NET, 150)
    assert found.trusted.header == NET.headers(150)[150]
    assert 7 <= found.steps <= 15  # an epoch or two at a time
    assert walk(Net(leave=0), 150).steps == 1  # a set that stays is skipped to
    assert walk(Net(leave=4), 60).steps == 5  # one of which nobody stays, an epoch at a time


def test_a_header_below_one_that_is_certified() -> None:
    block = NET.block(5, descent=4)
    assert check_step(TERMS, NET.trusted(0), block, NOW).header.height == 5
    with pytest.raises(VerifyError, match="headers where"):
        check_form(TERMS, replace(block, headers=()))
    with pytest.raises(VerifyError, match="does not follow"):
        check_form(TERMS, replace(block, headers=(block.headers[0], *block.headers[2:])))
    long = Net(leave=0)
    many = LightBlock(
        (long.headers(1)[1],) * (MAX_LIGHT_HEADERS + 1), block.finalization, long.members(0)
    )
    with pytest.raises(VerifyError, match="headers where"):
        check_form(TERMS, many)


# --- lies ----------------------------------------------------------------------------


def test_the_trust_period_ends() -> None:
    until = START_MS + TERMS.trust_ms
    assert check_step(TERMS, NET.trusted(0), NET.block(1), until - 1)
    with pytest.raises(VerifyError, match="trust period"):
        check_step(TERMS, NET.trusted(0), NET.block(1), until)


def test_headers_from_the_future_and_the_past() -> None:
    with pytest.raises(VerifyError, match="future"):
        check_step(TERMS, NET.trusted(0), NET.block(9), START_MS + 6 * STEP_MS)
    with pytest.raises(VerifyError, match="not after"):
        check_step(TERMS, NET.trusted(9), NET.block(9), NOW)
    with pytest.raises(VerifyError, match="below"):
        Walk(TERMS, NET.trusted(9), Height(8))
    assert Walk(TERMS, NET.trusted(9), Height(9)).wanted is None


def test_a_set_of_the_liars_own() -> None:
    """It signs what it likes; but the trusted header names the sets of two epochs, and of a later
    one more than a third of the trusted set must have signed."""
    liars = Net(salt=b"lie")
    liars.keys = lambda epoch: [key(f"liar {i}") for i in range(4)]  # type: ignore[method-assign]
    for height in (5, 15):
        with pytest.raises(VerifyError, match="another validator set"):
            check_step(TERMS, NET.trusted(0), liars.block(height), NOW)
    found = Walk(TERMS, NET.trusted(0), Height(150))

    def believe() -> None:
        while found.wanted is not None:
            found.give(liars.block(found.wanted), NOW)

    with pytest.raises(VerifyError, match="another validator set"):
        believe()
    assert found.trusted == NET.trusted(0)
    while found.wanted is not None:  # and an honest peer goes on from there
        found.give(NET.block(found.wanted), NOW)
    assert found.trusted.header.height == 150


def test_a_set_that_is_not_the_header_s() -> None:
    with pytest.raises(VerifyError, match="not the trusted"):
        Trusted(NET.headers(0)[0], NET.members(1))
    block = replace(NET.block(5), validators=NET.members(1))
    with pytest.raises(VerifyError, match="set shown"):
        check_form(TERMS, block)


def test_certificates_that_do_not_finalize_the_header() -> None:
    block, header = NET.block(5), NET.headers(5)[5]
    votes = [
        sign_vote(
            pair,
            chain_id=CHAIN,
            kind=VoteKind.NOTARIZE,
            epoch=header.epoch,
            view=header.view,
            block_hash=header.hash(),
        )
        for pair in NET.keys(0)[:3]
    ]
    notarized = assemble(NET.members(0), votes)
    for certificate in (notarized, NET.block(6).finalization):
        with pytest.raises(VerifyError, match="does not finalize"):
            check_form(TERMS, replace(block, finalization=certificate))
    with pytest.raises(VerifyError, match="quorum"):
        check_form(TERMS, replace(block, finalization=NET.finalization(header, signers=2)))
    other = replace(block.finalization, epoch=Epoch(1))
    with pytest.raises(VerifyError, match="of epoch 1"):
        check_form(TERMS, replace(block, finalization=other))
    with pytest.raises(VerifyError, match="another chain"):
        check_form(replace(TERMS, chain_id=ChainId(bytes(32))), block)


def test_a_block_of_another_height_is_not_taken() -> None:
    found = Walk(TERMS, NET.trusted(0), Height(5))
    with pytest.raises(VerifyError, match="of height 5"):
        found.give(NET.block(6), NOW)
    assert found.wanted == 5


# --- witnesses ----------------------------------------------------------------------------


def reached(block: LightBlock) -> Walk:
    """A walk that ended with a block."""
    found = Walk(TERMS, NET.trusted(0), block.header.height)
    found.give(block, NOW)
    return found


def test_a_witness_that_agrees() -> None:
    own = reached(NET.block(5))
    compare(own, reached(NET.block(5)))
    compare(own, reached(NET.block(5, descent=3)))  # final by another certificate
    start = Walk(TERMS, NET.trusted(0), Height(0))
    compare(start, start)  # nothing was asked of anyone


def test_a_walk_that_has_not_ended_is_not_compared() -> None:
    with pytest.raises(InvariantError):
        compare(reached(NET.block(5)), Walk(TERMS, NET.trusted(0), Height(5)))


def test_two_histories_are_an_attack_and_evidence_if_of_one_view() -> None:
    fork, own = Net(salt=b"fork"), reached(NET.block(5))
    with pytest.raises(Attack, match="two final blocks of height 5") as caught:
        compare(own, reached(fork.block(5)))
    item = caught.value.evidence()
    assert item is not None
    check_evidence(CHAIN, NET.members(0), item)  # the chain slashes who signed both
    header = fork.headers(5)[5]
    later = LightBlock((header,), fork.finalization(header, view=9), fork.members(0))
    with pytest.raises(Attack) as caught:
        compare(own, reached(later))
    assert caught.value.evidence() is None
