"""Certificates of links: whose they are, and everything that makes one worthless."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey

from chain.address import peer_id_of
from chain.errors import VerifyError
from node.net.links import certificate as tls
from node.net.links import limits

CHAIN, SEED = bytes(range(32)), bytes([1]) * 32
NAME = peer_id_of(bytes(SigningKey(SEED).verify_key))
NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEY = ec.derive_private_key(12345, ec.SECP256R1())
# Points of order 1, 2, 4 and 8: under them any message verifies where nobody checks.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
]


def spki(key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def made(extension: bytes | None = None, now: datetime = NOW) -> bytes:
    extension = tls.signed_key(SEED, spki()) if extension is None else extension
    certificate = tls.make_certificate(CHAIN, KEY.public_key(), extension, now)
    return certificate.public_bytes(Encoding.DER)


def built(public: object, *values: bytes) -> bytes:
    """A certificate with any key and any number of extensions of this kind."""
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(public).not_valid_before(NOW)
    builder = builder.not_valid_after(NOW + timedelta(days=1))
    for value in values:
        extension = x509.UnrecognizedExtension(tls.EXTENSION, value)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(tls.authority_key(CHAIN), None).public_bytes(Encoding.DER)


def test_a_certificate_speaks_for_its_node_key():
    assert tls.peer_of(made(), NOW) == NAME
    assert len(made()) < 600


def test_it_is_valid_for_a_day_and_an_hour_of_wrong_clocks():
    day, hour = timedelta(seconds=limits.CERTIFICATE_S), timedelta(seconds=limits.SKEW_S)
    for moment in (NOW - hour, NOW + day):
        assert tls.peer_of(made(), moment) == NAME
    for moment in (NOW - hour - timedelta(seconds=1), NOW + day + timedelta(seconds=1)):
        with pytest.raises(VerifyError, match="not valid now"):
            tls.peer_of(made(), moment)


def test_an_extension_for_another_key_is_refused():
    """A certificate of somebody else, with its extension copied onto a key of one's own."""
    other = ec.derive_private_key(54321, ec.SECP256R1())
    with pytest.raises(VerifyError, match="has not signed"):
        tls.peer_of(made(tls.signed_key(SEED, spki(other))), NOW)


@pytest.mark.parametrize("place", [10, 40, 50, 105])
def test_any_bit_of_key_and_signature_counts(place):
    value = bytearray(tls.signed_key(SEED, spki()))
    value[place] ^= 1
    with pytest.raises(VerifyError):
        tls.peer_of(made(bytes(value)), NOW)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_node_keys_of_small_order_are_refused(point):
    good = tls.signed_key(SEED, spki())
    forged = good[:8] + bytes.fromhex(point) + good[40:42] + bytes.fromhex(point) + bytes(32)
    assert len(forged) == len(good)
    with pytest.raises(VerifyError, match="has not signed"):
        tls.peer_of(made(forged), NOW)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x30",
        bytes(106),
        tls.signed_key(SEED, spki()) + b"\0",
        tls.signed_key(SEED, spki())[:-1],
        b"\x30\x81" + tls.signed_key(SEED, spki())[1:],  # the length in a longer form
        tls.signed_key(SEED, spki()).replace(b"\x08\x01\x12\x20", b"\x08\x02\x12\x20"),  # secp256k1
    ],
    ids=["empty", "cut", "zeros", "longer", "shorter", "not DER", "another kind of key"],
)
def test_other_forms_of_the_extension_are_refused(value):
    with pytest.raises(VerifyError, match="without an Ed25519 node key"):
        tls.peer_of(made(value), NOW)


def test_a_certificate_without_the_extension_is_refused():
    public, value = KEY.public_key(), tls.signed_key(SEED, spki())
    assert tls.peer_of(built(public, value), NOW) == NAME
    with pytest.raises(VerifyError, match="not a node's certificate"):
        tls.peer_of(built(public), NOW)


@pytest.mark.parametrize(
    "public",
    [
        ec.derive_private_key(7, ec.SECP384R1()).public_key(),
        ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_odd_keys_are_refused(public):
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(VerifyError, match="not ECDSA on P-256"):
        tls.peer_of(built(public, tls.signed_key(SEED, der)), NOW)


def test_bytes_that_are_no_certificate_are_refused():
    good = made()
    for bad in (b"", b"\x30", good[:-1], good + b"\0", bytes(500), bytes(10_000)):
        with pytest.raises(VerifyError):
            tls.peer_of(bad, NOW)


def test_what_the_parser_refuses_in_its_own_ways_is_refused():
    """Not all of its errors are ValueErrors, and the sender chooses which."""
    good = made()
    version = good.index(bytes.fromhex("a003020102")) + 4
    of_no_version = good[:version] + b"\x03" + good[version + 1 :]
    certificate = x509.load_der_x509_certificate(good)
    builder = x509.CertificateBuilder().subject_name(certificate.subject)
    builder = builder.issuer_name(certificate.issuer).public_key(KEY.public_key()).serial_number(1)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    x400_name = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, bytes.fromhex("3004a3020500")
    )
    builder = builder.add_extension(x400_name, critical=False)
    of_odd_name = builder.sign(tls.authority_key(CHAIN), None).public_bytes(Encoding.DER)
    for bad in (of_no_version, of_odd_name):
        with pytest.raises(VerifyError, match="not a node's certificate"):
            tls.peer_of(bad, NOW)


# --- the TLS handshake, in memory -----------------------------------------------------------


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ...]:
    """Both ends once they are done. Raises ssl.SSLError."""
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(one, two, server_side=False),
        server.wrap_bio(two, one, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:
        end.do_handshake()
    return ends


def contexts(seed: bytes = SEED, chain: bytes = CHAIN) -> tls.Contexts:
    return tls.make_contexts(seed, chain, datetime.now(UTC))


def test_two_nodes_know_each_other_after_the_handshake():
    one, two = contexts(), contexts(bytes([2]) * 32)
    client, server = handshake(one.client, two.server)
    names = []
    for end in (client, server):
        assert end.version() == "TLSv1.3"
        assert end.selected_alpn_protocol() == tls.ALPN
        assert not end.session_reused
        names.append(tls.peer_of(end.getpeercert(binary_form=True), datetime.now(UTC)))
    assert names == [peer_id_of(bytes(SigningKey(bytes([2]) * 32).verify_key)), NAME]


def test_nodes_of_another_network_are_refused_by_tls():
    with pytest.raises(ssl.SSLError, match=r"verify failed|unknown ca"):
        handshake(contexts().client, contexts(chain=bytes(32)).server)


def test_a_client_without_a_certificate_is_refused():
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        handshake(bare, contexts().server)


def test_older_versions_of_tls_are_refused():
    old = contexts().client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(old, contexts().server)


def test_expired_certificates_are_refused_by_tls():
    past = datetime.now(UTC) - timedelta(seconds=limits.CERTIFICATE_S + 3600)
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(tls.make_contexts(SEED, CHAIN, past).client, contexts().server)


def test_each_start_has_a_fresh_certificate_that_is_renewed_in_time():
    one, two = (
        handshake(contexts().client, contexts().server)[1].getpeercert(binary_form=True)
        for _ in range(2)
    )
    assert one != two
    made_at = datetime.now(UTC)
    found = tls.make_contexts(SEED, CHAIN, made_at)
    assert found.renew_at - made_at == timedelta(seconds=limits.CERTIFICATE_S / 2)
