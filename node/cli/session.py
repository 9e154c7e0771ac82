"""What every command of both programs shares: --home, --node, --json, and how a program ends.

Options stand before or after a subcommand alike; the one nearest to the end of the line wins.
Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 rejected, 5 timeout,
65 corrupt data, 77 locked, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chain.errors import BlyanError, UnreachableError
from node.config import Config, load_config, load_genesis
from node.home import Home, check_passphrase, unlock
from wallet.keys import Keys

if TYPE_CHECKING:  # the client brings httpx, a quarter of a second that --help need not wait
    from node.client import Client

DEFAULT_HOME = "~/.blyan/local"
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

T = TypeVar("T")


@dataclass(slots=True)
class Session:
    """The common options of one call."""

    home_path: str | None = None
    node_url: str | None = None
    json: bool = False

    @property
    def home(self) -> Home:
        return Home(Path(self.home_path or os.environ.get("BLYAN_HOME") or DEFAULT_HOME))

    @property
    def config(self) -> Config:
        return load_config(self.home)

    @property
    def url(self) -> str:
        """The API to ask: --node, BLYAN_NODE, or the one of the home's configuration."""
        url = self.node_url or os.environ.get("BLYAN_NODE") or self.config.api_url
        return url.rstrip("/")

    def ask(self, conversation: Callable[[Client], Awaitable[T]]) -> T:
        """Talk with the node, with the home's API token if there is one."""
        return asyncio.run(self._converse(conversation))

    def read(self, conversation: Callable[[Client], Awaitable[T]]) -> T:
        """As `ask`, for what only reads: a home whose node is stopped answers from its disk, and
        a node that is somebody else's is not told the home's token."""
        if self.node_url or os.environ.get("BLYAN_NODE"):
            is_own = self.url == self.config.api_url.rstrip("/")
            return asyncio.run(self._converse(conversation, with_token=is_own))
        if not self.home.is_at_rest():
            return self.ask(conversation)
        from node.offline import offline_client  # half a second that a running node's need not wait

        async def converse() -> T:
            with offline_client(self.home, self.config) as client:
                async with client:
                    return await conversation(client)

        click.echo("no node runs on this home: answering from its disk", err=True)
        return asyncio.run(converse())

    async def _converse(
        self, conversation: Callable[[Client], Awaitable[T]], *, with_token: bool = True
    ) -> T:
        from node.client import Client

        home = self.home
        token = home.token() if with_token and home.token_file.exists() else None
        async with Client(self.url, token) as client:
            if home.initialized and not (self.node_url or os.environ.get("BLYAN_NODE")):
                await self._check_network(client)
            return await conversation(client)

    async def _check_network(self, client: Client) -> None:
        """Another network's node may have taken the port that this home's node had."""
        found = (await client.genesis()).chain_id
        if found != load_genesis(self.home).chain_id:
            raise UnreachableError(
                f"{self.url} answers for another network ({found.hex()[:16]}); start this home's "
                "node, or name one with --node"
            )

    def keys(self, name: str | None = None) -> Keys:
        """The keys that sign: `name`, else the one that the home's configuration names."""
        return unlock(self.home, name or self.config.account, ask_passphrase)


def ask_passphrase(purpose: str) -> str:
    """Ask on the terminal, without echo. UsageError if there is none."""
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{purpose} needs a passphrase and this is no terminal: write it to a file and set "
            "BLYAN_PASSPHRASE_FILE"
        )
    answer: str = click.prompt(f"Passphrase for {purpose}", hide_input=True, err=True)
    return answer


def ask_new_passphrase(purpose: str) -> str:
    answer = check_passphrase(ask_passphrase(purpose))
    if answer != ask_passphrase(f"{purpose}, once more"):
        raise click.UsageError("the two passphrases differ; nothing was written")
    return answer


pass_session = click.make_pass_decorator(Session, ensure=True)


def _stores(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Session), name, value)

    return store


def _common_options() -> list[click.Option]:
    def option(flag: str, field: str, help: str, **extra: Any) -> click.Option:
        return click.Option([flag], expose_value=False, callback=_stores(field), help=help, **extra)

    home = f"Home directory. [default: $BLYAN_HOME, else {DEFAULT_HOME}]"
    node = "A node's API. [default: $BLYAN_NODE, else the home's own node]"
    return [
        option("--home", "home_path", home, metavar="DIR"),
        option("--node", "node_url", node, metavar="URL"),
        option("--json", "json", "Print JSON on stdout, for programs.", is_flag=True),
    ]


class Command(click.Command):
    """A command with the common options, its help beginning with examples."""

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params.extend(_common_options())


class Group(click.Group):
    """A group with the common options. `lazy` maps a name to (module:attribute, short help)."""

    command_class = Command
    group_class = type

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, **extra: Any
    ) -> None:
        super().__init__(*args, **extra)
        self.params.extend(_common_options())
        self._lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *self._lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            return command if isinstance(command, click.Command) else None
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, without importing what is lazy: --help stays quick."""
        eager = [(n, super(Group, self).get_command(ctx, n)) for n in super().list_commands(ctx)]
        rows = [(name, found.get_short_help_str(60)) for name, found in eager if found]
        rows += [(name, help) for name, (_, help) in self._lazy.items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def run_program(program: click.Command, name: str, arguments: list[str] | None = None) -> int:
    """Run a program and give its exit code. A user sees errors as one sentence, no traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = program.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get("BLYAN_DEBUG"):
            raise
        return _fail(error, as_json="--json" in arguments)


def _fail(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong on stderr: one line of JSON for programs, one sentence for people."""
    code, message, exit_code = "internal", str(error), EXIT_FAILED
    if isinstance(error, BlyanError):
        code, exit_code = error.code, error.exit_code
    else:
        # Not the user's doing, so who mends it needs to know where.
        traceback.print_exception(error)
        message = f"this is a bug, please report it: {type(error).__name__}: {message}"
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message}}), err=True)
    else:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    return exit_code
