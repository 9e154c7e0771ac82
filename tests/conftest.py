"""Shared by all tests: the same examples in every run, and one thread for torch."""

import os

from hypothesis import settings

# Before anything imports torch: two OpenMP threads spin against each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples are a function of the test alone, so that a failure is the same everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
