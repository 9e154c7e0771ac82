"""Slow reference of docs/spec/light-client.md: plain lists, every rule asked on its own.

Shares no code with the product: MessagePack by `codec_ref.pack`, certificates by the reference of
consensus. `broken` names all rules that a step breaks; each bad case of the vectors breaks exactly
the one it is named for (tests/reference/light_cases.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from blake3 import blake3
from nacl.signing import SigningKey

from tests.reference.codec_ref import pack
from tests.reference.consensus import FINALIZE, certificate_holds, vote_digest

CHAIN = blake3(b"the chain of the light vectors").digest()
START_MS, STEP_MS, EPOCH_BLOCKS = 1_790_000_000_000, 1000, 10
TRUST_MS, DRIFT_MS = 10_000_000, 2000
NOW_MS = START_MS + 500 * STEP_MS
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
