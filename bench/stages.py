"""A node that notes where its processor time goes: `python -m bench.stages start --home HOME`.

Each 10 ms of processor time the kernel interrupts the process; what its main thread has used since
the last time counts for the stage whose code it is in (the innermost frame that belongs to one).
What its other threads use (libp2p's, those that hash and read) is counted as a whole, so the
stages sum to the process's time. SIGUSR1 adds a line with all sums so far to `stages.json` in the
directory of the home's logs.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from node.cli.node import main

INTERVAL_S = 0.01
ROOT = Path(__file__).resolve().parent.parent
FILE_NAME = "stages.json"
OTHERS = "other threads"
REST = "rest"
# By the path of a module below the repository; the first that fits.
STAGES = (
    ("chain/crypto.py", "signatures"),
    ("consensus/vrf.py", "vrf"),
    ("chain/codec.py", "codec"),
    ("chain/tree.py", "state root"),
    ("chain/store", "store"),
    ("node/wal", "log"),
    ("node/mempool.py", "pool"),
    ("node/pool_", "pool"),
    ("node/services/tx_", "pool"),
    ("chain/", "execute"),
    ("consensus/", "consensus"),
    ("node/services/chain.py", "execute"),
    ("node/services/", "services"),
    ("node/net/", "network"),
    ("node/api/", "api"),
    ("node/query/", "api"),
)
LIBRARIES = ("fastapi", "starlette", "uvicorn", "h11", "anyio")
NAMES = (*dict.fromkeys(stage for _, stage in STAGES), OTHERS, REST)


class Sampler:
    """Sums of processor seconds by stage, of this process's main thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums: Counter[str] = Counter()
        self._stages: dict[CodeType, str | None] = {}
        self._at = time.thread_time()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._write)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _sample(self, signal_number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        self._sums[self._stage(frame)] += now - self._at
        self._at = now

    def _write(self, signal_number: int, frame: FrameType | None) -> None:
        self._sample(signal_number, frame)
        others = time.process_time() - sum(self._sums.values())
        with self._file.open("a") as file:
            file.write(json.dumps({**self._sums, OTHERS: others}) + "\n")

    def _stage(self, frame: FrameType | None) -> str:
        while frame is not None:
            code = frame.f_code
            if code not in self._stages:
                self._stages[code] = stage_of(code.co_filename)
            found = self._stages[code]
            if found is not None:
                return found
            frame = frame.f_back
        return REST


def stage_of(file_name: str) -> str | None:
    """The stage that a module's code belongs to; None if it works for whoever calls it."""
    path = Path(file_name)
    if "site-packages" in path.parts:
        package = path.parts[path.parts.index("site-packages") + 1]
        return "api" if package in LIBRARIES else None
    if not path.is_relative_to(ROOT):
        return None
    below = path.relative_to(ROOT).as_posix()
    return next((stage for prefix, stage in STAGES if below.startswith(prefix)), None)


def read(logs: Path) -> list[dict[str, float]]:
    """The lines that a node has written so far: seconds by stage."""
    file = logs / FILE_NAME
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    Sampler(home / "logs" / FILE_NAME).start()
    main()
