"""The ways to be refused, as one tree. Each class has a stable `code` that the API, receipts
and exit codes use; the text says what was wrong, what was expected and what to do.

    BlyanError
    ├── DecodeError          bytes that are not the canonical form of the expected type
    ├── VerifyError          a signature, hash, proof or certificate that does not hold
    ├── TxError              a transaction that the state machine refuses (becomes a receipt)
    ├── BlockError           a block that must not be voted for
    ├── OrphanError          a block whose parent's state is not here: no verdict on the block
    ├── GenesisError         a genesis file that cannot start a network
    ├── StorageError         the disk holds something impossible
    │   ├── VersionError     a file of a newer format than this program knows
    │   └── QuotaError       the disk, or the share of it that the operator gave, is full
    ├── ConfigError          the operator's configuration
    ├── LockedError          another process owns the home directory
    ├── UnreachableError     no answer from a peer or a node
    ├── DeadlineError        something that was waited for did not happen in time
    ├── WorkerError          the training process died, timed out or is overloaded
    └── InputError           a file or argument given by a user
"""

from __future__ import annotations


class BlyanError(Exception):
    """Root of all errors that a user or a peer can cause."""

    code = "error"
    exit_code = 1


class DecodeError(BlyanError):
    code = "bad_encoding"
    exit_code = 65


class VerifyError(BlyanError):
    code = "verification_failed"
    exit_code = 65


class TxError(BlyanError):
    """A transaction is refused. `code` names the rule, e.g. `bad_nonce`."""

    exit_code = 4

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class BlockError(BlyanError):
    code = "bad_block"
    exit_code = 4


class OrphanError(BlyanError):
    code = "orphan_block"


class GenesisError(BlyanError):
    code = "bad_genesis"
    exit_code = 65


class StorageError(BlyanError):
    code = "corrupt_store"
    exit_code = 65


class VersionError(StorageError):
    """`what` was written by a newer program. `number`: its name in `blyan-node version`."""

    code = "newer_version"

    def __init__(self, what: object, number: str, found: int, known: int) -> None:
        super().__init__(
            f"{what} has {number} version {found}, and this blyan knows up to {known}: start a "
            f"blyan whose `blyan-node version` says {number} {found} or more. Nothing was changed"
        )


class QuotaError(StorageError):
    code = "no_space"
    exit_code = 1


class ConfigError(BlyanError):
    code = "bad_config"
    exit_code = 2


class LockedError(BlyanError):
    code = "locked"
    exit_code = 77


class UnreachableError(BlyanError):
    code = "unreachable"
    exit_code = 3


class DeadlineError(BlyanError):
    code = "timeout"
    exit_code = 5


class WorkerError(BlyanError):
    code = "worker_failed"


class InputError(BlyanError):
    code = "bad_input"
    exit_code = 2


class InvariantError(RuntimeError):
    """A bug of ours. Unlike `assert`, it stays with `python -O`."""


def invariant(condition: bool, message: str) -> None:
    """Stop on a broken invariant of our own; never used for a peer's bytes."""
    if not condition:
        raise InvariantError(message)
