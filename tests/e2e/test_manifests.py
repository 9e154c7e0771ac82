"""Two of the manifests in the suite; `python -m tests.e2e.runner` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import manifest as manifests
from tests.e2e.runner import run

SEED = 1


@pytest.mark.parametrize("name", ["partition", "storm"])
def test_what_was_final_is_there_whatever_happened(name: str, tmp_path: Path) -> None:
    result = run(manifests.load(name), SEED, tmp_path, print)
    print("\n".join(result.lines()))
    assert result.ok, "\n".join(result.lines())
