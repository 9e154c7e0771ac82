"""Frames and certificates of links, straight from docs/spec/links.md.

Shares no code with `node.net.links`. Run it to write the vectors:
`python -m tests.reference.links_ref`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

VECTORS = Path(__file__).parent.parent / "vectors" / "links" / "frames.json"
KINDS = {
    "open": 1, "answer": 2, "data": 3, "credit": 4, "cancel": 5, "ping": 6, "pong": 7, "bye": 8,
    "message": 9,
}  # fmt: skip


def frame(stream: int, kind: int, body: bytes) -> str:
    head = stream.to_bytes(4, "big") + kind.to_bytes(1, "big") + len(body).to_bytes(3, "big")
    return (head + body).hex()


def body_of(kind: str, fields: dict[str, Any]) -> bytes:
    if kind == "open":
        name = fields["protocol"].encode()
        numbers = fields["credit"].to_bytes(4, "big") + fields["size"].to_bytes(4, "big")
        return bytes([fields["priority"]]) + numbers + bytes([len(name)]) + name
    if kind == "answer":
        return bytes([fields["status"]]) + fields["size"].to_bytes(4, "big")
    if kind == "credit":
        return int(fields["count"]).to_bytes(4, "big")
    return bytes.fromhex(fields.get("body", ""))


GOOD: list[dict[str, Any]] = [
    {"stream": 1, "kind": "open", "priority": 0, "credit": 2097152, "size": 3, "protocol": "/v/1"},
    {"stream": 2, "kind": "open", "priority": 2, "credit": 0, "size": 0, "protocol": "x" * 128},
    {"stream": 2**32 - 1, "kind": "open", "priority": 1, "credit": 2**32 - 1, "size": 2**32 - 1,
     "protocol": "/blyan/tile/2"},
    {"stream": 1, "kind": "answer", "status": 0, "size": 4194304},
    {"stream": 3, "kind": "answer", "status": 1, "size": 12},
    {"stream": 3, "kind": "answer", "status": 2, "size": 0},
    {"stream": 1, "kind": "data", "body": "00"},
    {"stream": 4, "kind": "data", "body": "a5" * 300},
    {"stream": 1, "kind": "credit", "count": 1},
    {"stream": 1, "kind": "credit", "count": 2**32 - 1},
    {"stream": 7, "kind": "cancel"},
    {"stream": 0, "kind": "ping", "body": "0001020304050607"},
    {"stream": 0, "kind": "pong", "body": "ffffffffffffffff"},
    {"stream": 0, "kind": "bye"},
    {"stream": 0, "kind": "message", "body": "00"},
    {"stream": 0, "kind": "message", "body": "00c0ffee"},
]  # fmt: skip

BAD: list[tuple[str, str]] = [
    ("kind 0", frame(1, 0, b"")),
    ("kind 10", frame(1, 10, b"")),
    ("kind 255", frame(1, 255, b"")),
    ("a message on a stream", frame(1, 9, b"\0x")),
    ("a message without its first byte", frame(0, 9, b"")),
    ("a ping on a stream", frame(1, 6, bytes(8))),
    ("a ping without its nonce", frame(0, 6, b"")),
    ("a pong of nine bytes", frame(0, 7, bytes(9))),
    ("content on no stream", frame(0, 3, b"x")),
    ("content of no bytes", frame(1, 3, b"")),
    ("content over a frame, announced", (1).to_bytes(4, "big").hex() + "0300fff9"),
    ("16 MiB announced", (1).to_bytes(4, "big").hex() + "03ffffff"),
    ("a cancel with a body", frame(1, 5, b"x")),
    ("a bye on a stream", frame(1, 8, b"")),
    ("credit of three bytes", frame(1, 4, bytes(3))),
    ("no credit", frame(1, 4, bytes(4))),
    ("an answer of unknown status", frame(1, 2, bytes([3]) + bytes(4))),
    ("a short answer", frame(1, 2, bytes(4))),
    ("an opening without a name", frame(1, 1, bytes(10))),
    ("an opening of unknown priority", frame(1, 1, bytes([3]) + bytes(8) + b"\x01x")),
    ("a name longer than it says", frame(1, 1, bytes(9) + b"\x01xy")),
    ("a name shorter than it says", frame(1, 1, bytes(9) + b"\x02x")),
    ("a name of 129 bytes", frame(1, 1, bytes(9) + b"\x81" + b"x" * 129)),
    ("a name that is no text", frame(1, 1, bytes(9) + b"\x01\x07")),
    ("a name that is not ASCII", frame(1, 1, bytes(9) + b"\x02\xc3\xa9")),
]


def node_key(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def extension(seed: bytes, spki: bytes) -> str:
    """SignedKey in DER: SEQUENCE of two OCTET STRINGs."""
    key = node_key(seed)
    protobuf = bytes([0x08, 0x01, 0x12, 32]) + public(key)
    signature = key.sign(b"libp2p-tls-handshake:" + spki)
    content = bytes([0x04, len(protobuf)]) + protobuf + bytes([0x04, len(signature)]) + signature
    return (bytes([0x30, len(content)]) + content).hex()


def authority(chain_id: bytes) -> str:
    seed = blake3.blake3(chain_id, derive_key_context="blyan/1/link-authority").digest()
    return public(node_key(seed)).hex()


def message(size: int) -> dict[str, Any]:
    """A message of `size` bytes a5 in its frames: every one but the last is full."""
    left, frames = size, []
    while left > 65527:
        frames.append(frame(0, 9, b"\x01" + b"\xa5" * 65527))
        left -= 65527
    frames.append(frame(0, 9, b"\x00" + b"\xa5" * left))
    digests = [blake3.blake3(bytes.fromhex(f)).hexdigest() for f in frames]
    return {"size": size, "frames": digests}


def vectors() -> dict[str, Any]:
    spki = blake3.blake3(b"spki").digest(length=91)
    return {
        "frames": [
            fields | {"bytes": frame(fields["stream"], KINDS[fields["kind"]],
                                     body_of(fields["kind"], fields))}
            for fields in GOOD
        ],
        "messages": [message(size) for size in (0, 1, 65527, 65528, 200000)],
        "refused": [{"why": why, "bytes": data} for why, data in BAD],
        "extensions": [
            {"seed": seed.hex(), "spki": spki.hex(), "extension": extension(seed, spki)}
            for seed in (bytes(range(32)), bytes([7]) * 32)
        ],
        "authorities": [
            {"chain_id": chain.hex(), "public_key": authority(chain)}
            for chain in (bytes(32), bytes(range(32)))
        ],
    }  # fmt: skip


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
