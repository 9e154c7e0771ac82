"""Both programs without a network: exit codes, messages, amounts, tables, the reference page."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from chain.errors import DecodeError, InputError, InvariantError, LockedError
from node.cli import blyan, node
from node.cli.output import bly, listing, table
from node.cli.reference import reference
from node.cli.session import Command, Group, Session, pass_session, run_program
from node.cli.wallet import parse_bly
from node.founding import template
from tests.e2e.fleet import free_ports

ROOT = Path(__file__).parent.parent.parent
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLYAN_HOME", "BLYAN_NODE", "BLYAN_DEBUG", "BLYAN_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


def run(*arguments: str) -> int:
    return run_program(blyan.program, "blyan", list(arguments))


def run_node(*arguments: str) -> int:
    return run_program(node.program, "blyan-node", list(arguments))


def test_a_node_is_made_and_examined(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Not 8645: the doctor would find it taken by a node that its developer runs.
    ports = free_ports(3, random.Random(home))
    named = ["--model", "tiny", "--generate-passphrase"]
    for kind in ("api", "p2p", "link"):
        named += [f"--{kind}-port", str(next(ports))]
    assert run_node("init", "--home", home, *named, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["home"] == home
    genesis = json.loads((Path(home) / "genesis.json").read_text())
    assert genesis["model"] == template("tiny")["model"] != template()["model"]
    assert len(made["mnemonic"].split()) == 24
    assert run_node("--json", "doctor", "--home", home) == 0
    findings = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in findings if not f["ok"]] == []
    assert run("wallet", "show", "--home", home, "--json") == 0
    assert json.loads(capsys.readouterr().out)["address"] == made["account"]
    assert run("wallet", "show", "--home", home, "--mnemonic", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["mnemonic"] == made["mnemonic"]
    assert run_node("init", "--home", home, "--generate-passphrase") == 2
    assert "holds a node already" in capsys.readouterr().err


def test_a_sick_home_is_told(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_node("doctor", "--home", home) == 1
    shown = capsys.readouterr().out
    assert "FAIL home" in shown
    assert "blyan-node init" in shown


def test_nobody_answers(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_node("status", "--home", home, "--node", NOBODY) == 3
    assert "error: no answer from http://127.0.0.1:9" in capsys.readouterr().err
    assert run("query", "blocks", "--node", NOBODY, "--home", home, "--json") == 3
    captured = capsys.readouterr()
    assert json.loads(captured.err)["error"]["code"] == "unreachable"
    assert captured.out == ""
    assert run_node("stop", "--home", home) == 3


def test_a_node_without_a_home_does_not_start(
    home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_node("start", "--home", home) == 2
    assert "genesis.json is missing" in capsys.readouterr().err


def test_a_corrupt_configuration_is_told(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(home).mkdir()
    Path(home, "config.toml").write_text("api_port = [")
    for arguments in (("start",), ("status",), ("init",)):
        assert run_node(*arguments, "--home", home) == 2
        assert "config.toml is not TOML" in capsys.readouterr().err


def test_a_node_refuses_a_bad_genesis(
    home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"network": 1.5}')
    arguments = ("init", "--home", home, "--genesis", str(bad), "--generate-passphrase")
    assert run_node(*arguments) == 65
    assert "integers only" in capsys.readouterr().err


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("wallet", "sned") == 2
    assert "No such command 'sned'" in capsys.readouterr().err
    assert run("query", "tx", "abc", "--node", NOBODY) == 2
    assert "expected 64 hexadecimal digits" in capsys.readouterr().err
    assert run_node("devnet", "--nodes", "0") == 2
    assert run_node("init", "--genesis", "genesis.json", "--model", "tiny") == 2
    assert "--model is for a new network" in capsys.readouterr().err


def test_keys_by_hand(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("wallet", "new", "alice", "--home", home) == 2  # no terminal, no passphrase
    secret = tmp_path / "secret"
    secret.write_text("short")
    monkeypatch.setenv("BLYAN_PASSPHRASE_FILE", str(secret))
    assert run("wallet", "new", "alice", "--home", home) == 2
    secret.write_text("long enough")
    assert run("wallet", "new", "alice", "--home", home) == 0
    assert run("wallet", "new", "alice", "--home", home) == 2
    assert run("wallet", "show", "alice", "--home", home) == 0
    assert run("wallet", "show", "alice", "--mnemonic", "--home", home) == 2  # needs --yes
    secret.write_text("another one")
    assert run("wallet", "show", "alice", "--home", home) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (LockedError("x"), 77),
        (DecodeError("x"), 65),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (InvariantError("x"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command(cls=Command)
    def fails() -> None:
        raise error

    assert run_program(fails, "fails", []) == code
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == isinstance(error, InvariantError)


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(cls=Command)
    def fails() -> None:
        raise InputError("x")

    monkeypatch.setenv("BLYAN_DEBUG", "1")
    with pytest.raises(InputError):
        run_program(fails, "fails", [])


def test_common_options_stand_anywhere_and_the_last_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, str, bool]] = []

    @click.group(cls=Group)
    def program() -> None: ...

    @program.command()
    @pass_session
    def show(session: Session) -> None:
        seen.append((session.home.path.name, session.url, session.json))

    run_program(program, "p", ["--home", "a", "--json", "show"])
    run_program(program, "p", ["--home", "a", "show", "--home", "b", "--node", "http://n:1/"])
    monkeypatch.setenv("BLYAN_HOME", "c")
    monkeypatch.setenv("BLYAN_NODE", "http://m:2")
    run_program(program, "p", ["show"])
    assert seen == [
        ("a", "http://127.0.0.1:8645", True),
        ("b", "http://n:1", False),
        ("c", "http://m:2", False),
    ]


@pytest.mark.parametrize(
    ("text", "grains"),
    [("1", 10**8), ("0.00000001", 1), ("12.50", 1_250_000_000), ("1e3", 10**11)],
)
def test_amounts_are_exact(text: str, grains: int) -> None:
    assert parse_bly(text) == grains


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "nan", "inf", "0.000000001", "99999999999999", "1,5"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(InputError):
        parse_bly(text)


@pytest.mark.parametrize(
    ("grains", "text"),
    [(0, "0"), (1, "0.00000001"), (10**8, "1"), (123_456_000_000, "1,234.56"), (-1, "-0.00000001")],
)
def test_amounts_are_shown_short(grains: int, text: str) -> None:
    assert bly(grains) == text


def test_tables_line_up() -> None:
    shown = click.unstyle(table([("a", 1), ("long", 200)], ("name", "n")))
    assert shown.splitlines() == ["name    n", "a       1", "long  200"]
    assert table([], ("name",)) == "none"


def test_listings_indent() -> None:
    assert listing({"a": 1, "deep": {"b": None}, "list": ["x"]}).splitlines() == [
        "a     1",
        "deep",
        "  b  -",
        "list",
        "  x",
    ]


@pytest.mark.parametrize("program", [run, run_node])
def test_help_begins_with_examples(
    program: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--help") == 0
    shown = capsys.readouterr().out
    assert shown.index("Examples:") < shown.index("Options:")
    assert program() == 2  # as git does: help, and a code that a script notices


def test_the_reference_page_is_what_the_programs_say() -> None:
    """If not: python -m node.cli.reference > docs/cli.md"""
    assert (ROOT / "docs/cli.md").read_text() == reference()
