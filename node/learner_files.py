"""What a learner keeps between rounds and across a crash, in its home:
`learner/<chain id, 16 digits>/<address>/`.

    pending.json             the delta in hand: salt and manifest, written before its commit (0600)
    last.state last.residual training state and residual after the last revealed delta
    next.state next.residual the same for the delta in hand; they become the last at its reveal
    before.residual          what the last residual was until then: whoever replays the end of the
                             training needs it
    training/<round>-<seed>/ checkpoints of the training in hand, numbered: it goes on from them,
                             and whoever replays it begins at one of them; and the numeric profile
                             in which they were made
    corpus/<blob id>         dataset chunks, verified whenever they are read

Optimizer and residual are chained on the chain: what is kept is used only if its roots are the
ones that the chain names, else the learner starts from zero.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chain.address import format_address
from chain.codec import decode, encode
from chain.errors import BlyanError, ConfigError, StorageError
from chain.hashes import BLOB, ZERO_HASH, Hash32
from chain.records import RoundRecord
from chain.transactions import PodlManifest
from chain.types import BlobId, ChainId, PubKey
from learning.held import Held
from learning.spec import ModelSpec, TrainingSpec
from learning.state import (
    deserialize_residual,
    deserialize_state,
    is_residual,
    is_state,
    residual_root,
    sections_root,
)
from node.home import Home, exclusive, write_private
from node.worker.training import Reached

_TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A delta that is uploaded and ready to be committed, and what opens it."""

    manifest: PodlManifest
    salt: Hash32
    blob: BlobId
    blob_bytes: int

    @property
    def round(self) -> int:
        return self.manifest.round


@dataclass(frozen=True, slots=True)
class Memory:
    """What a learner carries into a round: the last state, for its optimizer, and the residual."""

    state: bytes
    residual: tuple[bytes, ...]


class LearnerFiles:
    """One account's files on one chain."""

    def __init__(self, home: Home, chain_id: ChainId, account: PubKey) -> None:
        name = Path("learner", chain_id.hex()[:16], format_address(account))
        self._directory = home.path / name
        try:
            (self._directory / "corpus").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create {self._directory}: {error.strerror}; choose another --home"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One learner an account: two would each break the other's chain of residuals."""
        with exclusive(self._directory / "lock", "this account's learner"):
            yield

    # --- the delta in hand -----------------------------------------------------------------

    def pending(self) -> Prepared | None:
        """The delta that was in hand when the last run ended."""
        path = self._directory / "pending.json"
        try:
            kept = json.loads(path.read_text())
            return Prepared(
                decode(PodlManifest, bytes.fromhex(kept["manifest"])),
                Hash32(bytes.fromhex(kept["salt"])),
                BlobId(bytes.fromhex(kept["blob"])),
                int(kept["blob_bytes"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, BlyanError) as error:
            raise StorageError(
                f"{path} is damaged ({error}); move it away: a delta in hand is lost then"
            ) from None

    def save_pending(self, prepared: Prepared) -> None:
        kept = {
            "round": prepared.round,
            "manifest": encode(prepared.manifest).hex(),
            "salt": prepared.salt.hex(),
            "blob": prepared.blob.hex(),
            "blob_bytes": prepared.blob_bytes,
        }
        write_private(self._directory / "pending.json", json.dumps(kept, indent=1) + "\n")

    def drop_pending(self) -> None:
        """The delta in hand has come to an end, whatever it was: nobody replays it any more."""
        for name in ("pending.json", "next.state", "next.residual", "before.residual"):
            (self._directory / name).unlink(missing_ok=True)
        self.drop_training()

    # --- optimizer and residual ------------------------------------------------------------

    def memory(
        self, spec: ModelSpec, residual: Hash32, optimizer: Hash32, held: Held | None = None
    ) -> Memory | None:
        """What the last round left, if it is what the chain says (two roots) and of the part of the
        model that is `held`; None if not."""
        state, left = self._read("last.state"), self._read("last.residual")
        if state is None or left is None or residual == ZERO_HASH:
            return None
        try:
            sections = deserialize_residual(spec, left, held)
            if deserialize_state(spec, state, held).optimizer_root() != optimizer:
                return None
        except BlyanError:
            return None
        return Memory(state, sections) if residual_root(sections) == residual else None

    def save_next(self, state: bytes, residual: Sequence[bytes]) -> None:
        self._write("next.state", state)
        self._write("next.residual", b"".join(residual))

    def promote_next(self) -> None:
        """The delta in hand is revealed: its state is what the next one starts from. Killed
        anywhere in here, it is done again."""
        state, residual, last, before = (
            self._directory / name
            for name in ("next.state", "next.residual", "last.residual", "before.residual")
        )
        if state.exists():
            state.replace(self._directory / "last.state")
        if residual.exists():
            if last.exists():
                last.replace(before)
            residual.replace(last)

    def residual_before(
        self, spec: ModelSpec, root: Hash32, held: Held | None = None
    ) -> bytes | None:
        """The residual that the revealed delta in hand started from, its sections back to back;
        None if it is not here, or has another root."""
        data = self._read("before.residual")
        return data if data is not None and is_residual(spec, data, root, held) else None

    # --- the training in hand --------------------------------------------------------------

    def training_profile(self, round_: RoundRecord) -> str | None:
        """The numeric profile of a round's checkpoints, "" if it is unknown; None without any."""
        name = _training_name(round_)
        if not (self._directory / name / "0.state").exists():
            return None
        return (self._read(f"{name}/profile") or b"").decode(errors="replace")

    def training(
        self,
        spec: ModelSpec,
        training: TrainingSpec,
        round_: RoundRecord,
        base_root: Hash32,
        held: Held | None = None,
    ) -> Reached | None:
        """How far a round's training had come when it was interrupted, if its first checkpoint is
        of weights with this root. Each is looked at, one at a time: any may be drawn."""
        reached: Reached | None = None
        for index in range(training.segments + 1):
            kept = self._checkpoint(spec, round_, index, held)
            if kept is None:
                break
            state_hash, data = kept
            state = deserialize_state(spec, data, held)
            if state.step != index * training.segment_steps:
                break
            if reached is None:
                if sections_root(state.weights) != base_root:
                    break
                reached = Reached((), b"", state.optimizer_root())
            hashes = (*reached.state_hashes, state_hash)
            reached = Reached(hashes, data, reached.optimizer_before)
        return reached

    def begin_training(self, round_: RoundRecord, profile: str) -> None:
        """Checkpoints of this round, made in this numeric profile, are what will be kept; others
        are forgotten."""
        self.drop_training(but=round_)
        if self.training_profile(round_) not in (None, profile):
            self.drop_training()
        name = _training_name(round_)
        (self._directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(f"{name}/profile", profile.encode())

    def save_checkpoint(
        self, round_: RoundRecord, index: int, state_hash: Hash32, state: bytes
    ) -> None:
        """Keep a checkpoint of the training that was begun. It is not forced to the disk: it may be
        large, is needed for a minute, and whoever reads it sees whether it is whole."""
        name = f"{_training_name(round_)}/{index}"
        self._write(f"{name}.hash", state_hash, sync=False)
        self._write(f"{name}.state", state, sync=False)

    def checkpoint(
        self, spec: ModelSpec, round_: RoundRecord, index: int, held: Held | None = None
    ) -> bytes | None:
        """One of a round's checkpoints; None if it is not here, or not what was kept."""
        kept = self._checkpoint(spec, round_, index, held)
        return kept[1] if kept is not None else None

    def _checkpoint(
        self, spec: ModelSpec, round_: RoundRecord, index: int, held: Held | None
    ) -> tuple[Hash32, bytes] | None:
        """The same with its hash."""
        name = f"{_training_name(round_)}/{index}"
        kept, state = self._read(f"{name}.hash"), self._read(f"{name}.state")
        if kept is None or state is None:
            return None
        state_hash = Hash32(kept)
        return (state_hash, state) if is_state(spec, state, state_hash, held) else None

    def drop_training(self, but: RoundRecord | None = None) -> None:
        """Forget checkpoints: their round is over for us."""
        kept = self._directory / _training_name(but) if but is not None else None
        for directory in (self._directory / _TRAINING).glob("*"):
            if directory != kept:
                shutil.rmtree(directory, ignore_errors=True)

    # --- dataset chunks --------------------------------------------------------------------

    def blob(self, blob: BlobId) -> bytes | None:
        data = self._read(f"corpus/{blob.hex()}")
        return data if data is not None and BlobId(BLOB.hash(data)) == blob else None

    def save_blob(self, blob: BlobId, data: bytes) -> None:
        self._write(f"corpus/{blob.hex()}", data)

    # --- disk ------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._directory / name}: {error.strerror}") from None

    def _write(self, name: str, data: bytes, *, sync: bool = True) -> None:
        path = self._directory / name
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def _training_name(round_: RoundRecord) -> str:
    """A round may be trained on one seed and base alone."""
    return f"{_TRAINING}/{round_.number}-{round_.seed.hex()[:16]}"
