"""docs/cli.md, made from the programs themselves: `python -m node.cli.reference > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from node.cli import blyan, node
from node.cli.session import Group

_HEAD = """# Commands

Made by `python -m node.cli.reference`; a test compares this page with the programs.

Every command takes `--home DIR`, `--node URL`, `--json` and `--help`, before or after
subcommands. Data goes to stdout, progress and errors to stderr; `NO_COLOR` switches colour off.

Settings come from the flag, else the environment (`BLYAN_` and the key in capitals, such as
`BLYAN_API_PORT`; `BLYAN_HOME`, `BLYAN_NODE`), else `config.toml` of the home, else a default.
Passphrases come from the file that `BLYAN_PASSPHRASE_FILE` names, from `keystore/passphrase`, or
the terminal.

| exit code | meaning |
|---|---|
| 0 | ok |
| 1 | failed |
| 2 | usage: a wrong argument, file or configuration |
| 3 | unreachable: no node answers |
| 4 | rejected: a rule of the network refused it |
| 5 | timeout |
| 65 | corrupt data |
| 77 | locked: another process owns the home |
| 130 | interrupted |
"""
_WIDTH = 96  # columns
_COMMON = ("--home", "--node", "--json", "--help")


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, program in (("blyan-node", node.program), ("blyan", blyan.program)):
        for path, command in _walk(name, program):
            parts.append(_section(path, command))
    return "\n".join(parts)


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if (found := command.get_command(context, name)) is not None:
                yield from _walk(f"{path} {name}", found)


def _section(path: str, command: click.Command) -> str:
    """What --help says, without the options that every command has."""
    context = click.Context(command, info_name=path)
    formatter = click.HelpFormatter(width=_WIDTH)
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    options = [
        record
        for parameter in command.get_params(context)
        if parameter.opts[0] not in _COMMON
        and (record := parameter.get_help_record(context)) is not None
    ]
    if options:
        with formatter.section("Options"):
            formatter.write_dl(options)
    if isinstance(command, Group):
        command.format_commands(context, formatter)
    level = "##" if " " not in path else "###"
    return f"{level} {path}\n\n```text\n{formatter.getvalue().strip()}\n```\n"


def main() -> None:
    sys.stdout.write(reference())


if __name__ == "__main__":
    main()
