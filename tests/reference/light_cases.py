"""The vectors of light clients, each bad case breaking one rule, as the reference has them.

`python -m tests.reference.light_cases` writes tests/vectors/light/.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

from tests.reference.codec_ref import pack
from tests.reference.consensus import FINALIZE, NOTARIZE, vote_digest
from tests.reference.light_ref import (
    B_CERTIFICATE,
    B_HEADERS,
    B_MEMBERS,
    C_BITMAP,
    C_EPOCH,
    C_SIGNATURES,
    C_VIEW,
    CHAIN,
    CHAIN_ID,
    DRIFT_MS,
    EPOCH,
    EPOCH_BLOCKS,
    HEIGHT,
    MEMBERS,
    NOW_MS,
    PARENT,
    START_MS,
    STEP_MS,
    TIME,
    TRUST_MS,
    V_KEY,
    V_STAKE,
    VERSION,
    VIEW,
    ZERO,
    Chain,
    Struct,
    block_hash,
    broken,
    changed,
    h,
    set_hash,
    tx_root,
    tx_siblings,
    u64,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "light"
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group of Ed25519

EIGHT = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"  # a point of order 8


def steps() -> list[dict[str, Any]]:
    """Each case breaks exactly the rule it names, or none."""
    net, cases = Chain(), list[dict[str, Any]]()

    def case(
        name: str,
        rule: str | None,
        block: Struct,
        chain: Chain = net,
        at: int = 0,
        now_ms: int = NOW_MS,
        trusted: Struct | None = None,
    ) -> None:
        old = chain.header(at) if trusted is None else trusted
        members = chain.members(max(at - 1, 0) // EPOCH_BLOCKS)
        found = broken(old, members, block, now_ms)
        if found != ({rule} if rule else set()):
            raise AssertionError(f"{name}: {found or 'nothing'} is broken, not {rule}")
        cases.append(
            {
                "name": name,
                "rule": rule,
                "verdict": {None: "ok", "too far": "too far"}.get(rule, "refused"),
                "trusted": pack(old).hex(),
                "validators": pack(members).hex(),
                "block": pack(block).hex(),
                "now_ms": now_ms,
            }
        )

    _steps_that_hold(case, net)
    _wrong_headers(case, net)
    _wrong_certificates(case, net)
    return cases


def _steps_that_hold(case: Any, net: Chain) -> None:
    for height in (1, 10):
        case(f"adjacent: block {height} of the same epoch", None, net.block(height))
    for height in (11, 20):
        case(f"adjacent: block {height} of the next epoch", None, net.block(height))
    case("skipping: half of the old set has signed", None, net.block(21, signers=(0, 1, 2, 3)))
    case("too far: a quarter of the old set has signed", "too far", net.block(31))
    thirds = Chain(leave=2, stakes=(10, 10, 10))
    # Of three equal members one is left in epoch 1, none in epoch 2.
    case("too far: nobody is left", "too far", thirds.block(25), thirds)
    third = Chain(leave=1, stakes=(10, 10, 10))
    case("too far: exactly a third", "too far", third.block(25), third)
    for descent in (2, 9):
        case(f"final by a descendant, {descent} headers", None, net.block(2, descent))
    case("the last moment of the trust period", None, net.block(1), now_ms=START_MS + TRUST_MS - 1)
    drift = START_MS + 9 * STEP_MS - DRIFT_MS
    case("as far ahead as clocks may be", None, net.block(9), now_ms=drift)
    case("all have signed", None, net.block(5, signers=(0, 1, 2, 3)))
    stakes = Chain(stakes=(2**62, 2**62, 2**62 + 1, 1))
    case(
        "stakes near 2^64: just above two thirds", None, stakes.block(5, signers=(0, 1, 2)), stakes
    )
    case("from a later block", None, net.block(15), at=9)
    view = net.finalized([net.header(5)], view=2**64 - 1)
    case("certified in the last view", None, view)


def _wrong_headers(case: Any, net: Chain) -> None:
    case("expired", "expired", net.block(1), now_ms=START_MS + TRUST_MS)
    ahead = START_MS + 9 * STEP_MS - DRIFT_MS - 1
    case("from the future", "future", net.block(9), now_ms=ahead)
    fifth = net.header(5)
    later = changed(fifth, TIME, fifth[TIME] + 1)
    case("of the trusted height", "height", net.finalized([later]), at=5)
    case("of a height below", "height", net.finalized([changed(later, HEIGHT, 4)]), at=5)
    sixth = net.header(6)
    case("of the trusted time", "time", net.finalized([changed(sixth, TIME, fifth[TIME])]), at=5)
    stays = Chain(leave=0)
    back = changed(changed(stays.header(10), HEIGHT, 16), TIME, stays.header(16)[TIME])
    case("of an earlier epoch", "earlier epoch", _signed_as(stays, back, 0), stays, at=15)
    foreign = Chain(leave=3)
    own = changed(fifth, MEMBERS, set_hash(foreign.members(1)))
    case("another set in the same epoch", "other set", _signed_as(foreign, own, 1))
    next_own = changed(net.header(15), MEMBERS, set_hash(foreign.members(2)))
    case("another set in the next epoch", "other next set", _signed_as(foreign, next_own, 2))
    for version in (0, 2, 255):
        made = net.finalized([changed(fifth, VERSION, version)])
        case(f"of version {version}", "version", made)
    case("of another chain", "chain", net.finalized([changed(fifth, CHAIN_ID, ZERO)]))
    case("without headers", "headers", [18, [], *net.block(5)[2:]])
    cut = net.block(2, 4)
    case("another parent", "parent", net.finalized([fifth, changed(sixth, PARENT, ZERO)]))
    gap = changed(net.header(7), PARENT, block_hash(fifth))
    case("a height left out", "heights", net.finalized([fifth, gap]))
    same = changed(sixth, TIME, fifth[TIME])
    case("a descendant of the same time", "times", net.finalized([fifth, same]))
    other = changed(sixth, EPOCH, 1)
    case("a descendant of another epoch", "epochs", net.finalized([fifth, other]))
    foreign_child = changed(sixth, CHAIN_ID, ZERO)
    case("a descendant of another chain", "chain", net.finalized([fifth, foreign_child]))
    lost = deepcopy(cut)
    del lost[B_HEADERS][1]
    if {"parent", "heights"} != broken(net.header(0), net.members(0), lost, NOW_MS):
        raise AssertionError("a header left out breaks two rules")


def _wrong_certificates(case: Any, net: Chain) -> None:
    fifth, good = net.header(5), net.block(5)
    case("a notarization", "kind", net.finalized([fifth], kind=NOTARIZE))
    of_sixth = net.finalized([fifth], block=block_hash(net.header(6)))
    case("a certificate of another block", "block", of_sixth)
    case("a certificate of another epoch", "certificate epoch", net.finalized([fifth], epoch=1))
    shown = deepcopy(good)
    shown[B_MEMBERS] = [2, [changed(v, V_STAKE, 11) for v in good[B_MEMBERS][1]]]
    case("a set with other stakes", "set hash", shown)

    def certificate(name: str, field: int, value: Any, rule: str = "certificate") -> None:
        made = deepcopy(good)
        made[B_CERTIFICATE][field] = value
        case(name, rule, made)

    two = net.finalized([fifth], signers=(0, 1))
    case("half of the stake", "certificate", two)
    exact = Chain(stakes=(10, 10, 10))
    case("exactly two thirds", "certificate", exact.block(5, signers=(0, 1)), exact)
    large = Chain(stakes=(2**62, 2**62, 2**62, 1))
    case("just below two thirds, near 2^64", "certificate", large.block(5, signers=(0, 1)), large)
    first, second, third = good[B_CERTIFICATE][C_SIGNATURES]
    case("a view of 0", "certificate", net.finalized([fifth], view=0))
    certificate("another view than was signed", C_VIEW, 6)
    certificate("no bitmap", C_BITMAP, b"")
    certificate("a bitmap of two bytes", C_BITMAP, b"\x07\x00")
    certificate("an unknown signer for a known one", C_BITMAP, b"\x13")
    certificate("an unknown signer", C_BITMAP, b"\x17")
    certificate("an unknown signer more", C_BITMAP, b"\x87")
    certificate("a signer more than signatures", C_BITMAP, b"\x0f")
    certificate("other signers", C_BITMAP, b"\x0e")
    certificate("a signature repeated", C_SIGNATURES, [first, first, first])
    certificate("a signature more", C_SIGNATURES, [first, second, third, third])
    certificate("a signature fewer", C_SIGNATURES, [first, second])
    certificate("no signatures", C_SIGNATURES, [])
    certificate("signatures in another order", C_SIGNATURES, [second, first, third])
    s = int.from_bytes(first[32:], "little")
    for name, more in (("the order", ORDER), ("twice the order", 2 * ORDER)):
        twisted = first[:32] + (s + more).to_bytes(32, "little")
        certificate(f"malleable: S and {name}", C_SIGNATURES, [twisted, second, third])
    for byte in (0, 31, 32, 63):
        wrong = bytearray(first)
        wrong[byte] ^= 1
        certificate(f"a bit of byte {byte} wrong", C_SIGNATURES, [bytes(wrong), second, third])
    certificate("zeros for a signature", C_SIGNATURES, [bytes(64), second, third])
    _wrong_keys(case)
    _half_weak(case)


def _wrong_keys(case: Any) -> None:
    """A member whose key signs anything, if one lets it: R = -h·A and S = 0 are its votes."""
    identity = b"\1" + bytes(31)
    two = (2**255 - 20).to_bytes(32, "little")  # order 2: y = -1
    no_point = b"\2" + bytes(31)
    large = (2**255 - 19 + 1).to_bytes(32, "little")  # the identity, its y not reduced
    for name, key, r in (
        ("the identity as key", identity, identity),
        ("a key of order 2", two, identity),
        ("a key of order 2, R of order 2", two, two),
        ("a key of order 4", bytes(32), identity),
        ("a key of order 8", bytes.fromhex(EIGHT), identity),
        ("a key that is not reduced", large, identity),
        ("a key that is no point", no_point, identity),
        ("the identity with a sign bit", identity[:31] + b"\x80", identity),
    ):
        chain = _Weak(key)
        block = chain.block(5, signers=(0, 1, 2))
        block[B_CERTIFICATE][C_SIGNATURES][chain.place] = r + bytes(32)
        case(name, "certificate", block, chain)


def _half_weak(case: Any) -> None:
    """Either the key or R alone is of small order: S = r + h·a holds, and libsodium refuses it."""
    identity = b"\1" + bytes(31)
    for name, key in (("the identity", identity), ("a point of order 8", bytes.fromhex(EIGHT))):
        chain = _Weak(key)
        block = chain.block(5, signers=(0, 1, 2))
        digest = vote_digest(CHAIN, FINALIZE, *block[B_CERTIFICATE][C_EPOCH:C_BITMAP])
        scalar, hashed, r = 0, 1, b""
        while hashed % 8:  # until h times the key is nothing, whose order is at most 8
            scalar += 1
            r = crypto_scalarmult_ed25519_base_noclamp(scalar.to_bytes(32, "little"))
            hashed = int.from_bytes(hashlib.sha512(r + key + digest).digest(), "little") % ORDER
        block[B_CERTIFICATE][C_SIGNATURES][0] = r + scalar.to_bytes(32, "little")
        case(f"{name} as key, R an ordinary point", "certificate", block, chain)
    net = Chain()
    block = net.block(5)
    seed = bytes(net.keys(0)[0])
    secret = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    secret = secret % 2**254 // 8 * 8 + 2**254
    certificate = block[B_CERTIFICATE]
    digest = vote_digest(CHAIN, FINALIZE, *certificate[C_EPOCH:C_BITMAP])
    public = bytes(net.keys(0)[0].verify_key)
    challenge = hashlib.sha512(identity + public + digest).digest()
    s = int.from_bytes(challenge, "little") * secret % ORDER
    certificate[C_SIGNATURES][0] = identity + s.to_bytes(32, "little")
    case("an ordinary key, R the identity", "certificate", block)


class _Weak(Chain):
    """The first member of every set has this key, and a signer is made up for it."""

    def __init__(self, key: bytes) -> None:
        super().__init__(leave=0)
        self.key, self.place = key, 0

    def members(self, epoch: int) -> Struct:
        made = super().members(epoch)
        made[1][0] = changed(made[1][0], V_KEY, self.key)
        return made


def _signed_as(net: Chain, header: Struct, epoch: int) -> Struct:
    """Final by the set of `epoch`, whatever its height says."""
    digest = vote_digest(CHAIN, FINALIZE, header[EPOCH], header[VIEW], block_hash(header))
    signatures = [k.sign(digest).signature for k in net.keys(epoch)[:3]]
    certificate = [5, FINALIZE, header[EPOCH], header[VIEW], block_hash(header), b"\7", signatures]
    return [18, [header], certificate, net.members(epoch)]


def walks() -> list[dict[str, Any]]:
    """From block 0 to a target: which heights are asked for, and which become trusted."""
    cases = []
    for name, chain, target in (
        ("a set that stays", Chain(leave=0), 95),
        ("one of four leaves", Chain(), 95),
        ("all leave", Chain(leave=4), 45),
        ("the trusted block itself", Chain(), 0),
    ):
        asked, reached, blocks = list[int](), list[int](), dict[int, Struct]()
        trusted, members = chain.header(0), chain.members(0)
        while trusted[HEIGHT] < target:
            ahead = [height for height in blocks if height > trusted[HEIGHT]]
            nearest = min(ahead, default=target)
            if ahead and broken(trusted, members, blocks[nearest], NOW_MS):
                nearest = (trusted[HEIGHT] + nearest) // 2
            if nearest not in blocks:
                asked.append(nearest)
                blocks[nearest] = chain.block(nearest)
            wrong = broken(trusted, members, blocks[nearest], NOW_MS)
            if not wrong:
                reached.append(nearest)
                trusted, members = blocks[nearest][B_HEADERS][0], blocks[nearest][B_MEMBERS]
            elif wrong != {"too far"}:
                raise AssertionError(f"{name}: {wrong}")
        cases.append(
            {
                "name": name,
                "trusted": pack(chain.header(0)).hex(),
                "validators": pack(chain.members(0)).hex(),
                "target": target,
                "now_ms": NOW_MS,
                "asked": asked,
                "reached": reached,
                "blocks": {str(height): pack(block).hex() for height, block in blocks.items()},
            }
        )
    return cases


def forks() -> list[dict[str, Any]]:
    """What two walks to block 5 make of it: nothing, an attack, or one that the chain punishes."""
    net, fork = Chain(), Chain(salt=b"fork")
    own, other = net.block(5), fork.block(5)
    later = fork.finalized([fork.header(5)], view=9)
    below = fork.block(5, 3)
    cases = [("the same", net.block(5), "same"), ("by a descendant", net.block(5, 3), "same")]
    cases += [("one view", other, "evidence"), ("other views", later, "attack")]
    cases += [("other blocks certified", below, "attack")]
    found = []
    for name, block, verdict in cases:
        pair = sorted((pack(own[B_CERTIFICATE]), pack(block[B_CERTIFICATE])))
        evidence = b"\x93\x11" + b"".join(pair) if verdict == "evidence" else b""
        found.append(
            {
                "name": name,
                "trusted": pack(net.header(0)).hex(),
                "validators": pack(net.members(0)).hex(),
                "now_ms": NOW_MS,
                "first": pack(own).hex(),
                "second": pack(block).hex(),
                "verdict": verdict,
                "evidence": evidence.hex() or None,
            }
        )
    return found


def transactions() -> list[dict[str, Any]]:
    """Roots and proofs of blocks of several sizes, and proofs that do not hold."""
    cases = []
    for count in (1, 2, 3, 5, 8, 13):
        txs = [h("tx", u64(i))[: i % 33] * (i % 5) for i in range(count)]
        root = tx_root(txs)
        for index in sorted({0, 1, count // 2, count - 1} & set(range(count))):
            siblings = tx_siblings(txs, index)
            good = [19, 7, index, count, txs[index], siblings]
            bad = [
                ("another transaction", changed(good, 4, txs[index] + b"x")),
                ("another place", changed(good, 2, (index + 1) % (count + 1))),
                ("another count", changed(good, 3, count + 1)),
                ("beyond the end", changed(good, 2, count)),
                ("a sibling more", changed(good, 5, [*siblings, ZERO])),
                *([("a sibling fewer", changed(good, 5, siblings[:-1]))] if siblings else []),
                *([("siblings in another order", changed(good, 5, siblings[::-1]))]
                  if len(siblings) > 1 else []),
            ]  # fmt: skip
            for name, proof in [("holds", good), *bad]:
                cases.append(
                    {
                        "name": f"{index} of {count}: {name}",
                        "tx_root": root.hex(),
                        "proof": pack(proof).hex(),
                        "holds": name == "holds",
                    }
                )
    return cases


FILES = {"steps": steps, "walks": walks, "forks": forks, "transactions": transactions}


def vectors(name: str) -> dict[str, Any]:
    return {
        "chain_id": CHAIN.hex(),
        "trust_ms": TRUST_MS,
        "drift_ms": DRIFT_MS,
        "cases": FILES[name](),
    }


if __name__ == "__main__":
    VECTORS.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (VECTORS / f"{name}.json").write_text(json.dumps(vectors(name), indent=1) + "\n")
