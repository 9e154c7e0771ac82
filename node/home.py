"""A node's home directory: where everything is, who owns it now, and how its keys are unlocked.

    version config.toml genesis.json keystore/ api-token chain.db mempool.log wal/ tiles/ blobs/
    corpus/ logs/ node.lock

One process at a time owns a home: it holds an exclusive `flock` on `node.lock`, whose content is
its process id. The kernel drops the lock with the process, so nothing is ever stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chain.errors import ConfigError, InputError, LockedError, StorageError, VersionError
from wallet.keys import Keys, new_mnemonic
from wallet.keystore import Keystore

VERSION = 1  # of all that has no version of its own: names, layout, tiles, blobs
PASSPHRASE_VARIABLE = "BLYAN_PASSPHRASE_FILE"
PASSPHRASE_FILE = "passphrase"
MIN_PASSPHRASE = 8  # characters; Argon2id makes each guess cost 64 MiB
TOKEN_BYTES = 32
_PID_WAIT_S = 1.0  # between taking the lock and writing the process id
_POLL_S = 0.05
_OWNER_BYTES = 16  # of a lock's file: a process id, spaces and a line's end


class Home:
    """Paths below one directory. Making a `Home` touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.version_file = self.path / "version"
        self.config_file = self.path / "config.toml"
        self.genesis_file = self.path / "genesis.json"
        self.keystore = self.path / "keystore"
        self.token_file = self.path / "api-token"
        self.chain_db = self.path / "chain.db"
        self.sync = self.path / "sync"  # a snapshot that is being fetched
        self.wal = self.path / "wal"
        self.tiles = self.path / "tiles"
        self.blobs = self.path / "blobs"
        self.corpus = self.path / "corpus"
        self.logs = self.path / "logs"
        self.scrub_file = self.path / "scrub.json"  # the last scrub's report
        self.lock_file = self.path / "node.lock"

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @property
    def initialized(self) -> bool:
        return self.genesis_file.is_file()

    def create(self) -> None:
        """Make the directory and those below it, readable by their owner only (0700)."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            for directory in (self.wal, self.tiles, self.blobs, self.corpus, self.logs):
                directory.mkdir(mode=0o700, exist_ok=True)
            if not self.version_file.exists():
                write_private(self.version_file, f"{VERSION}\n")
        except OSError as error:
            raise ConfigError(
                f"cannot create the home directory {self.path}: {error.strerror}; "
                "choose another with --home"
            ) from None

    def check_version(self) -> int:
        """The version of what is here: 1 where nothing says it. VersionError if it is newer."""
        try:
            text = self.version_file.read_text().strip()
        except FileNotFoundError:
            return 1
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.version_file} cannot be read: {error}") from None
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) == int(text):
            raise StorageError(
                f"{self.version_file} holds no version; expected a number such as {VERSION}"
            )
        if int(text) > VERSION:
            raise VersionError(f"the home {self.path}", "home", int(text), VERSION)
        return int(text)

    # --- the lock -------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own this home. Raises LockedError, naming the owner, if another process does, and
        VersionError for a home that a newer program has written."""
        self.check_version()
        with exclusive(self.lock_file, f"the home {self.path}"):
            yield

    def owner(self) -> int | None:
        """The process id of the node that runs on this home now, or None."""
        return owner_of(self.lock_file)

    def is_at_rest(self) -> bool:
        """Whether a node has lived here and does not run now."""
        return self.initialized and self.chain_db.exists() and self.owner() is None

    # --- the API token ----------------------------------------------------------------------

    def create_token(self) -> str:
        """The token that writing API calls need; made on first use (file mode 0600)."""
        if not self.token_file.exists():
            write_private(self.token_file, secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        return self.token()

    def token(self) -> str:
        try:
            return self.token_file.read_text().strip()
        except FileNotFoundError:
            raise ConfigError(
                f"{self.token_file} is missing; a node writes it at its first start"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self.token_file} cannot be read: {error.strerror}") from None


def write_private(path: Path, text: str) -> None:
    """Replace a file whole, readable by its owner only."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# --- exclusive ownership --------------------------------------------------------------------


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold `path` locked and write our process id into it. LockedError if another holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = owner_of(path)
            by = f"process {owner}" if owner else "another process"
            raise LockedError(
                f"{what} is in use by {by}; stop that one first, or choose another directory"
            ) from None
        _name_owner(descriptor, str(os.getpid()))
        try:
            yield
        finally:
            _name_owner(descriptor, "")
    finally:
        os.close(descriptor)  # drops the lock


def _name_owner(descriptor: int, owner: str) -> None:
    """Write who holds a lock. It never becomes shorter: its room stays, for when a disk is full.

    A disk that was full before costs the name alone, for what frees room needs locks too.
    """
    try:
        os.pwrite(descriptor, owner.ljust(_OWNER_BYTES - 1).encode() + b"\n", 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def owner_of(path: Path) -> int | None:
    """Who holds the lock on `path`. The answer may be old by the time it is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        deadline = time.monotonic() + _PID_WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if text := os.pread(descriptor, 32, 0).strip():
                    return int(text) if text.isdigit() else None
                time.sleep(_POLL_S)  # it has the lock and is about to write its id
                continue
            return None
        return None
    finally:
        os.close(descriptor)


# --- keys -------------------------------------------------------------------------------------


def read_passphrase(home: Home, ask: Callable[[str], str] | None, purpose: str) -> str:
    """From the file that BLYAN_PASSPHRASE_FILE names, else `keystore/passphrase`, else asked.

    Never from the command line, which every user of the machine can read.
    """
    named = os.environ.get(PASSPHRASE_VARIABLE)
    path = Path(named) if named else home.keystore / PASSPHRASE_FILE
    try:
        text = path.read_text().rstrip("\r\n")
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{PASSPHRASE_VARIABLE} names {path}, which is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the passphrase file {path} cannot be read: {error}") from None
    else:
        if not text:
            raise ConfigError(f"the passphrase file {path} is empty")
        return text
    if ask is None:
        raise ConfigError(
            f"{purpose} needs a passphrase: write it to a file and set {PASSPHRASE_VARIABLE}, "
            "or run this in a terminal"
        )
    return ask(purpose)


def generate_passphrase(home: Home) -> str:
    """A random passphrase kept beside the keys (0600), for nodes that start unattended.

    It protects a copy of the key files, not a copy of the whole home.
    """
    path = home.keystore / PASSPHRASE_FILE
    if path.exists():
        return read_passphrase(home, None, "the keystore")
    home.keystore.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = secrets.token_urlsafe(TOKEN_BYTES)
    write_private(path, text + "\n")
    return text


def check_passphrase(text: str) -> str:
    if len(text) < MIN_PASSPHRASE:
        raise InputError(f"a passphrase has at least {MIN_PASSPHRASE} characters")
    return text


def create_keys(home: Home, name: str, passphrase: str) -> tuple[Keys, str]:
    """Fresh keys in the keystore under `name`, and their mnemonic, to be written down."""
    words = new_mnemonic()
    return Keystore(home.keystore).create(name, words, check_passphrase(passphrase)), words


def unlock(home: Home, name: str, ask: Callable[[str], str] | None = None) -> Keys:
    """The keys `name` of the keystore. InputError: unknown, or wrong passphrase."""
    store = Keystore(home.keystore)
    if all(entry.name != name for entry in store.list()):
        raise InputError(
            f"no key named {name!r} in {home.keystore}; `blyan wallet new {name}` makes one"
        )
    return store.load(name, read_passphrase(home, ask, f"the key {name!r}"))
