"""Frames between a node and its worker: 8 bytes of length, big-endian, then MessagePack.

Both ends are ours and on one machine, so maps and floats are allowed here; nothing of this is
ever hashed or stored. A request is a map with "job"; "event": "begun" answers it when it is taken
up, and then maps that have one of "event" (more will follow), "result" or "error" (the name of its
class in chain/errors.py, "" for a bug) with "text". "pause" and "go on" are jobs without an answer:
they hold the request under way at its next event, and let it go on.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import msgpack

from chain.errors import DecodeError
from learning.spec import MAX_JOB_BYTES

LENGTH_BYTES = 8
MAX_FRAME_BYTES = MAX_JOB_BYTES  # by which documents of a genesis are judged, too

Message = dict[str, Any]


def pack_frame(message: Message) -> bytes:
    """One message as a frame. Raises DecodeError if it is too large."""
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise DecodeError(f"a worker message of {len(body)} bytes, at most {MAX_FRAME_BYTES}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frame_bytes(prefix: bytes) -> int:
    """Length of the body after this prefix. Raises DecodeError if it is too large."""
    size = int.from_bytes(prefix, "big")
    if size > MAX_FRAME_BYTES:
        raise DecodeError(f"a worker message of {size} bytes, at most {MAX_FRAME_BYTES}")
    return size


def unpack_body(body: bytes) -> Message:
    """The message in a frame's body. Raises DecodeError."""
    try:
        message = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"a broken worker message: {error}") from None
    if not isinstance(message, dict):
        raise DecodeError("a worker message is a map")
    return message


def read_frame(stream: BinaryIO) -> Message | None:
    """The next message, or None at the end of the stream."""
    prefix = stream.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        return None
    size = frame_bytes(prefix)
    body = stream.read(size)
    return unpack_body(body) if len(body) == size else None
