"""Slow reference of docs/spec/light-client.md: plain lists, every rule asked on its own.

Shares no code with the product: MessagePack by `codec_ref.pack`, certificates by the reference of
consensus. `broken` names all rules that a step breaks; each bad case of the vectors breaks exactly
the one it is named for. `python -m tests.reference.light_ref` writes tests/vectors/light/.
"""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3
from nacl.signing import SigningKey

from tests.reference.codec_ref import pack
from tests.reference.consensus import FINALIZE, NOTARIZE, certificate_holds, vote_digest

VECTORS = Path(__file__).parents[1] / "vectors" / "light"
CHAIN = blake3(b"the chain of the light vectors").digest()
START_MS, STEP_MS, EPOCH_BLOCKS = 1_790_000_000_000, 1000, 10
TRUST_MS, DRIFT_MS = 10_000_000, 2000
NOW_MS = START_MS + 500 * STEP_MS
ORDER = 2**252 + 27742317777372353535851937790883648493
ZERO = bytes(32)
# Fields of a header by their place in its struct (tag 3 at 0).
VERSION, CHAIN_ID, EPOCH, VIEW, HEIGHT, PARENT, TIME = 1, 2, 3, 4, 5, 6, 7
TX_ROOT, STATE_ROOT, MEMBERS, NEXT_MEMBERS = 9, 10, 11, 12
# Of a certificate (tag 5 at 0), a validator (1), a light block (18) and a transaction proof (19).
C_KIND, C_EPOCH, C_VIEW, C_BLOCK, C_BITMAP, C_SIGNATURES = 1, 2, 3, 4, 5, 6
V_KEY, V_STAKE = 2, 5
B_HEADERS, B_CERTIFICATE, B_MEMBERS = 1, 2, 3

Struct = list[Any]


def h(name: str, data: bytes) -> bytes:
    return blake3(data, derive_key_context="blyan/1/" + name).digest()


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def block_hash(header: Struct) -> bytes:
    return h("block", pack(header))


def set_hash(members: Struct) -> bytes:
    return h("validators", pack(members))


# --- the rules ------------------------------------------------------------------------------


def broken(trusted: Struct, members: Struct, block: Struct, now_ms: int) -> set[str]:
    """Every rule that the step from `trusted`, whose set is `members`, to `block` breaks."""
    headers, certificate, shown = block[B_HEADERS], block[B_CERTIFICATE], block[B_MEMBERS]
    if not 1 <= len(headers) <= 64:
        return {"headers"}
    new, last = headers[0], headers[-1]
    ahead = new[EPOCH] - trusted[EPOCH]
    found = {
        "expired": now_ms >= trusted[TIME] + TRUST_MS,
        "height": new[HEIGHT] <= trusted[HEIGHT],
        "time": new[TIME] <= trusted[TIME],
        "future": new[TIME] > now_ms + DRIFT_MS,
        "earlier epoch": ahead < 0,
        "other set": ahead == 0 and new[MEMBERS] != trusted[MEMBERS],
        "other next set": ahead == 1 and new[MEMBERS] != trusted[NEXT_MEMBERS],
        "version": any(header[VERSION] != 1 for header in headers),
        "chain": any(header[CHAIN_ID] != CHAIN for header in headers),
        "kind": certificate[C_KIND] != FINALIZE,
        "block": certificate[C_BLOCK] != block_hash(last),
        "certificate epoch": certificate[C_EPOCH] != last[EPOCH],
        "set hash": any(header[MEMBERS] != set_hash(shown) for header in headers),
        "certificate": not _holds(shown, certificate),
    }
    links = list(pairwise(headers))
    found |= {
        "parent": any(child[PARENT] != block_hash(parent) for parent, child in links),
        "heights": any(child[HEIGHT] != parent[HEIGHT] + 1 for parent, child in links),
        "times": any(child[TIME] <= parent[TIME] for parent, child in links),
        "epochs": any(child[EPOCH] != parent[EPOCH] for parent, child in links),
    }
    wrong = {rule for rule, is_broken in found.items() if is_broken}
    if not wrong and ahead > 1:
        signed = set(_signers(shown, certificate))
        common = sum(v[V_STAKE] for v in members[1] if v[V_KEY] in signed)
        if not 3 * common > sum(v[V_STAKE] for v in members[1]):
            return {"too far"}
    return wrong


def _holds(members: Struct, certificate: Struct) -> bool:
    pairs = [(v[V_KEY], v[V_STAKE]) for v in members[1]]
    _, kind, epoch, view, block, bitmap, signatures = certificate
    return certificate_holds(CHAIN, pairs, (kind, epoch, view, block, bitmap, signatures))


def _signers(members: Struct, certificate: Struct) -> list[bytes]:
    bits = "".join(f"{byte:08b}"[::-1] for byte in certificate[C_BITMAP])
    return [v[V_KEY] for v, bit in zip(members[1], bits, strict=False) if bit == "1"]


def tx_root(txs: list[bytes]) -> bytes:
    return h("tx-root", b"\2" + u64(len(txs)) + (_tx_node(txs, 0, len(txs)) if txs else b""))


def _tx_node(txs: list[bytes], first: int, count: int) -> bytes:
    """Of `count` transactions from `first`: the left side is the largest power of two below."""
    if count == 1:
        return h("tx-root", b"\0" + u64(first) + txs[first])
    left = 1
    while left * 2 < count:
        left *= 2
    sides = _tx_node(txs, first, left), _tx_node(txs, first + left, count - left)
    return h("tx-root", b"\1" + b"".join(sides))


def tx_siblings(txs: list[bytes], index: int) -> list[bytes]:
    """From the leaf up."""
    found: list[bytes] = []
    first, count = 0, len(txs)
    while count > 1:
        left = 1
        while left * 2 < count:
            left *= 2
        if index < first + left:
            found.insert(0, _tx_node(txs, first + left, count - left))
            count = left
        else:
            found.insert(0, _tx_node(txs, first, left))
            first, count = first + left, count - left
    return found


# --- a chain to take steps on ---------------------------------------------------------------


class Chain:
    """Epochs of ten blocks; of a set of four `leave` are replaced at each."""

    def __init__(self, leave: int = 1, salt: bytes = b"", stakes: tuple[int, ...] = (10,) * 4):
        self.leave, self.salt, self.stakes = leave, salt, stakes

    def keys(self, epoch: int) -> list[SigningKey]:
        names = range(self.leave * epoch, self.leave * epoch + len(self.stakes))
        made = [SigningKey(blake3(b"light vectors %d" % i).digest()) for i in names]
        return sorted(made, key=lambda k: bytes(k.verify_key))

    def members(self, epoch: int) -> Struct:
        keys = [bytes(k.verify_key) for k in self.keys(epoch)]
        rows = zip(keys, self.stakes, strict=True)
        return [2, [[1, k, k, k, f"n{i}", stake] for i, (k, stake) in enumerate(rows)]]

    def header(self, height: int) -> Struct:
        parent = ZERO
        for at in range(max(0, height - 70), height):
            parent = block_hash(self._header(at, parent))
        return self._header(height, parent)

    def _header(self, height: int, parent: bytes) -> Struct:
        epoch = max(height - 1, 0) // EPOCH_BLOCKS
        time = START_MS + height * STEP_MS
        sets = set_hash(self.members(epoch)), set_hash(self.members(epoch + 1))
        roots = tx_root([self.salt]), h("state-node", u64(height) + self.salt)
        place = [epoch, height, height, parent, time, bytes(self.keys(epoch)[0].verify_key)]
        return [3, 1, CHAIN, *place, *roots, *sets, b"", b"", h("evidence", b"")]

    def block(self, height: int, descent: int = 1, signers: tuple[int, ...] = (0, 1, 2)) -> Struct:
        headers = [self.header(height)]
        for at in range(height + 1, height + descent):
            headers.append(self._header(at, block_hash(headers[-1])))
        return self.finalized(headers, signers)

    def finalized(
        self, headers: list[Struct], signers: tuple[int, ...] = (0, 1, 2), **other: Any
    ) -> Struct:
        """`other`: what the certificate says instead of the last header (kind, epoch, block)."""
        last = headers[-1]
        epoch = max(last[HEIGHT] - 1, 0) // EPOCH_BLOCKS
        keys = self.keys(epoch)
        kind, at = other.get("kind", FINALIZE), other.get("epoch", last[EPOCH])
        name, view = other.get("block", block_hash(last)), other.get("view", last[VIEW])
        digest = vote_digest(CHAIN, kind, at, view, name)
        signatures = [keys[i].sign(digest).signature for i in signers]
        bitmap = bytes([sum(1 << i for i in signers)])
        return [18, headers, [5, kind, at, view, name, bitmap, signatures], self.members(epoch)]


def changed(header: Struct, field: int, value: Any) -> Struct:
    return [*header[:field], value, *header[field + 1 :]]


# --- vectors --------------------------------------------------------------------------------


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
    back = changed(changed(net.header(10), HEIGHT, 16), TIME, net.header(16)[TIME])
    case("of an earlier epoch", "earlier epoch", _signed_as(net, back, 0), at=15)
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
    certificate("a view of 0", C_VIEW, 0)
    certificate("another view than was signed", C_VIEW, 6)
    certificate("no bitmap", C_BITMAP, b"")
    certificate("a bitmap of two bytes", C_BITMAP, b"\x07\x00")
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


def _wrong_keys(case: Any) -> None:
    """A member whose key signs anything, if one lets it: R = -h·A and S = 0 are its votes."""
    identity = b"\1" + bytes(31)
    two = (2**255 - 20).to_bytes(32, "little")  # order 2: y = -1
    large = (2**255 - 19 + 1).to_bytes(32, "little")  # the identity, its y not reduced
    for name, key, r in (
        ("the identity as key", identity, identity),
        ("a key of order 2", two, identity),
        ("a key of order 2, R of order 2", two, two),
        ("a key that is not reduced", large, identity),
        ("the identity with a sign bit", identity[:31] + b"\x80", identity),
    ):
        chain = _Weak(key)
        block = chain.block(5, signers=(0, 1, 2))
        block[B_CERTIFICATE][C_SIGNATURES][chain.place] = r + bytes(32)
        case(name, "certificate", block, chain)


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
        ahead, asked, reached = [target] if target else [], [], []
        trusted, members, blocks = chain.header(0), chain.members(0), {}
        while ahead:
            block = chain.block(ahead[-1])
            asked.append(ahead[-1])
            blocks[ahead[-1]] = pack(block).hex()
            wrong = broken(trusted, members, block, NOW_MS)
            if wrong == {"too far"}:
                ahead.append((trusted[HEIGHT] + ahead[-1]) // 2)
                continue
            if wrong:
                raise AssertionError(f"{name}: {wrong}")
            reached.append(ahead.pop())
            trusted, members = block[B_HEADERS][0], block[B_MEMBERS]
        cases.append(
            {
                "name": name,
                "trusted": pack(chain.header(0)).hex(),
                "validators": pack(chain.members(0)).hex(),
                "target": target,
                "now_ms": NOW_MS,
                "asked": asked,
                "reached": reached,
                "blocks": {str(height): raw for height, raw in blocks.items()},
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
