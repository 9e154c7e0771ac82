"""ECVRF-EDWARDS25519-SHA512-TAI of RFC 9381, on libsodium's group operations (docs/spec/vrf.md).

The holder of a key computes, for any input `alpha`, one output of 64 bytes that is random to all
others, and a proof of 80 bytes that it is the right one. Verification is stricter than the RFC
asks: key and Gamma must be canonical and of prime order, c and s not zero, s below the group
order. An honest prover's proofs all pass, and a proof has no second encoding.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import CryptoError

from chain.errors import VerifyError, invariant

PROOF_BYTES = 80  # Gamma (32), c (16), s (32)
OUTPUT_BYTES = 64
SUITE = b"\x03"

_PRIME = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_IDENTITY = b"\x01" + bytes(31)
_MAX_TRIES = 256  # ctr is one byte; each try fails with probability 1/2


def prove(seed: bytes, alpha: bytes) -> bytes:
    """The proof pi for `alpha` by the RFC 8032 private key `seed` (RFC 9381, 5.1)."""
    invariant(len(seed) == 32, "a VRF key seed has 32 bytes")
    expanded = hashlib.sha512(seed).digest()
    secret = _reduce(_clamp(expanded[:32]))
    public = crypto_scalarmult_ed25519_base_noclamp(secret)
    point = _encode_to_curve(public, alpha)
    gamma = crypto_scalarmult_ed25519_noclamp(secret, point)
    nonce = _reduce(hashlib.sha512(expanded[32:] + point).digest())
    challenge = _challenge(
        public,
        point,
        gamma,
        crypto_scalarmult_ed25519_base_noclamp(nonce),
        crypto_scalarmult_ed25519_noclamp(nonce, point),
    )
    product = crypto_core_ed25519_scalar_mul(challenge + bytes(16), secret)
    return gamma + challenge + crypto_core_ed25519_scalar_add(nonce, product)


def verify(public: bytes, alpha: bytes, proof: bytes) -> bytes | None:
    """The output beta if `proof` shows it for `alpha` under the key `public`, else None.

    Any bytes may be given: what is no key or no proof is simply not valid (RFC 9381, 5.3).
    """
    parts = _parse(proof)
    if parts is None or not _is_key(public):
        return None
    gamma, challenge, s = parts
    try:
        point = _encode_to_curve(public, alpha)
        c = challenge + bytes(16)
        u = crypto_core_ed25519_sub(
            crypto_scalarmult_ed25519_base_noclamp(s),
            crypto_scalarmult_ed25519_noclamp(c, public),
        )
        v = crypto_core_ed25519_sub(
            crypto_scalarmult_ed25519_noclamp(s, point),
            crypto_scalarmult_ed25519_noclamp(c, gamma),
        )
    except CryptoError:  # c or s is zero
        return None
    if _challenge(public, point, gamma, u, v) != challenge:
        return None
    return _hash_gamma(gamma)


def output(proof: bytes) -> bytes:
    """The output beta that `proof` claims, unverified (RFC 9381, 5.2); VerifyError if malformed."""
    parts = _parse(proof)
    if parts is None:
        raise VerifyError("not a VRF proof: expected a canonical point and a scalar below q")
    return _hash_gamma(parts[0])


def _parse(proof: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(Gamma, c, s), checked for their canonical form."""
    if len(proof) != PROOF_BYTES:
        return None
    gamma, challenge, s = proof[:32], proof[32:48], proof[48:]
    if int.from_bytes(s, "little") >= _ORDER or not _is_point(gamma):
        return None
    return gamma, challenge, s


def _is_point(data: bytes) -> bool:
    """Canonical, on the curve, in the prime-order subgroup and not the identity."""
    return len(data) == 32 and crypto_core_ed25519_is_valid_point(data)


@lru_cache(maxsize=1024)
def _is_key(public: bytes) -> bool:
    """`_is_point`, remembered: the keys of an epoch's validators come again with every block."""
    return _is_point(public)


def _encode_to_curve(salt: bytes, alpha: bytes) -> bytes:
    """Try-and-increment (RFC 9381, 5.4.1.1) to a point of prime order."""
    for counter in range(_MAX_TRIES):
        attempt = hashlib.sha512(SUITE + b"\x01" + salt + alpha + bytes([counter, 0])).digest()
        candidate = attempt[:32]
        if not _is_canonical(candidate):
            continue
        try:
            for _ in range(3):  # times the cofactor 8; refuses what is not on the curve
                candidate = crypto_core_ed25519_add(candidate, candidate)
        except CryptoError:
            continue
        if candidate != _IDENTITY:
            return candidate
    raise VerifyError("no curve point within 256 tries")  # once in 2**256 inputs


def _is_canonical(data: bytes) -> bool:
    """Whether RFC 8032 decodes these bytes, given that a point has this y; libsodium is laxer."""
    y = int.from_bytes(data, "little") & (1 << 255) - 1
    signed = data[31] >> 7
    return y < _PRIME and not (signed and y in (1, _PRIME - 1))


def _challenge(*points: bytes) -> bytes:
    return hashlib.sha512(SUITE + b"\x02" + b"".join(points) + b"\x00").digest()[:16]


def _hash_gamma(gamma: bytes) -> bytes:
    for _ in range(3):
        gamma = crypto_core_ed25519_add(gamma, gamma)
    return hashlib.sha512(SUITE + b"\x03" + gamma + b"\x00").digest()


def _clamp(half: bytes) -> bytes:
    return bytes([half[0] & 248, *half[1:31], half[31] & 127 | 64])


def _reduce(scalar: bytes) -> bytes:
    """Modulo the group order; points here are of prime order, so the product is the same."""
    return crypto_core_ed25519_scalar_reduce(scalar.ljust(64, b"\x00"))
