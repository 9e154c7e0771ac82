"""What the payloads of a round cost a validator that aggregates: resident memory and time.

Four duties at once take a tile each of every payload. They share payloads that are decrypted into a
file, as a node's do; and beside it (`each`) all of them decrypt and hold all for themselves, as
they once did. Each way is a process of its own; told is its largest resident set, without what it
had before, and the time from sealed blobs to new tiles.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.learning_process import told
from bench.measure import Row, at_most
from chain import limits
from chain.hashes import BLOB, ZERO_HASH, Hash32
from chain.records import DeltaRecord
from chain.transactions import PodlManifest
from chain.types import BlobId, Grains, Height, PubKey, TxId
from node.sealed import seal, unseal
from node.services.round_payloads import RoundPayloads
from tiles.aggregate import aggregate_tile
from tiles.codings import INT8_NUMBER
from tiles.delta import PayloadTile, SectionSource, encode_delta, payload_root
from tiles.layout import ShardSpec, TensorSpec

DUTIES = 4
BOUND_MB = 400.0  # twice a blob, and a payload three times, of 64 MiB each, would be 320 MiB


def payload_rows(count: int, tiles: int) -> Iterator[Row]:
    """`count` payloads of int8, of a shard of so many tiles: a byte an element."""
    with tempfile.TemporaryDirectory() as folder:
        told("bench.learning_payloads", "seal", folder, str(count), str(tiles))
        found = {}
        for way in ("file", "memory"):
            out = told("bench.learning_payloads", way, folder, str(count), str(tiles))
            found[way] = [float(word) for word in out.split()]
    (most, spent), (held, once) = found["file"], found["memory"]
    yield at_most(f"payloads_{count}_memory", most, "MB", BOUND_MB)
    yield at_most(f"payloads_{count}_memory_each", held, "MB", None)
    yield at_most(f"payloads_{count}_seconds", spent, "s", None)
    yield at_most(f"payloads_{count}_seconds_each", once, "s", None)


def _spec(tiles: int) -> ShardSpec:
    elements = tiles * limits.TILE_BYTES // 4
    return ShardSpec(0, "expert", "sparse", (TensorSpec("w", "F32", (elements,)),))


class _Folder:
    """Blobs by number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def blob(self, number: int) -> Path:
        return self._folder / f"{number}.blob"

    def put(self, payload: bytes, number: int) -> None:
        self.blob(number).write_bytes(seal(payload, _salt(number)))

    def local(self, blob_id: BlobId) -> bytes | None:
        """A blob's name is its number here; its bytes are hashed as a node's are."""
        data = self.blob(int.from_bytes(blob_id, "big")).read_bytes()
        BLOB.hash(data)
        return data

    async def get(self, blob_id: BlobId, most: int = 0) -> bytes:
        found = await asyncio.to_thread(self.local, blob_id)
        if found is None or len(found) > most:
            raise ValueError("another blob than was sealed")
        return found


def _salt(number: int) -> Hash32:
    return Hash32(number.to_bytes(32, "big"))


def _record(number: int, root: Hash32) -> DeltaRecord:
    none, learner = ZERO_HASH, PubKey(bytes(32))
    manifest = PodlManifest(
        *(0, learner, none, 0, (), none, "", 1, 1, none, (), *(none,) * 4),
        payload_root=root,
        density=INT8_NUMBER,
        shards=(),
    )
    name, salt = BlobId(_salt(number)), _salt(number)
    size = limits.MAX_BLOB_BYTES
    delta = TxId(_salt(number))
    return DeltaRecord(
        delta, 0, learner, Height(1), none, none, none, name, size, manifest, salt, 0, (), Grains(0)
    )


def _prepare(folder: Path, count: int, tiles: int) -> None:
    """The payloads differ in their salts alone: what they hold costs the same."""
    spec, blobs = _spec(tiles), _Folder(folder)
    values = np.random.default_rng(1).standard_normal(spec.elements, np.float32) * np.float32(1e-3)
    payload, _ = encode_delta(ZERO_HASH, {0: values}, [spec], INT8_NUMBER)
    (folder / "root").write_bytes(payload_root(payload))
    for number in range(count):
        blobs.put(payload, number)


async def _file(folder: Path, count: int, tiles: int) -> None:
    spec, root = _spec(tiles), Hash32((folder / "root").read_bytes())
    payloads = RoundPayloads(folder / "payloads", [spec], _Folder(folder))
    records = [_record(number, root) for number in range(count)]

    async def duty(tile: int) -> None:
        found = await asyncio.gather(*map(payloads.get, records))
        await asyncio.to_thread(_aggregate, found, spec, tile)

    await asyncio.gather(*(duty(i % tiles) for i in range(DUTIES)))
    await payloads.close()


async def _memory(folder: Path, count: int, tiles: int) -> None:
    spec, blobs = _spec(tiles), _Folder(folder)

    async def duty(tile: int) -> None:
        found = []
        for number in range(count):
            blob = await blobs.get(BlobId(_salt(number)), limits.MAX_BLOB_BYTES)
            found.append(await asyncio.to_thread(unseal, blob, _salt(number)))
        await asyncio.to_thread(_aggregate, found, spec, tile)

    await asyncio.gather(*(duty(i % tiles) for i in range(DUTIES)))


def _aggregate(payloads: Sequence[bytes | SectionSource], spec: ShardSpec, tile: int) -> None:
    base = bytes(spec.tile_bytes(tile))
    aggregate_tile(base, [PayloadTile(payload, [spec], 0, tile) for payload in payloads])


def main(way: str, folder: Path, count: int, tiles: int) -> None:
    if way == "seal":
        _prepare(folder, count, tiles)
        return
    base, began = _peak_bytes(), time.monotonic()
    asyncio.run({"file": _file, "memory": _memory}[way](folder, count, tiles))
    print((_peak_bytes() - base) / 1e6, time.monotonic() - began)


def _peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` would count what started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
