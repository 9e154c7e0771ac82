"""Say how far the other validators are, as the round trips of this node's connections tell
(docs/spec/election.md, "Latency")."""

from __future__ import annotations

from chain.latency import CLASS_MS, FARTHEST
from chain.transactions import LatencyReport
from chain.types import Epoch
from node.services.duty_context import DutyContext
from node.services.duty_plan import ReportLatency


def class_of(round_trip_ms: float | None) -> int:
    """The class of a measured round trip; the farthest if there is none."""
    if round_trip_ms is None:
        return FARTHEST
    return sum(round_trip_ms > most for most in CLASS_MS)


async def report(context: DutyContext, duty: ReportLatency) -> None:
    found = context.node.round_trips()
    members = context.state().epoch(duty.epoch).validators.members
    classes = bytes(class_of(found.get(member.node_id)) for member in members)
    await context.send(LatencyReport(Epoch(duty.epoch), classes))
