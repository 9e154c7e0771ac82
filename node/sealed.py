"""A delta's payload as it travels: encrypted under a key that only the revealed salt gives
(docs/spec/rounds.md, "Blob").

    key  = DELTA_KEY(salt)          32 bytes
    blob = XChaCha20-Poly1305(key, nonce of 24 zero bytes, no associated data, payload)

A salt is drawn afresh for each delta, so no key ever meets a second message and the nonce may
be constant.
"""

from __future__ import annotations

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from chain import limits
from chain.errors import InputError, VerifyError
from chain.hashes import DELTA_KEY

_NONCE = bytes(24)
SALT_BYTES = 32


def seal(payload: bytes, salt: bytes) -> bytes:
    """The blob of a payload, 16 bytes longer. `salt`: 32 fresh random bytes."""
    if len(payload) > limits.MAX_PAYLOAD_BYTES:
        raise InputError(
            f"a payload of {len(payload)} bytes is too large; a blob holds "
            f"{limits.MAX_PAYLOAD_BYTES}: lower the density or train fewer shards"
        )
    key = DELTA_KEY.hash(salt)
    blob: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(payload, None, _NONCE, key)
    return blob


def unseal(blob: bytes, salt: bytes) -> bytes:
    """The payload, or VerifyError if the blob was not sealed with this salt."""
    try:
        payload: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(
            blob, None, _NONCE, DELTA_KEY.hash(salt)
        )
    except (CryptoError, ValueError):
        raise VerifyError("the blob does not open with the revealed salt") from None
    return payload
