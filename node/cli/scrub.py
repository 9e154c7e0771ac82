"""`blyan tile scrub`: damage on disk, found and mended."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from chain.errors import ConfigError, UnreachableError
from node.cli.output import emit
from node.cli.progress import CountProgress
from node.cli.session import Command, Session, pass_session
from node.client import Client, Json

EXIT_DAMAGED = 65
POLL_S = 0.2
QUIET_S = 30.0  # a node that neither scrubs nor has a new report after this never began


@click.command(cls=Command)
@pass_session
def scrub(session: Session) -> int:
    """Find damaged and missing tiles on disk, and mend them.

    Every tile is read once, by the home's running node, which fetches what it cannot make again.
    Without one it is done here: what only peers have is fetched at the node's next start. Imported
    models are read as well, but nobody else has them. Exit code 65 if damage is left.

    \b
    Examples:
      blyan tile scrub
      blyan tile scrub --home DIR --json
    """
    home = session.home
    remote = bool(session.node_url or os.environ.get("BLYAN_NODE"))
    if not remote and not home.path.is_dir():
        raise ConfigError(f"{home.path} is missing: `blyan-node init --home {home.path}` makes it")
    bar = CountProgress("scrubbing", "tiles")
    reports: list[Json] = []
    try:
        if remote or home.owner() is not None:
            reports.append(session.ask(lambda client: _by_node(client, bar)))
        elif home.initialized and home.chain_db.exists():
            from node.offline import scrub_home

            reports.append(scrub_home(home, session.config, bar))
        if not remote:
            from node.scrub_models import scrub_models

            found = scrub_models(home, bar)
            reports += [report.to_json(specs) for report, specs in found]
    finally:
        bar.close()
    clean = all(report["clean"] for report in reports)
    emit(session, {"clean": clean, "stores": reports}, _human)
    return 0 if clean else EXIT_DAMAGED


async def _by_node(client: Client, bar: CountProgress) -> Json:
    """Have the node scrub, and wait for its report."""
    before = (await client.scrub())["last"]
    await client.start_scrub()
    waited = 0.0
    while True:
        info = await client.scrub()
        if info["last"] != before and info["last"] is not None and not info["running"]:
            last: Json = info["last"]
            return last
        waited = 0.0 if info["running"] else waited + POLL_S
        if waited > QUIET_S:
            raise UnreachableError("the node does not scrub; its log says why")
        bar(info["done_tiles"], info["total_tiles"])
        await asyncio.sleep(POLL_S)


def _human(found: Any) -> str:
    lines = []
    for report in found["stores"]:
        seconds = (report["ended_ms"] - report["started_ms"]) / 1000
        lines.append(f"{report['store']}: {report['tiles']} tiles read in {seconds:.1f} s")
        if report["error"]:
            lines.append(f"  {click.style('error', fg='red')}: {report['error']}")
        for repair in report["repairs"]:
            where = f"tile {repair['tile']}"
            what = "missing"
            if repair["subtile"] is not None:
                where += f", subtile {repair['subtile']}"
                what = "damaged"
            line = f"  shard {repair['shard']} {repair['name']} at {repair['root'][:16]}, {where}: "
            detail = f" ({repair['detail']})" if repair["detail"] else ""
            lines.append(f"{line}{what}, {repair['action']}{detail}")
        more = report["damaged"] - len(report["repairs"])
        if more:
            lines.append(f"  and {more} more")
    if not lines:
        return "nothing is stored here yet"
    lines.append("everything is whole" if found["clean"] else "damage is left")
    return "\n".join(lines)
