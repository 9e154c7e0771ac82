"""The imported models of a home: `<home>/models/<name>/` (docs/spec/checkpoints.md).

A model appears whole, by the rename of a directory that was filled under a name with a dot. Who
imports or removes holds a lock; what a crash left is removed by whoever holds it next.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chain.errors import ConfigError, InputError, LockedError, QuotaError, StorageError
from node.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from node.home import Home, exclusive, owner_of
from tiles.store.disk import Disk

CHAIN = "chain"  # the name of the chain's own model
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IMPORTING, _REMOVING = ".importing-", ".removing-"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model of a home. `damage` says why its manifest cannot be read."""

    name: str
    manifest: Manifest | None
    damage: str | None


class Models:
    """The models of one home. Making one touches nothing."""

    def __init__(self, home: Home, disk: Disk | None = None) -> None:
        self.home, self.disk = home, disk or Disk()
        self.directory = home.path / "models"
        self._lock_file = self.directory / _LOCK

    # --- asking -----------------------------------------------------------------------

    def all(self) -> list[ListedModel]:
        """All models by name."""
        with self._looking():
            found = [p.name for p in self._entries() if NAME.fullmatch(p.name) and p.is_dir()]
        return [self._listed(name) for name in sorted(found)]

    def last(self) -> str | None:
        """The name of the model that was imported last, if one can be read."""
        found = [m.manifest for m in self.all() if m.manifest is not None]
        return max(found, key=lambda m: (m.imported_ms, m.name)).name if found else None

    def path(self, name: str) -> Path:
        """The directory of a model. InputError if there is none of this name."""
        check_name(name)
        path = self.directory / name
        with self._looking():
            found = path.is_dir()
        if not found:
            here = ", ".join(m.name for m in self.all()) or "none"
            raise InputError(f"no model {name!r} in {self.home.path}; there are: {here}")
        return path

    def check_free(self, name: str) -> None:
        """InputError if a model of this name is here."""
        with self._looking():
            found = (self.directory / name).exists()
        if found:
            raise InputError(
                f"there is a model {name!r} in {self.home.path}; choose another name with --name, "
                f"or remove that one with `blyan model remove {name}`"
            )

    # --- changing ---------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who imports or removes here; what crashes left is removed first."""
        self._make_directory()
        with self._exclusive():
            self._clean()
            yield

    def clean(self) -> None:
        """Remove what crashes left, unless somebody is importing just now."""
        if self._leftovers():
            try:
                with self._exclusive():
                    self._clean()
            except LockedError:
                return  # the leftovers are somebody's work

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A directory to fill that becomes the model `name` at the end, or goes on any error.

        The caller holds the lock, and has synced what it wrote.
        """
        path = self.directory / (_IMPORTING + name)
        with writing(f"import {name}"):
            self.disk.make_folder(path)
            try:
                yield path
                self.disk.sync_folder(path)
                self.disk.rename(path, self.directory / name)
                self.disk.sync_folder(self.directory)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise

    def remove(self, name: str) -> Manifest | None:
        """Remove a model; its manifest, if it could be read. LockedError while it is exported."""
        with self.lock():
            path = self.path(name)
            listed = self._listed(name)
            with self._held(path, fcntl.LOCK_EX), writing(f"remove {name}"):
                gone = self.directory / (_REMOVING + name)
                self.disk.rename(path, gone)
                self.disk.sync_folder(self.directory)
                shutil.rmtree(gone)
        return listed.manifest

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[Path, Manifest]]:
        """A model's directory and manifest, which nobody removes meanwhile."""
        path = self.path(name)
        with self._held(path, fcntl.LOCK_SH):
            yield path, read_manifest(path / MANIFEST)

    # --- inside -----------------------------------------------------------------------

    def _entries(self) -> list[Path]:
        with self._looking():
            try:
                return list(self.directory.iterdir())
            except FileNotFoundError:
                return []

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Put into words why the operating system does not let the directory be looked at."""
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be read: {error.strerror}") from None

    def _listed(self, name: str) -> ListedModel:
        try:
            return ListedModel(name, read_manifest(self.directory / name / MANIFEST), None)
        except StorageError as error:
            return ListedModel(name, None, str(error))

    def _leftovers(self) -> list[Path]:
        return [p for p in self._entries() if p.name.startswith((_IMPORTING, _REMOVING))]

    def _clean(self) -> None:
        for path in self._leftovers():
            with writing(f"remove {path}, which an interrupted import left"):
                shutil.rmtree(path)

    def _make_directory(self) -> None:
        """`<home>/models` and what is missing above it, readable by its owner only, durably."""
        try:
            missing = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
            for path in reversed(missing):
                self.disk.make_folder(path)
                path.chmod(0o700)
                self.disk.sync_folder(path.parent)
        except OSError as error:
            raise ConfigError(
                f"cannot create {self.directory}: {error.strerror}; choose another home with --home"
            ) from None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self._lock_file, str(self.directory)))
            except LockedError:
                owner = owner_of(self._lock_file)
                raise LockedError(
                    f"another import or removal runs on {self.home.path}"
                    + (f" (process {owner})" if owner else "")
                    + "; try again when it has ended, or choose another home with --home"
                ) from None
            yield

    @contextmanager
    def _held(self, path: Path, kind: int) -> Iterator[None]:
        """Hold a lock of the kernel on the model's directory, which goes with the process."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"the model {path.name} is being exported or removed; try again afterwards"
                ) from None
            yield
        finally:
            os.close(descriptor)


def check_name(name: str) -> str:
    """A name that a model may have. Raises InputError."""
    if name == CHAIN:
        raise InputError(f"{CHAIN!r} is the name of the chain's own model; choose another")
    if name == _LOCK:
        raise InputError(f"{name!r} is the name of a file beside the models; choose another")
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of a model: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into ours, in words an operator can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuotaError(
                f"cannot {what}: the disk is full; free some space or choose another home"
            ) from None
        raise StorageError(f"cannot {what}: {error.strerror or error}") from None
