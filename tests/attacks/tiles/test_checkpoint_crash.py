"""An import that dies at any of its steps leaves the whole model or nothing, also when the power
fails; what was acknowledged is there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from node.checkpoint import models as module
from node.checkpoint.exports import SavedModel, export_model
from node.checkpoint.imports import import_checkpoint
from node.checkpoint.models import Models
from node.home import Home
from tests.kit.checkpoint import checkpoint, moe, parts
from tests.kit.programs import PYTHON, environment
from tests.kit.programs import module as program
from tests.kit.tree_disk import Crash, TreeDisk
from tests.kit.waiting import until
from tiles.store.disk import Disk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What recovers need not wait for the platter: what is durable is the tree disk's business."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _silent(done: int, total: int) -> None:
    assert done <= total


def _take(root: Path, disk: Disk, index: Path) -> None:
    import_checkpoint(Models(Home(root / "home"), disk), [index], "mix", 0, _silent)


def _whole_or_nothing(root: Path, index: Path) -> bool:
    """Whether the model is here, whole; if not, that nothing hinders another import."""
    models = Models(Home(root / "home"))
    found = models.all()
    if found:
        with models.reading("mix") as (path, manifest):
            export_model(SavedModel(path, manifest), root / "out", _silent)
        for file in index.parent.iterdir():
            assert (root / "out" / file.name).read_bytes() == file.read_bytes()
        shutil.rmtree(root / "out")
    else:
        _take(root, Disk(), index)
        _whole_or_nothing(root, index)
    models.clean()
    assert {p.name for p in models.directory.iterdir()} | {"lock"} == {"lock", "mix"}
    return bool(found)


def _killed(disk: TreeDisk, *_: object, **__: object) -> None:
    disk.check_alive()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    tensors = [t for t in moe(1, 1, 8) if "norm" not in t[0]]
    return parts(tmp_path / "mix", tensors, 2)[1]


def test_a_crash_at_every_step(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tmp_path / "counted"
    counted.mkdir()
    disk = TreeDisk(counted)
    _take(counted, disk, index)
    assert disk.steps > 40
    seen = set()
    for step in range(1, disk.steps + 1):
        root = tmp_path / f"step-{step}"
        root.mkdir()
        dying = TreeDisk(root, stop_at=step)
        with monkeypatch.context() as patch:  # whoever was killed removes nothing
            patch.setattr(module.shutil, "rmtree", partial(_killed, dying))
            with pytest.raises(Crash):
                _take(root, dying, index)
        for seed in (None, step):
            image = tmp_path / f"image-{step}-{seed}"
            image.mkdir()
            dying.lose_power(image, seed)
            seen.add(_whole_or_nothing(image, index))
            shutil.rmtree(image)
        seen.add(_whole_or_nothing(root, index))
        shutil.rmtree(root)
    assert seen == {True, False}


def test_what_was_acknowledged_survives_the_power(index: Path, tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    image.mkdir()
    disk = TreeDisk(root)
    _take(root, disk, index)
    disk.lose_power(image, None)
    assert _whole_or_nothing(image, index)


def test_a_removal_that_dies_leaves_the_model_or_none(index: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        root = tmp_path / f"step-{step}"
        root.mkdir()
        _take(root, Disk(), index)
        disk = TreeDisk(root, stop_at=step)
        with pytest.raises(Crash):
            Models(Home(root / "home"), disk).remove("mix")
        assert _whole_or_nothing(root, index) == (step == 1)


def test_kill_9_while_it_imports(tmp_path: Path) -> None:
    """The program itself, killed when it has written so much."""
    source = tmp_path / "big.safetensors"
    source.write_bytes(checkpoint(moe(2, 4, 700)))
    home = tmp_path / "home"
    command = [*PYTHON, program("blyan"), "model", "import", str(source), "--home", str(home)]

    def is_gone_or_wrote(process: subprocess.Popen[bytes], least: int) -> bool:
        try:
            written = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
        except FileNotFoundError:  # files come and go while they are counted
            return False
        return written >= least or process.poll() is not None

    for share in (0, 1, 3, 6):
        least = source.stat().st_size * share // 8
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(partial(is_gone_or_wrote, process, least), 120, f"{least} bytes written")
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.wait()
        models = Models(Home(home))
        models.clean()
        if models.all():  # it was quicker
            models.remove("big")
        assert [p.name for p in models.directory.glob("*")] in ([], ["lock"])
    import_checkpoint(Models(Home(home)), [source], None, 0, _silent)
    with Models(Home(home)).reading("big") as (path, manifest):
        export_model(SavedModel(path, manifest), tmp_path / "out", _silent)
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
