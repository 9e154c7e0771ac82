"""The version of the installed distribution, and those of what it reads and writes
(docs/spec/upgrades.md)."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache  # each call would read the distribution's files again
def version() -> str:
    return metadata.version("blyan")


def formats() -> dict[str, int]:
    """The highest version of each format that this program knows, by the name errors use."""
    from chain.store_schema import SCHEMA_VERSION
    from chain.types import HEADER_VERSION
    from node import home, pool_journal, wal
    from wallet import keystore

    return {
        "home": home.VERSION,
        "store": SCHEMA_VERSION,
        "log": wal.VERSION,
        "journal": pool_journal.VERSION,
        "keystore": keystore.VERSION,
        "protocol": HEADER_VERSION,
    }
