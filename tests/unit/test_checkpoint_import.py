"""Checkpoints into a home and back: byte for byte, or not at all and why."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from chain.errors import DecodeError, InputError, LockedError, QuotaError, StorageError
from node.checkpoint import imports, intake
from node.checkpoint.exports import SavedModel, export_model
from node.checkpoint.imports import import_checkpoint
from node.checkpoint.manifest import Manifest
from node.checkpoint.models import Models
from node.checkpoint.order import MIN_OPENING_BYTES, Act, reading_order
from node.home import Home
from tests.kit.checkpoint import BITS, Tensor, checkpoint, moe, parts, raw_file
from tests.unit.test_checkpoint_plan import pieces
from tiles.checkpoint import plan_shards
from tiles.shardfile import open_shard


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Of a home that does not exist yet."""
    return Models(Home(tmp_path / "some" / "home"))


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def take(models: Models, *paths: Path, name: str | None = None) -> Manifest:
    return import_checkpoint(models, paths, name, 1_700_000_000_000, silent)


def give(models: Models, name: str, out: Path) -> None:
    with models.reading(name) as (path, manifest):
        export_model(SavedModel(path, manifest), out, silent)


def shard_files(models: Models, name: str) -> list[Path]:
    return sorted((models.directory / name / "tiles").glob("*/*.safetensors"))


# --- round trips ----------------------------------------------------------------------


def test_what_safetensors_writes(models: Models, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {
        f"model.layers.{i}.mlp.experts.{e}.{w}": rng.normal(size=(40, 30)).astype(dtype)
        for i, dtype in enumerate(("f2", "f4", "f8", "i8", "u2", "i4", "u4", "i8", "c8"))
        for e in range(2)
        for w in ("gate_proj.weight", "down_proj.weight")
    }
    tensors |= {"scalar": np.array(3.5), "empty": np.zeros((0, 4), "f4"), "flag": np.array([True])}
    source = tmp_path / "np.safetensors"
    save_file(tensors, source, {"format": "np"})
    made = take(models, source)
    assert (made.name, made.tensors, made.experts) == ("np", len(tensors), 18)
    give(models, "np", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()
    found = {}
    for file in shard_files(models, "np"):  # any reader opens what the home keeps
        with safe_open(file, framework="np") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_every_dtype_in_any_order_across_tiles(models: Models, tmp_path: Path) -> None:
    """5 MB of every dtype, so that tensors cross tiles and no source is aligned."""
    rng = random.Random(2)
    tensors: list[Tensor] = [("odd", "U8", (3,)), ("", "U8", (0,))][:1]
    for layer in range(2):
        for dtype in BITS:
            shape = (rng.randint(1, 9), 4, rng.randint(1, 40_000))
            tensors.append((f"layers.{layer}.x.{dtype}", dtype, shape))
            tensors.append((f"layers.{layer}.empty.{dtype}", dtype, (0, 3)))
            tensors.append((f"größe.{layer}.🙂.{dtype}", dtype, (2,) if BITS[dtype] != 6 else (4,)))
    rng.shuffle(tensors)
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint(tensors, metadata={"é": "\n"}, shuffled=True, spaces=77))
    made = take(models, source, name="all")
    assert made.tiles > 3
    assert made.files[0].bytes == source.stat().st_size
    give(models, "all", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()
    for file in shard_files(models, "all"):
        opened = open_shard(file)
        for tensor in opened.tensors:
            assert tensor.start % max(1, BITS[tensor.spec.dtype] // 8) == 0


@pytest.mark.parametrize("header", [b"{}", b'{"__metadata__":{"a":"b"}} '])
def test_a_file_without_tensors(models: Models, tmp_path: Path, header: bytes) -> None:
    source = tmp_path / "none.safetensors"
    source.write_bytes(raw_file(header, b""))
    made = take(models, source)
    assert (made.root, made.shards, made.tensors) == (None, 0, 0)
    give(models, "none", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_only_empty_tensors(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "empty.safetensors"
    source.write_bytes(checkpoint([("a", "F32", (0,)), ("layers.1.experts.2.b", "U8", (4, 0))]))
    made = take(models, source)
    assert (made.shards, made.tiles, made.data_bytes) == (2, 0, 0)
    give(models, "empty", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_fused_experts_and_their_way_back(models: Models, tmp_path: Path) -> None:
    tensors: list[Tensor] = [
        ("model.layers.0.mlp.experts.gate_up_proj", "BF16", (4, 16, 40)),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", "F32", (4, 3)),
        ("model.layers.0.mlp.router.weight", "F32", (4, 7)),
    ]
    source = tmp_path / "fused.safetensors"
    source.write_bytes(checkpoint(tensors))
    assert take(models, source).experts == 4
    give(models, "fused", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("given", ["index", "directory", "files", "links"])
def test_sharded_checkpoints(models: Models, tmp_path: Path, given: str) -> None:
    files, index = parts(tmp_path / "mix", moe(2, 2, 8), 3)
    links = []
    snapshot = tmp_path / "models--some--mixtral" / "snapshots" / "abcdef"  # as Hugging Face has it
    for path in [*files, index] if given == "links" else []:
        link = snapshot / path.name
        link.parent.mkdir(exist_ok=True, parents=True)
        link.symlink_to(path)
        links.append(link)
    paths = {
        "index": [index],
        "directory": [tmp_path / "mix"],
        "files": [*reversed(files), index],
        "links": links[-1:],
    }
    made = take(models, *paths[given])
    assert made.name == ("mixtral" if given == "links" else "mix")
    assert [f.name for f in made.files] == [path.name for path in files]
    out = tmp_path / "out"
    give(models, made.name, out)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in [*files, index])
    for path in [*files, index]:
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_the_same_tensors_have_the_same_root_in_one_file_and_in_three(
    models: Models, tmp_path: Path
) -> None:
    """Parts are cut where the tensors go on, and a shard may begin in one and end in another."""
    tensors = moe(2, 2, 8)
    files, index = parts(tmp_path / "three", tensors, 3)
    data = b"".join(
        f.read_bytes()[8 + int.from_bytes(f.read_bytes()[:8], "little") :] for f in files
    )
    whole = checkpoint(tensors)
    one = tmp_path / "one.safetensors"
    one.write_bytes(whole[: len(whole) - len(data)] + data)
    assert take(models, one).root == take(models, index).root


# --- refusals -------------------------------------------------------------------------


def test_what_is_missing_is_named(models: Models, tmp_path: Path) -> None:
    files, index = parts(tmp_path / "mix", moe(1, 1, 4), 3)
    with pytest.raises(InputError, match=r"a part is missing: .*00002-of-00003"):
        take(models, files[0], files[2])
    files[1].unlink()
    with pytest.raises(InputError, match=r"index.json names model-00002-of-00003.safetensors"):
        take(models, index)
    (tmp_path / "bare").mkdir()
    for path, reason in (
        (tmp_path / "nothing.safetensors", "does not exist"),
        (tmp_path / "bare", "holds no file"),
        (tmp_path / "nothing.json", "does not exist"),
    ):
        with pytest.raises(InputError, match=reason):
            take(models, path)
    assert not models.directory.exists()


def test_files_that_do_not_belong_together(models: Models, tmp_path: Path) -> None:
    files, index = parts(tmp_path / "mix", moe(1, 1, 4), 2)
    other = tmp_path / "other" / files[0].name
    other.parent.mkdir()
    other.write_bytes(checkpoint([("model.norm.weight", "U8", (1,))]))
    with pytest.raises(InputError, match="two files are called model-00001"):
        take(models, files[0], other)
    with pytest.raises(DecodeError, match=r"'model.norm.weight' stands in model-00001-of-00002"):
        take(models, other, files[1])
    other.write_bytes(checkpoint([("more", "U8", (1,))]))
    with pytest.raises(DecodeError, match=r"index.json: tensor 'lm_head.weight' should be in"):
        take(models, other, index, name="x")
    with pytest.raises(InputError, match=r"x.safetensors is no part of model.safetensors.index"):
        take(models, tmp_path / "x.safetensors", index)
    second = tmp_path / "mix" / "b.safetensors.index.json"
    second.write_bytes(index.read_bytes())
    with pytest.raises(InputError, match="several checkpoints"):
        take(models, tmp_path / "mix")
    with pytest.raises(InputError, match="two checkpoints: one at a time"):
        take(models, index, second)


def test_what_is_no_file(models: Models, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file"):
        take(models, pipe)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    with pytest.raises(DecodeError, match=r"bad.safetensors: no safetensors file"):
        take(models, bad)
    assert models.all() == []


def test_what_may_not_even_be_looked_at(models: Models, tmp_path: Path) -> None:
    """A name that is too long stands for it: that refuses the superuser as well."""
    with pytest.raises(InputError, match=r"xxx cannot be read: File name too long"):
        take(models, tmp_path / ("x" * 300))
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([]))
    far = Models(Home(tmp_path / ("x" * 300)))
    for ask in (far.all, far.last, lambda: far.path("a"), lambda: take(far, source)):
        with pytest.raises(StorageError, match=r"models cannot be read: File name too long"):
            ask()


@pytest.mark.parametrize(
    "name", ["chain", "lock", "", ".x", "a/b", "../a", "-a", "a b", "é", "x" * 65, "a\n"]
)
def test_names_that_are_none(models: Models, tmp_path: Path, name: str) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([]))
    with pytest.raises(InputError, match=r"is no name of a model|is the name of "):
        take(models, source, name=name)


def test_a_name_is_taken_once(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "a b.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    assert take(models, source).name == "a-b"
    with pytest.raises(InputError, match="remove that one with `blyan model remove a-b`"):
        take(models, source)
    models.remove("a-b")
    assert take(models, source).name == "a-b"
    with pytest.raises(InputError, match=r"no model 'b' in .*; there are: a-b"):
        models.remove("b")
    odd = tmp_path / "....safetensors"
    odd.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="give one with --name"):
        take(models, odd)


def test_imports_take_turns(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    with models.lock(), pytest.raises(LockedError, match="another import or removal runs"):
        take(Models(models.home), source)
    take(models, source)
    with models.reading("a"), pytest.raises(LockedError, match="is being exported"):
        models.remove("a")
    with models.lock(), pytest.raises(LockedError):
        models.remove("a")


def test_a_source_that_changes_is_noticed(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (9_000_000,))]))

    def touch(done: int, total: int) -> None:
        os.utime(source, ns=(1, done))

    with pytest.raises(InputError, match="changed while it was read"):
        import_checkpoint(models, [source], None, 0, touch)

    def cut(done: int, total: int) -> None:
        os.truncate(source, 5_000_000)

    with pytest.raises(InputError, match="changed while it was read"):
        import_checkpoint(models, [source], None, 0, cut)
    assert [p.name for p in models.directory.iterdir()] == ["lock"]


def test_a_full_disk_is_told_before_and_leaves_nothing(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint(moe(2, 2, 64)))
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(imports.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(QuotaError, match=r"needs 1.5 MB in .*, and 0.1 MB are free"):
        take(models, source)
    monkeypatch.undo()

    class Full(type(models.disk)):  # type: ignore[misc]
        left = 0

        def write(self, fd: int, offset: int, data: Any) -> None:
            Full.left -= 1
            if Full.left < 0:
                raise OSError(28, "No space left on device")
            super().write(fd, offset, data)

    for left in range(0, 40, 3):
        Full.left = left
        with pytest.raises(QuotaError, match="the disk is full"):
            take(Models(models.home, Full()), source)
        assert [p.name for p in models.directory.iterdir()] == ["lock"]
    take(models, source)


def test_an_interrupted_import_leaves_nothing(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (9_000_000,))]))

    def interrupt(done: int, total: int) -> None:
        if done > 5_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(models, [source], None, 0, interrupt)
    assert [p.name for p in models.directory.iterdir()] == ["lock"]


def test_leftovers_are_removed_by_whoever_comes_next(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    take(models, source)
    for name in (".importing-b", ".removing-c"):
        (models.directory / name / "tiles").mkdir(parents=True)
    assert [m.name for m in models.all()] == ["a"]
    with models.lock():
        pass
    assert sorted(p.name for p in models.directory.iterdir()) == ["a", "lock"]
    (models.directory / ".importing-b").mkdir()
    with models.lock():
        (models.directory / ".importing-b").mkdir()
        Models(models.home).clean()  # somebody is at work
        assert (models.directory / ".importing-b").exists()
    models.clean()
    assert not (models.directory / ".importing-b").exists()


# --- damage ---------------------------------------------------------------------------


@pytest.fixture
def held(models: Models, tmp_path: Path) -> Models:
    _, index = parts(tmp_path / "mix", moe(2, 2, 300), 2)
    take(models, index)
    return models


def spoil(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_every_damage_is_found_and_nothing_is_left(held: Models, tmp_path: Path) -> None:
    home = held.directory / "mix"
    out = tmp_path / "out"
    again = "Remove it with `blyan model remove mix` and import its files again"
    for file, at, reason in (
        (shard_files(held, "mix")[1], -1, "layers.0.experts.0, tile 0, subtile 4, is damaged"),
        (home / "headers", 30, "the header of model-00001-of-00002.safetensors"),
        (home / "index", 3, "model.safetensors.index.json would have the hash"),
        (home / "shards.jsonl", 40, "shards.jsonl is not the one that was written"),
        (home / "shards.jsonl", 0, "shards.jsonl is damaged"),
    ):
        spoil(file, at)
        with pytest.raises(StorageError, match=reason) as caught:
            give(held, "mix", out)
        assert again in str(caught.value)
        assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
        spoil(file, at)
    give(held, "mix", out)


def test_missing_files_are_told(held: Models, tmp_path: Path) -> None:
    for path in (shard_files(held, "mix")[2], *(held.directory / "mix").glob("headers")):
        moved = path.with_name("moved")
        path.rename(moved)
        with pytest.raises(StorageError, match="the model 'mix' is damaged on disk"):
            give(held, "mix", tmp_path / "out")
        moved.rename(path)
    manifest = held.directory / "mix" / "model.json"
    for text in ("", "[]", '{"format":2}', '{"format":1}', "{" + " " * (5 << 20) + "}"):
        manifest.write_text(text)
        assert "model.json is damaged" in str(held.all()[0].damage)
        with pytest.raises(StorageError, match="remove the model with `blyan model remove`"):
            give(held, "mix", tmp_path / "out")
    assert held.last() is None
    assert held.remove("mix") is None


# --- the order of reading ---------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_reading_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte passes once in order; every shard gets its pieces in order; few are open."""
    rng = random.Random(seed)
    monkeypatch.setattr("node.checkpoint.order.MIN_OPENING_BYTES", rng.choice([0, 40, 10_000]))
    tensors: list[Tensor] = [
        (
            f"layers.{rng.randrange(3)}.experts.{rng.randrange(4)}.t{i}",
            rng.choice(["F32", "U8", "F64", "BF16"]),
            (rng.choice([0, 1, 30]),),
        )
        for i in range(60)
    ]
    sources = [*pieces(tensors[:30]), *pieces(tensors[30:], file=1)]
    plan = plan_shards(sources)
    most = rng.choice([1, 2, 8])
    passed, written, open_now = [], {i: [] for i in range(len(plan))}, set()
    for step in reading_order(plan, most):
        if step.piece is None:
            assert written[step.shard] == list(plan[step.shard].pieces)
            open_now.discard(step.shard)
            continue
        if step.act is not Act.AGAIN:
            passed.append(step.piece)
        else:
            assert step.piece in passed
        if step.act is not Act.PASS:
            written[step.shard].append(step.piece)
            open_now.add(step.shard)
            assert len(open_now) <= most + 1  # one more is finished at once
    assert sorted(map(repr, passed)) == sorted(map(repr, sources))
    assert [(p.file, p.start) for p in passed] == sorted((p.file, p.start) for p in sources)
    assert not open_now
    assert [len(w) for w in written.values()] == [len(s.pieces) for s in plan]


def test_a_usual_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtral's order: no tensor of a size that matters is read again."""
    plan = plan_shards(pieces(moe(3, 4, 1024)))
    again = [s.piece for s in reading_order(plan, intake.OPEN_SHARDS) if s.act is Act.AGAIN]
    assert sum(p.spec.data_bytes for p in again if p) < MIN_OPENING_BYTES
