"""A light client among liars: what an API answers is refused with the reason, or harmless."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain import records as r
from chain.address import format_address
from chain.certificates import assemble
from chain.codec import decode, encode
from chain.hashes import TX, Hash32
from chain.light import LightBlock
from chain.light_proofs import HeaderRange, TxProof
from chain.records import Account
from chain.state import State
from chain.transactions import Transfer
from chain.tree import StateProof
from chain.types import (
    Certificate,
    Grains,
    Header,
    Height,
    Signature,
    Stake,
    Validator,
    ValidatorSet,
    VoteKind,
)
from node.cli.blyan import program
from node.cli.session import run_program
from node.light import source
from tests.kit.commands import runner
from tests.kit.liar import Answer, Liar, Lie
from tests.kit.local_chain import START_MS, STEP_MS, LocalChain, key
from tests.kit.site import Site
from wallet.keys import KeyPair
from wallet.signing import sign_vote

TIP, PAID = 30, 20
TO = key("to").public
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
Run = Callable[..., tuple[int, str]]


def fill(salt: int) -> Callable[[LocalChain], None]:
    """A chain whose history differs by `salt` from block 20 on, and all of whose keys are alike."""

    def build(chain: LocalChain) -> None:
        for height in range(1, TIP + 1):
            if height == PAID:
                chain.send(Transfer(TO, Grains(5 + salt)), chain.learners[0])
                chain.send(Transfer(TO, Grains(9)), chain.learners[1])
            chain.block()

    return build


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("honest"), fill(0)) as site:
        yield site


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A second history that all validators have signed as well."""
    with Site(tmp_path_factory.mktemp("forked"), fill(1)) as site:
        yield site


@pytest.fixture
def blyan(
    honest: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`blyan verify …` with the genesis file, a second after the newest block."""
    genesis = tmp_path / "genesis.json"
    genesis.write_text(json.dumps(dict(honest.chain.genesis.document)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("node.cli.verify.wall_ms", lambda: START_MS + (TIP + 1) * STEP_MS)

    def call(url: str, *words: str, trust: str | None = None) -> tuple[int, str]:
        anchor = ["--trust", trust] if trust else ["--genesis", str(genesis)]
        arguments = ["verify", *words, *anchor, "--node", url, "--home", str(tmp_path / "none")]
        code = run_program(program, "blyan", arguments)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture
def lying(honest: Site) -> Iterator[Callable[[Lie], str]]:
    """Where a liar listens."""
    with ExitStack() as stack:

        def start(lie: Lie) -> str:
            liar: AbstractContextManager[Liar] = Liar(honest.url, lie)
            return stack.enter_context(liar).url

        yield start


def only(prefix: str, lie: Callable[[bytes], Answer | bytes]) -> Lie:
    return lambda path, body: lie(body) if path.startswith(prefix) else body


def checkpoint(site: Site, height: int) -> str:
    header = site.run(lambda chain: chain.store.header(Height(height)))
    assert header is not None
    return f"{height}:{header.hash().hex()}"


WHO = ("account", format_address(TO))


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


def with_field(body: bytes, name: str, value: Any) -> bytes:
    return json.dumps(json.loads(body) | {name: value}).encode()


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


def certified(block: LightBlock, header: Header, pairs: list[KeyPair], chain: LocalChain) -> Any:
    votes = [
        sign_vote(
            pair,
            chain_id=header.chain_id,
            kind=VoteKind.FINALIZE,
            epoch=header.epoch,
            view=header.view,
            block_hash=header.hash(),
        )
        for pair in pairs
    ]
    return assemble(block.validators, votes)


def own_set(block: LightBlock, chain: LocalChain) -> LightBlock:
    """Everything signed, by validators that the liar has made up."""
    pairs = sorted((key(f"liar {i}") for i in range(4)), key=lambda pair: pair.public)
    members = ValidatorSet(
        tuple(Validator(p.public, p.public, p.public, "liar", Stake(10**12)) for p in pairs)
    )
    made = replace(block.header, validators_hash=members.hash(), state_root=Hash32(bytes(32)))
    block = LightBlock((made,), block.finalization, members)
    return replace(block, finalization=certified(block, made, pairs, chain))


def one_signer(block: LightBlock, chain: LocalChain) -> LightBlock:
    return replace(block, finalization=certified(block, block.header, keys_of(chain)[:1], chain))


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
    (own_set, "names another validator set"),
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


# --- another chain -----------------------------------------------------------------------


def test_a_node_of_another_network(honest: Site, blyan: Run, lying: Callable[[Lie], str]) -> None:
    document = dict(honest.chain.genesis.document) | {"network": "other"}
    lie = only("genesis", lambda b: json.dumps(document).encode())
    code, said = blyan(lying(lie), *WHO, trust=checkpoint(honest, 3))
    assert (code, "is of another chain than the trusted block" in said) == (65, True), said
    renamed = only("headers/0/0", lambda b: with_chain(b, bytes(32)))
    code, said = blyan(lying(renamed), *WHO)
    assert (code, "a node of another network" in said) == (65, True), said


def with_chain(body: bytes, chain_id: bytes) -> bytes:
    found: HeaderRange = decode(HeaderRange, body)
    made = [replace(header, chain_id=chain_id) for header in found.headers]
    return encode(HeaderRange(tuple(made)))  # type: ignore[arg-type]


def test_a_genesis_with_a_longer_trust_period(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    def lie(body: bytes) -> bytes:
        document = json.loads(body)
        document["params"]["evidence_ms"] = 10**11
        document["params"]["unbonding_ms"] = 10**11 + 1
        return json.dumps(document).encode()

    code, said = blyan(lying(only("genesis", lie)), *WHO, trust=checkpoint(honest, 3))
    assert (code, "is of another chain" in said) == (65, True), said


def test_a_first_header_with_other_validators(blyan: Run, lying: Callable[[Lie], str]) -> None:
    def lie(body: bytes) -> bytes:
        found: HeaderRange = decode(HeaderRange, body)
        made = replace(found.headers[0], next_validators_hash=Hash32(bytes(32)))
        return encode(HeaderRange((made,)))

    code, said = blyan(lying(only("headers/0/0", lie)), *WHO)
    assert (code, "not what follows from the genesis file" in said) == (65, True), said


# --- transactions and tiles -----------------------------------------------------------------


def paid(chain: LocalChain) -> list[str]:
    return [row.id.hex() for row in chain.store.txs_in(Height(PAID))]


def test_wrong_proofs_of_a_transaction(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    first, second = honest.run(paid)
    other = honest.run(lambda chain: chain.store.block(Height(PAID)))
    assert other is not None

    def twist(**changes: Any) -> Callable[[bytes], bytes]:
        return lambda body: encode(replace(decode(TxProof, body), **changes))

    index = other.txs.index(next(t for t in other.txs if TX.hash(t).hex() == second))
    for lie, text in (
        (twist(tx=other.txs[index]), "another transaction"),
        (twist(index=1 - next(i for i, t in enumerate(other.txs) if TX.hash(t).hex() == first)),
         "does not lead to the transactions"),
        (twist(count=3), "does not lead to the transactions"),
        (twist(siblings=()), "does not lead to the transactions"),
        (twist(height=PAID + 1), "does not lead to the transactions"),
    ):  # fmt: skip
        code, said = blyan(lying(only(f"txs/{first}", lie)), "tx", first)
        assert (code, text in said) == (65, True), said


def test_an_outcome_is_not_taken_from_the_node(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    first, _ = honest.run(paid)
    code, said = blyan(honest.url, "tx", first)
    assert code == 0
    assert "outcome   executed" in said

    def emptied(body: bytes) -> bytes:
        return body.replace(b"\xcc", b"\xcd", 1)

    code, said = blyan(lying(only(f"blocks/{PAID}", emptied)), "tx", first)
    assert code == 65, said
    older = only("state/", lambda b: with_field(b, "header", json.loads(b)["header"][:-2] + "ff"))
    assert blyan(lying(older), "tx", first)[0] == 65


def test_wrong_bytes_of_a_tile(blyan: Run, lying: Callable[[Lie], str]) -> None:
    def flip(body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1])

    for lie in (flip, lambda body: body[:-1], lambda body: b""):
        code, said = blyan(lying(only("tiles/", lie)), "tile", "1:0", "--data")
        assert (code, "do not have the root" in said) == (65, True), said


# --- witnesses -------------------------------------------------------------------------------


def test_a_second_history_is_written_down_and_punished(
    honest: Site,
    forked: Site,
    blyan: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = blyan(honest.url, *WHO, "--witness", forked.url)
    assert code == 65
    assert f"two final blocks of height {PAID}" in said  # where the histories part
    file = tmp_path / f"blyan-attack-{PAID}.json"
    assert f"`blyan evidence submit {file.name}`" in said
    blocks = [decode(LightBlock, bytes.fromhex(b)) for b in json.loads(file.read_text())["blocks"]]
    assert {b.header.hash() for b in blocks} == {
        bytes.fromhex(checkpoint(site, PAID).partition(":")[2]) for site in (honest, forked)
    }
    judge_home = tmp_path / "judge"
    judge_home.mkdir()
    with LocalChain(judge_home) as judge:
        judge.blocks(2)
        accounts = [k.account.public for k in judge.validators]
        bonded = [judge.state.account(a).bonded for a in accounts]
        payer = replace(judge.validators[3], account=judge.learners[0])
        evidence = runner("evidence", judge, lambda: payer, judge_home, monkeypatch, capsys)
        code, told = evidence("submit", file.name, "--yes", "--json")
        assert (code, len(told["signers"])) == (0, 3)
        lost = [
            a for a, b in zip(accounts, bonded, strict=True) if judge.state.account(a).bonded < b
        ]
        assert lost == accounts[:3]  # who has signed both


def test_evidence_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.json"
    texts = ("", "[]", "{}", '{"evidence": 5}', '{"evidence": "zz"}', '{"evidence": "9117"}')
    for text in (*texts, "[" * 100_000, '{"evidence": null}'):
        file.write_text(text)
        assert run_program(program, "blyan", ["evidence", "submit", str(file)]) == 2
        said = capsys.readouterr().err
        assert "no file that `blyan verify` wrote" in said or "no rule punishes" in said
    assert run_program(program, "blyan", ["evidence", "submit", str(tmp_path / "none")]) == 2


def test_a_witness_that_cries_wolf(
    honest: Site, blyan: Run, lying: Callable[[Lie], str], tmp_path: Path
) -> None:
    """With validators of its own making it shows another block: that is no second history."""

    def lie(body: bytes) -> bytes:
        return encode(own_set(decode(LightBlock, body), honest.chain))

    wolf = lying(only("light/", lie))
    code, said = blyan(honest.url, *WHO, "--witness", wolf)
    assert code == 3
    assert f"no witness confirms block {TIP}" in said
    assert "names another validator set" in said
    assert not list(tmp_path.glob("*.json*attack*"))
    code, said = blyan(honest.url, *WHO, "--witness", wolf, "--witness", honest.url)
    assert code == 0
    assert "does not count" in said
    assert f"witness {honest.url} shows the same block {TIP}" in said


def test_a_witness_that_is_behind_or_silent(
    honest: Site, blyan: Run, lying: Callable[[Lie], str]
) -> None:
    behind = lying(only(f"light/{TIP}", lambda b: Answer(b"{}", 404)))
    code, said = blyan(honest.url, *WHO, "--witness", behind, "--witness", "http://127.0.0.1:1")
    assert code == 3
    assert "no witness confirms" in said
