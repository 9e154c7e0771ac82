"""The two programs: `blyan-node` (operator) and `blyan` (contributor and reader)."""

from __future__ import annotations

import os

# Before numpy is imported anywhere: BLAS threads of several nodes spin against each other, and
# what a node computes with numpy is short.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
