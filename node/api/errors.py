"""Errors as HTTP answers: one JSON form for programs, a page for people (docs/spec/api.md)."""

from __future__ import annotations

from chain.errors import (
    BlyanError,
    DecodeError,
    InputError,
    QuotaError,
    StorageError,
    TxError,
    UnreachableError,
    VerifyError,
)
from node.query import BadQuery, NotFound, Pruned

# Refused now, but the same transaction may be right at another time, or was sent before.
CONFLICTS = frozenset(
    (
        *("bad_nonce", "nonce_taken", "duplicate", "known_dataset", "wrong_phase"),
        *("mempool_full", "underpriced", "unknown_event", "no_dispute", "decided"),
    )
)


class TokenError(BlyanError):
    """A writing call without the token of the home directory."""

    code = "bad_token"


class TooLarge(BlyanError):
    """A request body above its limit."""

    code = "too_large"


class HostError(BlyanError):
    """A request for another host's name: a page of another site that points its name here."""

    code = "bad_host"


class MediaError(BlyanError):
    """A body of another media type than the call takes."""

    code = "bad_media_type"


class BusyError(BlyanError):
    """All places for streams are taken."""

    code = "busy"


_STATUS: tuple[tuple[type[BlyanError], int], ...] = (
    (NotFound, 404),
    (Pruned, 410),
    (BadQuery, 400),
    (InputError, 400),
    (DecodeError, 400),
    (TokenError, 401),
    (HostError, 403),
    (TooLarge, 413),
    (MediaError, 415),
    (TxError, 422),
    (VerifyError, 422),
    (UnreachableError, 503),
    (BusyError, 503),
    (QuotaError, 507),
    (StorageError, 500),
)


def status_of(error: BlyanError) -> int:
    """The HTTP status of one of our errors."""
    if isinstance(error, TxError) and error.code in CONFLICTS:
        return 409
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(code: str, message: str) -> dict[str, dict[str, str]]:
    return {"error": {"code": code, "message": message}}
