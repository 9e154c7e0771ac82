"""Homes: the lock and its owner, private files, passphrases, keys."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chain.errors import ConfigError, InputError, LockedError
from node.home import (
    Home,
    check_passphrase,
    create_keys,
    generate_passphrase,
    read_passphrase,
    unlock,
    write_private,
)

HOLDER = """
import sys
from pathlib import Path
from node.home import Home
with Home(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_home_is_private(home: Home) -> None:
    assert mode(home.path) == 0o700
    assert {mode(p) for p in (home.wal, home.tiles, home.blobs, home.corpus, home.logs)} == {0o700}
    home.create()  # again, without harm


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot create the home directory .*--home"):
        Home(tmp_path / "file" / "home").create()


def test_the_lock_is_exclusive_and_names_its_owner(home: Home) -> None:
    assert home.owner() is None
    with home.lock():
        assert home.owner() == os.getpid()
        with pytest.raises(LockedError, match=f"{home.path}.*process {os.getpid()}") as caught:
            home.lock().__enter__()
        assert caught.value.exit_code == 77
    assert home.owner() is None
    with home.lock():
        assert home.owner() == os.getpid()


def test_a_full_disk_costs_the_owners_name_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.lock():
        size = home.lock_file.stat().st_size
    assert home.lock_file.stat().st_size == size  # its room is there when it is needed again
    home.lock_file.unlink()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("node.home.os.pwrite", full)
    monkeypatch.setattr("node.home._PID_WAIT_S", 0.1)
    with home.lock():
        with pytest.raises(LockedError, match="in use by another process"):
            home.lock().__enter__()
        assert home.owner() is None


def test_a_killed_owner_leaves_no_lock(home: Home) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert home.owner() == holder.pid
        with pytest.raises(LockedError, match=f"process {holder.pid}"):
            home.lock().__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert home.owner() is None
    with home.lock():
        assert home.owner() == os.getpid()


def test_the_token_is_private_and_stays(home: Home) -> None:
    with pytest.raises(ConfigError, match="api-token is missing"):
        home.token()
    token = home.create_token()
    assert len(token) >= 32
    assert mode(home.token_file) == 0o600
    assert home.create_token() == home.token() == token


def test_private_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_keys_are_unlocked_by_the_file_beside_them(home: Home) -> None:
    secret = generate_passphrase(home)
    assert generate_passphrase(home) == secret
    assert mode(home.keystore / "passphrase") == 0o600
    keys, words = create_keys(home, "node", secret)
    assert len(words.split()) == 24
    assert unlock(home, "node") == keys
    with pytest.raises(InputError, match=r"no key named 'other'.*wallet new other"):
        unlock(home, "other")


def test_the_environment_names_the_passphrase_file(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    monkeypatch.setenv("BLYAN_PASSPHRASE_FILE", str(secret))
    with pytest.raises(ConfigError, match=r"names .*secret, which is missing"):
        read_passphrase(home, None, "the key")
    secret.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        read_passphrase(home, None, "the key")
    secret.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_passphrase(home, None, "the key")
    secret.write_text("with a space \n")
    assert read_passphrase(home, None, "the key") == "with a space "


def test_without_a_file_somebody_is_asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLYAN_PASSPHRASE_FILE", raising=False)
    assert read_passphrase(home, lambda purpose: f"for {purpose}", "the key") == "for the key"
    with pytest.raises(ConfigError, match="BLYAN_PASSPHRASE_FILE"):
        read_passphrase(home, None, "the key")


def test_short_passphrases_are_refused() -> None:
    assert check_passphrase("12345678") == "12345678"
    with pytest.raises(InputError, match="at least 8"):
        check_passphrase("1234567")
