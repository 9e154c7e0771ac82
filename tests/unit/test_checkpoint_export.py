"""Where exports go: links are followed, pipes and devices stay what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chain.errors import InputError
from node.checkpoint.models import Models
from node.home import Home
from tests.kit.checkpoint import checkpoint, moe, parts
from tests.unit.test_checkpoint_import import give, take


@pytest.fixture
def held(tmp_path: Path) -> Models:
    """A home with the model `mix`, of two files and an index."""
    models = Models(Home(tmp_path / "home"))
    parts(tmp_path / "mix", moe(1, 1, 4), 2)
    take(models, tmp_path / "mix")
    return models


def test_where_an_export_cannot_go(held: Models, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    take(held, source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "new").mkdir()
    for name, out, reason in (
        ("a", tmp_path, "is a directory; name the file"),
        ("a", Path("."), "is a directory; name the file"),
        ("mix", Path("/"), "name a new or empty directory"),
        ("a", tmp_path / "no" / "x", "does not exist"),
        ("mix", tmp_path / "full", "name a new or empty directory"),
        ("mix", source, "name a new or empty directory"),
        ("mix", tmp_path / "no" / "x", "does not exist"),
    ):
        with pytest.raises(InputError, match=reason):
            give(held, name, out)
    give(held, "mix", tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 3
    (tmp_path / "old").write_bytes(b"before")
    (tmp_path / ".old.part").write_bytes(b"of an export that was killed")
    give(held, "a", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == source.read_bytes()
    assert not (tmp_path / ".old.part").exists()


def test_an_export_that_was_killed_is_in_the_way_of_none(held: Models, tmp_path: Path) -> None:
    """Neither a file where a directory is to be nor a directory where a file is to be."""
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    take(held, source)
    (tmp_path / ".x.part").write_bytes(b"of a file")
    (tmp_path / ".x.parts").mkdir()
    (tmp_path / ".x.parts" / "rest").write_bytes(b"of several")
    give(held, "mix", tmp_path / "x")
    assert len(list((tmp_path / "x").iterdir())) == 3
    (tmp_path / ".y.parts").mkdir()
    give(held, "a", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == source.read_bytes()


def test_an_export_follows_links_and_replaces_no_pipe_or_device(
    held: Models, tmp_path: Path
) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(checkpoint([("a", "U8", (1,))]))
    take(held, source)
    (tmp_path / "there").mkdir()
    for name, target in (("a", "there/file"), ("mix", "there/directory")):
        link = tmp_path / f"link-{name}"
        link.symlink_to(tmp_path / target)
        give(held, name, link)
        assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == source.read_bytes()
    assert len(list((tmp_path / "there" / "directory").iterdir())) == 3
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "to-pipe").symlink_to(pipe)
    for name in ("pipe", "to-pipe"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            give(held, "a", tmp_path / name)
    assert pipe.is_fifo()


def test_names_of_files_that_are_long_or_no_text(held: Models, tmp_path: Path) -> None:
    """The longest that a file system takes come back; what is no UTF-8 is refused at once."""
    names = ["é" * 121 + "n.safetensors", "b.safetensors"]
    files = [tmp_path / name for name in names]
    for at, path in enumerate(files):
        path.write_bytes(checkpoint([(f"t{at}", "U8", (1,))]))
    take(held, *files, name="long")
    give(held, "long", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in files
    }
    bad = tmp_path / os.fsdecode(b"bad\xff.safetensors")
    bad.write_bytes(files[0].read_bytes())
    with pytest.raises(InputError, match=r"'bad\\udcff.safetensors': a file's name must be UTF-8"):
        take(held, bad)
