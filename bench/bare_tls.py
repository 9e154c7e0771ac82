"""The floor of a transfer: one TLS 1.3 connection of asyncio, a preallocated buffer, no framing."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

PIECE = 256 * 1024  # written at a time
BUFFER = 48 * 1024 * 1024  # the receiver's: what a node has for tiles


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's), with a certificate that is made on first use."""
    path = directory / "bare.pem"
    if not path.exists():
        path.write_bytes(certificate())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(path)
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return server, client


def certificate() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, None)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + made.public_bytes(pem)


class BareSender(asyncio.Protocol):
    """Sends so many bytes once it is told to go."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._data = memoryview(bytearray(os.urandom(size)))  # as tiles come from all over memory
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._send()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._send()

    def _send(self) -> None:
        while self._left and not self._is_paused:
            count = min(self._left, PIECE)
            self._transport.write(self._data[self._left - count : self._left])
            self._left -= count


class BareReceiver(asyncio.BufferedProtocol):
    """Takes so many bytes; `done` gets the time of the last. With `hashes`, each 256 KiB is hashed
    once it is there, as whoever verifies must."""

    def __init__(self, size: int, hashes: bool, done: asyncio.Future[float]) -> None:
        self._left, self._hashes, self._done = size, hashes, done
        self._buffer, self._at = memoryview(bytearray(BUFFER)), 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._at :]

    def buffer_updated(self, count: int) -> None:
        if self._hashes:
            first, end = self._at // PIECE, (self._at + count) // PIECE
            for piece in range(first, end):
                blake3(self._buffer[piece * PIECE : (piece + 1) * PIECE]).digest()
        self._at = (self._at + count) % BUFFER
        self._left -= count
        if self._left <= 0 and not self._done.done():
            self._done.set_result(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionResetError("the sender went away"))
