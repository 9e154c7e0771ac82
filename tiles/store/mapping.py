"""Several parts of files as one contiguous buffer, without a copy (docs/spec/tiles.md).

Address space for the whole is reserved once; each part is then mapped over its place in it. The
mapping is private and writable, so torch takes it without a warning and a write stays with the
writer. It goes when the last view of it does, whatever became of the files by then.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tiles.store import libc


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes of the buffer: from a file, from a page on, or (`data`) from memory."""

    place: int  # in the buffer, a multiple of the page size
    size_bytes: int
    fd: int
    offset: int  # in the file, a multiple of the page size
    data: bytes = b""


def map_extents(size_bytes: int, extents: Sequence[Extent]) -> memoryview:
    """A buffer of `size_bytes` made of extents that cover it, in order. Raises OSError.

    The files must be as long as the extents say: a page beyond the end of a file is a bus error
    for whoever touches it.
    """
    if not size_bytes:
        return memoryview(b"")
    if len(extents) == 1 and not extents[0].data:
        address = libc.map_file(size_bytes, extents[0].fd, extents[0].offset)
        return _view(address, size_bytes)
    address = libc.reserve(size_bytes)
    try:
        for extent in extents:
            if extent.data:
                libc.map_bytes(extent.data, address + extent.place)
            else:
                at = address + extent.place
                libc.map_file(extent.size_bytes, extent.fd, extent.offset, at)
    except OSError:
        libc.unmap(address, size_bytes)
        raise
    return _view(address, size_bytes)


def _view(address: int, size_bytes: int) -> memoryview:
    buffer = _buffer_type(size_bytes).from_address(address)
    # Not at exit: views may still be read then, and the space goes with the process.
    weakref.finalize(buffer, libc.unmap, address, size_bytes).atexit = False
    return memoryview(buffer).cast("B")


@lru_cache(maxsize=1024)
def _buffer_type(size_bytes: int) -> Any:
    """ctypes makes a class for each length: a few for a model, but slow to make."""
    return ctypes.c_char * size_bytes
