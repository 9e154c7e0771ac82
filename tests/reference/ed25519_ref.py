"""What counts as an Ed25519 signature here, in plain integers, and vectors where verifiers differ.

Shares no code with `chain.crypto`. Run it to write the vectors, also those of VRF keys and proofs
to be refused: `python -m tests.reference.ed25519_ref`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.reference import vrf
from tests.reference.vrf import BASE, IDENTITY, D, P, Point, Q, add, neg, to_bytes, to_point

FOLDER = Path(__file__).parent.parent / "vectors"
SIGNATURES = FOLDER / "signatures" / "ed25519.json"
REFUSED_PROOFS = FOLDER / "vrf" / "refused.json"
MESSAGE = hashlib.sha256(b"a digest that is signed").digest()
TORSION: Point = to_point(  # type: ignore[assignment]
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
)
# RFC 8032, 7.1: tests 1 to 3.
RFC8032 = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
)


def is_valid(public: bytes, message: bytes, signature: bytes) -> bool:
    """docs/spec/wallet.md: S below the group order; key and R canonical, on the curve and not of
    small order; and R = S·B - (h mod q)·A, without the cofactor."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r = to_point(public), to_point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= Q or IDENTITY in (mul(8, a), mul(8, r)):
        return False
    h = challenge(signature[:32], public, message) % Q
    return add(mul(s, BASE), neg(mul(h, a))) == r


def challenge(r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little")


def mul(n: int, a: Point) -> Point:
    """n times a point; divides once, where adding point by point divides at each step."""

    def plus(p: tuple[int, int, int], q: tuple[int, int, int]) -> tuple[int, int, int]:
        (x1, y1, z1), (x2, y2, z2) = p, q
        z = z1 * z2
        square, t = z * z % P, D * x1 * x2 * y1 * y2 % P
        x3 = z * (square - t) * (x1 * y2 + x2 * y1)
        y3 = z * (square + t) * (y1 * y2 + x1 * x2)
        return x3 % P, y3 % P, (square - t) * (square + t) % P

    result, point = (0, 1, 1), (a[0], a[1], 1)
    while n:
        if n & 1:
            result = plus(result, point)
        point, n = plus(point, point), n >> 1
    x, y, z = result
    inverse = pow(z, -1, P)
    return x * inverse % P, y * inverse % P


def number(name: str) -> int:
    return int.from_bytes(hashlib.sha512(name.encode()).digest(), "little") % Q


def signed(
    secret: int, nonce: int, message: bytes, key_twist: Point = IDENTITY, twist: Point = IDENTITY
) -> tuple[bytes, bytes]:
    """(key, signature) with a scalar key; the twists of small order are added to A and to R."""
    public = to_bytes(add(mul(secret, BASE), key_twist))
    r = to_bytes(add(mul(nonce, BASE), twist))
    s = (nonce + challenge(r, public, message) * secret) % Q
    return public, r + s.to_bytes(32, "little")


def small_order() -> Iterator[tuple[str, bytes]]:
    """Every encoding of a point of order 1, 2, 4 or 8, also those that are not canonical."""
    for k in range(8):
        point = mul(k, TORSION)
        order = next(n for n in (1, 2, 4, 8) if mul(n, point) == IDENTITY)
        yield f"order {order}, {k} times the generator", to_bytes(point)
    for name, y in (("y = 1", 1), ("y = -1", P - 1)):
        yield f"{name} with the sign of a zero", (y | 1 << 255).to_bytes(32, "little")
    for name, y in (("y = p", P), ("y = p + 1", P + 1)):
        for sign in (0, 1):
            yield f"{name}, sign {sign}", (y | sign << 255).to_bytes(32, "little")


def cases() -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """(name, key, message, signature)."""
    for i, (key, message, signature) in enumerate(RFC8032, 1):
        yield f"RFC 8032, test {i}", *map(bytes.fromhex, (key, message, signature))
    secret, nonce = number("key"), number("nonce")
    public, good = signed(secret, nonce, MESSAGE)
    yield "valid", public, MESSAGE, good
    yield "valid, of a long message", *signed_long(secret, nonce)
    yield "another message", public, bytes(32), good
    yield "another key", signed(secret + 1, nonce, MESSAGE)[0], MESSAGE, good
    s = int.from_bytes(good[32:], "little")
    for times in (1, 2, 7, 15):
        malleable = (s + times * Q) % (1 << 256)
        yield f"S + {times}q", public, MESSAGE, good[:32] + malleable.to_bytes(32, "little")
    yield "S = q", public, MESSAGE, good[:32] + Q.to_bytes(32, "little")
    yield "S with its highest bit set", public, MESSAGE, good[:63] + bytes([good[63] | 0x80])
    yield "S of ones", public, MESSAGE, good[:32] + b"\xff" * 32
    yield (
        "R with its sign changed",
        public,
        MESSAGE,
        good[:31] + bytes([good[31] ^ 128]) + good[32:],
    )
    yield "A with its sign changed", public[:31] + bytes([public[31] ^ 128]), MESSAGE, good
    for name, point in small_order():
        yield f"A of {name}, R the same, S = 0", point, MESSAGE, point + bytes(32)
        yield f"A of {name}, R of order 1, S = 0", point, MESSAGE, bytes([1]) + bytes(63)
        yield f"A of {name}, R = S·B", point, MESSAGE, forged(point, nonce)
        yield f"R of {name}", public, MESSAGE, with_r(secret, public, point)
    yield from mixed_order(secret)
    for bad in ((2).to_bytes(32, "little"), (P + 3).to_bytes(32, "little"), b"\xff" * 32):
        yield f"A is no point: {bad[:2].hex()}…", bad, MESSAGE, good
        yield f"R is no point: {bad[:2].hex()}…", public, MESSAGE, bad + good[32:]
    yield "a key of zeros, a signature of zeros", bytes(32), MESSAGE, bytes(64)
    yield "a signature of zeros", public, MESSAGE, bytes(64)
    for size in (0, 31, 33):
        yield f"a key of {size} bytes", (public + b"\0")[:size], MESSAGE, good
    for size in (0, 32, 63, 65):
        yield f"a signature of {size} bytes", public, MESSAGE, (good + b"\0")[:size]


def signed_long(secret: int, nonce: int) -> tuple[bytes, bytes, bytes]:
    message = bytes(range(200))
    public, signature = signed(secret, nonce, message)
    return public, message, signature


def forged(point: bytes, s: int) -> bytes:
    """Valid for whoever takes a key of small order, if h happens to be a multiple of its order."""
    for k in range(64):
        r = to_bytes(mul(s + k, BASE))
        if challenge(r, point, MESSAGE) % Q % 8 == 0:
            break
    return r + ((s + k) % Q).to_bytes(32, "little")


def with_r(secret: int, public: bytes, r: bytes) -> bytes:
    """R of small order, which contributes nothing but its own value: S = h·a."""
    return r + (challenge(r, public, MESSAGE) * secret % Q).to_bytes(32, "little")


def mixed_order(secret: int) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """Points with a part of small order. Verifiers that multiply by the cofactor accept all of
    these; without it, A's part counts (h mod q) times, and R's once."""
    wanted = {"h mod q = 0 mod 8", "h = 0 mod 8, h mod q is not", "neither"}
    for k in range(1, 400):
        public, signature = signed(secret, number(f"nonce {k}"), MESSAGE, key_twist=TORSION)
        h = challenge(signature[:32], public, MESSAGE)
        name = "h mod q = 0 mod 8" if h % Q % 8 == 0 else "neither"
        if h % 8 == 0 and h % Q % 8:
            name = "h = 0 mod 8, h mod q is not"
        if name in wanted:
            wanted.remove(name)
            yield f"A of mixed order, {name}", public, MESSAGE, signature
    for k in (1, 4):
        public, signature = signed(secret, number("r"), MESSAGE, twist=mul(k, TORSION))
        yield f"R of mixed order, {k} times the generator", public, MESSAGE, signature
    for k in range(1, 400):
        public, signature = signed(secret, number(f"both {k}"), MESSAGE, TORSION, neg(TORSION))
        h = challenge(signature[:32], public, MESSAGE) % Q
        if h % 8 == 1:  # S·B - h·A = R, less the torsion that both have
            yield "A and R of mixed order, in balance", public, MESSAGE, signature
            return


def signatures() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "public_key": public.hex(),
            "message": message.hex(),
            "signature": signature.hex(),
            "valid": is_valid(public, message, signature),
        }
        for name, public, message, signature in cases()
    ]


def refused_proofs() -> list[dict[str, str]]:
    """VRF keys and proofs that nobody may take, under a good key and input otherwise."""
    seed, alpha = hashlib.sha256(b"a VRF key").digest(), b"an input"
    good = vrf.prove(seed, alpha)
    x, _ = vrf.secret(seed)
    public = to_bytes(mul(x, BASE))
    s = int.from_bytes(good[48:], "little")
    found = [(f"key of {name}", point, good) for name, point in small_order()]
    found += [(f"Gamma of {name}", public, point + good[32:]) for name, point in small_order()]
    gamma: Point = to_point(good[:32])  # type: ignore[assignment]
    twisted = to_bytes(add(gamma, TORSION))
    found += [
        ("key of mixed order", to_bytes(add(mul(x, BASE), TORSION)), good),
        ("Gamma of mixed order", public, twisted + good[32:]),
        ("key that is no point", (2).to_bytes(32, "little"), good),
        ("Gamma that is no point", public, (2).to_bytes(32, "little") + good[32:]),
        ("s + q", public, good[:48] + (s + Q).to_bytes(32, "little")),
        ("s = 0", public, good[:48] + bytes(32)),
        ("c = 0", public, good[:32] + bytes(16) + good[48:]),
        ("zeros", public, bytes(80)),
        ("key of zeros, proof of zeros", bytes(32), bytes(80)),
        ("a byte too few", public, good[:-1]),
        ("a byte too many", public, good + b"\0"),
        ("another key", to_bytes(mul(x + 1, BASE)), good),
    ]
    return [
        {"why": why, "public": key.hex(), "alpha": alpha.hex(), "proof": proof.hex()}
        for why, key, proof in found
    ]


def main() -> None:
    SIGNATURES.parent.mkdir(parents=True, exist_ok=True)
    SIGNATURES.write_text(json.dumps(signatures(), indent=1, ensure_ascii=False) + "\n")
    REFUSED_PROOFS.write_text(json.dumps(refused_proofs(), indent=1) + "\n")


if __name__ == "__main__":
    main()
