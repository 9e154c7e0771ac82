"""docs/spec/prices.md against chain/costs.py."""

import re

from chain.codec import tag_of
from chain.costs import COSTS, STAMP_SHARE, UNIT_BYTES, UNIT_US, UNREADABLE
from tests.reference.codec_ref import ROOT

PAGE = (ROOT / "docs/spec/prices.md").read_text()


def test_every_cost_stands_in_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| \w+ \| (\d+) \| (\d+) \| (\w+) \|", PAGE, re.MULTILINE)
    written = {int(tag): (int(us), int(kib), kind) for tag, us, kib, kind in rows}
    assert written == {
        tag_of(cls): (cost.us, cost.us_per_kib, cost.kind.name.lower())
        for cls, cost in COSTS.items()
    }
    assert f"| {UNREADABLE.us} | {UNREADABLE.us_per_kib} |" in PAGE


def test_units_and_share_are_those_of_the_program() -> None:
    assert f"`us / {UNIT_US}` and `bytes / {UNIT_BYTES}`" in PAGE
    assert "a quarter of each" in PAGE
    assert STAMP_SHARE == 4
