"""Chain structs as JSON: byte strings in lower-case hex, accounts as addresses, enums by name."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

from chain.address import format_address
from chain.codec import tag_of
from chain.guard_records import GuardVerdict
from chain.records import DatasetStatus, DeltaStatus, RoundPhase
from chain.transactions import GovernanceVote, Payload, SubmitEvidence, Verdict
from chain.types import PubKey

MOST_BYTES = 64 * 1024  # more than that, as in an opening of custody, is told by its beginning
NANO = 1_000_000_000  # nano-nats in a nat

# Fields that hold account keys, in any struct. Other keys (consensus, node, VRF) stay hex.
ACCOUNTS = frozenset(
    (
        *("account", "sender", "to", "learner", "submitter", "primary", "juror", "auditor"),
        *("validator", "joined", "jurors", "auditors", "watchers", "yes", "no"),
        *("custodian", "disputer"),
    )
)
_EXCEPTIONS: dict[type, str] = {SubmitEvidence: "evidence", GovernanceVote: "vote"}


def kind_name(payload: type) -> str:
    """A payload's name in the API: `tile_update` for TileUpdate."""
    if payload in _EXCEPTIONS:
        return _EXCEPTIONS[payload]
    return re.sub(r"(?<!^)(?=[A-Z])", "_", payload.__name__).lower()


KINDS: dict[int, str] = {tag_of(cls): kind_name(cls) for cls in Payload.__args__}
INVALID = "invalid"  # bytes in a block that are no transaction


def plain(value: Any, name: str = "") -> Any:
    """Any struct of the protocol as JSON values. `name`: the field it stands in."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name), f.name) for f in fields(value)}
    if isinstance(value, bytes):
        if len(value) > MOST_BYTES:
            return f"{value[:32].hex()}… {len(value)} bytes"
        return address(PubKey(value)) if name in ACCOUNTS and len(value) == 32 else value.hex()
    if isinstance(value, tuple | list):
        return [plain(item, name) for item in value]
    return value


@lru_cache(maxsize=4096)  # a page names few accounts, but often
def address(account: PubKey) -> str:
    return format_address(account)


def phase_name(phase: int) -> str:
    return _lower(RoundPhase(phase))


def delta_status(status: int) -> str:
    return _lower(DeltaStatus(status))


def guard_verdict(verdict: int) -> str:
    return _lower(GuardVerdict(verdict))


def dataset_status(status: int) -> str:
    return _lower(DatasetStatus(status))


def verdict_name(verdict: int) -> str:
    return _lower(Verdict(verdict))


def nats(nano: int) -> float | None:
    """A loss in nats per byte; None while it is unknown (0)."""
    return nano / NANO if nano else None


def _lower(member: IntEnum) -> str:
    return member.name.lower()
