"""What the process is set to, beside torch's quick settings: compared at every evaluation."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import torch

from bench.errors import GuardTripped
from bench.guards import settings

_TIMERS = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")


def read() -> Mapping[str, Any]:
    """Return the settings of process and back ends by name."""
    return _of_process() | _of_torch()


def _of_process() -> dict[str, Any]:
    found: dict[str, Any] = {
        "the garbage collector": gc.isenabled(),
        "the collector's thresholds": gc.get_threshold(),
        "the trace function": sys.gettrace(),
        "the profile function": sys.getprofile(),
        "the thread switch interval": sys.getswitchinterval(),
    }
    if hasattr(os, "sched_getaffinity"):
        found["the cores of the process"] = sorted(os.sched_getaffinity(0))
    if hasattr(os, "getpriority"):
        found["the niceness of the process"] = os.getpriority(os.PRIO_PROCESS, 0)
    for number in sorted(signal.valid_signals()):
        found[f"the handler of signal {int(number)}"] = signal.getsignal(number)
    for name in _TIMERS:
        if hasattr(signal, name):
            found[f"the timer {name}"] = signal.getitimer(getattr(signal, name)) != (0.0, 0.0)
    return found


def _of_torch() -> dict[str, Any]:
    module, optimizer, backends = torch.nn.modules.module, sys.modules[torch.optim.Optimizer.__module__], torch.backends
    hooks = [vars(owner)[name] for owner in (module, optimizer) for name in vars(owner) if _is_hook_table(owner, name)]
    return {
        "torch's threads between operations": torch.get_num_interop_threads(),
        "torch's default device": torch.get_default_device(),
        "hooks on every module or optimizer": sum(map(len, hooks)),
        "cuDNN's flags": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "TF32 in matrix products": _told(backends.cuda.matmul, "allow_tf32"),
        "TF32 in cuDNN": _told(backends.cudnn, "allow_tf32"),
        "reduced precision in matrix products": (
            backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "the attention back ends": (
            backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
        "oneDNN": backends.mkldnn.enabled,
        "anomaly detection": torch.is_anomaly_enabled(),
    }


def _told(backend: Any, flag: str) -> Any:
    """Return a flag; torch refuses to tell one where somebody set it by its new name and not by this one."""
    try:
        return getattr(backend, flag)
    except RuntimeError:
        return "set in two ways"


def _is_hook_table(owner: Any, name: str) -> bool:
    return name.startswith("_global_") and isinstance(vars(owner)[name], dict)


def check(before: Mapping[str, Any], quick: settings.Settings, who: str) -> None:
    """Raise :class:`~bench.errors.GuardTripped` if process or torch are not set as ``before``."""
    settings.check(quick, who)
    for what, new in read().items():
        if before[what] != new:
            raise GuardTripped(f"{who} changed {what} from {before[what]!r} to {new!r}")
