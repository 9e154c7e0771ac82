"""The model and the training rule as a genesis states them (docs/spec/model.md, training.md).

Both are JSON objects of integers and text. Reading one is strict: a field that is missing,
unknown or out of range is a GenesisError that names it. Fields with a default may be missing: they
are younger than some networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from chain.errors import GenesisError
from chain.limits import MAX_DENSITY, MAX_SHARDS, MAX_STATE_HASHES
from tiles.codings import (
    CODECS,
    INT8,
    INT8_NUMBER,
    LOW_RANK,
    MAX_RANK,
    SPARSE,
    codec_of,
    low_rank_number,
)
from tiles.layout import ShardSpec, TensorSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VOCAB = 256  # byte-level: a token is a byte
PPM = 1_000_000
WORDS_PER_WINDOW = 2  # PRF words that place one window of a batch: its page, its offset
# The most that a worker process is given for a job, or answers; and what is left of it beside the
# weights, for a payload, windows or a holdout.
MAX_JOB_BYTES = 1 << 32
_JOB_ROOM_BYTES = 1 << 28
MAX_PARAMETERS = (MAX_JOB_BYTES - _JOB_ROOM_BYTES) // 4  # whole models are evaluated, in fp32
MAX_STEPS = 100_000
MAX_TEXT = 1 << 20  # bytes of a prompt and what is generated after it, together
MAX_DROPOUT_PPM = 900_000
Tensors = list[tuple[str, tuple[int, ...]]]  # names and shapes
LEARNED, HASHED = "top_k", "hash"  # how a byte finds its experts


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of the byte-level MoE. Widths count fp32 elements; `init_seed` names the start."""

    layers: int
    width: int
    heads: int
    experts: int
    top_k: int
    expert_width: int
    context: int  # bytes a window predicts
    init_seed: str
    routing: str = LEARNED
    shared_experts: int = 0  # of each layer, which every byte passes

    @staticmethod
    def from_json(value: Any) -> ModelSpec:
        """Read the genesis object "model". Raises GenesisError."""
        top = _object(value, "model", ModelSpec)
        seed, routing = top["init_seed"], top["routing"]
        if not isinstance(seed, str) or not 0 < len(seed.encode()) <= 64:
            raise GenesisError("model.init_seed: expected a text of 1 to 64 bytes")
        if routing not in (LEARNED, HASHED):
            raise GenesisError(f"model.routing: expected {LEARNED!r} or {HASHED!r}")
        spec = ModelSpec(
            layers=_int(top["layers"], "model.layers", 1, 256),
            width=_int(top["width"], "model.width", 8, 16_384),
            heads=_int(top["heads"], "model.heads", 1, 256),
            experts=_int(top["experts"], "model.experts", 1, 1024),
            top_k=_int(top["top_k"], "model.top_k", 1, 16),
            expert_width=_int(top["expert_width"], "model.expert_width", 8, 65_536),
            context=_int(top["context"], "model.context", 8, 8192),
            init_seed=seed,
            routing=routing,
            shared_experts=_int(top["shared_experts"], "model.shared_experts", 0, 16),
        )
        if spec.width % spec.heads or spec.width // spec.heads % 2:
            raise GenesisError(
                f"model.heads: width / heads must be an even integer (rotary pairs), "
                f"not {spec.width} / {spec.heads}"
            )
        if spec.top_k > spec.experts:
            raise GenesisError(f"model.top_k: {spec.top_k} of {spec.experts} experts")
        if spec.parameters > MAX_PARAMETERS:
            raise GenesisError(
                f"model: {spec.parameters} parameters, at most {MAX_PARAMETERS}: a worker is given "
                f"all of them, {4 * spec.parameters} bytes, and takes {MAX_JOB_BYTES}; lower "
                "layers, width, experts, shared_experts or expert_width"
            )
        shards = 3 + spec.layers * (2 + spec.shared_experts + spec.experts)
        if shards > MAX_SHARDS:
            raise GenesisError(f"model: {shards} shards, at most {MAX_SHARDS}")
        return spec

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """fp32 elements of all shards."""
        layer = 4 * self.width**2 + 2 * self.width
        if self.routing == LEARNED:
            layer += self.width * self.experts + self.experts
        layer += (self.experts + self.shared_experts) * 3 * self.width * self.expert_width
        return 2 * VOCAB * self.width + self.layers * layer + self.width

    def shards(self) -> tuple[ShardSpec, ...]:
        """The shards in order: embed; each layer's attention, router, shared experts and experts;
        head, final."""
        w, e, f = self.width, self.experts, self.expert_width
        parts: list[tuple[str, str, Tensors]] = [("embed", "sparse", [("weight", (VOCAB, w))])]
        for i in range(self.layers):
            at = f"layers.{i}"
            attention = [(n, (w, w)) for n in ("query", "key", "value", "output")]
            learned = self.routing == LEARNED
            router: Tensors = [("weight", (w, e)), ("bias", (e,))] if learned else []
            router += [("attention_norm", (w,)), ("expert_norm", (w,))]
            parts.append((f"{at}.attention", "sparse", [*attention]))
            parts.append((f"{at}.router", "dense", [*router]))
            expert = [("gate", (w, f)), ("up", (w, f)), ("down", (f, w))]
            names = [f"{at}.shared.{j}" for j in range(self.shared_experts)]
            names += [expert_name(i, j) for j in range(e)]
            parts += [(name, "sparse", [*expert]) for name in names]
        parts.append(("head", "sparse", [("weight", (w, VOCAB))]))
        parts.append(("final", "dense", [("norm", (w,))]))
        return tuple(
            ShardSpec(i, name, coding, tuple(TensorSpec(n, "F32", s) for n, s in tensors))
            for i, (name, coding, tensors) in enumerate(parts)
        )


def expert_name(layer: int, expert: int) -> str:
    """The shard of an expert."""
    return f"layers.{layer}.experts.{expert}"


NANO_MODEL = ModelSpec(
    layers=2,
    width=96,
    heads=4,
    experts=4,
    top_k=2,
    expert_width=128,
    context=64,
    init_seed="blyan-nano-1",
)


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """The protocol's hyper-parameters: the learner chooses none of them.

    `_ppm` are millionths, `learning_rate_nano` 1e-9. `densities[r]` is how many of 4096 entries a
    delta of round r keeps (the last holds on). A state hash is taken every `segment_steps`.
    """

    steps: int  # local steps H of a round
    segment_steps: int
    batch: int  # windows of context + 1 bytes a step
    learning_rate_nano: int
    warmup_steps: int  # of the learner's own update count
    beta1_ppm: int
    beta2_ppm: int
    epsilon_nano: int
    weight_decay_ppm: int
    clip_ppm: int  # global gradient norm
    bias_rate_ppm: int  # step of the router biases, see docs/spec/model.md
    error_feedback_ppm: int
    densities: tuple[int, ...]
    aux_loss_ppm: int = 0  # weight of the balance loss beside the cross-entropy
    micro_batch: int = 0  # windows computed at a time, whose gradients are added up; 0: all
    codec: str = SPARSE  # one of tiles.codings.CODECS; the densities are of this one
    rank: int = 0  # components of each subtile, if the codec is `lowrank`
    dropout_ppm: int = 0  # of each branch's output, while it is trained; to 1/65536

    @staticmethod
    def from_json(value: Any) -> TrainingSpec:
        """Read the genesis object "training". Raises GenesisError."""
        top = _object(value, "training", TrainingSpec)
        densities = top["densities"]
        if not isinstance(densities, list | tuple) or not 1 <= len(densities) <= 256:
            raise GenesisError("training.densities: expected a list of 1 to 256 integers")
        bounds: dict[str, tuple[int, int]] = {
            "steps": (1, MAX_STEPS),
            "segment_steps": (1, MAX_STEPS),
            "batch": (1, 4096),
            "learning_rate_nano": (1, 1_000_000_000),
            "warmup_steps": (0, MAX_STEPS),
            "beta1_ppm": (0, PPM - 1),
            "beta2_ppm": (0, PPM - 1),
            "epsilon_nano": (1, 1_000_000),
            "weight_decay_ppm": (0, PPM),
            "clip_ppm": (1, 1000 * PPM),
            "bias_rate_ppm": (0, PPM),
            "error_feedback_ppm": (0, PPM),
            "aux_loss_ppm": (0, PPM),
            "rank": (0, MAX_RANK),
            "micro_batch": (0, 4096),
            "dropout_ppm": (0, MAX_DROPOUT_PPM),
        }
        numbers = {
            name: _int(top[name], f"training.{name}", least, most)
            for name, (least, most) in bounds.items()
        }
        kept = tuple(_int(d, "training.densities", 1, MAX_DENSITY) for d in densities)
        codec = top["codec"]
        if codec not in CODECS:
            raise GenesisError(f"training.codec: expected one of {', '.join(CODECS)}")
        if (codec == LOW_RANK) != (numbers["rank"] > 0):
            raise GenesisError(f"training.rank: 1 to {MAX_RANK} with {LOW_RANK!r}, and else 0")
        spec = TrainingSpec(densities=kept, codec=codec, **numbers)
        if spec.batch % spec.windows_at_a_time:
            raise GenesisError(
                f"training.micro_batch: {spec.micro_batch} does not divide a batch of {spec.batch}"
            )
        if spec.steps % spec.segment_steps:
            raise GenesisError(
                f"training.segment_steps: {spec.segment_steps} does not divide {spec.steps} steps"
            )
        if spec.segments >= MAX_STATE_HASHES:
            raise GenesisError(
                f"training.segment_steps: {spec.segments} segments, expected less than "
                f"{MAX_STATE_HASHES}"
            )
        return spec

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "densities": list(self.densities)}

    @property
    def windows_at_a_time(self) -> int:
        """Of a batch; part of the rule, since it decides in which order a gradient is summed."""
        return self.micro_batch or self.batch

    @property
    def segments(self) -> int:
        """Segments of a round, each with a state hash before and after."""
        return self.steps // self.segment_steps

    def segment_range(self, segment: int) -> tuple[int, int]:
        """Steps [start, end) of a segment."""
        return segment * self.segment_steps, (segment + 1) * self.segment_steps

    def density(self, round_: int) -> int:
        """Entries kept of each chunk of 4096 in a round (rounds count from 0), or the number of
        the coding that is not sparse: what header and manifest of a delta say."""
        if self.codec == INT8:
            return INT8_NUMBER
        if self.codec == LOW_RANK:
            return low_rank_number(self.rank)
        return self.densities[min(round_, len(self.densities) - 1)]

    def is_coded_by(self, density: int) -> bool:
        """Whether a delta of this density, or number, has the rule's coding. InputError if it is
        no number."""
        if self.codec == SPARSE:
            return codec_of(density) == SPARSE
        return density == self.density(0)


NANO_TRAINING = TrainingSpec(
    steps=50,
    segment_steps=10,
    batch=16,
    learning_rate_nano=4_000_000,
    warmup_steps=10,
    beta1_ppm=900_000,
    beta2_ppm=950_000,
    epsilon_nano=10,
    weight_decay_ppm=0,
    clip_ppm=1_000_000,
    bias_rate_ppm=1000,
    error_feedback_ppm=950_000,
    densities=(1024, 512, 512, 256),
)


def _object(value: Any, where: str, form: type[DataclassInstance]) -> dict[str, Any]:
    """The fields of a JSON object that should have those of `form`, with its defaults."""
    if not isinstance(value, Mapping):
        raise GenesisError(f"{where}: expected an object")
    defaults = {f.name: f.default for f in fields(form)}
    if missing := [n for n, d in defaults.items() if d is MISSING and n not in value]:
        raise GenesisError(f"{where}: lacks {', '.join(missing)}")
    if unknown := sorted(str(n) for n in value if n not in defaults):
        raise GenesisError(f"{where}: unknown field {', '.join(unknown)}; check the spelling")
    return defaults | dict(value)


def _int(value: Any, where: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise GenesisError(f"{where}: expected an integer from {least} to {most}")
    return value
