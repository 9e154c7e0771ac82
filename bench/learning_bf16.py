"""Loss of the same training in the `native` and the `bf16` profile: same model, data and order.

Each trains nano in a process of its own; told is the mean training loss of the last tenth of the
steps, of text that no step has seen before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.learning_process import told
from bench.measure import Row, at_most
from learning.profile import KINDS
from learning.spec import NANO_MODEL, NANO_TRAINING

_TEXT_BYTES = 3_000_000


def loss_rows(steps: int) -> Iterator[Row]:
    """Nats a byte, and how much more bf16 has."""
    found = {}
    for kind in ("native", "bf16"):
        found[kind] = float(told("bench.learning_bf16", kind, str(steps)))
        yield at_most(f"loss_nano_{kind}", found[kind], "nats", None)
    yield at_most("loss_nano_bf16_more", found["bf16"] - found["native"], "nats", None)


def main(kind: str, steps: int) -> None:
    import sysconfig

    import numpy as np

    from corpus.ingest import ingest
    from learning.conformance import ops_of
    from learning.init import initial_shards
    from learning.profile import configure
    from learning.state import TrainState
    from learning.train import train_segment

    configure()
    documents = ingest(Path(sysconfig.get_paths()["stdlib"]), _TEXT_BYTES).documents
    text = np.frombuffer(b"".join(document.text for document in documents), np.uint8)
    rule, window = replace(NANO_TRAINING, steps=steps, segment_steps=steps), NANO_MODEL.context + 1
    starts = np.random.default_rng(1).integers(0, len(text) - window, (steps, rule.batch))
    batches = text[starts[..., None] + np.arange(window)]
    losses: list[float] = []
    train_segment(
        *(NANO_MODEL, rule, TrainState.fresh(initial_shards(NANO_MODEL))),
        *(batches.__getitem__, steps, lambda progress: losses.append(progress.loss)),
        ops_of(KINDS[KINDS.index(kind)]),
    )
    last = losses[-max(1, steps // 10) :]
    print(sum(last) / len(last))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
