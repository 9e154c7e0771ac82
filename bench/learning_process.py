"""A program of `bench` in a process of its own, in the environment of numeric profiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from learning.profile import environment

_ROOT = Path(__file__).resolve().parent.parent


def told(module: str, *arguments: str) -> str:
    """What `python -m module` prints."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
