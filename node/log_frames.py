"""Frames of an append-only log: each holds records, and is there as a whole or not at all.

Frame: 4 bytes `FRAM`, payload length (4 bytes big-endian), BLAKE3 checksum over offset and length
(its first 8 bytes), BLAKE3 checksum over offset and payload (32 bytes), payload. Payload: for each
record its length (4 bytes big-endian) and its bytes.
"""

from __future__ import annotations

from chain import limits
from chain.errors import StorageError
from chain.hashes import Context
from chain.types import u64_be

MARK = b"FRAM"
SIZED_BYTES = len(MARK) + 4 + 8  # what tells where a frame ends
HEAD_BYTES = SIZED_BYTES + 32
MAX_FRAME_BYTES = 512 * limits.MAX_MESSAGE_BYTES  # a rotation writes all that is not final
_SIZE_CHECKSUM, _CHECKSUM = Context("wal-frame-size"), Context("wal-frame")


def framed(records: list[bytes], at: int) -> bytes:
    """A frame with these records, to be written at the offset `at`."""
    payload = b"".join(len(r).to_bytes(4, "big") + r for r in records)
    if len(payload) > MAX_FRAME_BYTES:
        raise StorageError(f"{len(payload)} bytes for one log entry, at most {MAX_FRAME_BYTES}")
    size = len(payload)
    return _sized(at, size) + checksum(at, payload) + payload


def _sized(at: int, size: int) -> bytes:
    """The first part of a head: by it alone one knows where the frame ends."""
    check = _SIZE_CHECKSUM.hash(u64_be(at), u64_be(size))[:8]
    return MARK + size.to_bytes(4, "big") + check


def checksum(at: int, payload: bytes) -> bytes:
    """Bound to the offset: a frame that was written to the wrong place is not valid there."""
    return _CHECKSUM.hash(u64_be(at), payload)


def _size_at(data: bytes, at: int) -> int | None:
    """How long the payload of a frame at `at` is, or None if none begins there."""
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    return size if data[at : at + SIZED_BYTES] == _sized(at, size) else None


def payload_at(data: bytes, at: int) -> bytes | None:
    """The payload of a valid frame at `at`, or None."""
    size, start = _size_at(data, at), at + HEAD_BYTES
    if size is None or start + size > len(data):
        return None
    payload = data[start : start + size]
    return payload if data[at + SIZED_BYTES : start] == checksum(at, payload) else None


def any_after(data: bytes, at: int) -> bool:
    """Whether something comes after the frame at `at`, which does not hold."""
    size = _size_at(data, at)
    if size is not None:
        return at + HEAD_BYTES + size < len(data)
    while (at := data.find(MARK, at + 1)) >= 0:
        if _size_at(data, at) is not None:
            return True
    return False


def is_torn(data: bytes, at: int) -> bool:
    """Whether the bytes from `at` begin a frame and end before it does: its write was interrupted,
    so its sync did not return. Anything else may be a synced frame that has rotted."""
    tail = data[at:]
    if len(tail) < SIZED_BYTES:
        return tail[:4] == MARK[: len(tail)]
    size = _size_at(data, at)
    return size is not None and len(tail) < HEAD_BYTES + size


def all_records(data: bytes, at: int) -> tuple[list[bytes], int, int]:
    """(records of every frame from `at` on that holds, bytes that are in none of them, bytes of a
    last append that was interrupted): for a log in which what is damaged may be left out."""
    records: list[bytes] = []
    lost = 0
    while at < len(data):
        payload = payload_at(data, at)
        found = None if payload is None else split(payload)
        if payload is not None and found is not None:
            records += found
            at += HEAD_BYTES + len(payload)
            continue
        if is_torn(data, at):
            return records, lost, len(data) - at
        after = data.find(MARK, at + 1)
        lost += (after if after >= 0 else len(data)) - at
        at = after if after >= 0 else len(data)
    return records, lost, 0


def split(payload: bytes) -> list[bytes] | None:
    """The records of a frame's payload; None if it is no row of records."""
    records, at = [], 0
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
        if end > len(payload):
            return None
        records.append(payload[at + 4 : end])
        at = end
    return records
