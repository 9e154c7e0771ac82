"""Fuzzing every decoder of what strangers send, and of what the state holds.

    python -m tests.attacks.chain.fuzz [--cases N] [--seed S] [--only DECODER]

A case is a valid value, spoiled (tests/attacks/fuzzing.py, tests/attacks/chain/fuzz_codec.py). Two
decoders that share nothing must agree on it, without any error but DecodeError.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from tests.attacks import fuzzing
from tests.attacks.chain.fuzz_codec import NAMES, BatchTarget, CodecTarget, types_of

PROGRAM = "tests.attacks.chain.fuzz"
TARGETS: dict[str, Callable[[], fuzzing.Target]] = {
    **{name: partial(CodecTarget, name) for name in NAMES if types_of(name)},
    BatchTarget.name: BatchTarget,
}

if __name__ == "__main__":
    sys.exit(fuzzing.run(PROGRAM, __doc__ or "", TARGETS))
