"""Whether this node may have signed what its log does not know (docs/spec/consensus.md, "The log").

A log that is lost, or was copied from elsewhere (a backup, another machine), may be older than the
last thing its key has signed. Nobody can tell how much older, but it was signed before the loss was
noticed. So the key signs nothing in any epoch that may have begun by then: the last block of the
epoch before tells when, in the time of more than two thirds of the validators. A file beside the
log keeps the doubt until it is over, whatever the store and its epoch are meanwhile.

A copy is known by a file that is never written again, whose change time no tool can set.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from chain.errors import StorageError
from node.home import write_private
from node.wal import BEGUN_NAME

DOUBT_NAME = "consensus.doubt"  # since when, Unix time in milliseconds
PLACE_NAME = "consensus.place"  # change time of `consensus.begun` in nanoseconds
MARGIN_MS = 60_000  # by which this machine's clock may be behind when the doubt begins


class Doubt:
    """Of one directory; its files are durable when a call returns."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.since_ms = _number(directory / DOUBT_NAME)
        self.reason = "" if self.since_ms is None else "was lost or copied before it was started"
        placed, is_here = directory / PLACE_NAME, _place(directory)
        if placed.exists() and is_here is not None and placed.read_text().strip() != is_here:
            self.begin("was copied from elsewhere")

    def begin(self, reason: str) -> None:
        """From now on, or from when it began before: a copy of a doubtful log is older still."""
        self.since_ms = max(self.since_ms or 0, time.time_ns() // 1_000_000)
        self.reason = reason
        self._write(DOUBT_NAME, str(self.since_ms))

    def settle(self) -> None:
        """What is here is the log from now on. After `begin`, so that a crash asks again."""
        is_here = _place(self._directory)
        if is_here is not None:
            self._write(PLACE_NAME, is_here)

    def covers(self, began_ms: int) -> bool:
        """Whether the key may have signed in an epoch before which the last block has this time.
        The doubt ends with the first of which it does not."""
        if self.since_ms is None:
            return False
        if began_ms <= self.since_ms + MARGIN_MS:
            return True
        self.end()
        return False

    def end(self) -> None:
        self.since_ms, self.reason = None, ""
        (self._directory / DOUBT_NAME).unlink(missing_ok=True)
        _sync(self._directory)

    def _write(self, name: str, text: str) -> None:
        try:
            write_private(self._directory / name, text + "\n")
            _sync(self._directory)
        except OSError as error:
            raise StorageError(
                f"{self._directory / name}: cannot write ({error.strerror}); free space or replace "
                "the disk, then start the node again"
            ) from None


def trust(directory: Path) -> None:
    """The operator vouches for the log: no node with this key has run since it was written."""
    doubt = Doubt(directory)
    doubt.settle()
    doubt.end()


def _place(directory: Path) -> str | None:
    try:
        found = (directory / BEGUN_NAME).stat()
    except FileNotFoundError:
        return None
    return str(found.st_ctime_ns)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}): it says since when this node may not sign. Write "
            "into it the present Unix time in milliseconds"
        ) from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
