"""How checkpoints are cut: names of four families, fused experts, limits, alignment."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import tiles.checkpoint as plans
from chain.errors import InputError
from learning.spec import NANO_MODEL
from tests.kit.checkpoint import BITS, Tensor, entries, moe
from tiles.checkpoint import Piece, ShardPlan, plan_shards
from tiles.layout import TensorSpec


def pieces(tensors: Sequence[Tensor], file: int = 0) -> list[Piece]:
    header = entries(tensors)
    return [
        Piece(TensorSpec(name, dtype, shape), file, header[name]["data_offsets"][0])
        for name, dtype, shape in tensors
    ]


def plan(tensors: Sequence[Tensor]) -> dict[str, list[str]]:
    """Names of the tensors in each shard; shards in order."""
    return {s.name: [p.spec.name for p in s.pieces] for s in plan_shards(pieces(tensors))}


def f32(*names: str) -> list[Tensor]:
    return [(name, "F32", (2, 3)) for name in names]


def test_mixtral() -> None:
    found = plan(moe(2, 3, 4))
    assert list(found) == [
        *("layers.0.trunk", "layers.0.experts.0", "layers.0.experts.1", "layers.0.experts.2"),
        *("layers.1.trunk", "layers.1.experts.0", "layers.1.experts.1", "layers.1.experts.2"),
        "trunk",
    ]
    at = "model.layers.1.block_sparse_moe.experts.2."
    assert found["layers.1.experts.2"] == [f"{at}w1.weight", f"{at}w2.weight", f"{at}w3.weight"]
    assert "model.layers.1.block_sparse_moe.gate.weight" in found["layers.1.trunk"]
    assert found["trunk"] == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]


def test_qwen_and_deepseek() -> None:
    at = "model.layers.10.mlp."
    found = plan(
        f32(
            "model.layers.0.mlp.gate_proj.weight",
            f"{at}experts.0.gate_proj.weight",
            f"{at}experts.0.gate_proj.weight_scale_inv",
            f"{at}experts.127.down_proj.weight",
            f"{at}gate.weight",
            f"{at}gate.e_score_correction_bias",
            f"{at}shared_expert.gate_proj.weight",
            f"{at}shared_expert_gate.weight",
            f"{at}shared_experts.up_proj.weight",
            "model.layers.10.self_attn.kv_a_proj_with_mqa.weight",
        )
    )
    assert {name: len(tensors) for name, tensors in found.items()} == {
        "layers.0.trunk": 1,
        "layers.10.trunk": 6,
        "layers.10.experts.0": 2,
        "layers.10.experts.127": 1,
    }


def test_our_own() -> None:
    """What `blyan model export` writes of a chain: the experts are the chain's own shards."""
    specs = NANO_MODEL.shards()
    tensors = [(f"{s.name}.{t.name}", t.dtype, t.shape) for s in specs for t in s.tensors]
    found = {shard.name: shard for shard in plan_shards(pieces(tensors))}
    experts = [spec for spec in specs if ".experts." in spec.name]
    assert [name for name, shard in found.items() if shard.is_expert] == [s.name for s in experts]
    for spec in experts:
        assert found[spec.name].data_bytes == spec.data_bytes
    assert list(found)[-1] == "trunk"
    assert found["trunk"].pieces[0].spec.name == "embed.weight"


@pytest.mark.parametrize(
    ("tensors", "rows"),
    [
        # Llama 4, gpt-oss: all experts of a layer in one tensor, an expert a row.
        ([("layers.0.feed_forward.experts.gate_up_proj", "BF16", (3, 4, 8))], 3),
        (
            [
                ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", (3, 4, 2, 8)),
                ("model.layers.0.mlp.experts.gate_up_proj_scales", "U8", (3, 4, 2)),
                ("model.layers.0.mlp.experts.down_proj_bias", "BF16", (3, 4)),
            ],
            3,
        ),
        # Rows disagree, or a row is not whole bytes, or the name stands for one vector only.
        ([("layers.0.experts.w1", "F32", (3, 4)), ("layers.0.experts.w2", "F32", (4, 3))], 0),
        ([("layers.0.experts.w1", "F4", (2, 3))], 0),
        ([("layers.0.experts.w1", "F32", (3,))], 0),
        ([("layers.0.experts.w1", "F32", (1, 3))], 0),
        ([("layers.0.experts.w1", "F32", (0, 3))], 0),
        # Experts with names of their own: the tensor beside them is something else.
        ([("layers.0.experts.w1", "F32", (2, 3)), ("layers.0.experts.5.w1", "F32", (2, 3))], 0),
    ],
)
def test_fused_experts(tensors: list[Tensor], rows: int) -> None:
    shards = plan_shards(pieces(tensors))
    experts = [s for s in shards if s.is_expert and s.name != "layers.0.experts.5"]
    assert [s.name for s in experts] == [f"layers.0.experts.{i}" for i in range(rows)]
    for row, shard in enumerate(experts):
        assert [p.spec.name for p in shard.pieces] == [t[0] for t in _by_size(tensors)]
        for piece, (name, _, shape) in zip(shard.pieces, _by_size(tensors), strict=True):
            whole = next(p for p in pieces(tensors) if p.spec.name == name)
            assert piece.spec.shape == shape[1:]
            assert piece.start == whole.start + row * piece.spec.data_bytes


def _by_size(tensors: list[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda t: -BITS[t[1]])


def test_a_tower_beside_the_model_keeps_its_name() -> None:
    found = plan(
        [
            *f32("vision.encoder.layers.0.fc.weight", "mtp.layers.0.mlp.experts.1.up_proj.weight"),
            ("model.language.layers.0.attn.weight", "F32", (9, 9)),
            ("model.language.layers.0.mlp.experts.1.up_proj.weight", "F32", (9, 9)),
            *f32("geschäft/weiß.layers.1.w", "transformer.h.3.mlp.weight", "layers.012.x"),
        ]
    )
    assert list(found) == [
        "layers.0.trunk",
        "layers.0.experts.1",
        "vision.encoder.layers.0.trunk",
        "mtp.layers.0.experts.1",
        "stack.3.layers.1.trunk",
        "transformer.h.3.trunk",
        "trunk",
    ]
    assert found["trunk"] == ["layers.012.x"]


def test_stacks_never_share_a_name() -> None:
    found = plan([("h.0.w", "F32", (9, 9)), *f32("layers.0.w", "a.layers.0.w", "a.blocks.0.w")])
    assert list(found) == [
        "layers.0.trunk",
        "stack.1.layers.0.trunk",
        "a.layers.0.trunk",
        "a.blocks.0.trunk",
    ]


def test_large_elements_come_first_and_order_is_kept() -> None:
    tensors: list[Tensor] = [
        ("a", "U8", (3,)),
        ("b", "F64", (1,)),
        ("c", "F4", (2,)),
        ("d", "BF16", (3,)),
        ("e", "C64", ()),
        ("f", "F32", (0, 7)),
        ("g", "F32", (1,)),
        ("h", "F8_E4M3", (1,)),
    ]
    (shard,) = plan_shards(pieces(tensors))
    assert [p.spec.name for p in shard.pieces] == ["b", "e", "f", "g", "d", "a", "h", "c"]
    assert shard.spec(3).index == 3  # which checks the alignment of each


def test_parts_stay_within_the_limits_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MAX_SHARD_BYTES", 100)
    shards = plan_shards(pieces([(f"t{i}", "F32", (10,)) for i in range(5)]))
    assert [(s.name, s.data_bytes) for s in shards] == [
        ("trunk", 80),
        ("trunk.1", 80),
        ("trunk.2", 40),
    ]
    assert _covered(shards) == [(0, 200)]


def test_headers_stay_within_the_limits_of_a_shard() -> None:
    long = "é" * 500
    tensors: list[Tensor] = [(f"{long}{i}", "F32", (1,)) for i in range(2000)]
    shards = plan_shards(pieces(tensors))
    assert [s.name for s in shards] == ["trunk", "trunk.1", "trunk.2"]
    assert _covered(shards) == [(0, 8000)]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("F32", (70, 5)), ("F32", (2, 999)), ("F32", (1, 1, 999)), ("U8", (3001,)), ("F4", (17, 338))],
)
def test_a_tensor_larger_than_a_shard_is_cut_by_rows(
    monkeypatch: pytest.MonkeyPatch, dtype: str, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(plans, "MAX_SHARD_BYTES", 500)
    shards = plan_shards(pieces([("a", "F32", (1,)), ("b", dtype, shape), ("c", "F32", (1,))]))
    assert len(shards) > 2
    assert all(s.data_bytes <= 500 for s in shards)
    assert len(_covered(shards)) == 1
    for index, shard in enumerate(shards):
        shard.spec(index)  # which refuses a name twice


def _covered(shards: Sequence[ShardPlan]) -> list[tuple[int, int]]:
    """Byte ranges of the source that the pieces cover, joined; each byte once."""
    ranges: list[tuple[int, int]] = []
    for piece in sorted((p for s in shards for p in s.pieces), key=lambda p: p.start):
        if ranges and ranges[-1][1] == piece.start:
            ranges[-1] = (ranges[-1][0], piece.end)
        else:
            ranges.append((piece.start, piece.end))
    return ranges


def test_too_many_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.limits, "MAX_SHARDS", 3)
    with pytest.raises(InputError, match="makes 4 shards, at most 3"):
        plan_shards(pieces(f32("layers.0.w", "layers.1.w", "layers.2.w", "x")))


def test_nothing_makes_nothing() -> None:
    assert plan_shards([]) == ()
