"""`blyan-node` in a box: a clock that may be wrong, and no way out but the wires of the test.

    python -m tests.e2e.boxed BOX start --home DIR

The node runs as it is; only what the machine would give it is replaced, before it is imported: the
wall clock (a number that the test writes is added to it), and where a TCP connection to a port of
loopback leads to. A port without a wire is refused, so that nobody goes round a cut. Certificates
of links are dated by `datetime`, which keeps the right time: they allow for hours anyway.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OFFSET = struct.Struct("<q")  # nanoseconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def set_offset(file: Path, seconds: float) -> None:
    """How far the wall clock of the node with this file is ahead, from now on."""
    with file.open("r+b" if file.exists() else "w+b") as opened:
        opened.write(_OFFSET.pack(round(seconds * 1e9)))


def write_box(file: Path, clock: Path, ways: Mapping[int, int]) -> None:
    file.write_text(json.dumps({"clock": str(clock), "ways": {str(k): v for k, v in ways.items()}}))


def shift_clock(file: Path) -> None:
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    right_ns = time.time_ns

    def time_ns() -> int:
        (offset,) = _OFFSET.unpack(shared[:])
        return right_ns() + int(offset)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def divert(ways: Mapping[int, int]) -> None:
    """Lead every TCP connection of this process over its wire."""
    right_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.type & socket.SOCK_STREAM and self.family in (socket.AF_INET, socket.AF_INET6):
            host, port = address[0], address[1]
            if host != "127.0.0.1" or port not in ways:
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            address = (host, ways[port])
        right_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        try:
            connect(self, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    socket.socket.connect = connect  # type: ignore
    socket.socket.connect_ex = connect_ex  # type: ignore


def end_with_the_test() -> None:
    """Be killed when the process that started this one ends, however it does (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    end_with_the_test()
    box = json.loads(Path(sys.argv[1]).read_text())
    shift_clock(Path(box["clock"]))
    divert({int(port): way for port, way in box["ways"].items()})
    del sys.argv[1]
    from node.cli.node import main as program

    program()


if __name__ == "__main__":
    main()
