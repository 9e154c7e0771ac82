"""Shared by all tests: the same examples in every run, and one thread for torch."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch: two OpenMP threads spin against each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples are a function of the test alone, so that a failure is the same everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# What starts programs of its own fills both cores alone: in parallel runs these tests take turns.
_ONE_BY_ONE = ("tests/e2e", "tests/browser", "tests/attacks/test_hostile_peer.py", "tests/sim")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.path).relative_to(config.rootpath).as_posix()
        if path.startswith(_ONE_BY_ONE):
            item.add_marker(pytest.mark.xdist_group("programs"))
