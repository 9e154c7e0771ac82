"""Signatures: what libsodium's strict rules accept, and what other verifiers wrongly do."""

from __future__ import annotations

import pytest
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from chain.crypto import verify
from chain.hashes import TX_SIGN, Hash32
from chain.types import PubKey, Signature

ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19
DIGEST = TX_SIGN.hash(b"a digest")
SMALL_ORDER = [  # all encodings of points of order 1, 2, 4 and 8
    bytes(32),
    bytes([1]) + bytes(31),
    (PRIME - 1).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    PRIME.to_bytes(32, "little"),
    (PRIME + 1).to_bytes(32, "little"),
]


def _signed() -> tuple[PubKey, Signature]:
    public, secret = crypto_sign_seed_keypair(bytes(range(32)))
    return PubKey(public), Signature(crypto_sign(DIGEST, secret)[:64])


def test_a_signature_holds_for_its_key_and_digest_only() -> None:
    public, signature = _signed()
    other, _ = crypto_sign_seed_keypair(bytes(32))
    assert verify(public, DIGEST, signature)
    assert not verify(public, TX_SIGN.hash(b"another"), signature)
    assert not verify(PubKey(other), DIGEST, signature)
    for i in range(64):
        changed = bytearray(signature)
        changed[i] ^= 1
        assert not verify(public, DIGEST, Signature(bytes(changed)))


def test_s_must_be_below_the_group_order() -> None:
    public, signature = _signed()
    s = int.from_bytes(signature[32:], "little")
    malleable = signature[:32] + (s + ORDER).to_bytes(32, "little")
    assert not verify(public, DIGEST, Signature(malleable))


@pytest.mark.parametrize("sign_bit", [0, 0x80])
@pytest.mark.parametrize("point", SMALL_ORDER)
def test_small_order_and_non_canonical_points_are_refused(point: bytes, sign_bit: int) -> None:
    """With A = R of small order and S = 0 OpenSSL accepts some of these for any message."""
    public, signature = _signed()
    bad = point[:31] + bytes([point[31] | sign_bit])
    for digest in (DIGEST, Hash32(bytes(32))):
        assert not verify(PubKey(bad), digest, Signature(bad + bytes(32)))
        assert not verify(PubKey(bad), digest, signature)
    assert not verify(public, DIGEST, Signature(bad + signature[32:]))


def test_wrong_lengths_are_no_signatures() -> None:
    public, signature = _signed()
    for key in (b"", public[:31], public + b"\x00"):
        assert not verify(PubKey(key), DIGEST, signature)
    for sig in (b"", signature[:63], signature + b"\x00"):
        assert not verify(public, DIGEST, Signature(sig))
