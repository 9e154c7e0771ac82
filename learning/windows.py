"""Which windows of a text its loss is measured on (docs/spec/model.md, "Holdout loss"). No torch
here: whoever reads the text need not compute."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_WINDOWS = 512  # of a text


def window_starts(size_bytes: int, context: int) -> npt.NDArray[np.int64]:
    """Offsets int64 [m] of the windows of context + 1 bytes each; none if the text is shorter.

    They lie at a stride of `context`. With n whole windows, window j of m = min(n, 512) is number
    floor(j * n / m).
    """
    count = max(size_bytes - 1, 0) // context
    most = min(count, MAX_WINDOWS)
    return np.arange(most, dtype=np.int64) * count // max(most, 1) * context
