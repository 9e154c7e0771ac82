"""Encrypted key files, one JSON document each (docs/spec/wallet.md).

A file shows its name and public account; the mnemonic or seeds are encrypted with
XChaCha20-Poly1305 under an Argon2id key of the passphrase, and the clear part is authenticated
with them. A checksum over the file tells damage from a wrong passphrase.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_pwhash_alg,
    crypto_pwhash_ALG_ARGON2ID13,
)
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes

from chain.address import format_address, parse_address
from chain.errors import InputError, StorageError, VersionError
from chain.hashes import Context
from chain.types import PubKey
from wallet.keys import Keys, check_mnemonic

VERSION = 1
MEMORY_BYTES = 64 * 1024 * 1024  # about 0.1 s on one core, and 64 MiB for each guess
PASSES = 3
SALT_BYTES = 16
NONCE_BYTES = 24
MAX_FILE_BYTES = 64 * 1024  # a key file has about 1 KiB
MAX_MEMORY_BYTES = 1024 * 1024 * 1024  # a hostile file must not exhaust the machine
MAX_PASSES = 16

_KEYSTORE = Context("keystore")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ROLES = ("account", "node", "consensus", "vrf")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key file shows without its passphrase."""

    name: str
    account: PubKey


class Keystore:
    """A directory of key files (mode 0700, files 0600), created whole and never changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(
        self, name: str, mnemonic: str, passphrase: str, *, mnemonic_passphrase: str = ""
    ) -> Keys:
        """Stores a mnemonic under `name` and gives its keys. Refuses a name in use."""
        words = check_mnemonic(mnemonic)
        keys = Keys.from_mnemonic(words, mnemonic_passphrase)
        secret = {"kind": "mnemonic", "words": words, "passphrase": mnemonic_passphrase}
        self._write(name, keys, secret, passphrase)
        return keys

    def create_from_keys(self, name: str, keys: Keys, passphrase: str) -> None:
        """Stores bare keys under `name`, for keys that come from no mnemonic."""
        seeds = {role: getattr(keys, role).seed.hex() for role in _ROLES}
        self._write(name, keys, {"kind": "seeds", **seeds}, passphrase)

    def load(self, name: str, passphrase: str) -> Keys:
        """The keys of an entry. InputError: unknown or wrong passphrase; StorageError: damage."""
        document, path = self._read(name), self._path(name)
        secret = _decrypt(document, passphrase, path)
        try:
            if secret["kind"] == "mnemonic":
                keys = Keys.from_mnemonic(secret["words"], secret["passphrase"])
            else:
                keys = Keys.from_seeds(*(bytes.fromhex(secret[role]) for role in _ROLES))
        except (KeyError, TypeError, ValueError, InputError):
            raise _damaged(path, "its secret part has an unknown form") from None
        if format_address(keys.account.public) != document["account"]:
            raise _damaged(path, "its keys are not those of the account it names")
        return keys

    def words(self, name: str, passphrase: str) -> str | None:
        """The mnemonic of an entry, to be written down; None for bare keys."""
        secret = _decrypt(self._read(name), passphrase, self._path(name))
        words = secret.get("words")
        return words if isinstance(words, str) else None

    def list(self) -> tuple[Entry, ...]:
        """All entries by name, without any passphrase."""
        if not self._directory.is_dir():
            return ()
        names = sorted(p.stem for p in self._directory.glob("*.json") if _NAME.fullmatch(p.stem))
        return tuple(Entry(n, parse_address(self._read(n)["account"])) for n in names)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no key name; use 1 to 32 of a-z, 0-9, - and _, not - or _ first"
            )
        return self._directory / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise InputError(
                f"no key named {name!r} in {self._directory}; `blyan wallet list` shows the names"
            ) from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None
        return _parse(data, path)

    def _write(self, name: str, keys: Keys, secret: dict[str, str], passphrase: str) -> None:
        path = self._path(name)
        document = _encrypt(name, keys.account.public, secret, passphrase)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            _create_whole(path, (json.dumps(document, indent=1) + "\n").encode())
        except FileExistsError:
            raise InputError(f"a key named {name!r} exists already; choose another name") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def _encrypt(name: str, account: PubKey, secret: dict[str, str], passphrase: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "version": VERSION,
        "name": name,
        "account": format_address(account),
        "kdf": "argon2id",
        "memory_bytes": MEMORY_BYTES,
        "passes": PASSES,
        "salt": random_bytes(SALT_BYTES).hex(),
        "cipher": "xchacha20poly1305",
        "nonce": random_bytes(NONCE_BYTES).hex(),
    }
    document["ciphertext"] = crypto_aead_xchacha20poly1305_ietf_encrypt(
        json.dumps(secret).encode(),
        _canonical(document),
        bytes.fromhex(document["nonce"]),
        _stretch(passphrase, document),
    ).hex()
    document["checksum"] = _KEYSTORE.hash(_canonical(document)).hex()
    return document


def _decrypt(document: dict[str, Any], passphrase: str, path: Path) -> dict[str, Any]:
    clear = {k: v for k, v in document.items() if k not in ("ciphertext", "checksum")}
    try:
        plain = crypto_aead_xchacha20poly1305_ietf_decrypt(
            bytes.fromhex(document["ciphertext"]),
            _canonical(clear),
            bytes.fromhex(document["nonce"]),
            _stretch(passphrase, document),
        )
    except CryptoError:
        raise InputError(f"wrong passphrase for the key {document['name']!r}") from None
    try:
        secret = json.loads(plain)
    except ValueError:
        raise _damaged(path, "its secret part is not JSON") from None
    if not isinstance(secret, dict):
        raise _damaged(path, "its secret part has an unknown form")
    return secret


def _stretch(passphrase: str, document: dict[str, Any]) -> bytes:
    """Argon2id (RFC 9106) of the passphrase in NFKC, so that keyboards may differ in accents."""
    return crypto_pwhash_alg(
        32,
        unicodedata.normalize("NFKC", passphrase).encode(),
        bytes.fromhex(document["salt"]),
        document["passes"],
        document["memory_bytes"],
        crypto_pwhash_ALG_ARGON2ID13,
    )


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    """A key file with every field of the right type and range, or StorageError."""
    try:
        document = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _damaged(path, "it is not a JSON object")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise VersionError(path, "keystore", version, VERSION)
    rest = {k: v for k, v in document.items() if k != "checksum"}
    if document.get("checksum") != _KEYSTORE.hash(_canonical(rest)).hex():
        raise _damaged(path, "its checksum does not fit")
    well_formed = (
        version == VERSION
        and document.get("name") == path.stem
        and document.get("kdf") == "argon2id"
        and document.get("cipher") == "xchacha20poly1305"
        and _within(document.get("memory_bytes"), 8192, MAX_MEMORY_BYTES)
        and _within(document.get("passes"), 1, MAX_PASSES)
        and _is_hex(document.get("salt"), SALT_BYTES)
        and _is_hex(document.get("nonce"), NONCE_BYTES)
        and _is_hex(document.get("ciphertext"), None)
        and _is_address(document.get("account"))
    )
    if not well_formed:
        raise _damaged(path, "a field is missing, out of range or belongs to another name")
    return document


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _within(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_hex(value: Any, size: int | None) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{2})*", value):
        return False
    return size is None or len(value) == 2 * size


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and format_address(parse_address(value)) == value
    except InputError:
        return False


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"the key file {path} is damaged ({why}); restore it from a backup or create it again "
        "from the mnemonic"
    )


def _create_whole(path: Path, data: bytes) -> None:
    """The file appears with all its bytes or not at all, and never replaces another."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{random_bytes(4).hex()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # unlike rename it refuses an existing name
    finally:
        part.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
