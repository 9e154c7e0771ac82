"""The state tree straight from its definition, rebuilt from nothing each time.

Shares no code with `chain.tree`. Run it to write the vectors: `python -m tests.reference.tree`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import blake3

VECTORS = Path(__file__).parent.parent / "vectors" / "tree" / "tree.json"
EMPTY = bytes(32)


def h(name: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest()


def bits(key: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in h("state-key", key))


def leaf(key: bytes, value: bytes) -> bytes:
    return h("state-leaf", h("state-key", key) + h("state-value", value))


def root(content: dict[bytes, bytes], prefix: str = "") -> bytes:
    """The hash of the subtree at the path `prefix`, a string of 0 and 1."""
    inside = [key for key in content if bits(key).startswith(prefix)]
    if not inside:
        return EMPTY
    if len(inside) == 1:
        return leaf(inside[0], content[inside[0]])
    rest = {key: content[key] for key in inside}
    return h("state-node", root(rest, prefix + "0") + root(rest, prefix + "1"))


def prove(content: dict[bytes, bytes], key: bytes) -> dict[str, Any]:
    """Siblings from the root down to where the key's path ends, and what stands there."""
    siblings, prefix, path = [], "", bits(key)
    while len(inside := [k for k in content if bits(k).startswith(prefix)]) > 1:
        here = path[len(prefix)]
        siblings.append(root(content, prefix + ("1" if here == "0" else "0")).hex())
        prefix += here
    other = None
    if inside and inside[0] != key:
        found = inside[0]
        other = [h("state-key", found).hex(), h("state-value", content[found]).hex()]
    return {"siblings": siblings, "other": other}


def vectors() -> list[dict[str, Any]]:
    cases = []
    for name, size in (("empty", 0), ("one", 1), ("two", 2), ("seven", 7), ("hundred", 100)):
        content = {}
        for i in range(size):
            key = f"account/{i}".encode()
            content[key] = hashlib.sha256(key).digest()[: i % 33]
        asked = [*list(content)[:8], *(f"missing/{i}".encode() for i in range(6))]
        proofs = [
            {
                "key": key.hex(),
                "value": content[key].hex() if key in content else None,
                **prove(content, key),
            }
            for key in asked
        ]
        cases.append(
            {
                "name": name,
                "content": {key.hex(): value.hex() for key, value in content.items()},
                "root": root(content).hex(),
                "proofs": proofs,
            }
        )
    return cases


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
