"""The tiles on disk: versions of shards that share what is equal (docs/spec/tiles.md).

`TileStore` is the one writer of a directory, `TileReader` reads beside it from any process.
"""

from tiles.store.disk import Disk
from tiles.store.reader import TileReader
from tiles.store.scrubbing import Damage
from tiles.store.store import TileStore
from tiles.store.writer import ShardWriter

__all__ = ["Damage", "Disk", "ShardWriter", "TileReader", "TileStore"]
