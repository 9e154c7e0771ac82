"""`blyan eval`, `generate` and `delta submit`: what is wrong is said before anything is fetched."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from chain.errors import InputError
from learning.evaluate import holdout_windows
from learning.spec import MAX_TEXT, ModelSpec
from node.cli.generate import MAX_ECHO
from node.text_file import Text, open_text
from node.verified import VerifiedReader
from node.worker.client import Measured, Worker
from tests.kit.commands import Run, runner
from tests.kit.local_chain import TINY, LocalChain, keys

CONTEXT = TINY["context"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Nobody changes it."""
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        made.block()
        yield made


class Asked:
    """What a command had its worker do, and how often it fetched the model."""

    def __init__(self) -> None:
        self.windows: list[Any] = []
        self.prompts: list[bytes] = []
        self.fetched = 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A worker that computes nothing, and a count of the models that were fetched."""
    asked, shards = Asked(), VerifiedReader.shards

    async def fetch(self: VerifiedReader, versions: Any) -> list[bytes]:
        asked.fetched += 1
        return await shards(self, versions)

    async def measure(self: Worker, spec: ModelSpec, shards: Any, windows: Any) -> Measured:
        asked.windows.append(windows)
        return Measured(tuple(range(1, len(windows) + 1)), (1.5,))

    async def generate(
        self: Worker, spec: Any, shards: Any, prompt: bytes, count: int, on_byte: Any, **_: Any
    ) -> float:
        asked.prompts.append(prompt)
        for _number in range(count):
            on_byte(ord("!"))
        return 1.0

    monkeypatch.setattr(VerifiedReader, "shards", fetch)
    monkeypatch.setattr(Worker, "measure", measure)
    monkeypatch.setattr(Worker, "generate", generate)
    return asked


@pytest.fixture
def run(
    chain: LocalChain,
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Run]:
    who = keys("somebody")
    home = tmp_path / "home"
    return lambda command: runner(command, chain, lambda: who, home, monkeypatch, capsys)


# --- eval ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 511, 512, 513, 1500])
def test_the_windows_of_a_file_are_a_holdout_s(tmp_path: Path, count: int) -> None:
    for extra in (1, CONTEXT):
        data = np.random.default_rng(count).bytes(count * CONTEXT + extra)
        path = tmp_path / "text"
        path.write_bytes(data)
        expected = holdout_windows(data, CONTEXT)
        with open_text(path) as text:
            assert (text.windows(CONTEXT) == expected).all()
        assert (Text.of("bytes", data).windows(CONTEXT) == expected).all()
        assert len(expected) == min(count, 512)


def test_a_file_larger_than_memory_is_measured(
    run: Callable[[str], Run], asked: Asked, tmp_path: Path
) -> None:
    """A hole of a TiB with words at its end."""
    path = tmp_path / "huge"
    size = 2**40
    with path.open("wb") as file:
        file.truncate(size)
    code, said = run("eval")(str(path), "--json")
    assert (code, said["bytes"], said["windows"], asked.fetched) == (0, size, 512, 1)
    assert asked.windows[0].shape == (512, CONTEXT + 1)


def test_one_window_has_no_standard_error(
    run: Callable[[str], Run], asked: Asked, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(CONTEXT + 1))
    code, said = run("eval")(str(path), "--json")
    assert (code, said["windows"], said["standard_error"]) == (0, 1, None)
    code, text = run("eval")(str(path))
    assert code == 0
    assert "nats per byte (1 window)" in text
    assert "±" not in text
    assert "only the node's word" in text
    path.write_bytes(bytes(2 * CONTEXT + 1))
    code, said = run("eval")(str(path), "--json")
    assert said["standard_error"] == pytest.approx(0.5e-9)
    assert "± 0.0000 (2 windows)" in run("eval")(str(path))[1]


def test_what_cannot_be_measured_is_named_before_anything_is_fetched(
    run: Callable[[str], Run], asked: Asked, tmp_path: Path
) -> None:
    short, empty, pipe = tmp_path / "short", tmp_path / "empty", tmp_path / "pipe"
    short.write_bytes(bytes(CONTEXT))
    empty.touch()
    os.mkfifo(pipe)
    for path, expected in (
        (short, f"{short}: {CONTEXT} bytes, expected at least {CONTEXT + 1}"),
        (empty, f"{empty} is empty"),
        (pipe, f"{pipe} is a pipe, expected a file"),
        (tmp_path, f"{tmp_path} is a directory, expected a file"),
        (tmp_path / "none", f"{tmp_path / 'none'}: no such file"),
        (short / "below", "cannot be read: Not a directory"),
        (Path("/dev/null"), "/dev/null is a device"),
    ):
        code, text = run("eval")(str(path))
        assert code == 2
        assert expected in text
        assert "holdout" not in text
    assert asked.fetched == 0


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so the refusal is made up."""

    def refused(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("node.text_file.os.open", refused)
    with pytest.raises(InputError, match="text cannot be read: Permission denied"):
        open_text(tmp_path / "text").__enter__()


def test_a_file_that_is_cut_short_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(3 * CONTEXT + 1))
    with open_text(path) as text:
        os.truncate(path, 5)
        with pytest.raises(InputError, match=f"had {3 * CONTEXT + 1} bytes and has fewer now"):
            text.windows(CONTEXT)


# --- generate ------------------------------------------------------------------------------


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> BytesIO:
    source = BytesIO(data)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(source))
    return source


def test_a_prompt_is_checked_before_anything_is_fetched(
    run: Callable[[str], Run], asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run("generate")("")
    assert code == 2
    assert "TEXT is empty: give at least one byte" in text
    stdin(monkeypatch, b"")
    assert "stdin is empty" in run("generate")("-")[1]
    source = stdin(monkeypatch, bytes(3 * MAX_TEXT))
    code, text = run("generate")("-", "--bytes", "6")
    assert code == 2
    assert f"stdin has more than {MAX_TEXT - 6} bytes" in text
    assert len(text) < 1000
    assert source.tell() < 2 * MAX_TEXT  # no more of it was read than is needed to say so
    assert (asked.fetched, asked.prompts) == (0, [])


def test_the_end_of_a_long_prompt_is_shown(
    run: Callable[[str], Run], asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b"x" * (MAX_TEXT - 10) + b"the end"
    stdin(monkeypatch, long)
    code, text = run("generate")("-", "--bytes", "3")
    assert (code, asked.prompts) == (0, [long])
    assert text == "…" + "x" * (MAX_ECHO - 7) + "the end!!!\n"
    code, text = run("generate")("short", "--bytes", "3")
    assert (code, text) == (0, "short!!!\n")


# --- delta submit --------------------------------------------------------------------------


def test_a_delta_of_nobody_knows_what_is_not_sent(
    chain: LocalChain, run: Callable[[str], Run], tmp_path: Path
) -> None:
    path = tmp_path / "delta.safetensors"
    save_file({"embed.weight": np.full((256, TINY["width"]), 1e-3, np.float32)}, path)
    code, text = run("delta")("submit", str(path))
    assert code == 2
    assert f"{path} does not say which model it starts from" in text
    assert "--base ROOT" in text
    code, text = run("delta")("submit", str(path), "--base", "ab" * 32)
    assert code == 4
    assert "take it over with `blyan delta rebase`" in text
    assert chain.pool.size == 0
