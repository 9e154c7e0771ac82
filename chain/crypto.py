"""The one verdict on a protocol signature (docs/spec/wallet.md).

Every node must agree on which signatures are valid, or the chain forks. Verifiers differ on
small-order keys and non-canonical encodings (OpenSSL and WebCrypto accept some of them), so only
libsodium's strict rules count: S below the group order, key and R canonical and of large order.
"""

from __future__ import annotations

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

from chain.types import PubKey, Signature

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def verify(public_key: PubKey, message: bytes, signature: Signature) -> bool:
    """Whether `signature` is Ed25519 by `public_key` over `message`, which in the protocol is a
    digest (RFC 8032, libsodium's rules; tests/vectors/signatures).

    Anything of a wrong length is simply not a signature: peers' bytes never raise here.
    """
    # The binding reads 32 bytes at `public_key` unchecked, so the lengths come first.
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


def is_prime_order_point(key: bytes) -> bool:
    """Whether 32 bytes are a key that a VRF proof can be verified with: canonical, on the curve, in
    the prime-order subgroup and not the identity (docs/spec/vrf.md)."""
    return len(key) == PUBLIC_KEY_BYTES and crypto_core_ed25519_is_valid_point(key)
