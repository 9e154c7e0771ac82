"""`blyan model` as a stranger uses it: programs, messages, exit codes, memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.blyan import program
from node.cli.session import run_program
from tests.kit.checkpoint import checkpoint, entries, moe, parts, raw_file, size_of
from tests.kit.programs import call, environment, parsed

MAX_MEMORY_MB = 120  # an import of 2 GiB takes 64, an export 80; 200 is promised for any size
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-mixtral.safetensors"
    path.write_bytes(checkpoint(moe(2, 2, 64), metadata={"format": "pt"}))
    return path


def test_a_file_in_and_out(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    listed = call("blyan", "model", "list", "--home", home)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "no models in" in listed.stdout
    assert not home.exists()  # who only looks changes nothing

    made = call("blyan", "model", "import", source, "--home", home)
    assert made.returncode == 0
    assert re.match(r"read .* in [\d.]+ s, .*/s\n$", made.stderr)  # and no bar: no terminal
    assert "imported tiny-mixtral: 1 file" in made.stdout
    assert "7 shards, 4 of them experts" in made.stdout
    assert "blyan model export --model tiny-mixtral tiny-mixtral.safetensors" in made.stdout
    assert sorted(p.name for p in home.iterdir()) == ["models"]

    again = call("blyan", "model", "import", source, "--home", home)
    assert again.returncode == 2
    assert "there is a model 'tiny-mixtral'" in again.stderr
    rows = parsed(call("blyan", "model", "list", "--home", home, "--json"))
    assert [(r["name"], r["experts"], r["tensors"]) for r in rows] == [("tiny-mixtral", 4, 25)]
    assert rows[0]["files"][0]["bytes"] == source.stat().st_size

    out = tmp_path / "out.safetensors"
    wrote = call("blyan", "model", "export", out, "--home", home)
    assert wrote.returncode == 0
    assert wrote.stderr.startswith("exporting tiny-mixtral, imported 20")
    assert out.read_bytes() == source.read_bytes()

    asked = call("blyan", "model", "remove", "tiny-mixtral", "--home", home)
    assert asked.returncode == 2
    assert "add --yes" in asked.stderr
    gone = parsed(
        call("blyan", "model", "remove", "tiny-mixtral", "--yes", "--home", home, "--json")
    )
    assert gone == {"name": "tiny-mixtral", "bytes": source.stat().st_size}
    assert parsed(call("blyan", "model", "list", "--home", home, "--json")) == []


def test_a_sharded_checkpoint_in_and_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    files, index = parts(tmp_path / "mix", moe(2, 2, 16), 3)
    made = parsed(call("blyan", "model", "import", index, "--home", home, "--json"))
    assert made["index"]["name"] == index.name
    answer = parsed(call("blyan", "model", "export", tmp_path / "out", "--home", home, "--json"))
    assert answer["model"] == "mix"
    for path in [*files, index]:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    files[1].unlink()
    missing = call("blyan", "model", "import", index, "--home", home, "--name", "x", "--json")
    assert missing.returncode == 2
    told = json.loads(missing.stderr)["error"]
    assert told["code"] == "bad_input"
    assert told["message"].endswith("names model-00002-of-00003.safetensors")


def test_errors_have_their_codes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = run_program(program, "blyan", ["model", *map(str, arguments), "--home", str(home)])
        return code, capsys.readouterr().err

    assert run("import", source)[0] == 0
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(source.read_bytes()[:-1])
    for arguments, code, told in (
        (("import", bad), 65, "bad.safetensors: the end is missing"),
        (("import", source, "--name", "chain"), 2, "the chain's own model"),
        (("import", tmp_path / "no.safetensors"), 2, "does not exist"),
        (("import",), 2, "Missing argument 'FILE...'"),
        (("export", "x", "--model", "y"), 2, "no model 'y' in"),
        (("export", "x", "--model", "tiny-mixtral", "--height", "3"), 2, "--height is for the"),
        (("export", "x", "--height", "3", "--node", NOBODY), 3, "no answer from"),
        (("export", "x", "--node", NOBODY), 3, "no answer from"),
        (("export", "x", "--model", "chain", "--node", NOBODY), 3, "no answer from"),
        (("export", tmp_path), 2, "is a directory; name the file to write"),
        (("remove", "y", "--yes"), 2, "no model 'y' in"),
    ):
        found, said = run(*arguments)
        assert found == code, said
        assert told in said
    shard = next((home / "models" / "tiny-mixtral" / "tiles").glob("*/*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    found, said = run("export", tmp_path / "x")
    assert found == 65
    assert "tile 0, subtile 0, is damaged on disk" in said
    assert not (tmp_path / "x").exists()
    (home / "models" / "tiny-mixtral" / "model.json").write_text("{}")
    found, said = run("list")
    assert found == 0
    assert "model.json is damaged" in said
    assert run("remove", "tiny-mixtral", "--yes")[0] == 0


def test_memory_does_not_follow_the_size(tmp_path: Path) -> None:
    """The largest resident size of import and export of 217 MB; the source is a hole."""
    tensors = moe(2, 8, 1024)
    header = raw_file(entries(tensors), b"")
    source = tmp_path / "large.safetensors"
    with source.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(size_of(dtype, shape) for _, dtype, shape in tensors))
    assert source.stat().st_size > 200_000_000
    home, out = tmp_path / "home", tmp_path / "out.safetensors"
    for arguments in (("import", source), ("export", out)):
        assert _peak_mb("model", *map(str, arguments), "--home", str(home)) < MAX_MEMORY_MB
    assert out.stat().st_size == source.stat().st_size


# Its own peak: what the system reports of a child counts the process that it was forked from.
_PEAK = """
import sys
from node.cli.blyan import program
from node.cli.session import run_program
code = run_program(program, "blyan")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
sys.exit(code or print(status["VmHWM"].split()[0], file=sys.stderr))
"""


def _peak_mb(*arguments: str) -> float:
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _PEAK, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stderr.split()[-1]) / 1024


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys, node.cli.model as loaded; "
        "print([m for m in ('torch', 'libp2p', 'httpx') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
