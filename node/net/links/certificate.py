"""Who is at the other end of a TLS connection: the libp2p certificate extension, both ways.

Every certificate is signed by the network's link authority, whose private key anyone can derive
from the chain id. So Python's chain check, which cannot be replaced, passes for every node of
this network and for no other; it says nothing about who. That says the extension: the node key
signs the key of the certificate (docs/spec/links.md; libp2p specs, tls/tls.md).
"""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey

from chain.address import peer_id_of
from chain.crypto import verify
from chain.errors import VerifyError
from chain.hashes import LINK_AUTHORITY
from chain.types import PubKey, Signature
from node.net.links import limits

ALPN = "blyan/link/2"
EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNED = b"libp2p-tls-handshake:"  # before the DER of the certificate's SubjectPublicKeyInfo
# SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }, DER: with an Ed25519
# key (protobuf, 36 bytes) and its signature there is exactly one form.
_KEY_HEAD = bytes.fromhex("3068042408011220")
_SIGNATURE_HEAD = bytes.fromhex("0440")
_ALWAYS = (datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
MAX_CERTIFICATE_BYTES = 4096  # honest ones have under 600
_UNREADABLE = (  # what the parser makes of hostile DER; not all of them are ValueErrors
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
)


def authority_key(chain_id: bytes) -> ed25519.Ed25519PrivateKey:
    """The key that signs every certificate of a network: public by design."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(LINK_AUTHORITY.hash(chain_id))


def _authority_name(chain_id: bytes) -> x509.Name:
    name = f"blyan links {chain_id.hex()[:32]}"
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def authority_certificate(chain_id: bytes) -> x509.Certificate:
    """What a node trusts to have signed: made by each node for itself, never sent."""
    key, name = authority_key(chain_id), _authority_name(chain_id)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_ALWAYS[0])
        .not_valid_after(_ALWAYS[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return builder.sign(key, None)


def signed_key(seed: bytes, public_key: bytes) -> bytes:
    """The extension's value: the node key of `seed` answers for `public_key` (DER)."""
    key = SigningKey(seed)
    signature = key.sign(SIGNED + public_key).signature
    return _KEY_HEAD + bytes(key.verify_key) + _SIGNATURE_HEAD + signature


def make_certificate(
    chain_id: bytes, public_key: ec.EllipticCurvePublicKey, extension: bytes, now: datetime
) -> x509.Certificate:
    """A certificate of this network for `public_key`, valid for a day from `now`."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "blyan node")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(_authority_name(chain_id))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=limits.SKEW_S))
        .not_valid_after(now + timedelta(seconds=limits.CERTIFICATE_S))
        .add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
    )
    return builder.sign(authority_key(chain_id), None)


def peer_of(der: bytes, now: datetime) -> str:
    """The peer id that a certificate speaks for. Raises VerifyError.

    That the sender holds the certificate's key, and that the network's authority signed it, TLS
    has shown already.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise VerifyError(f"a certificate of {len(der)} bytes, over {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        extension = certificate.extensions.get_extension_for_oid(EXTENSION).value
        valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    except _UNREADABLE as error:
        raise VerifyError(f"not a node's certificate: {error}") from None
    if not valid:
        raise VerifyError("a certificate that is not valid now: is one of the clocks wrong?")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VerifyError("a certificate whose key is not ECDSA on P-256")
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise VerifyError("a certificate whose node key is of another form")
    public_key = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _verify_extension(extension.value, public_key)


def _verify_extension(value: bytes, public_key: bytes) -> str:
    node_key = PubKey(value[len(_KEY_HEAD) : len(_KEY_HEAD) + 32])
    signature = Signature(value[-64:])
    if value != _KEY_HEAD + node_key + _SIGNATURE_HEAD + signature:
        raise VerifyError("a certificate without an Ed25519 node key and its signature")
    if not verify(node_key, SIGNED + public_key, signature):
        raise VerifyError("a certificate that its node key has not signed")
    return peer_id_of(node_key)


# --- TLS ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contexts:
    """TLS settings of both ends, with one certificate."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    renew_at: datetime


def make_contexts(seed: bytes, chain_id: bytes, now: datetime) -> Contexts:
    """Contexts with a fresh certificate for the node key of `seed`. Takes some 2 ms."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certificate = make_certificate(chain_id, public, signed_key(seed, spki), now)
    authority = authority_certificate(chain_id).public_bytes(Encoding.PEM).decode()
    return Contexts(
        make_context(key, certificate, authority, server_side=True),
        make_context(key, certificate, authority, server_side=False),
        now + timedelta(seconds=limits.CERTIFICATE_S / 2),
    )


def make_context(
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    authority: str,
    *,
    server_side: bool,
) -> ssl.SSLContext:
    """TLS 1.3 alone, no session resumption (it would skip the certificate), both sides shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the peer id is the name
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if server_side:
        context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cadata=authority)
    _load(context, key, certificate)
    return context


def _load(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    """The module reads keys from files only: a file that nobody else may read, under a password
    that is nowhere else, gone at once."""
    password = os.urandom(16).hex().encode()
    pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.pem"
        path.touch(mode=0o600)
        path.write_bytes(pem)
        context.load_cert_chain(path, password=password)
