"""How values look on a page: hashes shortened in the middle, amounts, sizes, times, phases."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from chain.errors import InputError
from chain.types import GRAINS_PER_BLY
from node.query.network import bly
from tiles.codings import LOW_RANK, SPARSE, codec_of, rank_of

HUES = 12  # colours of the dots beside accounts; static/style.css has them
HEAD, TAIL = 8, 6  # characters kept of a hash

PHASE_TITLES: dict[str, str] = {
    "open": "Open",
    "seed": "Seed",
    "train": "Train",
    "reveal": "Reveal",
    "jury": "Jury",
    "screen_commit": "Judge",
    "screen_reveal": "Verdict",
    "aggregate": "Merge",
    "settle": "Settle",
    "done": "Done",
}
PHASE_TEXTS: dict[str, str] = {
    "open": "Learners declare that they take part. The round starts with the first of them.",
    "seed": "The seed that assigns everyone's training data is drawn from the blocks that follow.",
    "train": "Learners train on the data assigned to them and commit to their deltas.",
    "reveal": "Commitments are opened, so that everyone can fetch and read the deltas.",
    "jury": "Jurors and auditors are drawn, now that what they judge cannot change any more.",
    "screen_commit": "Jurors evaluate each delta on hidden text and commit to what they found; "
    "auditors replay a segment of the training.",
    "screen_reveal": "Jurors open their verdicts.",
    "aggregate": "Each tile's primary merges the accepted deltas; the others recompute and attest.",
    "settle": "The new model's loss on held-out text is measured. If it is significantly worse, "
    "the round is rolled back.",
    "done": "The round is over and its rewards are paid.",
}
STATUS_TONES: dict[str, str] = {
    **dict.fromkeys(("merged", "accepted", "active", "approved", "final", "ok", "yes"), "good"),
    **dict.fromkeys(
        ("harmful", "unhelpful", "mismatch", "copy", "rejected", "dropped", "failed", "no"), "bad"
    ),
    **dict.fromkeys(("unavailable", "pending", "missed", "disputed"), "warn"),
    **dict.fromkeys(("revealed", "committed", "open", "passed"), "info"),
    **dict.fromkeys(("shown", "closed"), "good"),
    **dict.fromkeys(("convicted", "wrong", "not_shown", "rolled_back"), "bad"),
}
EVENT_TITLES: dict[str, str] = {
    "dataset_submit": "dataset",
    "audit_report": "audit",
    "delta_commit": "commit",
    "delta_reveal": "reveal",
    "podl_manifest": "manifest",
    "pol_vote": "verdict",
    "tile_update": "tile update",
    "join_round": "join",
}

# What a number in a payload means: by kind of transaction, or in any of them.
MEANINGS: dict[tuple[str, str], dict[int, str]] = {
    ("attest", "kind"): {
        1: "recomputed an update",
        2: "replayed a segment",
        3: "holds a blob",
        4: "measured the loss",
    },
    ("pol_vote", "phase"): {1: "commit", 2: "reveal"},
    ("", "verdict"): {0: "no", 1: "yes", 2: "unavailable", 3: "copy"},
    ("", "proven"): {0: "no: trained elsewhere", 1: "yes: can be replayed"},
}


def short(text: str, head: int = HEAD, tail: int = TAIL) -> str:
    """A hash or address with its middle left out."""
    return text if len(text) <= head + tail + 1 else f"{text[:head]}…{text[-tail:]}"


def hues(address: str) -> tuple[int, int]:
    """Two colours that an account always has; 132 pairs tell most accounts of a page apart."""
    lot = int.from_bytes(hashlib.sha256(address.encode()).digest()[:4], "big")
    first, second = lot % HUES, lot // HUES % (HUES - 1)
    return first, second + (second >= first)


def thousands(value: int) -> str:
    return f"{value:,}"


def density(number: int) -> str:
    """Of a manifest: what of the delta was sent, or in which other coding."""
    try:
        codec = codec_of(number)
    except InputError:
        return "unknown"  # nothing on chain holds a manifest to it
    if codec == LOW_RANK:
        return f"{codec}, rank {rank_of(number)}"
    return f"{thousands(number)} of 4,096 entries kept" if codec == SPARSE else codec


def size(count: int) -> str:
    """Bytes in binary units with three digits at most: `1.21 MiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{count} B"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def nats(value: float | None, digits: int = 4) -> str:
    """A loss in nats per byte."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign (a real minus)."""
    if value is None:
        return "–"
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{abs(value):.{digits}f}"


def duration(ms: int) -> str:
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def absolute(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(ms: int) -> str:
    """As static/app.js says it."""
    seconds = max(0, round(time.time() - ms / 1000))
    if seconds < 2:
        return "just now"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def words(name: str) -> str:
    return name.replace("_", " ")


def kind(name: str) -> str:
    """A transaction's kind in a word or two."""
    return EVENT_TITLES.get(name, words(name))


def meaning(value: Any, kind_: str, name: str) -> Any:
    """A payload's number in words, where it stands for something."""
    known = MEANINGS.get((kind_, name)) or MEANINGS.get(("", name), {})
    return known.get(value, value) if isinstance(value, int) else value


def bly2(grains: int) -> str:
    """Grains as BLY, cut to two decimals."""
    whole, rest = divmod(grains, GRAINS_PER_BLY)
    return f"{whole:,}" + (f".{rest * 100 // GRAINS_PER_BLY:02d}" if rest else "")


def percent(permille: int) -> str:
    return f"{permille / 10:.1f} %"


def is_zero(text: str) -> bool:
    """Whether a hash is all zeros: not drawn or not known yet."""
    return not text.strip("0")


FILTERS: dict[str, Callable[..., Any]] = {
    "short": short,
    "hues": hues,
    "thousands": thousands,
    "density": density,
    "size": size,
    "bly": bly,
    "bly2": bly2,
    "meaning": meaning,
    "nats": nats,
    "signed": signed,
    "duration": duration,
    "iso": iso,
    "absolute": absolute,
    "ago": ago,
    "words": words,
    "kind": kind,
    "percent": percent,
    "is_zero": is_zero,
    "tone": lambda status: STATUS_TONES.get(status, ""),
    "phase_title": lambda name: PHASE_TITLES[name],
    "phase_text": lambda name: PHASE_TEXTS[name],
}
