"""Taking a delta file over to another base (docs/guides/train.md, "When the base has moved on").

The change stays what it is, bit by bit, and only says that it starts from another model. Nothing of
the two models is mixed, and whether the change helps there is for the jury to say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chain.errors import StorageError
from chain.hashes import Hash32
from node.delta_file import BASE_KEY, read_delta, start_of
from tiles.layout import ShardSpec


def rebase_file(
    source: Path, target: Path, specs: Sequence[ShardSpec], base: Hash32 | None, onto: Hash32
) -> Hash32:
    """Write `source` to `target` (which may be the same) as a delta of `onto`; the base it had.

    `base`: what it starts from. TxError `stale_base` if the file says another, and nothing is
    written: whoever rebases names what he believes to have. InputError if neither says it.
    """
    had = start_of(source, read_delta(source, specs), base)
    part = target.with_name(f".{target.name}.part")
    try:
        save_file(load_file(source), part, {BASE_KEY: onto.hex()})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{target} cannot be written: {error}") from None
    return had
