"""What the store asks of the disk and of the C library, byte by byte."""

import ctypes
import errno
import gc
import os
from pathlib import Path

import pytest

from chain import limits
from tiles import merkle
from tiles.store import libc
from tiles.store.disk import Disk
from tiles.store.slots import read_checked

STEP = limits.SUBTILE_BYTES


def test_bytes_are_filled_in_place_and_stay() -> None:
    data, view = libc.new_bytes(300_000)
    view[:] = bytes(range(250)) * 1200
    view.release()
    gc.collect()
    assert type(data) is bytes
    assert data == bytes(range(250)) * 1200
    assert hash(data) == hash(bytes(range(250)) * 1200)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_bytes_that_python_shares_are_not_made_to_be_written_to(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="shared by all"):
        libc.new_bytes(size_bytes)


@pytest.mark.parametrize("size_bytes", [1, STEP, 3 * STEP + 17])
def test_reading_stops_at_the_first_subtile_that_is_not_what_its_hash_says(
    tmp_path: Path, size_bytes: int
) -> None:
    path, data = tmp_path / "file", os.urandom(size_bytes)
    hashes = b"".join(merkle.subtile_hashes(data))
    count = len(hashes) // 32
    path.write_bytes(b"before" + data)

    def found(offset: int = 6) -> tuple[int | None, bytes]:
        made, view = libc.new_bytes(size_bytes)
        fd = os.open(path, os.O_RDONLY)
        try:
            return read_checked(fd, offset, view, 0, hashes), made
        finally:
            os.close(fd)

    assert found() == (None, data)
    assert found(5)[0] == 0
    for bad in range(count):
        wrong = bytearray(data)
        wrong[bad * STEP] ^= 1
        path.write_bytes(b"before" + wrong)
        assert found()[0] == bad
    path.write_bytes(b"before" + data[:-1])  # cut
    assert found()[0] == count - 1


def test_room_is_asked_for_at_once_and_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    fd = disk.create(tmp_path / "file")
    disk.allocate(fd, 1 << 20)
    disk.write(fd, 0, b"x" * (1 << 20))
    assert os.fstat(fd).st_size == 1 << 20

    def full(*_: int) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(libc, "_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        disk.allocate(fd, 1 << 21)
    disk.close(fd)
