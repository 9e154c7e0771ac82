"""Snapshots of the state straight from their definition (docs/spec/sync.md): slow, obvious.

Shares no code with `chain.snapshot`. Run it to write the vectors:
`python -m tests.reference.snapshot`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.reference.tree import bits, root

VECTORS = Path(__file__).parent.parent / "vectors" / "snapshot" / "snapshot.json"
CHUNK_TAG = 84


def size(content: dict[bytes, bytes], prefix: str) -> int:
    """What the leaves whose paths begin with `prefix` count."""
    inside = [k for k in content if bits(k).startswith(prefix)]
    return sum(max(128, len(k) + len(content[k]) + 10) for k in inside)


def parts(content: dict[bytes, bytes], most: int, prefix: str = "") -> list[str]:
    """The prefixes of the parts, in order."""
    if size(content, prefix) <= most:
        return [prefix]
    return parts(content, most, prefix + "0") + parts(content, most, prefix + "1")


def packed(data: bytes) -> bytes:
    """MessagePack's shortest form of bytes."""
    if len(data) < 1 << 8:
        return bytes([0xC4, len(data)]) + data
    if len(data) < 1 << 16:
        return b"\xc5" + len(data).to_bytes(2, "big") + data
    return b"\xc6" + len(data).to_bytes(4, "big") + data


def chunk(content: dict[bytes, bytes], prefix: str) -> bytes:
    keys = sorted((k for k in content if bits(k).startswith(prefix)), key=bits)
    count = 2 * len(keys)
    head = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    items = b"".join(packed(k) + packed(content[k]) for k in keys)
    return bytes([0x92, CHUNK_TAG]) + head + items


def vectors() -> list[dict[str, Any]]:
    cases = []
    for name, count, most in (
        *(("empty", 0, 4 << 20), ("one", 1, 4 << 20), ("whole", 40, 4 << 20)),
        *(("halves", 9, 1_200), ("many", 60, 600), ("lone leaves", 12, 460)),
    ):
        content = {}
        for i in range(count):
            key = f"account/{i}".encode()
            content[key] = hashlib.sha256(key).digest() * (i % 14)
        cases.append(
            {
                "name": name,
                "most": most,
                "content": {key.hex(): value.hex() for key, value in content.items()},
                "root": root(content).hex(),
                "parts": [
                    {
                        "prefix": prefix,
                        "hash": root(content, prefix).hex(),
                        "size": size(content, prefix),
                        "chunk": chunk(content, prefix).hex(),
                    }
                    for prefix in parts(content, most)
                ],
            }
        )
    return cases


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
