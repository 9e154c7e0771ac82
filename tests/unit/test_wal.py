"""The write-ahead log: whole appends, torn tails cut, damage refused, rotation atomic."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.errors import StorageError
from chain.hashes import Context
from node.wal import LOG_NAME, WriteAheadLog
from tests.sim.disk import FaultyDisk
from tests.sim.ledger import Law

ABSTAIN = [b"sign nothing"]
BATCHES = [[b"one"], [b"two", b"", b"three" * 50], [b"FRAM" * 9, b"four"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wal" / "consensus.log"


def write(path: Path, batches: list[list[bytes]]) -> list[int]:
    """Append the batches; the log's size after opening and after each."""
    wal = WriteAheadLog(path.parent)
    sizes = [wal.size]
    for batch in batches:
        wal.append(batch)
        sizes.append(wal.size)
    wal.close()
    return sizes


def read(path: Path) -> list[bytes]:
    wal = WriteAheadLog(path.parent)
    wal.close()
    return list(wal.records())


def flat(batches: list[list[bytes]]) -> list[bytes]:
    return [r for batch in batches for r in batch]


def test_records_come_back_in_order(path: Path) -> None:
    assert read(path) == []
    write(path, BATCHES)
    assert read(path) == flat(BATCHES)
    write(path, [[b"more"]])
    assert read(path) == [*flat(BATCHES), b"more"]


def test_every_torn_tail_is_cut_to_a_whole_append(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = write(path, BATCHES)
    whole = path.read_bytes()
    for length in range(sizes[0], len(whole)):
        path.write_bytes(whole[:length])
        complete = sum(1 for size in sizes[1:] if size <= length)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read(path) == flat(BATCHES[:complete])
        assert bool(caplog.records) == (length not in sizes)
        assert path.stat().st_size == sizes[complete]


def test_a_tail_of_zeros_or_noise_is_cut_and_writing_goes_on(path: Path) -> None:
    for number, tail in enumerate((bytes(5000), b"FRAM" + bytes(100), b"\xff" * 77)):
        path = path.parents[1] / str(number) / path.name
        write(path, BATCHES)
        with path.open("ab") as file:
            file.write(tail)
        write(path, [[b"after"]])
        assert read(path) == [*flat(BATCHES), b"after"]


def test_a_flipped_bit_before_the_last_frame_refuses_to_start(path: Path) -> None:
    sizes = write(path, BATCHES)
    whole = path.read_bytes()
    for at in range(sizes[2]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        with pytest.raises(StorageError, match="damaged at byte") as refused:
            WriteAheadLog(path.parent)
        assert refused.value.exit_code == 65
        assert "move it away" in str(refused.value)


def on_disk(data: bytes) -> FaultyDisk:
    """A disk in memory that has `data` as a log."""
    disk = FaultyDisk(Law(0, 4, 10).genesis(), random.Random(0), Counter())
    disk.write(disk.create(LOG_NAME), 0, data)
    return disk


def opened(data: bytes) -> tuple[list[bytes], str] | None:
    """Records and loss of the log `data`; None if it refuses to open."""
    try:
        wal = WriteAheadLog(Path(), abstain=ABSTAIN, files=on_disk(data))
    except StorageError:
        return None
    return list(wal.records()), wal.loss


@given(
    batches=st.lists(
        st.lists(st.binary(max_size=9), min_size=1, max_size=3), min_size=2, max_size=4
    ),
    torn=st.integers(0, 200),
)
@settings(max_examples=6, deadline=None)
def test_any_flipped_bit_is_told_from_a_torn_tail(batches: list[list[bytes]], torn: int) -> None:
    """Before the last frame, whole or torn, it refuses; in a whole last frame that is cut, and
    nothing more is signed; in a torn one, which was never synced, nothing of it comes back."""
    log = WriteAheadLog(Path(), files=(disk := on_disk(b"BLYAN-WAL-2\n")))
    sizes = [log.size]
    for batch in batches:
        log.append(batch)
        sizes.append(log.size)
    whole, last = disk.read(LOG_NAME), sizes[-2]
    before = flat(batches[:-1])
    short = whole[: last + 1 + torn % (len(whole) - last - 1)]
    assert opened(short) == (before, "")
    for data in (whole, short):
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            found = opened(bytes(flipped))
            if bit // 8 < last:
                sure = (
                    data is whole or len(short) - last >= 16
                )  # or one head is all there is to see
                assert found is None or (not sure and bit // 8 >= sizes[-3] and found[1])
            elif data is whole:
                assert found == (before + ABSTAIN, "has lost its last entry")
            else:
                assert found is not None
                assert found[0] in (before, before + ABSTAIN)


def old(batches: list[list[bytes]]) -> bytes:
    """A log of version 1: no checksum over the length alone."""
    data = b"BLYAN-WAL-1\n"
    for batch in batches:
        payload = b"".join(len(r).to_bytes(4, "big") + r for r in batch)
        check = Context("wal-frame").hash(len(data).to_bytes(8, "big"), payload)
        data += b"FRAM" + len(payload).to_bytes(4, "big") + check + payload
    return data


def test_a_log_of_version_1_is_read_and_written_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(old(BATCHES) + b"FRAM\0\0")
    write(path, [[b"more"]])
    assert path.read_bytes().startswith(b"BLYAN-WAL-2\n")
    assert read(path) == [*flat(BATCHES), b"more"]
    path.write_bytes(old([]))
    assert read(path) == []
    before, data = len(old(BATCHES[:2])), old(BATCHES)
    for at in range(12, len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        lost = ([*flat(BATCHES[:2]), *ABSTAIN], "has lost its last entry")
        assert opened(flipped) == (None if at < before else lost)


def test_a_frame_in_the_wrong_place_is_damage(path: Path) -> None:
    sizes = write(path, [[b"aaaa"], [b"bbbb"], [b"cccc"]])
    whole = path.read_bytes()
    one, two = whole[sizes[0] : sizes[1]], whole[sizes[1] : sizes[2]]
    path.write_bytes(whole[: sizes[0]] + two + one + whole[sizes[2] :])
    with pytest.raises(StorageError):
        WriteAheadLog(path.parent)


def test_rotation_keeps_only_what_it_is_given(path: Path) -> None:
    wal = WriteAheadLog(path.parent)
    for batch in BATCHES:
        wal.append(batch)
    wal.rotate([b"kept"])
    wal.append([b"newer"])
    wal.close()
    assert read(path) == [b"kept", b"newer"]
    assert {p.name for p in path.parent.iterdir()} == {path.name, "consensus.begun"}


def test_a_crash_in_rotation_leaves_the_old_log(path: Path) -> None:
    write(path, BATCHES)
    path.with_name(path.name + ".new").write_bytes(b"BLYAN-W")  # died before the rename
    assert read(path) == flat(BATCHES)
    wal = WriteAheadLog(path.parent)
    wal.rotate([b"kept"])
    wal.close()
    assert read(path) == [b"kept"]


def test_a_failed_sync_stops_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = WriteAheadLog(path.parent)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="No space left"):
            wal.append([b"lost"])
    with pytest.raises(StorageError, match="a write failed before"):
        wal.append([b"never"])
    os.close(wal._file)


def guarded(path: Path, expected: bool = True) -> tuple[list[bytes], str]:
    """Records and loss of a log that must not forget; and that opening it again changes nothing."""
    wal = WriteAheadLog(path.parent, abstain=ABSTAIN, expected=expected)
    wal.append([b"more"])
    wal.close()
    again = WriteAheadLog(path.parent, abstain=ABSTAIN, expected=expected)
    again.close()
    assert again.loss == ""
    assert again.records() == (*wal.records(), b"more")
    return list(wal.records()), wal.loss


def test_a_log_that_should_be_there_begins_by_forbidding_to_sign(path: Path) -> None:
    assert guarded(path) == (ABSTAIN, "is missing or empty")
    (size,) = write(path.with_name("again") / "consensus.log", [])
    for torn in (b"", b"FRAM\0\0"):  # the only frame, which a rotation had synced before its name
        path.write_bytes(path.read_bytes()[:size] + torn)
        assert guarded(path) == (ABSTAIN, "is missing or empty")


def test_a_log_that_has_held_something_is_missed_at_any_height(path: Path) -> None:
    """Moved away because it was damaged, or cut down to nothing: its home is not a new one."""
    for damage in (path.unlink, lambda: path.write_bytes(b"BLYAN-WAL-2\n")):
        write(path, BATCHES)
        damage()
        assert guarded(path, expected=False) == (ABSTAIN, "is missing or empty")


def test_a_new_log_of_a_new_chain_forbids_nothing(path: Path) -> None:
    assert guarded(path, expected=False) == ([], "")


def test_rot_in_the_last_frame_is_no_torn_tail(path: Path) -> None:
    """That append had returned, so what it recorded may have left: cut it, and sign no more."""
    sizes = write(path, BATCHES)
    whole = path.read_bytes()
    for at in range(sizes[-2], sizes[-1]):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            records, loss = guarded(path)
            assert records == [*flat(BATCHES[:-1]), *ABSTAIN]
            assert loss == "has lost its last entry"


def test_a_frame_that_was_not_written_to_its_end_was_never_synced(path: Path) -> None:
    sizes = write(path, BATCHES)
    whole = path.read_bytes()
    for length in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:length])
        assert guarded(path) == (flat(BATCHES[:-1]), "")


def test_a_tail_of_zeros_may_have_been_a_frame(path: Path) -> None:
    for number, tail in enumerate((bytes(3), bytes(5000), b"FRAM" + bytes(100))):
        path = path.parents[1] / str(number) / path.name
        write(path, BATCHES)
        with path.open("ab") as file:
            file.write(tail)
        assert guarded(path) == ([*flat(BATCHES), *ABSTAIN], "has lost its last entry")
