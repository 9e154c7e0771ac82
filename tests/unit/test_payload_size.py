"""The bound on payloads: none is longer, and the longest comes near it."""

from __future__ import annotations

import numpy as np
import pytest

from chain import limits
from chain.errors import InputError
from chain.hashes import ZERO_HASH
from learning.spec import NANO_MODEL
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.delta import encode_delta
from tiles.layout import ShardSpec, TensorSpec
from tiles.payload_size import largest_payload
from tiles.sections import encode_sparse

SIZES = (1, 300, 4096, 4100, 65_536, 65_600, 150_000)


def specs() -> list[ShardSpec]:
    forms = [(coding, n) for coding in ("sparse", "dense") for n in SIZES]
    return [
        ShardSpec(i, f"shard {i}", coding, (TensorSpec("w", "F32", (n,)),))
        for i, (coding, n) in enumerate(forms)
    ]


@pytest.mark.parametrize("density", [1, 7, 64, 1365, 2048, 3000, 4096, INT8_NUMBER, 0x3001, 0x3010])
def test_no_payload_is_longer(density: int) -> None:
    shapes = specs()
    rng = np.random.default_rng(density)
    values = {
        s.index: np.ldexp(rng.integers(-200, 200, s.elements).astype(np.float32), -20)
        for s in shapes
    }
    payload, _ = encode_delta(ZERO_HASH, values, shapes, density)
    bound = largest_payload(shapes, density)
    assert len(payload) <= bound <= 1.1 * len(payload) + 1000
    fewer, _ = encode_delta(ZERO_HASH, {0: values[0]}, shapes, density)
    assert len(fewer) <= bound


def test_wherever_its_values_stand_and_however_many_there_are() -> None:
    """The gaps cost most where they are widest: all values at the end, or one a power of two."""
    elements = 5000
    shape = ShardSpec(0, "shard", "sparse", (TensorSpec("w", "F32", (elements,)),))
    bound = largest_payload([shape], limits.MAX_DENSITY)
    for kept in (1, 2, 3, 624, 625, 626, 1249, 1250, 2499, 2500, 2501, 4999, 5000):
        for at in (slice(elements - kept, None), slice(0, kept), slice(None, None, 5000 // kept)):
            units = np.zeros(elements, np.int32)
            units[at] = 5
            assert len(encode_sparse(units, limits.MAX_DENSITY, 65_536)[1][0]) <= bound


def test_it_follows_the_model_and_is_no_more_than_a_blob() -> None:
    nano = NANO_MODEL.shards()
    assert largest_payload(nano, 64) < largest_payload(nano, 1024) < largest_payload(nano, 4096)
    assert largest_payload(nano, 4096) < 4 * NANO_MODEL.parameters
    large = [ShardSpec(0, "large", "dense", (TensorSpec("w", "F32", (1 << 30,)),))]
    assert largest_payload(large, low_rank_number(1)) == limits.MAX_BLOB_BYTES
    with pytest.raises(InputError):
        largest_payload(nano, 0)
