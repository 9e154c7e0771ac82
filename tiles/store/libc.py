"""What the store asks the C library for because Python's own modules do not offer it.

`mmap` at a chosen address, to lay parts of several files side by side; `fallocate`, to ask the
file system for room at once or to give a part of a file back; `sync_file_range`, to have the disk
begin to write. And of Python's own C interface, bytes that are filled in after they were made.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

_FIXED = 0x10  # MAP_FIXED, the same on Linux and macOS; Python's mmap does not name it
_NO_RESERVE = 0x4000  # MAP_NORESERVE: pages that nobody writes to need no promise of memory
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*
_RANGE_WRITE = 2  # SYNC_FILE_RANGE_WRITE
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
_sync_file_range = getattr(_C, "sync_file_range", None)  # Linux alone has it
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

_bytes_of_size = ctypes.pythonapi.PyBytes_FromStringAndSize
_bytes_of_size.restype, _bytes_of_size.argtypes = (
    ctypes.py_object,
    [ctypes.c_void_p, ctypes.c_ssize_t],
)
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.restype, _bytes_address.argtypes = ctypes.c_void_p, [ctypes.py_object]

_PRIVATE = mmap.MAP_PRIVATE | _NO_RESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def new_bytes(size_bytes: int) -> tuple[bytes, memoryview]:
    """Bytes to be read into, and a view to do it by, which must be gone before anybody else has
    them: a tile is made once instead of being read and copied. The C interface allows it to
    whoever has just made them (docs.python.org/3/c-api/bytes.html, PyBytes_AsString)."""
    if size_bytes < 1:
        raise ValueError(f"bytes of size {size_bytes} are shared by all, not to be written to")
    made: bytes = _bytes_of_size(None, size_bytes)
    buffer = (ctypes.c_char * size_bytes).from_address(_bytes_address(made))
    return made, memoryview(buffer).cast("B")


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


def allocate(fd: int, size_bytes: int) -> None:
    """Give a new file its size and its room on the disk at once, where the file system can.
    Raises OSError if there is no room."""
    if _fallocate is not None and _fallocate(fd, 0, 0, size_bytes):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def start_writing(fd: int, offset: int, size_bytes: int) -> None:
    """Have the disk begin with a part of a file that will be synced soon. A hint: nothing is
    waited for, and what goes wrong shows when the file is synced."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, size_bytes, _RANGE_WRITE)


def _check(address: int | None) -> int:
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address
