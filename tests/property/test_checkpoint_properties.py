"""Any small checkpoint: every byte goes to exactly one shard, and comes back where it was."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.checkpoint.exports import SavedModel, export_model
from node.checkpoint.imports import import_checkpoint
from node.checkpoint.models import Models
from node.home import Home
from tests.kit.checkpoint import BITS, Tensor, checkpoint, size_of
from tests.unit.test_checkpoint_plan import pieces
from tiles.checkpoint import plan_shards
from tiles.layout import ShardSpec

_WORDS = st.sampled_from(
    [
        *("model", "layers", "h", "0", "1", "experts", "mlp", "w1", "gate_up_proj", "weight"),
        *("expert_1", "shared_experts", "self_attn", "bias", "🙂", "é", "_", "00"),
    ]
)
_NAMES = st.one_of(
    st.lists(_WORDS, min_size=1, max_size=7).map(".".join),
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
)


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    found: list[Tensor] = []
    for name in draw(st.lists(_NAMES, unique=True, max_size=12)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
        elements = 1
        for n in shape:
            elements *= n
        if elements * BITS[dtype] % 8:
            shape = (*shape, 4)
        found.append((name, dtype, shape))
    return found


@given(tensors())
@settings(deadline=None, max_examples=200)
def test_every_byte_has_one_place(made: list[Tensor]) -> None:
    shards = plan_shards(pieces(made))
    specs: list[ShardSpec] = [shard.spec(i) for i, shard in enumerate(shards)]  # checks alignment
    assert len({spec.name for spec in specs}) == len(specs)
    spans = sorted((p.start, p.end) for s in shards for p in s.pieces if p.spec.data_bytes)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans)][: len(spans)]
    assert (spans[-1][1] if spans else 0) == sum(size_of(d, s) for _, d, s in made)
    assert plan_shards(pieces(made)) == shards
    named = {p.spec.name for s in shards for p in s.pieces}
    assert named == {name for name, _, _ in made}


@given(
    st.lists(tensors(), min_size=1, max_size=3),
    st.integers(0, 40),
    st.booleans(),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_went_in_comes_out(
    tmp_path_factory: object,
    made: list[list[Tensor]],
    spaces: int,
    shuffled: bool,
    metadata: dict[str, str],
) -> None:
    root: Path = tmp_path_factory.mktemp("model")  # type: ignore[attr-defined]
    seen: set[str] = set()
    files, weight_map = [], {}
    for i, mine in enumerate(made):
        kept = [t for t in mine if t[0] not in seen]
        seen |= {t[0] for t in kept}
        path = root / f"{i}.safetensors"
        path.write_bytes(
            checkpoint(kept, seed=i, metadata=metadata, shuffled=shuffled, spaces=spaces)
        )
        files.append(path)
        weight_map |= {name: path.name for name, _, _ in kept}
    models = Models(Home(root / "home"))
    given_files = files
    if set(weight_map.values()) == {path.name for path in files}:
        index = root / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}, ensure_ascii=False))
        files, given_files = [*files, index], [index]
    import_checkpoint(models, given_files, "m", 0, lambda done, total: None)
    out = root / "out"
    with models.reading("m") as (path, manifest):
        export_model(SavedModel(path, manifest), out, lambda done, total: None)
    if manifest.is_one_file:
        assert out.read_bytes() == files[0].read_bytes()
    else:
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {
            p.name: p.read_bytes() for p in files
        }
