"""Bytes that processes have sent over TCP, as the kernel counts them on each of their sockets.

`ss` of iproute2 tells `bytes_sent` of every open socket: what the process and its protocol wrote
(TLS, frames, heartbeats included), without TCP's and IP's own headers and acknowledgements.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from chain.errors import BlyanError

Ends = tuple[str, str]  # a socket's own address and its peer's
_LINE = re.compile(r"^\S+\s+\d+\s+\d+\s+(\S+)\s+(\S+)\s")
_PID = re.compile(r"pid=(\d+)")
_SENT = re.compile(r"\bbytes_sent:(\d+)")


class SocketBytes:
    """Counts what some processes send. A socket that was seen keeps its count when it closes, so
    look now and then; what passes over one that no look has met is missed."""

    def __init__(self, pids: Callable[[], Collection[int]]) -> None:
        self._pids = pids
        self._sent: dict[Ends, int] = {}
        self._before: dict[Ends, int] = {}

    def look(self) -> None:
        for ends, sent in read(self._pids()).items():
            self._sent[ends] = max(sent, self._sent.get(ends, 0))

    def start(self) -> None:
        """Count from now on."""
        self.look()
        self._before = dict(self._sent)

    def sent(self, wanted: Callable[[int, int], bool] = lambda own, peer: True) -> int:
        """Bytes sent since `start` on sockets whose ports (own, peer's) are wanted."""
        return sum(
            sent - self._before.get(ends, 0)
            for ends, sent in self._sent.items()
            if wanted(*map(_port, ends))
        )


def read(pids: Collection[int]) -> dict[Ends, int]:
    """Bytes sent on each open TCP socket of these processes. BlyanError if there is no `ss`."""
    if shutil.which("ss") is None:
        raise BlyanError("bytes on the wire are read by `ss`: install iproute2")
    done = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True)
    return parse(done.stdout, pids)


def parse(text: str, pids: Collection[int]) -> dict[Ends, int]:
    """The same of what `ss -tinpHO` said; one that has sent nothing yet has no count: 0."""
    found = {}
    for line in text.splitlines():
        ends = _LINE.match(line)
        if (
            ends is None
            or ends[2].endswith("*")
            or not any(int(pid) in pids for pid in _PID.findall(line))
        ):
            continue
        sent = _SENT.search(line)
        found[(ends[1], ends[2])] = int(sent[1]) if sent else 0
    return found


def family(roots: Iterable[int]) -> set[int]:
    """These processes and all that they started, directly or not."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
