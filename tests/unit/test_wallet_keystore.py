"""Key files: round trip, what is in clear, damage, wrong passphrases and hostile files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from chain.errors import InputError, StorageError
from chain.hashes import Context
from wallet import keystore
from wallet.keys import Keys
from wallet.keystore import Entry, Keystore

WORDS = "abandon " * 23 + "art"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keystore:
    monkeypatch.setattr(keystore, "MEMORY_BYTES", 64 * 1024)  # the cost is not under test
    monkeypatch.setattr(keystore, "PASSES", 1)
    return Keystore(tmp_path / "home" / "keystore")


def _file(store: Keystore, name: str) -> Path:
    return store._path(name)


def _rewrite(path: Path, **changes: object) -> None:
    """Change fields as an attacker would: with a checksum that fits again."""
    document = json.loads(path.read_text())
    document.update(changes)
    document.pop("checksum")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["checksum"] = Context("keystore").hash(text.encode()).hex()
    path.write_text(json.dumps(document))


def test_round_trip_of_mnemonic_and_bare_keys(store: Keystore) -> None:
    keys = store.create("alice", WORDS, "geheim", mnemonic_passphrase="x")
    assert keys == Keys.from_mnemonic(WORDS, "x")
    assert store.load("alice", "geheim") == keys
    assert store.words("alice", "geheim") == WORDS
    bare = Keys.from_seeds(*(bytes([i]) * 32 for i in range(4)))
    store.create_from_keys("bare", bare, "")
    assert store.load("bare", "") == bare
    assert store.words("bare", "") is None
    assert store.list() == (
        Entry("alice", keys.account.public),
        Entry("bare", bare.account.public),
    )


def test_full_strength_once(tmp_path: Path) -> None:
    store = Keystore(tmp_path)
    keys = store.create("strong", WORDS, "p")
    assert json.loads(_file(store, "strong").read_text())["memory_bytes"] == 64 * 1024 * 1024
    assert store.load("strong", "p") == keys


def test_only_the_public_part_is_in_clear_and_the_modes_are_private(store: Keystore) -> None:
    keys = store.create("alice", WORDS, "geheim")
    path = _file(store, "alice")
    text = path.read_text()
    assert "abandon" not in text
    assert "geheim" not in text
    assert keys.account.seed.hex() not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(path.parent)) == ["alice.json"]


def test_equal_entries_share_no_bytes_of_secret(store: Keystore) -> None:
    store.create("a", WORDS, "p")
    store.create("b", WORDS, "p")
    first, second = (json.loads(_file(store, n).read_text()) for n in "ab")
    for field in ("salt", "nonce", "ciphertext"):
        assert first[field] != second[field]


def test_passphrases_are_compared_in_normal_form(store: Keystore) -> None:
    keys = store.create("a", WORDS, "gr\u00fcn")
    assert store.load("a", "gru\u0308n") == keys


def test_wrong_passphrase_unknown_name_and_name_in_use(store: Keystore) -> None:
    assert store.list() == ()
    store.create("alice", WORDS, "geheim")
    with pytest.raises(InputError, match="wrong passphrase"):
        store.load("alice", "Geheim")
    with pytest.raises(InputError, match="no key named 'bob'"):
        store.load("bob", "x")
    before = _file(store, "alice").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        store.create("alice", WORDS, "other")
    assert _file(store, "alice").read_bytes() == before
    assert sorted(os.listdir(_file(store, "alice").parent)) == ["alice.json"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".a", "a" * 33, "a.json", "ä"])
def test_bad_names(store: Keystore, name: str) -> None:
    with pytest.raises(InputError, match="no key name"):
        store.create(name, WORDS, "p")


def test_every_changed_byte_is_damage(store: Keystore) -> None:
    store.create("a", WORDS, "p")
    path = _file(store, "a")
    good = path.read_bytes()
    for i in range(0, len(good), 7):
        bad = bytearray(good)
        bad[i] ^= 0x01
        path.write_bytes(bytes(bad))
        if bytes(bad).split() == good.split():
            continue  # only white space changed
        with pytest.raises(StorageError):
            store.load("a", "p")
    for size in (0, 1, len(good) // 2):
        path.write_bytes(good[:size])
        with pytest.raises(StorageError):
            store.load("a", "p")


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 1 << 40},
        {"memory_bytes": 1.5},
        {"memory_bytes": True},
        {"passes": 10**9},
        {"passes": 0},
        {"salt": "00"},
        {"salt": 5},
        {"nonce": "zz" * 24},
        {"ciphertext": None},
        {"account": "bly1qqqq"},
        {"kdf": "scrypt"},
        {"cipher": "none"},
        {"name": "bob"},
        {"version": 0},
        {"version": "1"},
    ],
)
def test_hostile_fields_are_refused_before_any_work(
    store: Keystore, changes: dict[str, object]
) -> None:
    store.create("a", WORDS, "p")
    _rewrite(_file(store, "a"), **changes)
    with pytest.raises(StorageError):
        store.load("a", "p")


def test_the_clear_part_is_authenticated(store: Keystore) -> None:
    store.create("a", WORDS, "p")
    other = store.create("b", WORDS, "p", mnemonic_passphrase="other")
    account = json.loads(_file(store, "b").read_text())["account"]
    _rewrite(_file(store, "a"), account=account)
    assert store.list()[0].account == other.account.public  # in clear anyone may lie
    with pytest.raises(InputError, match="wrong passphrase"):
        store.load("a", "p")


def test_a_newer_version_says_so(store: Keystore) -> None:
    store.create("a", WORDS, "p")
    _rewrite(_file(store, "a"), version=2)
    with pytest.raises(StorageError, match="keystore version 2"):
        store.load("a", "p")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b"\xff", b"[" * 60000, b"x" * 70000])
def test_files_that_are_no_key_files(store: Keystore, content: bytes) -> None:
    store.create("a", WORDS, "p")
    _file(store, "a").write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        store.load("a", "p")
