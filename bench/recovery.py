"""What a node costs before it trains, and how a network of four lives through kill -9.

Each node of four is killed once and started again. Measured: the longest time without a new
final block while it is away, and how long after its start it answers and agrees with the others
on a height and state root.

    python -m bench.recovery [--json]

Exit code 1 if a target is missed. Floors, from the same run: importing what the node imports, in
a process of its own (seconds and megabytes), and the network's own interval between empty blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.local_net import LocalNet, answers, found, height, running
from node.client import Client

TARGET_STATUS_S, TARGET_MEMORY_MB, TARGET_GAP_S, TARGET_AGREE_S = 4.0, 250, 5.0, 10.0
AWAY_S, SETTLE_S = 12.0, 6.0
IMPORTS = "import libp2p, fastapi, uvicorn, uvloop, numpy, blake3, nacl.bindings"
_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"


def imports() -> tuple[float, int]:
    """(seconds, megabytes) of a process that only imports."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{IMPORTS}; {_PEAK}"], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, int(done.stdout.split()[-1])


async def longest_gap(client: Client, seconds: float) -> float:
    """The longest time without a new height, as one of the others sees it."""
    until, last, seen, worst = time.perf_counter() + seconds, -1, time.perf_counter(), 0.0
    while time.perf_counter() < until:
        now = await height(client)
        if now != last:
            worst, last, seen = max(worst, time.perf_counter() - seen), now, time.perf_counter()
        await asyncio.sleep(0.05)
    return max(worst, time.perf_counter() - seen)


async def agree(back: Client, other: Client, beyond: int) -> None:
    """Until both tell one height above `beyond` with one state root."""
    async with asyncio.timeout(60):
        while True:
            one, two = await back.status(), await other.status()
            same = (one["height"], one["state_root"]) == (two["height"], two["state_root"])
            if same and one["height"] > beyond:
                return
            await asyncio.sleep(0.05)


async def one_kill(net: LocalNet, victim: int) -> dict[str, float]:
    """Kill a node, wait, start it again; what was measured."""
    back, other = net.clients[victim], net.clients[(victim + 1) % len(net.clients)]
    beyond = await height(other)
    net.kill(victim)
    gap = await longest_gap(other, AWAY_S)
    began = time.perf_counter()
    net.start(victim)
    await answers(back)
    answered = time.perf_counter() - began
    await agree(back, other, beyond)
    return {"gap": gap, "answered": answered, "agreed": time.perf_counter() - began}


async def measure() -> list[dict[str, Any]]:
    import_s, import_mb = imports()
    with tempfile.TemporaryDirectory() as name:
        async with running(found(Path(name), 4)) as net:
            await asyncio.sleep(SETTLE_S)
            memory = max([int((await c.status())["memory_mb"]) for c in net.clients])
            interval = (await net.clients[0].genesis()).params.empty_interval_ms / 1000
            found_out = [await one_kill(net, victim) for victim in range(4)]
    worst = {key: max(f[key] for f in found_out) for key in found_out[0]}
    return [
        _row("memory_before_training", memory, "MB", TARGET_MEMORY_MB, import_mb),
        _row("status_after_start", worst["answered"], "s", TARGET_STATUS_S, import_s),
        _row("blocks_after_kill", worst["gap"], "s", TARGET_GAP_S, interval),
        _row("agreed_after_restart", worst["agreed"], "s", TARGET_AGREE_S, import_s),
    ]


def _row(name: str, value: float, unit: str, target: float, floor: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "target": target,
        "floor": round(floor, 2),
        "met": value <= target,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    options = parser.parse_args()
    rows = asyncio.run(measure())
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{row['name']:24} {row['value']:8} {row['unit']:3} target {row['target']}"
                f"  floor {row['floor']}  {'met' if row['met'] else 'MISSED'}"
            )
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
