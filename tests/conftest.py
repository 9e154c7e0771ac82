"""Shared by all tests: the same examples in every run, and one thread for torch."""

import os
from types import ModuleType

import pytest
from hypothesis import settings

# Before anything imports torch: two OpenMP threads spin against each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples are a function of the test alone, so that a failure is the same everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# Where the tests are that start programs, networks and simulations; and what they start them with.
LONG = ("tests/e2e/", "tests/browser/", "tests/attacks/", "tests/property/")
STARTS = (
    *("tests.kit.programs", "tests.kit.victims", "tests.kit.validators", "tests.kit.duty_net"),
    *("tests.kit.placement_net", "tests.kit.nano", "tests.sim", "bench"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that of several processes none is left alone with it at the
    end. (Files are given out in this order; pytest keeps that of the tests within each.)"""
    ranks: dict[str, int] = {}

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        if file not in ranks:
            ranks[file] = _rank(file, getattr(item, "module", None))
        return ranks[file]

    items.sort(key=rank)


def _rank(file: str, module: ModuleType | None) -> int:
    held = vars(module).values() if module is not None else ()
    names = (str(getattr(v, "__module__", getattr(v, "__name__", ""))) for v in held)
    starts = any(name.startswith(STARTS) for name in names)
    place = next((i for i, part in enumerate(LONG) if file.startswith(part)), len(LONG))
    return place if starts or place == 0 else len(LONG) + 1 + place
