"""The explorer's own files, held in memory; each has its hash in its address, so browsers may
keep it for good."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    data: bytes
    media_type: str
    tag: str  # names this content


def load_files() -> dict[str, StaticFile]:
    """Every file of `static/` by name."""
    found = {}
    for entry in resources.files("node.explorer").joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in TYPES:
            data = entry.read_bytes()
            tag = hashlib.sha256(data).hexdigest()[:16]
            found[entry.name] = StaticFile(data, TYPES[suffix], tag)
    return found
