"""What one shard has on disk: versions, the containers of their tiles, and steps between tiles.

Tiles are known by their roots alone. A version is a list of tile roots; a container (snapshot or
pack) is a bag of slots, each the place of one tile; a step makes one tile of another. A version
holds a tile if some slot has it, or if steps lead to it from a tile that some slot has. So an
unchanged tile is stored once however many versions have it.

Nothing here touches a disk: `tiles/store/load.py` fills a catalog, the store keeps it current.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chain.hashes import Hash32
from tiles.layout import ShardSpec
from tiles.shardfile import TensorRange, shard_header
from tiles.store import records


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one tile in a container. `hashes` is empty while the tile is missing."""

    container: Container
    root: Hash32
    size_bytes: int
    offset: int  # of the bytes, in the container's file
    record_at: int  # of the subtile hashes, in the container's record
    hashes: bytes = b""
    stale: bool = False  # the tile is missing, but its bytes may still take room


@dataclass(slots=True, eq=False)
class Container:
    """A file with tiles. A snapshot's record is a file of its own, a pack's is in the pack."""

    stem: str
    is_pack: bool
    data_name: str
    record_name: str
    header: bytes = b""  # of a pack; a snapshot's is its shard's
    slots: list[Slot] = field(default_factory=list)
    missing: int = 0  # slots without hashes


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How one tile is made of another: `size_bytes` encoded at `offset` of the version's file."""

    file: StepFile
    place: records.StepPlace
    base: Hash32
    new: Hash32
    checksum: Hash32


@dataclass(slots=True, eq=False)
class StepFile:
    """The steps that lead to the version `root`."""

    root: Hash32
    name: str
    header: bytes
    size_bytes: int
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Tiles of a version that stand behind each other in a container too; or one that `steps`
    make of the one slot. They begin at `place` of the data section.
    """

    place: int
    size_bytes: int
    container: Container
    offset: int
    slots: list[Slot]
    steps: list[Step]


@dataclass(slots=True, eq=False)
class Version:
    """A version of the shard. `own` is its snapshot, if it has one."""

    root: Hash32
    tile_roots: tuple[Hash32, ...]
    own: Container | None = None
    is_thin: bool = False  # it needs no tiles of its own where steps lead to them
    # What follows from the catalog, and from which state of it.
    seen: tuple[int, tuple[bool, ...]] = (-1, ())
    mapped: tuple[int, list[Run] | None] = (-1, None)


class Catalog:
    """One shard's folder. `changes` grows with every change of what is present."""

    def __init__(self, spec: ShardSpec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self._place = str(folder)
        self.header = shard_header(spec)
        self.tensors = tuple(
            TensorRange(tensor, *place)
            for tensor, place in zip(spec.tensors, spec.offsets().values(), strict=True)
        )
        self.versions: dict[Hash32, Version] = {}
        self.containers: dict[str, Container] = {}  # by stem and kind
        self.step_files: dict[Hash32, StepFile] = {}
        self.changes = 0
        self.used_bytes: int | None = None  # None: to be counted again
        self._slots: dict[Hash32, list[Slot]] = {}
        self._steps: dict[Hash32, list[Step]] = {}

    # --- changing -----------------------------------------------------------------------

    def add_container(self, container: Container) -> None:
        self.containers[_key(container)] = container
        container.missing = sum(not slot.hashes for slot in container.slots)
        for slot in container.slots:
            self._slots.setdefault(slot.root, []).append(slot)
        self.changed()

    def remove_container(self, container: Container) -> None:
        del self.containers[_key(container)]
        for slot in container.slots:
            self._slots[slot.root].remove(slot)
            slot.hashes = b""  # for whoever still has it
        self.changed()

    def set_hashes(self, slot: Slot, hashes: bytes) -> None:
        """A tile came (its hashes) or went (none)."""
        slot.container.missing += bool(slot.hashes) - bool(hashes)
        slot.hashes, slot.stale = hashes, False
        self.changed()

    def add_steps(self, file: StepFile) -> None:
        self.step_files[file.root] = file
        for step in file.steps:
            self._steps.setdefault(step.new, []).append(step)
        self.changed()

    def remove_step(self, step: Step) -> None:
        step.file.steps.remove(step)
        self._steps[step.new].remove(step)
        self.changed()

    def remove_steps(self, file: StepFile) -> None:
        del self.step_files[file.root]
        for step in file.steps:
            self._steps[step.new].remove(step)
        self.changed()

    def changed(self) -> None:
        self.changes += 1
        self.used_bytes = None

    # --- asking -------------------------------------------------------------------------

    def slots_of(self, root: Hash32) -> list[Slot]:
        """All slots of a tile, present or not."""
        return self._slots.get(root, [])

    def slot(self, root: Hash32, own: Container | None = None) -> Slot | None:
        """A slot that has the tile: in the version's snapshot, in any snapshot, in a pack."""
        best = None
        for slot in self._slots.get(root, ()):
            if slot.hashes:
                if slot.container is own:
                    return slot
                if best is None or (best.container.is_pack and not slot.container.is_pack):
                    best = slot
        return best

    def way(self, root: Hash32, own: Container | None = None) -> tuple[Slot, list[Step]] | None:
        """A slot, and the steps from its tile to the tile `root`; None if it cannot be had."""
        if (slot := self.slot(root, own)) is not None:  # the usual way, asked of every tile
            return slot, []
        for base, steps in self._bases(root):
            slot = self.slot(base, own)
            if slot is not None:
                return slot, list(steps)
        return None

    def _bases(self, root: Hash32) -> Iterator[tuple[Hash32, tuple[Step, ...]]]:
        """A tile, and then all that steps make it of, the fewest steps first, each with these.

        Several steps may lead to a tile, and bytes may come back to what they were.
        """
        met = {root}
        left: deque[tuple[Hash32, tuple[Step, ...]]] = deque([(root, ())])
        while left:
            at, steps = left.popleft()
            yield at, steps
            for step in self._steps.get(at, ()):
                if step.base not in met:
                    met.add(step.base)
                    left.append((step.base, (step, *steps)))

    def presence(self, version: Version) -> tuple[bool, ...]:
        """For each tile of a version whether it can be had here."""
        changes, seen = version.seen
        if changes != self.changes:
            seen = tuple(self.way(root, version.own) is not None for root in version.tile_roots)
            version.seen = (self.changes, seen)
        return seen

    def runs(self, version: Version) -> list[Run] | None:
        """What a mapping of a version is made of; None if tiles are missing."""
        changes, runs = version.mapped
        if changes != self.changes:
            runs = self._runs(version)
            version.mapped = (self.changes, runs)
        return runs

    def _runs(self, version: Version) -> list[Run] | None:
        runs: list[Run] = []
        place = 0
        for tile, root in enumerate(version.tile_roots):
            way = self.way(root, version.own)
            if way is None:
                return None
            slot, steps = way
            size, last = self.spec.tile_bytes(tile), runs[-1] if runs else None
            if (
                last is not None
                and last.container is slot.container
                and last.offset + last.size_bytes == slot.offset
                and not (steps or last.steps)
            ):
                size += last.size_bytes
                last.slots.append(slot)
                runs[-1] = Run(last.place, size, last.container, last.offset, last.slots, [])
            else:
                runs.append(Run(place, size, slot.container, slot.offset, [slot], steps))
            place = runs[-1].place + runs[-1].size_bytes
        return runs

    def path(self, container: Container) -> str:
        """Where a container's tiles are: text, for it is needed each time that one is opened."""
        return f"{self._place}/{container.data_name}"

    def is_whole(self, version: Version) -> bool:
        return all(self.presence(version))

    def used_containers(self, version: Version) -> list[Container]:
        """The containers that a version's tiles come from, without repetition."""
        ways = [self.way(root, version.own) for root in version.tile_roots]
        found = {_key(way[0].container): way[0].container for way in ways if way}
        return list(found.values())

    def needed(self) -> tuple[set[Slot], set[Step]]:
        """What the versions need: one slot for each of their tiles, or steps and what those
        start from where a version is thin. All else may go.
        """
        slots: set[Slot] = set()
        steps: set[Step] = set()
        kept: set[Hash32] = set()
        for version in self.versions.values():
            if version.own is not None and not version.is_thin:  # stays a file of its own
                slots.update(slot for slot in version.own.slots if slot.hashes)
                kept.update(slot.root for slot in version.own.slots if slot.hashes)
        for version in self.versions.values():
            for root in () if version.is_thin else version.tile_roots:
                slot = None if root in kept else self.slot(root)
                if slot is not None:
                    slots.add(slot)
                    kept.add(root)
        for version in self.versions.values():
            for root in version.tile_roots:
                if root not in kept:
                    self._need_by_steps(root, kept, slots, steps)
        return slots, steps

    def _need_by_steps(
        self, root: Hash32, kept: set[Hash32], slots: set[Slot], steps: set[Step]
    ) -> None:
        """Steps to a tile from one that stays anyway; else from the farthest that is here."""
        farthest: tuple[Slot, tuple[Step, ...]] | None = None
        for base, path in self._bases(root):
            if base in kept:
                steps.update(path)
                return
            slot = self.slot(base)
            if slot is not None:
                farthest = slot, path
        if farthest is not None:
            slot, path = farthest
            kept.add(slot.root)
            slots.add(slot)
            steps.update(path)

    def wanted(self) -> set[Hash32]:
        """Tiles of versions that cannot be had here: room for them is kept."""
        return {
            root
            for version in self.versions.values()
            for root, here in zip(version.tile_roots, self.presence(version), strict=True)
            if not here
        }

    def stale(self) -> Iterator[tuple[Container, list[Slot]]]:
        """Containers with room to give back."""
        for container in self.containers.values():
            slots = [slot for slot in container.slots if slot.stale]
            if slots:
                yield container, slots


def _key(container: Container) -> str:
    return container.stem + (records.PACK if container.is_pack else "")
