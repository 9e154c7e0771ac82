"""RFC 9381's ECVRF-EDWARDS25519-SHA512-TAI in plain integers, as the RFC writes it.

Shares no code with `consensus.vrf`. Run it to write the vectors: `python -m tests.reference.vrf`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "vectors" / "vrf" / "vrf.json"
P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SUITE = b"\x03"
Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    x3 = (x1 * y2 + x2 * y1) * pow(1 + t, -1, P)
    y3 = (y1 * y2 + x1 * x2) * pow(1 - t, -1, P)
    return x3 % P, y3 % P


def mul(n: int, a: Point) -> Point:
    result = IDENTITY
    while n:
        if n & 1:
            result = add(result, a)
        a, n = add(a, a), n >> 1
    return result


def neg(a: Point) -> Point:
    return -a[0] % P, a[1]


def to_bytes(a: Point) -> bytes:
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


def to_point(data: bytes) -> Point | None:
    """RFC 8032, 5.1.3."""
    n = int.from_bytes(data, "little")
    sign, y = n >> 255, n & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return (P - x if x & 1 != sign else x), y


BASE_Y = 4 * pow(5, -1, P) % P
_base = to_point(BASE_Y.to_bytes(32, "little"))
assert _base is not None
BASE: Point = _base


def secret(seed: bytes) -> tuple[int, bytes]:
    h = hashlib.sha512(seed).digest()
    n = int.from_bytes(h[:32], "little")
    return n & ~7 & (1 << 255) - 1 | 1 << 254, h[32:]


def encode_to_curve(public: bytes, alpha: bytes) -> tuple[Point, int]:
    ctr = 0
    while True:
        h = hashlib.sha512(SUITE + b"\x01" + public + alpha + bytes([ctr]) + b"\x00").digest()
        point = to_point(h[:32])
        if point is not None and mul(8, point) != IDENTITY:
            return mul(8, point), ctr
        ctr += 1


def challenge(*points: Point) -> int:
    data = SUITE + b"\x02" + b"".join(map(to_bytes, points)) + b"\x00"
    return int.from_bytes(hashlib.sha512(data).digest()[:16], "little")


def prove(seed: bytes, alpha: bytes) -> bytes:
    x, prefix = secret(seed)
    y = mul(x, BASE)
    h, _ = encode_to_curve(to_bytes(y), alpha)
    gamma = mul(x, h)
    k = int.from_bytes(hashlib.sha512(prefix + to_bytes(h)).digest(), "little") % Q
    c = challenge(y, h, gamma, mul(k, BASE), mul(k, h))
    s = (k + c * x) % Q
    return to_bytes(gamma) + c.to_bytes(16, "little") + s.to_bytes(32, "little")


def output(proof: bytes) -> bytes:
    gamma = to_point(proof[:32])
    assert gamma is not None
    return hashlib.sha512(SUITE + b"\x03" + to_bytes(mul(8, gamma)) + b"\x00").digest()


def vectors() -> list[dict[str, str | int]]:
    cases: list[dict[str, str | int]] = []
    for i in range(12):
        seed = hashlib.sha256(b"vrf vector %d" % i).digest()
        alpha = hashlib.sha512(seed).digest()[: 7 * i]
        public = to_bytes(mul(secret(seed)[0], BASE))
        proof = prove(seed, alpha)
        cases.append(
            {
                "seed": seed.hex(),
                "public": public.hex(),
                "alpha": alpha.hex(),
                "tries": encode_to_curve(public, alpha)[1] + 1,
                "proof": proof.hex(),
                "output": output(proof).hex(),
            }
        )
    return cases


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
