"""The tiles on disk (docs/spec/tiles.md)."""

from tiles.store.reader import TileReader
from tiles.store.store import Damage, ShardWriter, TileStore

__all__ = ["Damage", "ShardWriter", "TileReader", "TileStore"]
