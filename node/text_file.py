"""A text of any size on which a model is measured: only the windows that count are read."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from chain.errors import InputError
from learning.windows import window_starts

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"))


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes that can be sought in, and what to call them."""

    name: str
    file: BinaryIO
    size_bytes: int

    @classmethod
    def of(cls, name: str, data: bytes) -> Text:
        return cls(name, io.BytesIO(data), len(data))

    def check(self, context: int) -> None:
        """InputError unless there is a window of context + 1 bytes."""
        if self.size_bytes <= context:
            raise InputError(
                f"{self.name}: {self.size_bytes} bytes, expected at least {context + 1}: the model "
                f"predicts {context} bytes at a time, each from those before it"
            )

    def windows(self, context: int) -> npt.NDArray[np.uint8]:
        """The windows that a holdout of these bytes would have, uint8 [n, context + 1]. InputError
        if there is none, or the file cannot be read."""
        self.check(context)
        starts = window_starts(self.size_bytes, context)
        found = np.empty((len(starts), context + 1), np.uint8)
        for window, start in zip(found, starts, strict=True):
            try:
                self.file.seek(int(start))
                data = self.file.read(context + 1)
            except OSError as error:
                raise InputError(f"{self.name} cannot be read: {error.strerror}") from None
            if len(data) != context + 1:
                raise InputError(
                    f"{self.name} had {self.size_bytes} bytes and has fewer now: it was changed "
                    "while it was read"
                )
            window[:] = np.frombuffer(data, np.uint8)
        return found


@contextmanager
def open_text(path: Path) -> Iterator[Text]:
    """A file to be measured. InputError if it is none, is empty, or cannot be read."""
    try:
        # A pipe without a writer would let us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        kind = next((name for holds, name in _KINDS if holds(found.st_mode)), "a device")
        raise InputError(f"{path} is {kind}, expected a file: its windows are sought out")
    with os.fdopen(descriptor, "rb") as file:
        if not found.st_size:
            raise InputError(f"{path} is empty (0 bytes), expected a text of at least one window")
        yield Text(str(path), file, found.st_size)
