"""Fuzzing whatever parses bytes of strangers on the way of a tile.

    python -m tests.attacks.tiles.fuzz [--cases N] [--seed S] [--only header|proof|framing]

A case is a valid input, spoiled (tests/attacks/fuzzing.py). It must end in a result or in a
BlyanError.
"""

from __future__ import annotations

import sys

from tests.attacks import fuzzing
from tests.attacks.tiles.fuzz_framing import FramingTarget
from tests.attacks.tiles.fuzz_header import HeaderTarget
from tests.attacks.tiles.fuzz_proof import ProofTarget

PROGRAM = "tests.attacks.tiles.fuzz"
TARGETS: dict[str, type[fuzzing.Target]] = {
    kind.name: kind for kind in (HeaderTarget, ProofTarget, FramingTarget)
}

if __name__ == "__main__":
    sys.exit(fuzzing.run(PROGRAM, __doc__ or "", TARGETS))
