"""`blyan-node doctor --deep` and `--repair`: everything that a home holds, read through; and what
can be mended without anybody else (docs/spec/storage.md, "Doctor").

Nothing is deleted: what is replaced is moved into `damaged-DATE/` of the home.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from chain.errors import BlyanError, StorageError, VersionError
from node.chain_check import REPAIR, Progress, check_chain
from node.chain_repair import put_in_place, rebuild
from node.config import load_genesis
from node.findings import Finding
from node.genesis import build_genesis
from node.home import Home
from node.wal import LOG_NAME, parse

Say = Callable[[str], None]


def examine_deeply(home: Home, progress: Progress, *, replay: bool = False) -> list[Finding]:
    """What `doctor` does not look at because it takes time. Changes nothing; a node may run."""
    return [*_chain(home, progress, replay), _log(home), _keys(home)]


def _chain(home: Home, progress: Progress, replay: bool) -> list[Finding]:
    if not home.chain_db.exists():
        return [Finding("chain", True, "no blocks yet; the first start makes it")]
    try:
        start = build_genesis(load_genesis(home))
        problems = check_chain(home.chain_db, start, replay=replay, progress=progress)
    except BlyanError as error:
        return [Finding("chain", False, str(error))]
    if not problems:
        how = "and executed again" if replay else "; receipts and history: --replay"
        return [Finding("chain", True, f"every block, line, certificate and the state{how}")]
    found = [Finding("chain", False, f"{p.where}: {p.what}") for p in problems]
    return [*found, Finding("chain", False, f"to do: stop the node; {REPAIR}")]


def _log(home: Home) -> Finding:
    path = home.wal / LOG_NAME
    if not path.exists():
        return Finding("log", True, "none yet")
    try:
        data = path.read_bytes()
        records, end = parse(path, data)
    except (OSError, StorageError) as error:
        return Finding("log", False, str(error))
    tail = f"; {len(data) - end} bytes of an entry that is being written" if end < len(data) else ""
    return Finding("log", True, f"{len(records)} records, all whole{tail}")


def _keys(home: Home) -> Finding:
    if not home.keystore.is_dir():
        return Finding("permissions", False, f"{home.keystore} is missing; `blyan-node init`")
    opened = [p for p in (home.keystore, *home.keystore.iterdir()) if p.stat().st_mode & 0o077]
    if opened:
        names = ", ".join(str(path) for path in opened)
        return Finding("permissions", False, f"others may read {names}: chmod go= them")
    return Finding("permissions", True, "keys are their owner's alone")


# --- mending -------------------------------------------------------------------------------------


def repair(home: Home, say: Say, progress: Progress) -> list[Finding]:
    """Mend what can be mended; what was done. The home must be nobody's: LockedError."""
    with home.lock():
        aside = home.path / time.strftime("damaged-%Y-%m-%d-%H%M%S")
        return [
            *_mend_modes(home),
            *_mend_log(home, aside),
            *_mend_chain(home, aside, say, progress),
        ]


def _mend_modes(home: Home) -> list[Finding]:
    done = []
    for path in (home.path, home.keystore, *sorted(home.keystore.glob("*"))):
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            path.chmod(mode & 0o700)
            done.append(Finding("permissions", True, f"{path} is its owner's alone now"))
    return done


def _mend_log(home: Home, aside: Path) -> list[Finding]:
    found = _log(home)
    if found.ok:
        return []
    path = home.wal / LOG_NAME
    try:
        parse(path, path.read_bytes())
    except VersionError as error:
        return [Finding("log", False, str(error))]
    except StorageError:
        pass  # as found
    aside.mkdir(mode=0o700, exist_ok=True)
    path.rename(aside / path.name)
    what = (
        f"moved to {aside / path.name}: this node signs nothing until an epoch begins in which it "
        "cannot have signed, and keeps up meanwhile"
    )
    return [Finding("log", True, what)]


def _mend_chain(home: Home, aside: Path, say: Say, progress: Progress) -> list[Finding]:
    if not home.chain_db.exists():
        return []
    say("looking for what is wrong with chain.db")
    start = build_genesis(load_genesis(home))
    try:
        problems = check_chain(home.chain_db, start, replay=True, progress=progress)
        if not problems:
            return [Finding("chain", True, "nothing is wrong with it")]
        say("building it anew from its blocks")
        done = rebuild(home.chain_db, start, progress)
    except StorageError as error:
        return [Finding("chain", False, str(error))]
    aside.mkdir(mode=0o700, exist_ok=True)
    put_in_place(home.chain_db, aside)
    was = "" if done.old_height < 0 else f" of {done.old_height}"
    why = f"; {done.why}; the rest comes from peers" if done.why else ""
    what = f"built anew up to block {done.height}{was}{why}. The old one is in {aside}"
    return [Finding("chain", True, what)]
