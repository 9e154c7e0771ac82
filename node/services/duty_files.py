"""What a node must not forget in the middle of a round, in its home's `duties/` directory.

    votes/<round>-<delta>.vote     the opening of a juror's commitment, encode(PolVote)
    tiles/<round>-<tile root>.tile a tile that this node aggregated or recomputed

Both are written and synced before anything that promises them is sent, so a restart can keep the
promise. What belongs to finished rounds is removed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from chain import limits
from chain.codec import decode, encode
from chain.errors import DecodeError, StorageError
from chain.hashes import Hash32
from chain.transactions import PolVote
from chain.types import TxId
from tiles import merkle


class DutyFiles:
    """Small files by round. Every read is checked; what is damaged counts as missing."""

    def __init__(self, directory: Path) -> None:
        self._votes, self._tiles = directory / "votes", directory / "tiles"
        for folder in (self._votes, self._tiles):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save_vote(self, vote: PolVote) -> None:
        _write(self._vote_path(vote.round, vote.delta), encode(vote))

    def vote(self, round_: int, delta: TxId) -> PolVote | None:
        raw = _read(self._vote_path(round_, delta))
        try:
            return decode(PolVote, raw) if raw is not None else None
        except DecodeError:
            return None

    def save_tile(self, round_: int, root: Hash32, data: bytes) -> None:
        path = self._tile_path(round_, root)
        if not path.exists():
            _write(path, data)

    def has_tile(self, round_: int, root: Hash32) -> bool:
        return self._tile_path(round_, root).exists()

    def tile(self, round_: int, root: Hash32) -> bytes | None:
        """A tile made here in a round, verified."""
        data = _read(self._tile_path(round_, root))
        if data and len(data) <= limits.TILE_BYTES and merkle.tile_root(data) == root:
            return data
        return None

    def forget_before(self, round_: int) -> None:
        """Remove what belongs to rounds before this one."""
        for path in [*self._votes.glob("*.vote"), *self._tiles.glob("*.tile")]:
            number = path.name.partition("-")[0]
            if number.isdigit() and int(number) < round_:
                path.unlink(missing_ok=True)

    def _vote_path(self, round_: int, delta: TxId) -> Path:
        return self._votes / f"{round_}-{delta.hex()}.vote"

    def _tile_path(self, round_: int, root: Hash32) -> Path:
        return self._tiles / f"{round_}-{root.hex()}.tile"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    """All of the file or nothing, synced."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None
