"""What the store asks the C library for because Python's own modules do not offer it.

`mmap` at a chosen address, to lay parts of several files side by side, and `fallocate`, to give
a part of a file back to the file system.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_FIXED = 0x10  # MAP_FIXED, the same on Linux and macOS; Python's mmap does not name it
_NO_RESERVE = 0x4000  # MAP_NORESERVE: pages that nobody writes to need no promise of memory
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*
_FAILED = ctypes.c_void_p(-1).value

_C = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _C.mmap, _C.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
]
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_fallocate = getattr(_C, "fallocate", None)  # Linux alone has it
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_PRIVATE = mmap.MAP_PRIVATE | _NO_RESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def reserve(size_bytes: int) -> int:
    """Address space for a mapping, with nothing in it yet. Raises OSError."""
    return _check(_mmap(None, size_bytes, 0, _PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))


def map_file(size_bytes: int, fd: int, offset: int, address: int | None = None) -> int:
    """Map a part of a file, private and writable, over reserved space or where there is room."""
    flags = _PRIVATE if address is None else _PRIVATE | _FIXED
    return _check(_mmap(address, size_bytes, _READ_WRITE, flags, fd, offset))


def map_bytes(data: bytes, address: int) -> None:
    """Put bytes that are in no file over reserved space."""
    flags = _PRIVATE | _FIXED | mmap.MAP_ANONYMOUS
    ctypes.memmove(_check(_mmap(address, len(data), _READ_WRITE, flags, -1, 0)), data, len(data))


def unmap(address: int, size_bytes: int) -> None:
    _munmap(address, size_bytes)


def punch_hole(fd: int, offset: int, size_bytes: int) -> bool:
    """Give a part of a file back; it reads as zeros then. False if that cannot be done here."""
    if _fallocate is None:
        return False
    return bool(_fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size_bytes) == 0)


def _check(address: int | None) -> int:
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address
