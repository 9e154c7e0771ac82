"""A shard's data section taken in parts, as an import reads it: memory holds one subtile."""

from __future__ import annotations

import itertools
from types import TracebackType

from chain import limits
from chain.errors import VerifyError, invariant
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import SUBTILES_PER_TILE
from tiles.store.catalog import Catalog
from tiles.store.disk import Buffer, Draft, refusals
from tiles.store.writing import NewTile, Writing, record_of, snapshot_of

_NUMBERS = itertools.count()  # several imports of one shard may be under way


class ShardWriter:
    """Sequential bytes of a data section; `finish` makes them a version.

    Use as a context, or call `finish` or `abort`: what is not finished is removed.
    """

    def __init__(self, writing: Writing, catalog: Catalog) -> None:
        self._writing, self._catalog = writing, catalog
        self._disk, self._spec = writing.disk, catalog.spec
        self._hashes: list[Hash32] = []
        self._rest = bytearray()  # of a subtile that has begun
        self._written = 0
        self._name = f"import-{next(_NUMBERS)}"
        self._draft = Draft(self._disk, catalog.folder)
        with writing.changing(f"write shard {self._spec.name}"):
            writing.need_room(catalog, self._spec.data_bytes)
            self._fd: int | None = self._draft.create(self._name)
            self._disk.write(self._fd, 0, catalog.header)

    def write(self, data: Buffer) -> None:
        """The next bytes. Raises VerifyError if there are more than the shard has, QuotaError if
        the disk is full.
        """
        fd = self._open()
        view = memoryview(data).cast("B")
        if self._written + len(view) > self._spec.data_bytes:
            raise VerifyError(
                f"shard {self._spec.name}: more than its {self._spec.data_bytes} bytes"
            )
        with refusals(f"write shard {self._spec.name}"):
            self._disk.write(fd, len(self._catalog.header) + self._written, view)
        self._written += len(view)
        self._hash(view)

    def finish(self) -> Hash32:
        """Make the version whole and durable; its root. Raises VerifyError if bytes are missing."""
        fd, spec = self._open(), self._spec
        if self._written != spec.data_bytes:
            raise VerifyError(
                f"shard {spec.name}: {self._written} bytes, expected {spec.data_bytes}"
            )
        if self._rest:
            self._hashes.append(self._leaf(self._rest))
            self._rest = bytearray()
        leaves = [
            tuple(self._hashes[i : i + SUBTILES_PER_TILE])
            for i in range(0, len(self._hashes), SUBTILES_PER_TILE)
        ]
        roots = tuple(
            merkle.tile_root_of(hashes, spec.tile_bytes(i)) for i, hashes in enumerate(leaves)
        )
        root = merkle.shard_root(roots, spec.data_bytes)
        with refusals(f"write shard {spec.name}"):
            self._disk.sync(fd)  # it may take long, and others may take their turn meanwhile
        with self._writing.changing(f"write shard {spec.name}"):
            self._settle(fd, root, roots, [b"".join(hashes) for hashes in leaves])
        self.abort()
        return root

    def abort(self) -> None:
        """Forget what was written; after `finish` there is nothing left to forget."""
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None
            self._draft.discard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _open(self) -> int:
        invariant(self._fd is not None, "a shard writer is used after its end")
        return self._fd or 0

    def _settle(
        self, fd: int, root: Hash32, roots: tuple[Hash32, ...], hashes: list[bytes]
    ) -> None:
        """A version of its own, unless it is here already, or begun: then what it lacks."""
        catalog = self._catalog
        with self._writing.lock:
            version = catalog.versions.get(root) or self._writing.revive(catalog, root, roots)
            lacks = [] if version is None else list(catalog.presence(version))
        if version is None:
            container = snapshot_of(catalog, root, roots, hashes)
            self._draft.add(container.record_name, [record_of(container)])
            self._draft.publish({self._name: container.data_name})
            self._writing.know_snapshot(catalog, container, roots)
        for tile in [tile for tile, here in enumerate(lacks) if not here]:
            start, end = self._spec.tile_range(tile)
            data = self._disk.read(fd, len(catalog.header) + start, end - start)
            entry = NewTile(roots[tile], end - start, data, hashes[tile])
            self._writing.add(catalog, root, roots, {tile: entry})

    def _hash(self, view: memoryview) -> None:
        """Take subtiles off the bytes as soon as they are whole."""
        size = limits.SUBTILE_BYTES
        if self._rest:
            take = min(size - len(self._rest), len(view))
            self._rest += view[:take]
            view = view[take:]
            if len(self._rest) == size:
                self._hashes.append(self._leaf(self._rest))
                self._rest = bytearray()
        while len(view) >= size:
            self._hashes.append(self._leaf(view[:size]))
            view = view[size:]
        self._rest += view

    def _leaf(self, data: bytearray | memoryview) -> Hash32:
        return merkle.subtile_hash(len(self._hashes) % SUBTILES_PER_TILE, data)
