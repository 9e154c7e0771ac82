"""/metrics in Prometheus's text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from node.api.events import EventHub
from node.query import Query
from node.query.network import memory_mb
from node.seam import NodeSeam

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BAD = re.compile(r"[^a-zA-Z0-9_]")


def metrics_text(node: NodeSeam, query: Query, hub: EventHub) -> str:
    """Every figure of the node, each with its type: `_total` is a counter, the rest are gauges."""
    status = query.status()
    figures: dict[str, float] = {
        "height": status["height"],
        "epoch": status["epoch"],
        "view": status["view"],
        "round": status["round"],
        "peers": status["peers"],
        "synced": int(status["synced"]),
        "mempool_transactions": node.pool.size,
        "mempool_bytes": node.pool.bytes,
        "memory_mebibytes": memory_mb(),
        "uptime_seconds": status["uptime_s"],
        "model_version": status["model_version"],
        "transactions_total": node.store.tx_total(),
        "event_clients": hub.clients,
        "event_clients_dropped_total": hub.dropped_total,
    }
    if status["loss"] is not None:
        figures["holdout_loss_nats"] = status["loss"]["nats"]
    figures.update(node.metrics())
    return "".join(_lines(figures))


def _lines(figures: dict[str, float]) -> Iterator[str]:
    for name in sorted(figures):
        full = "blyan_" + _BAD.sub("_", name)
        kind = "counter" if full.endswith("_total") else "gauge"
        yield f"# TYPE {full} {kind}\n{full} {figures[name]}\n"
