"""Numeric profiles: under which two machines compute the same bits
(docs/spec/numeric-profiles.md).

`environment` must be in a process before torch is imported there; `configure` checks and finishes
the set-up. This module imports torch only when it is asked to. What a process computes in fact is
found out by learning/conformance.py.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal, get_args

from chain.errors import ConfigError, InputError

if TYPE_CHECKING:
    import torch

Kind = Literal["native", "exact", "bf16"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_NAME_MOST = 40  # letters of a GPU's name in its class
EXACT = "exact/1"  # as a manifest names it: the number is that of the arithmetic

# AVX2 code paths in MKL, ATen and oneDNN even on newer processors: one class takes in most of
# them. STRICT makes MKL's result independent of memory alignment.
_ENVIRONMENT = {
    "MKL_CBWR": "AVX2,STRICT",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS adds in an order of its own
}


def environment() -> dict[str, str]:
    """Variables that a training process is started with."""
    return dict(_ENVIRONMENT)


def kind_of(profile: str) -> Kind:
    """Which arithmetic a manifest's profile is of. Raises InputError if this version has none."""
    if profile == EXACT:
        return "exact"
    if profile.startswith("native/"):
        return "native"
    if profile.startswith("bf16/"):
        return "bf16"
    raise InputError(
        f"the numeric profile {profile!r} is unknown here: expected {EXACT}, native/<class> or "
        "bf16/<class>; a newer version may know it"
    )


def configure() -> None:
    """Make this process reproducible. Raises ConfigError if the environment was not set before
    torch was loaded."""
    missing = [name for name, value in _ENVIRONMENT.items() if os.environ.get(name) != value]
    if missing:
        raise ConfigError(
            f"training needs {', '.join(missing)} set as learning.profile.environment() gives "
            "them, before torch is imported; start it through node.worker"
        )
    import torch

    torch.set_num_threads(1)
    make_deterministic()


def make_deterministic() -> None:
    """The part of `configure` that concerns torch alone."""
    import torch
    import torch.utils.deterministic as deterministic

    # as use_deterministic_algorithms(True), which would load torch's compiler as well: a second
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs 8 %
    torch.set_flush_denormal(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = False


def native_class() -> str:
    """`native/torch-<version>/<instruction set>/threads-<n>`: what is known without computing."""
    return f"native/{_torch()}/{_processor()}"


def bf16_class(device: torch.device) -> str:
    """`bf16/torch-<version>/`, then `<instruction set>/threads-<n>`, or for a GPU
    `cuda-<version>/<name>-sm<compute capability>`."""
    if device.type == "cpu":
        return f"bf16/{_torch()}/{_processor()}"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"bf16/{_torch()}/cuda-{torch.version.cuda}/{name[:_NAME_MOST]}-sm{major}{minor}"


def _torch() -> str:
    import torch

    return f"torch-{torch.__version__.split('+')[0]}"


def _processor() -> str:
    import torch

    isa = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    return f"{isa}/threads-{torch.get_num_threads()}"
