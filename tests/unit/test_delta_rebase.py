"""`blyan delta rebase`: the same change, said to start from another model; compare and swap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chain.errors import InputError, StorageError, TxError
from chain.hashes import Hash32
from node.delta_file import BASE_KEY, read_delta, start_of
from node.delta_rebase import rebase_file
from tests.kit.nano import TINY

SPECS = TINY.shards()
OLD, NEW = Hash32(b"o" * 32), Hash32(b"n" * 32)
TENSORS = {"embed.weight": np.linspace(-0.5, 0.5, 256 * 16, dtype=np.float32).reshape(256, 16)}


def written(path: Path, base: Hash32 | None = OLD) -> Path:
    save_file(TENSORS, path, {BASE_KEY: base.hex()} if base else None)
    return path


def test_the_change_stays_and_the_base_is_another(tmp_path: Path) -> None:
    file, out = written(tmp_path / "delta"), tmp_path / "out"
    before = file.read_bytes()
    assert rebase_file(file, out, SPECS, None, NEW) == OLD
    assert file.read_bytes() == before
    assert read_delta(out, SPECS).base == NEW
    assert load_file(out)["embed.weight"].tobytes() == TENSORS["embed.weight"].tobytes()
    assert rebase_file(file, file, SPECS, OLD, NEW) == OLD
    assert file.read_bytes() == out.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta", "out"]


def test_another_base_than_told_is_refused_and_nothing_written(tmp_path: Path) -> None:
    file = written(tmp_path / "delta")
    before = file.read_bytes()
    with pytest.raises(TxError, match=f"starts from {OLD.hex()}") as caught:
        rebase_file(file, file, SPECS, NEW, NEW)
    assert caught.value.code == "stale_base"
    assert file.read_bytes() == before


def test_a_file_without_a_base_needs_to_be_told_one(tmp_path: Path) -> None:
    file = written(tmp_path / "delta", None)
    with pytest.raises(InputError, match="--base"):
        rebase_file(file, file, SPECS, None, NEW)
    assert rebase_file(file, file, SPECS, OLD, NEW) == OLD
    with pytest.raises(StorageError, match="cannot be written"):
        rebase_file(file, tmp_path / "none" / "out", SPECS, None, NEW)


def test_what_a_file_starts_from_is_said_by_it_or_by_its_sender(tmp_path: Path) -> None:
    """Else it would be sent as a delta of whatever is the model now."""
    named, unnamed = written(tmp_path / "named"), written(tmp_path / "unnamed", None)
    assert start_of(named, read_delta(named, SPECS), None) == OLD
    assert start_of(named, read_delta(named, SPECS), OLD) == OLD
    assert start_of(unnamed, read_delta(unnamed, SPECS), NEW) == NEW
    with pytest.raises(InputError, match=r"unnamed does not say .* --base ROOT .*blyan\.base"):
        start_of(unnamed, read_delta(unnamed, SPECS), None)
    with pytest.raises(TxError, match=f"{OLD.hex()} by its metadata") as caught:
        start_of(named, read_delta(named, SPECS), NEW)
    assert caught.value.code == "stale_base"
