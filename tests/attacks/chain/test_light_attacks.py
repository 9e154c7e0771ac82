"""A light client among liars: what an API answers is refused with the reason, or harmless."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chain import records as r
from chain.address import format_address
from chain.codec import decode, encode
from chain.hashes import Hash32
from chain.light import LightBlock
from chain.light_proofs import HeaderRange
from chain.records import Account
from chain.state import State
from chain.tree import StateProof
from chain.types import (
    Certificate,
    Grains,
    Header,
    Signature,
    VoteKind,
)
from node.light import source
from tests.kit.liar import Answer, Lie
from tests.kit.lies import TIP, TO, WHO, Run, certified, checkpoint, only, own_set, with_field
from tests.kit.local_chain import START_MS, STEP_MS, LocalChain
from tests.kit.site import Site
from wallet.keys import KeyPair

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def test_the_truth_is_believed(honest: Site, blyan: Run, lying: Callable[[Lie], str]) -> None:
    code, text = blyan(lying(lambda path, body: body), *WHO)
    assert code == 0
    assert f"account {format_address(TO)} at block {TIP}" in text


# --- answers that are no answers -----------------------------------------------------------


NESTED = b"[" * 200_000 + b"]" * 200_000
BROKEN: list[tuple[str, Lie, int, str]] = [
    ("huge", only("light/", lambda b: bytes(source.MAX_LIGHT_BLOCK_BYTES + 1)), 65, "more than"),
    ("endless", only("light/", lambda b: Answer(bytes(65536), endless=True)), 65, "more than"),
    ("endless JSON", only("state/", lambda b: Answer(b" " * 9999, endless=True)), 65, "more than"),
    ("endless genesis", only("gen", lambda b: Answer(b" " * 9999, endless=True)), 65, "more than"),
    ("truncated", only("light/", lambda b: Answer(b[:50], length=len(b))), 3, "no answer"),
    ("cut", only("light/", lambda b: b[:-1]), 65, "no LightBlock"),
    ("one byte more", only("light/", lambda b: b + b"\0"), 65, "no LightBlock"),
    ("empty", only("light/", lambda b: b""), 65, "no LightBlock"),
    ("slow", only("light/", lambda b: Answer(b, drip=True)), 5, "did not answer within"),
    ("bomb", only("state/", lambda b: gzipped(bytes(1 << 24))), 65, "compressed"),
    ("no JSON", only("state/", lambda b: b"<html>"), 65, "JSON object was expected"),
    ("no object", only("state/", lambda b: b"[1]"), 65, "JSON object was expected"),
    ("nested", only("state/", lambda b: NESTED), 65, "JSON object was expected"),
    ("no fields", only("state/", lambda b: b"{}"), 65, "no hex 'proof'"),
    ("a number", only("state/", lambda b: with_field(b, "value", 5)), 65, "no hex 'value'"),
    ("no hex", only("state/", lambda b: with_field(b, "header", "zz")), 65, "no hex 'header'"),
    ("no header", only("state/", lambda b: with_field(b, "header", "00")), 65, "no Header"),
    ("redirected", only("light/", lambda b: Answer(b, 302, {"Location": "/"})), 3, "302"),
    ("broken", only("light/", lambda b: Answer(b"{}", 500)), 3, "500"),
    ("denied", only("light/", lambda b: Answer(b"\xff", 404)), 2, "says"),
]


def gzipped(data: bytes) -> Answer:
    return Answer(gzip.compress(gzip.compress(data)), headers={"Content-Encoding": "gzip, gzip"})


@pytest.mark.parametrize(
    ("lie", "code", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_answers_that_are_none(
    honest: Site,
    blyan: Run,
    lying: Callable[[Lie], str],
    monkeypatch: pytest.MonkeyPatch,
    lie: Lie,
    code: int,
    text: str,
) -> None:
    monkeypatch.setattr(source, "ANSWER_S", 0.3 if code == 5 else 20.0)
    found, said = blyan(lying(lie), *WHO, trust=checkpoint(honest, 3))
    assert (found, text in said) == (code, True), said
    assert "Traceback" not in said


def test_a_node_s_words_do_not_reach_the_terminal_raw(
    blyan: Run, lying: Callable[[Lie], str]
) -> None:
    words = "\x1b[2J\x1b[31mall is well\x07" + "x" * 5000
    body = json.dumps({"error": {"code": "not_found", "message": words}}).encode()
    code, said = blyan(lying(only("state/", lambda b: Answer(body, 404))), *WHO)
    assert code == 2
    assert "\x1b[2J" not in said
    assert "\x07" not in said
    assert len(said) < 1000


# --- wrong state -------------------------------------------------------------------------


def richer(body: bytes) -> bytes:
    answer = json.loads(body)
    account: Account = decode(Account, bytes.fromhex(answer["value"]))
    return with_field(body, "value", encode(account.with_balance(10**15)).hex())


def richer_under_a_root_of_its_own(chain: LocalChain) -> Callable[[bytes], bytes]:
    """The proof holds, and the header is well made, but nobody has signed it."""

    def lie(body: bytes) -> bytes:
        answer = json.loads(body)
        state = State(chain.chain.state().tree)
        state.put_account(TO, balance=Grains(10**15))
        tree, name = state.commit(), r.account_key(TO)
        header: Header = decode(Header, bytes.fromhex(answer["header"]))
        value = tree.get(name)
        assert value is not None
        forged = encode(replace(header, state_root=tree.root)).hex()
        more = {"value": value.hex(), "proof": encode(tree.prove(name)).hex(), "header": forged}
        return json.dumps(answer | more).encode()

    return lie


def test_a_wrong_balance(honest: Site, blyan: Run, lying: Callable[[Lie], str]) -> None:
    code, said = blyan(lying(only("state/", richer)), *WHO)
    assert (code, "does not lead to the state root" in said) == (65, True), said
    own_root = richer_under_a_root_of_its_own(honest.chain)
    code, said = blyan(lying(only("state/", own_root)), *WHO)
    assert (code, "under another header" in said) == (65, True), said


def test_what_is_there_is_not_absent(blyan: Run, lying: Callable[[Lie], str]) -> None:
    def absent(body: bytes) -> bytes:
        answer = json.loads(body)
        proof: StateProof = decode(StateProof, bytes.fromhex(answer["proof"]))
        other = encode(replace(proof, siblings=proof.siblings[:-1])).hex()
        return json.dumps(answer | {"value": None, "proof": other}).encode()

    for lie in (absent, lambda body: with_field(body, "value", None)):
        code, said = blyan(lying(only("state/", lie)), *WHO)
        assert (code, "does not lead to the state root" in said) == (65, True), said


def test_another_height_than_was_asked_for(blyan: Run, lying: Callable[[Lie], str]) -> None:
    honest_now: dict[str, bytes] = {}

    def lie(path: str, body: bytes) -> bytes:
        if path.startswith("state/"):
            return honest_now.setdefault("first", body)
        return body

    url = lying(lie)
    assert blyan(url, *WHO, "--height", "25")[0] == 0
    code, said = blyan(url, *WHO, "--height", "24")
    assert (code, "the state of block 25, not 24" in said) == (65, True), said


def test_a_node_that_is_behind_is_told_of(
    honest: Site, blyan: Run, lying: Callable[[Lie], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not lie, but it may keep silent: only its age tells, and witnesses."""
    monkeypatch.setattr("node.cli.verify.wall_ms", lambda: START_MS + 200 * STEP_MS)
    code, said = blyan(honest.url, *WHO)
    assert code == 0
    assert "it is 2 min 50 s old, so the node may be behind or keep newer ones from you" in said


# --- wrong light blocks ------------------------------------------------------------------


def keys_of(chain: LocalChain) -> list[KeyPair]:
    members = chain.genesis.validator_set.members
    pairs = {v.consensus.public: v.consensus for v in chain.validators}
    return [pairs[v.consensus_key] for v in members]


def one_signer(block: LightBlock, chain: LocalChain) -> LightBlock:
    return replace(block, finalization=certified(block, block.header, keys_of(chain)[:1]))


def other_header(block: LightBlock, chain: LocalChain) -> LightBlock:
    made = replace(block.header, state_root=Hash32(bytes(32)))
    return replace(block, headers=(made,))


def notarized(block: LightBlock, chain: LocalChain) -> LightBlock:
    return replace(block, finalization=replace(block.finalization, kind=VoteKind.NOTARIZE))


def other_view(block: LightBlock, chain: LocalChain) -> LightBlock:
    certificate = block.finalization
    return replace(block, finalization=replace(certificate, view=certificate.view + 1))


def malleable(block: LightBlock, chain: LocalChain) -> LightBlock:
    """The same signature with the group's order added to S, which some libraries accept."""
    first, *rest = block.finalization.signatures
    s = int.from_bytes(first[32:], "little") + GROUP_ORDER
    twisted = Signature(first[:32] + s.to_bytes(32, "little"))
    return with_certificate(block, signatures=(twisted, *rest))


def repeated(block: LightBlock, chain: LocalChain) -> LightBlock:
    first = block.finalization.signatures[0]
    return with_certificate(block, signatures=(first,) * len(block.finalization.signatures))


def one_for_three(block: LightBlock, chain: LocalChain) -> LightBlock:
    return with_certificate(block, signatures=block.finalization.signatures[:1])


def one_more_signature(block: LightBlock, chain: LocalChain) -> LightBlock:
    signatures = block.finalization.signatures
    return with_certificate(block, signatures=(*signatures, signatures[0]))


def unknown_signer(block: LightBlock, chain: LocalChain) -> LightBlock:
    certificate = block.finalization
    return with_certificate(
        block,
        signers=bytes([certificate.signers[0] | 0x80]),
        signatures=(*certificate.signatures, certificate.signatures[0]),
    )


def long_bitmap(block: LightBlock, chain: LocalChain) -> LightBlock:
    return with_certificate(block, signers=block.finalization.signers + b"\0")


def with_certificate(block: LightBlock, **changes: Any) -> LightBlock:
    certificate: Certificate = replace(block.finalization, **changes)
    return replace(block, finalization=certificate)


def other_height(block: LightBlock, chain: LocalChain) -> LightBlock:
    return replace(block, headers=block.headers[1:] or block.headers * 2)


FORGED: list[tuple[Callable[[LightBlock, LocalChain], LightBlock], str]] = [
    (lambda block, chain: own_set(block), "names another validator set"),
    (one_signer, "is no quorum"),
    (other_header, "does not finalize"),
    (notarized, "does not finalize"),
    (other_view, "signature 0 is wrong"),
    (malleable, "signature 0 is wrong"),
    (repeated, "is wrong"),
    (one_for_three, "1 signatures by 3 signers"),
    (one_more_signature, "4 signatures by 3 signers"),
    (unknown_signer, "signer 7 of a set of 4"),
    (long_bitmap, "bitmap of 2 bytes"),
    (other_height, "does not follow"),
]


@pytest.mark.parametrize(("forge", "text"), FORGED, ids=[f.__name__ for f, _ in FORGED])
def test_forged_light_blocks(
    honest: Site,
    blyan: Run,
    lying: Callable[[Lie], str],
    forge: Callable[[LightBlock, LocalChain], LightBlock],
    text: str,
) -> None:
    def lie(body: bytes) -> bytes:
        return encode(forge(decode(LightBlock, body), honest.chain))

    code, said = blyan(lying(only(f"light/{TIP}", lie)), *WHO)
    assert (code, text in said) == (65, True), said


def test_headers_from_the_future(honest: Site, blyan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.verify.wall_ms", lambda: START_MS + (TIP - 5) * STEP_MS)
    code, said = blyan(honest.url, *WHO)
    assert (code, "is from the future; is this clock right?" in said) == (65, True), said


def test_a_wrong_way_back(honest: Site, blyan: Run, lying: Callable[[Lie], str]) -> None:
    def lie(body: bytes) -> bytes:
        found: HeaderRange = decode(HeaderRange, body)
        *rest, last = found.headers
        return encode(HeaderRange((*rest, replace(last, state_root=Hash32(bytes(32))))))

    trust = checkpoint(honest, TIP)
    url = lying(only("headers/10/", lie))
    code, said = blyan(url, *WHO, "--height", "10", trust=trust)
    assert (code, "does not follow the one before" in said) == (65, True), said
    short = lying(only("headers/10/", lambda b: encode(HeaderRange(()))))
    code, said = blyan(short, *WHO, "--height", "10", trust=trust)
    assert (code, "these are not the headers 10 to 29" in said) == (65, True), said
