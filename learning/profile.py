"""Numeric profiles: under which two machines compute the same bits (docs/spec/training.md).

`environment` must be in a process before torch is imported there; `configure` checks and finishes
the set-up. This module imports torch only when it is asked for a profile.
"""

from __future__ import annotations

import os

from chain.errors import ConfigError

# AVX2 code paths in MKL, ATen and oneDNN even on newer processors: one class takes in most of
# them. STRICT makes MKL's result independent of memory alignment.
_ENVIRONMENT = {
    "MKL_CBWR": "AVX2,STRICT",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def environment() -> dict[str, str]:
    """Variables that a training process is started with."""
    return dict(_ENVIRONMENT)


def configure() -> str:
    """Make this process reproducible and return its profile.

    `native/torch-<version>/<instruction set>/threads-1`. Raises ConfigError if the environment was
    not set before torch was loaded.
    """
    missing = [name for name, value in _ENVIRONMENT.items() if os.environ.get(name) != value]
    if missing:
        raise ConfigError(
            f"training needs {', '.join(missing)} set as learning.profile.environment() gives "
            "them, before torch is imported; start it through node.worker"
        )
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    version = torch.__version__.split("+")[0]
    isa = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    return f"native/torch-{version}/{isa}/threads-1"
