"""A copy of a home from which it can be restored without signing twice (docs/guides/backup.md)."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from chain import store_schema
from chain.errors import ConfigError, StorageError
from node.home import Home
from node.wal import BEGUN_NAME

Progress = Callable[[int, int], None]  # pages copied, of how many
_FILES = ("config.toml", "genesis.json", "version")
_PAGES = 4096  # copied between two looks at whether the node writes


class Backup(NamedTuple):
    height: int
    size_bytes: int


def back_up(home: Home, target: Path, progress: Progress) -> Backup:
    """Copy a home into the new directory `target`; a node may run meanwhile.

    Left out: the log, which would be old when it is restored (a mark says that there was one, so
    the restored node waits until it cannot contradict itself); tiles and blobs, which come from
    peers or are made again; the API token.
    """
    if not home.initialized:
        raise ConfigError(f"{home.path} holds no node")
    home.check_version()
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise ConfigError(f"{target} is there already; name a new directory") from None
    copy = Home(target)
    for name in _FILES:
        if (home.path / name).exists():
            _copy(home.path / name, target / name)
    copy.keystore.mkdir(mode=0o700)
    for file in sorted(home.keystore.glob("*")):
        if file.is_file():
            _copy(file, copy.keystore / file.name)
    copy.wal.mkdir(mode=0o700)
    height = _copy_chain(home.chain_db, copy.chain_db, progress) if home.chain_db.exists() else 0
    if (home.wal / BEGUN_NAME).exists() or height:
        (copy.wal / BEGUN_NAME).touch(mode=0o600)
    _sync(target)
    return Backup(height, sum(f.stat().st_size for f in target.rglob("*") if f.is_file()))


def _copy(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, source.open("rb") as opened:
        shutil.copyfileobj(opened, file)
        file.flush()
        os.fsync(file.fileno())


def _copy_chain(source: Path, target: Path, progress: Progress) -> int:
    """The chain as of one moment, by SQLite's own online backup; its height."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(store_schema.connect(source)) as db, closing(sqlite3.connect(target)) as copy:
            store_schema.version_of(db, source)
            db.backup(
                copy, pages=_PAGES, progress=lambda _, left, total: progress(total - left, total)
            )
            (height,) = copy.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, until it is opened again
    except sqlite3.Error as error:
        raise StorageError(
            f"{source} cannot be copied (SQLite says: {error}); `blyan-node doctor --deep` tells "
            "what is wrong with it"
        ) from None
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return int(height)


def _sync(target: Path) -> None:
    for directory in (target, *(p for p in target.iterdir() if p.is_dir())):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
