"""Slow reference of docs/spec/consensus.md: digests of votes and proposals, what a certificate is.

Shares no code with the product: digests by hand from the spec page, signatures by PyNaCl's
high-level class. `python -m tests.reference.consensus` writes tests/vectors/consensus/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

NOTARIZE, NULLIFY, FINALIZE = 1, 2, 3
VECTORS = Path(__file__).parents[1] / "vectors" / "consensus"


def vote_digest(chain_id: bytes, kind: int, epoch: int, view: int, block: bytes) -> bytes:
    message = chain_id + bytes([kind]) + epoch.to_bytes(8, "big") + view.to_bytes(8, "big") + block
    return blake3(message, derive_key_context="blyan/1/vote").digest()


def proposal_digest(chain_id: bytes, epoch: int, view: int, block: bytes) -> bytes:
    message = chain_id + epoch.to_bytes(8, "big") + view.to_bytes(8, "big") + block
    return blake3(message, derive_key_context="blyan/1/proposal").digest()


def signed(key: bytes, digest: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(digest, signature)
    except BadSignatureError:
        return False
    return True


def certificate_holds(
    chain_id: bytes,
    members: Sequence[tuple[bytes, int]],
    certificate: tuple[int, int, int, bytes, bytes, Sequence[bytes]],
) -> bool:
    """`members`: (consensus key, stake) in order. `certificate`: (kind, epoch, view, block hash,
    bitmap, signatures)."""
    kind, epoch, view, block, bitmap, signatures = certificate
    if kind not in (NOTARIZE, NULLIFY, FINALIZE) or view < 1:
        return False
    if (kind == NULLIFY) != (block == bytes(32)):
        return False
    if len(bitmap) != -(-len(members) // 8):
        return False
    bits = "".join(f"{byte:08b}"[::-1] for byte in bitmap)
    if "1" in bits[len(members) :] or bits.count("1") != len(signatures):
        return False
    chosen = [member for member, bit in zip(members, bits, strict=False) if bit == "1"]
    if sum(stake for _, stake in chosen) * 3 <= 2 * sum(stake for _, stake in members):
        return False
    digest = vote_digest(chain_id, kind, epoch, view, block)
    return all(signed(key, digest, s) for (key, _), s in zip(chosen, signatures, strict=True))


def attackers(
    chain_id: bytes,
    members: Sequence[tuple[bytes, int]],
    one: tuple[int, int, int, bytes, bytes, Sequence[bytes]],
    two: tuple[int, int, int, bytes, bytes, Sequence[bytes]],
) -> list[bytes]:
    """Who is convicted by two certificates; nobody if they do not conflict or do not hold."""
    if not all(certificate_holds(chain_id, members, c) for c in (one, two)):
        return []
    if one[1:3] != two[1:3]:
        return []
    pairs = [(NOTARIZE, NOTARIZE), (FINALIZE, FINALIZE), (FINALIZE, NULLIFY), (NULLIFY, FINALIZE)]
    if (one[0], two[0]) not in pairs or one[3] == two[3]:
        return []
    first, second = ("".join(f"{byte:08b}"[::-1] for byte in c[4]) for c in (one, two))
    names = [key for key, _ in members]
    return [n for n, a, b in zip(names, first, second, strict=False) if a == b == "1"]


# --- vectors ------------------------------------------------------------------------


def _certificate(
    keys: list[SigningKey],
    chain_id: bytes,
    kind: int,
    at: tuple[int, int],
    signers: list[int],
    name: int = 7,
) -> dict[str, object]:
    block = bytes(32) if kind == NULLIFY else bytes([name]) * 32
    digest = vote_digest(chain_id, kind, *at, block)
    bitmap = bytearray(-(-len(keys) // 8))
    for i in signers:
        bitmap[i // 8] += 2 ** (i % 8)
    return {
        "kind": kind,
        "epoch": at[0],
        "view": at[1],
        "block": block.hex(),
        "signers": bitmap.hex(),
        "signatures": [keys[i].sign(digest).signature.hex() for i in signers],
    }


def vectors() -> dict[str, object]:
    chain_id = blake3(b"a chain").digest()
    raw = [SigningKey(bytes([i]) * 32) for i in range(1, 11)]
    keys = sorted(raw, key=lambda k: bytes(k.verify_key))
    stakes = [5, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # 14 in all: a quorum is 10
    members = [(bytes(k.verify_key), s) for k, s in zip(keys, stakes, strict=True)]
    good = _certificate(keys, chain_id, NOTARIZE, (3, 9), [0, 1, 2, 4, 8, 9])
    cases = [
        ("exactly more than two thirds", good),
        ("nullification", _certificate(keys, chain_id, NULLIFY, (0, 1), list(range(10)))),
        ("finalization", _certificate(keys, chain_id, FINALIZE, (2**64 - 1, 5), list(range(8)))),
        ("too little stake", _certificate(keys, chain_id, NOTARIZE, (3, 9), [0, 1, 2, 4])),
        (
            "nine of ten without the heavy one",
            _certificate(keys, chain_id, 1, (3, 9), [*range(1, 10)]),
        ),
        ("nobody", _certificate(keys, chain_id, NOTARIZE, (3, 9), [])),
        ("view 0", _certificate(keys, chain_id, NOTARIZE, (3, 0), list(range(10)))),
        ("unknown kind", _certificate(keys, chain_id, 4, (3, 9), list(range(10)))),
        ("a bit beyond the set", good | {"signers": "1743"}),
        ("bitmap too long", good | {"signers": str(good["signers"]) + "00"}),
        ("bitmap too short", good | {"signers": str(good["signers"])[:2]}),
        ("a signature too few", good | {"signatures": good["signatures"][:-1]}),  # type: ignore[index]
        ("signatures out of order", good | {"signatures": good["signatures"][::-1]}),  # type: ignore[index]
        ("another view", good | {"view": 10}),
        ("another epoch", good | {"epoch": 4}),
        ("another kind", good | {"kind": FINALIZE}),
        ("notarize of the zero hash", good | {"block": bytes(32).hex()}),
    ]
    few, most = [0, 1, 2, 4, 8, 9], [0, 3, 5, 6, 7, 8]  # quorums that share 0 and 8
    at = (3, 9)
    final = _certificate(keys, chain_id, FINALIZE, at, few)
    rival = _certificate(keys, chain_id, NOTARIZE, at, most, 8)
    attacks = [
        ("two notarizations", good, rival),
        ("two finalizations", final, _certificate(keys, chain_id, FINALIZE, at, most, 8)),
        ("finalization and nullification", final, _certificate(keys, chain_id, NULLIFY, at, most)),
        ("everyone signed both", _certificate(keys, chain_id, 1, at, list(range(10))), rival),
        ("notarization and nullification", good, _certificate(keys, chain_id, NULLIFY, at, most)),
        ("notarization and another's finalization", rival, final),
        ("one block", good, _certificate(keys, chain_id, NOTARIZE, at, most)),
        ("two views", final, _certificate(keys, chain_id, FINALIZE, (3, 10), most, 8)),
        ("two epochs", final, _certificate(keys, chain_id, FINALIZE, (4, 9), most, 8)),
        ("no quorum", good, _certificate(keys, chain_id, NOTARIZE, at, [1, 2], 8)),
        ("a wrong signature", good, rival | {"signatures": good["signatures"]}),
    ]
    digests = [
        {
            "kind": kind,
            "epoch": epoch,
            "view": view,
            "block": block.hex(),
            "vote": vote_digest(chain_id, kind, epoch, view, block).hex(),
            "proposal": proposal_digest(chain_id, epoch, view, block).hex(),
        }
        for kind in (NOTARIZE, NULLIFY, FINALIZE)
        for epoch, view in ((0, 1), (1, 255), (2**63, 2**64 - 1))
        for block in (bytes(32), bytes(range(32)))
    ]
    return {
        "chain_id": chain_id.hex(),
        "digests": digests,
        "members": [{"key": key.hex(), "stake": stake} for key, stake in members],
        "certificates": [
            {"case": case, "valid": _holds(chain_id, members, c), "certificate": c}
            for case, c in cases
        ],
        "attacks": [
            {
                "case": case,
                "guilty": [k.hex() for k in attackers(chain_id, members, _plain(one), _plain(two))],
                "certificates": [one, two],
            }
            for case, one, two in attacks
        ],
    }


def _holds(chain_id: bytes, members: list[tuple[bytes, int]], c: dict[str, object]) -> bool:
    return certificate_holds(chain_id, members, _plain(c))


def _plain(c: dict[str, object]) -> tuple[int, int, int, bytes, bytes, list[bytes]]:
    hexes: list[str] = c["signatures"]  # type: ignore[assignment]
    block, bitmap = bytes.fromhex(str(c["block"])), bytes.fromhex(str(c["signers"]))
    signatures = [bytes.fromhex(h) for h in hexes]
    return c["kind"], c["epoch"], c["view"], block, bitmap, signatures  # type: ignore[return-value]


if __name__ == "__main__":
    VECTORS.mkdir(parents=True, exist_ok=True)
    (VECTORS / "votes.json").write_text(json.dumps(vectors(), indent=1) + "\n")
